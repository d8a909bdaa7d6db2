"""Where the published datasets come from: what torchvision fetches, Tiny-ImageNet. Nothing here needs a network."""

import hashlib
import pickle
import re
import shutil
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from utils.data import table
from utils.data.images import decode, list_images
from utils.data.prepare import main
from utils.data.sources import (
    SOURCES,
    YOUR_OWN,
    Folders,
    annotated,
    extract_zip,
    fetch,
    fetch_by_hand,
    in_place,
    link_classes,
)
from utils.data.table import DATASETS, get_dataset
from utils.run.errors import UserError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where the real images of a dataset go, with train_dir, val_dir and Main_Data_Path as config.sh sets them."""
    for variable in ("train_dir", "val_dir", "Main_Data_Path"):
        monkeypatch.setenv(variable, str(tmp_path / variable))

    def of(name):
        return Folders(
            tmp_path / "train_dir" / name, tmp_path / "val_dir" / name, tmp_path / "Main_Data_Path" / "downloads"
        )

    return of


@pytest.fixture
def small(monkeypatch):
    """Make a dataset of the table smaller."""

    def make(name, **changes):
        monkeypatch.setitem(table.DATASETS, name, replace(get_dataset(name), **changes))

    return make


def write_image(path, size=32, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def entries_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_dataset_has_a_source():
    assert SOURCES.keys() == DATASETS.keys()


def test_absent_splits(folders):
    places = folders("cifar10")
    assert places.absent() == ["train", "val"]
    places.train.mkdir(parents=True)
    assert places.absent() == ["train", "val"]
    (places.train / "0").mkdir()
    assert places.absent() == ["val"]


def test_what_is_put_in_place_by_hand(folders):
    places = folders("imagewoof")
    source = in_place("the pictures")
    assert source.lay_out(get_dataset("imagewoof"), places) is None
    said = source.by_hand(get_dataset("imagewoof"), places)
    assert said == "put the pictures there, one folder a class, of the same names in both"
    assert YOUR_OWN.by_hand(get_dataset("imagewoof"), places).startswith("put your images there, one folder a class")
    assert not places.train.exists() and not places.val.exists()


# What torchvision fetches


def fake_cifar(folder, monkeypatch, extracted):
    """An archive of 20 training and 10 test images in the layout of CIFAR-10, with checksums to match."""
    published = torchvision.datasets.CIFAR10
    inner = folder / published.base_folder
    inner.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name, content):
        (inner / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((inner / name).read_bytes()).hexdigest()]

    def batch(images):
        pixels = generator.integers(0, 256, (images, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "labels": [place % 10 for place in range(images)]}

    monkeypatch.setattr(published, "train_list", [write("data_batch_1", batch(20))])
    monkeypatch.setattr(published, "test_list", [write("test_batch", batch(10))])
    name, md5 = write("batches.meta", {"label_names": [f"thing {number}" for number in range(10)]})
    monkeypatch.setattr(published, "meta", {"filename": name, "key": "label_names", "md5": md5})
    if not extracted:
        archive = folder / published.filename
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(inner, published.base_folder)
        monkeypatch.setattr(published, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        for path in inner.iterdir():
            path.unlink()
        inner.rmdir()


@pytest.mark.parametrize("extracted", [True, False])
def test_cifar_is_laid_out_from_the_download_folder(folders, small, monkeypatch, extracted, capsys):
    small("cifar10", train_images=20, val_images=10)
    places = folders("cifar10")
    fake_cifar(places.downloads, monkeypatch, extracted)
    main(["cifar10"])
    assert "complete, 10 classes, 20 images" in capsys.readouterr().out
    data = torchvision.datasets.CIFAR10(places.downloads, train=True)
    image = decode(places.train / "7_thing-7" / "00017.png")
    assert np.array_equal(np.asarray(image), data.data[17])
    shutil.rmtree(places.downloads)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "file:///nowhere")
    main(["cifar10"])  # complete: nothing needs the archive any more


@pytest.mark.parametrize(
    ("name", "archive"), [("cifar10", "cifar-10-python.tar.gz"), ("imagenet-nette", "imagenette2.tgz")]
)
def test_failed_download_says_what_to_do_by_hand(folders, monkeypatch, name, archive, tmp_path):
    nowhere = f"file://{tmp_path}/nowhere/{archive}"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", nowhere)
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", {"full": (nowhere, "00")})
    places = folders(name)
    by_hand = fetch_by_hand(get_dataset(name), places)
    with pytest.raises(UserError, match=rf"{name} could not be fetched .*; {re.escape(by_hand)}$"):
        main([name])
    md5 = "00" if name == "imagenet-nette" else torchvision.datasets.CIFAR10.tgz_md5
    assert by_hand == (
        f"download {nowhere} (md5 {md5}) by hand to {places.downloads}/{archive} and run the same command again"
    )
    assert not places.train.exists()


def test_an_archive_of_other_content_is_not_taken(folders, monkeypatch):
    places = folders("cifar10")
    fake_cifar(places.downloads, monkeypatch, extracted=False)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", "00")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "file:///nowhere")
    with pytest.raises(UserError, match="cifar10 could not be fetched"):
        main(["cifar10"])
    assert not places.train.exists() and not places.val.exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_what_another_download_would_not_mend_is_raised_as_it_is(folders, error):
    def call():
        raise error

    with pytest.raises(OSError) as caught:
        fetch(get_dataset("cifar10"), folders("cifar10"), call)
    assert caught.value is error
    assert fetch(get_dataset("cifar10"), folders("cifar10"), lambda: "data") == "data"


WNIDS_OF_NETTE = sorted(torchvision.datasets.Imagenette._WNID_TO_CLASS)


@pytest.fixture
def nette(folders, small, monkeypatch, tmp_path):
    """The archive of a small imagenette in the download folder, and its places."""
    small("imagenet-nette", train_images=20, val_images=10)
    for split, images in (("train", 2), ("val", 1)):
        for wnid in WNIDS_OF_NETTE:
            for index in range(images):
                write_image(tmp_path / "imagenette2" / split / wnid / f"{index}.JPEG")
    places = folders("imagenet-nette")
    places.downloads.mkdir(parents=True)
    archive = places.downloads / "imagenette2.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "imagenette2", "imagenette2")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    archives = {"full": ("file:///nowhere/imagenette2.tgz", md5)}
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", archives)
    return places


def test_imagenette_is_laid_out_from_its_archive(nette):
    main(["imagenet-nette"])
    assert entries_of(nette.train) == entries_of(nette.val) == WNIDS_OF_NETTE
    assert entries_of(nette.train / WNIDS_OF_NETTE[0]) == ["0.JPEG", "1.JPEG"]
    assert entries_of(nette.val / WNIDS_OF_NETTE[0]) == ["0.JPEG"]
    shutil.rmtree(nette.downloads)
    main(["imagenet-nette"])


def test_an_imagenette_without_its_second_split_is_told_to_be_removed(nette, tmp_path):
    """torchvision takes whatever folder is there, such as what a killed extraction left."""
    shutil.copytree(tmp_path / "imagenette2" / "train", nette.downloads / "imagenette2" / "train")
    with pytest.raises(UserError, match=r"imagenette2/val has 0 class folders, not 10: remove .*imagenette2 and run"):
        main(["imagenet-nette"])
    assert not nette.val.exists()
    shutil.rmtree(nette.downloads / "imagenette2")
    main(["imagenet-nette"])


def test_a_half_extracted_imagenette_is_told_to_be_removed(nette, tmp_path):
    """Else its images are laid out again and again."""
    shutil.copytree(tmp_path / "imagenette2", nette.downloads / "imagenette2")
    shutil.rmtree(nette.downloads / "imagenette2" / "val" / WNIDS_OF_NETTE[-1])
    with pytest.raises(UserError, match=rf"{nette.downloads}/imagenette2(?!\.tgz)"):
        main(["imagenet-nette"])


def test_a_published_split_without_classes_is_refused(tmp_path):
    (tmp_path / "imagenette2" / "val" / ".hidden").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        link_classes(tmp_path / "imagenette2" / "val", tmp_path / "val", get_dataset("imagenet-nette"))
    said = (
        f"{tmp_path}/imagenette2/val has 0 class folders, not 10: remove {tmp_path}/imagenette2 and run "
        "the same command again"
    )
    assert str(error.value) == said
    assert not (tmp_path / "val").exists()


def test_the_classes_of_a_published_split_are_linked(tmp_path):
    write_image(tmp_path / "published" / "n01" / "0.JPEG")
    write_image(tmp_path / "published" / "n02" / "images" / "1.JPEG")
    (tmp_path / "published" / "n02" / "boxes.txt").touch()
    (tmp_path / "published" / "__MACOSX").mkdir()
    (tmp_path / "published" / "notes.txt").touch()
    link_classes(tmp_path / "published", tmp_path / "set", replace(get_dataset("cifar10"), num_classes=2))
    assert entries_of(tmp_path / "set") == ["n01", "n02"]
    assert entries_of(tmp_path / "set" / "n02") == ["1.JPEG"]


# Tiny-ImageNet

WNIDS = [f"n{number:08d}" for number in (1443537, 1629819, 1641577)]


@pytest.fixture
def tiny(small):
    """Write the published folder of a Tiny-ImageNet of 3 classes, with 2 training and 2 validation images each."""
    small("tiny_imagenet", num_classes=3, train_images=6, val_images=6)

    def make(published):
        lines = []
        for number, wnid in enumerate(WNIDS):
            for index in range(2):
                write_image(published / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 64, number)
            (published / "train" / wnid / f"{wnid}_boxes.txt").touch()
        for index in range(6):
            write_image(published / "val" / "images" / f"val_{index}.JPEG", 64, index)
            lines.append(f"val_{index}.JPEG\t{WNIDS[(index + 1) % 3]}\t0\t0\t62\t62\n")
        (published / "val" / "val_annotations.txt").write_text("".join(lines))
        return published

    return make


def check_tiny(places):
    dataset = get_dataset("tiny_imagenet")
    paths, _ = list_images(places.train, dataset)
    assert [path.name for path in paths] == [f"{wnid}_{index}.JPEG" for wnid in WNIDS for index in range(2)]
    paths, labels = list_images(places.val, dataset)
    assert [path.name for path in paths] == [f"val_{index}.JPEG" for index in (2, 5, 0, 3, 1, 4)]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    parents = (places.train.parent, places.val.parent)
    assert all(not entry.startswith(".") for parent in parents for entry in entries_of(parent))


@pytest.mark.parametrize("place", ["downloads", "nested", "beside train", "beside val"])
def test_published_tiny_imagenet_is_recognised(folders, tiny, place):
    places = folders("tiny_imagenet")
    tiny(
        {
            "downloads": places.downloads / "tiny-imagenet-200",
            "nested": places.downloads / "tiny-imagenet-200" / "tiny-imagenet-200",
            "beside train": places.train.parent / "tiny-imagenet-200",
            "beside val": places.val.parent / "tiny-imagenet-200",
        }[place]
    )
    for _ in range(2):
        main(["tiny_imagenet", "--check-images"])
        check_tiny(places)


def test_validation_images_that_someone_regrouped(folders, tiny):
    places = folders("tiny_imagenet")
    published = tiny(places.downloads / "tiny-imagenet-200")
    by_class = annotated(published / "val")
    for wnid, paths in by_class.items():
        for path in paths:
            (published / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
            path.rename(published / "val" / wnid / "images" / path.name)
    (published / "val" / "val_annotations.txt").unlink()
    (published / "val" / "images").rmdir()
    main(["tiny_imagenet"])
    check_tiny(places)


def test_only_the_absent_split_is_laid_out(folders, tiny):
    places = folders("tiny_imagenet")
    tiny(places.downloads / "tiny-imagenet-200")
    main(["tiny_imagenet"])
    kept = places.train.stat().st_mtime_ns
    shutil.rmtree(places.val)
    main(["tiny_imagenet"])
    check_tiny(places)
    assert places.train.stat().st_mtime_ns == kept


def test_annotations(tmp_path):
    lines = ["b.JPEG\tn2\t0\t0\t62\t62", "a.JPEG\tn1\t1\t1\t5\t5", "", "no tab", "c.JPEG\tn2", "../d.JPEG\tn1\t0"]
    (tmp_path / "val_annotations.txt").write_text("\n".join(lines))
    images = tmp_path / "images"
    assert annotated(tmp_path) == {
        "n2": [images / "b.JPEG", images / "c.JPEG"],
        "n1": [images / "a.JPEG", images / "d.JPEG"],
    }


def test_tiny_imagenet_from_its_archive(folders, tiny, tmp_path):
    places = folders("tiny_imagenet")
    published = tiny(tmp_path / "tiny-imagenet-200")
    places.downloads.mkdir(parents=True)
    archive = places.downloads / "tiny-imagenet-200.zip"
    zip_folder(published, archive)
    content = archive.read_bytes()
    archive.write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"{archive} is damaged: download it again"):
        main(["tiny_imagenet"])
    assert entries_of(places.downloads) == [archive.name]
    archive.write_bytes(content)
    main(["tiny_imagenet"])
    check_tiny(places)


def zip_folder(folder, archive):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in sorted(folder.rglob("*")):
            zipped.write(path, path.relative_to(folder.parent))


def test_any_damage_of_an_archive_leaves_nothing(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "words.txt").write_text("".join(f"{number} words\n" for number in range(300)))
    zip_folder(tmp_path / "set", tmp_path / "set.zip")
    content = (tmp_path / "set.zip").read_bytes()
    for place in (60, 100, 200, 400):  # within the compressed text
        (tmp_path / "set.zip").write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"set\.zip is damaged: download it again"):
            extract_zip(tmp_path / "set.zip", tmp_path / "extracted")
        assert entries_of(tmp_path) == ["set", "set.zip"]
    (tmp_path / "set.zip").write_bytes(content)
    extract_zip(tmp_path / "set.zip", tmp_path / "extracted")
    assert entries_of(tmp_path / "extracted" / "set") == ["words.txt"]


def test_an_incomplete_tiny_imagenet_is_not_laid_out(folders, tiny):
    places = folders("tiny_imagenet")
    published = tiny(places.downloads / "tiny-imagenet-200")
    (published / "val" / "images" / "val_4.JPEG").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        main(["tiny_imagenet"])
    assert caught.value.filename == str(published / "val" / "images" / "val_4.JPEG")
    assert entries_of(places.val.parent) == []


def test_annotations_that_lack_images_are_noticed(folders, tiny):
    places = folders("tiny_imagenet")
    published = tiny(places.downloads / "tiny-imagenet-200")
    annotations = published / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text("")
    with pytest.raises(UserError, match=rf"{places.val}: missing; put tiny-imagenet-200.zip"):
        main(["tiny_imagenet"])
    annotations.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=rf"class {WNIDS[0]} in {places.val} has 1 images, not 2"):
        main(["tiny_imagenet"])
    annotations.write_text(whole)
    shutil.rmtree(places.val)  # as the message says
    main(["tiny_imagenet"])
    check_tiny(places)


def test_missing_tiny_imagenet_says_what_to_do(folders):
    places = folders("tiny_imagenet")
    said = rf"missing; put tiny-imagenet-200.zip, or the folder in it, into {places.downloads} and run this again"
    with pytest.raises(UserError, match=said):
        main(["tiny_imagenet"])
