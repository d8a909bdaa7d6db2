"""Laying out datasets: whole or not at all, counted, and one line for what is missing. Nothing here needs a network."""

import errno
import hashlib
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from utils import datasets, prepare_data
from utils.datasets import decode, get_dataset, list_images, load_images
from utils.errors import UserError
from utils.layout import extract_folder, lay_out, link_out, whole_folder
from utils.prepare_data import EMBEDDED, ensure_embedded, main

ROOT = EMBEDDED.parents[2]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """train_dir, val_dir and Main_Data_Path as config.sh sets them."""
    for variable in ("train_dir", "val_dir", "Main_Data_Path"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return prepare_data.Folders(tmp_path / "train_dir", tmp_path / "val_dir", tmp_path / "Main_Data_Path" / "downloads")


@pytest.fixture
def small(monkeypatch):
    """Make a dataset of the table smaller."""

    def make(name, **changes):
        monkeypatch.setitem(datasets.DATASETS, name, replace(get_dataset(name), **changes))

    return make


def write_image(path, size=32, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(root, names, images):
    for name in names:
        for index in range(images):
            write_image(root / name / f"{index}.png")


def entries_of(folder):
    return sorted(path.name for path in folder.iterdir())


# Laying out


def test_lay_out_writes_folders_that_sort_by_label(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    labels = [label % 12 for label in range(24)]
    names = ["aquarium_fish", "T-shirt or top", *(f"name {number}" for number in range(10))]
    lay_out(images, labels, names, tmp_path / "set")
    dataset = replace(get_dataset("cifar10"), num_classes=12)
    assert entries_of(tmp_path / "set")[:3] == ["00_aquarium-fish", "01_t-shirt-or-top", "02_name-0"]
    paths, found = list_images(tmp_path / "set", dataset)
    assert found.tolist() == sorted(labels)
    places = [int(path.stem) for path in paths]
    assert np.array_equal(load_images(paths, dataset).permute(0, 2, 3, 1).numpy(), images[places])
    assert entries_of(tmp_path) == ["set"]


def test_interrupted_layout_leaves_nothing(tmp_path):
    def images_until_disk_is_full():
        yield np.zeros((32, 32), dtype=np.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        lay_out(images_until_disk_is_full(), [0, 0], ["only"], tmp_path / "set")
    assert caught.value.filename == str(tmp_path / "set")
    assert entries_of(tmp_path) == []
    with pytest.raises(ValueError, match="longer"):
        lay_out([np.zeros((32, 32), dtype=np.uint8)], [0, 0], ["only"], tmp_path / "set")
    assert entries_of(tmp_path) == []


def test_killed_layout_is_cleared_by_the_next(tmp_path):
    killed = (
        "import os, signal, sys; from pathlib import Path; from utils.layout import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as part:\n"
        "    (part / 'image').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "set")], check=False, cwd=ROOT)
    assert len(entries_of(tmp_path)) == 1
    assert not (tmp_path / "set").exists()
    with whole_folder(tmp_path / "set") as part:
        (part / "class").mkdir()
    assert entries_of(tmp_path) == ["set"]


def test_layout_of_another_process_stays(tmp_path):
    with whole_folder(tmp_path / "set") as part:
        (part / "ours").touch()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs").touch()
    assert entries_of(tmp_path / "set") == ["theirs"]
    assert entries_of(tmp_path) == ["set"]


def test_links_become_copies_where_there_are_none(tmp_path, monkeypatch):
    write_image(tmp_path / "image.png")

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    link_out({"a": [tmp_path / "image.png"]}, tmp_path / "linked")
    monkeypatch.setattr(type(tmp_path), "hardlink_to", refuse)
    link_out({"a": [tmp_path / "image.png"]}, tmp_path / "copied")
    for name, links in (("linked", 2), ("copied", 1)):
        assert (tmp_path / name / "a" / "image.png").read_bytes() == (tmp_path / "image.png").read_bytes()
        assert (tmp_path / name / "a" / "image.png").stat().st_nlink == links


# fashion_mnist


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedded")
    ensure_embedded(root / "train", root / "val")
    return root


def test_embedded_images_are_the_shipped_ones(embedded):
    dataset = get_dataset("fashion_mnist")
    with np.load(EMBEDDED) as arrays:
        for split in ("train", "val"):
            root = embedded / split / "fashion_mnist"
            assert entries_of(root)[0] == "0_t-shirt-or-top"
            assert entries_of(root)[9] == "9_ankle-boot"
            paths, labels = list_images(root, dataset)
            assert set(Counter(labels.tolist()).values()) == {600 if split == "train" else 100}
            images = load_images(paths, dataset).numpy()
            places = [int(path.stem) for path in paths]
            assert np.array_equal(labels.numpy(), arrays[f"{split}_labels"][places])
            assert np.array_equal(images[:, 1, 2:-2, 2:-2], arrays[f"{split}_images"][places])
            assert not images[:, :, :2].any()
            assert not images[..., -2:].any()
            assert np.array_equal(images[:, 0], images[:, 2])


def test_embedded_is_laid_out_once(embedded):
    first = embedded / "train" / "fashion_mnist"
    before = first.stat().st_mtime_ns
    ensure_embedded(embedded / "train", embedded / "val")
    assert first.stat().st_mtime_ns == before


def test_a_missing_image_names_its_class(embedded, monkeypatch, capsys):
    lost = embedded / "val" / "fashion_mnist" / "3_dress"
    path = min(lost.iterdir())
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(UserError, match=r"class 3_dress in .*val/fashion_mnist has 99 images, not 100"):
            ensure_embedded(embedded / "train", embedded / "val")
    finally:
        path.write_bytes(content)


def test_main_checks_the_embedded(embedded, folders, capsys):
    main(
        ["fashion_mnist", "--train-dir", str(embedded / "train"), "--val-dir", str(embedded / "val"), "--check-images"]
    )
    said = capsys.readouterr().out
    assert "complete, 10 classes, 6,000 images, all decode" in said
    assert "complete, 10 classes, 1,000 images, all decode" in said


def test_notice_ships():
    assert "Copyright (c) 2017 Zalando SE" in (EMBEDDED.parent / "NOTICE").read_text()


# What the command says


def test_unset_variable_is_named(monkeypatch):
    for variable in ("train_dir", "val_dir", "Main_Data_Path"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=r"train_dir is not set: `source config.sh` first, or give --train-dir"):
        main(["cifar10"])
    monkeypatch.setenv("train_dir", "a")
    monkeypatch.setenv("val_dir", "a")
    with pytest.raises(UserError, match="Main_Data_Path is not set"):
        main(["cifar10"])
    with pytest.raises(UserError, match="same folder a"):
        main(["cifar10", "--download-dir", "b"])


def test_missing_imagenet_says_where_it_goes(folders, capsys):
    with pytest.raises(UserError, match=rf"{folders.train}/imagenet1k and {folders.val}/imagenet1k: missing; put"):
        main(["imagenet1k"])
    assert f"train: {folders.train}/imagenet1k: missing" in capsys.readouterr().out


def test_imagewoof_is_checked_in_place(folders, small, capsys):
    small("imagewoof", train_images=21, val_images=10)
    names = [f"n{number:08d}" for number in range(10)]
    write_classes(folders.train / "imagewoof", names, 2)
    with pytest.raises(UserError, match=r"imagewoof has 20 images, not 21 \(the smallest class is n00000000 with 2\)"):
        main(["imagewoof", "--download-dir", "x"])
    write_image(folders.train / "imagewoof" / names[3] / "2.png")
    with pytest.raises(UserError, match=rf"{folders.val}/imagewoof: missing; .*imagewoof2.tgz"):
        main(["imagewoof"])
    assert "train: " in capsys.readouterr().out
    write_classes(folders.val / "imagewoof", names, 1)
    main(["imagewoof", "--check-images"])
    (folders.val / "imagewoof" / names[9]).rename(folders.val / "imagewoof" / "n00000010")
    with pytest.raises(UserError, match=r"class 9 is .*n00000009 in training and .*n00000010 in validation"):
        main(["imagewoof"])
    (folders.val / "imagewoof" / names[0] / "0.png").write_text("words")
    with pytest.raises(UserError, match=r"n00000000/0.png does not decode"):
        main(["imagewoof", "--check-images"])


def test_exit_status_and_one_line(folders):
    command = [sys.executable, "-m", "utils.prepare_data", "imagenet1k"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


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
    fake_cifar(folders.downloads, monkeypatch, extracted)
    main(["cifar10"])
    assert "complete, 10 classes, 20 images" in capsys.readouterr().out
    data = torchvision.datasets.CIFAR10(folders.downloads, train=True)
    image = decode(folders.train / "cifar10" / "7_thing-7" / "00017.png")
    assert np.array_equal(np.asarray(image), data.data[17])
    shutil.rmtree(folders.downloads)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "file:///nowhere")
    main(["cifar10"])  # complete: nothing needs the archive any more


@pytest.mark.parametrize(
    ("name", "archive"), [("cifar10", "cifar-10-python.tar.gz"), ("imagenet-nette", "imagenette2.tgz")]
)
def test_failed_download_says_what_to_do_by_hand(folders, monkeypatch, name, archive, tmp_path):
    nowhere = f"file://{tmp_path}/nowhere/{archive}"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", nowhere)
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", {"full": (nowhere, "00")})
    said = rf"{name} could not be fetched .*: download {nowhere} \(md5 \w+\) by hand to {folders.downloads}/{archive}"
    with pytest.raises(UserError, match=said):
        main([name])
    assert not folders.train.exists()


def test_imagenette_is_laid_out_from_its_archive(folders, small, monkeypatch, tmp_path):
    small("imagenet-nette", train_images=20, val_images=10)
    names = [f"n{number:08d}" for number in range(10)]
    write_classes(tmp_path / "imagenette2" / "train", names, 2)
    write_classes(tmp_path / "imagenette2" / "val", names, 1)
    folders.downloads.mkdir(parents=True)
    archive = folders.downloads / "imagenette2.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "imagenette2", "imagenette2")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(
        torchvision.datasets.Imagenette, "_ARCHIVES", {"full": ("file:///nowhere/imagenette2.tgz", md5)}
    )
    main(["imagenet-nette"])
    assert entries_of(folders.train / "imagenet-nette") == names
    assert entries_of(folders.val / "imagenet-nette" / names[0]) == ["0.png"]
    with pytest.raises(UserError, match=r"imagenette2.tgz has no folder imagenette2/test"):
        extract_folder(archive, "imagenette2/test", tmp_path / "test")
    assert not (tmp_path / "test").exists()


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


def check_tiny(folders):
    dataset = get_dataset("tiny_imagenet")
    paths, _ = list_images(folders.of(dataset, "train"), dataset)
    assert [path.name for path in paths] == [f"{wnid}_{index}.JPEG" for wnid in WNIDS for index in range(2)]
    paths, labels = list_images(folders.of(dataset, "val"), dataset)
    assert [path.name for path in paths] == [f"val_{index}.JPEG" for index in (2, 5, 0, 3, 1, 4)]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(not entry.startswith(".") for parent in (folders.train, folders.val) for entry in entries_of(parent))


@pytest.mark.parametrize("place", ["downloads", "nested", "unpacked", "beside"])
def test_published_tiny_imagenet_is_recognised(folders, tiny, place):
    tiny(
        {
            "downloads": folders.downloads / "tiny-imagenet-200",
            "nested": folders.train / "tiny_imagenet" / "tiny-imagenet-200",
            "unpacked": folders.train / "tiny_imagenet",
            "beside": folders.train / "tiny-imagenet-200",
        }[place]
    )
    for _ in range(2):
        main(["tiny_imagenet", "--check-images"])
        check_tiny(folders)


def test_splits_of_tiny_imagenet_put_by_hand(folders, tiny, tmp_path):
    published = tiny(tmp_path / "published")
    folders.train.mkdir()
    folders.val.mkdir()
    (published / "train").rename(folders.train / "tiny_imagenet")
    (published / "val").rename(folders.val / "tiny_imagenet")
    for _ in range(2):
        main(["tiny_imagenet"])
        check_tiny(folders)
    assert (folders.train / "tiny_imagenet" / WNIDS[0] / "images").is_dir()


def test_tiny_imagenet_from_its_archive(folders, tiny, tmp_path):
    published = tiny(tmp_path / "tiny-imagenet-200")
    folders.downloads.mkdir(parents=True)
    archive = folders.downloads / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(published.rglob("*")):
            zipped.write(path, path.relative_to(tmp_path))
    content = archive.read_bytes()
    archive.write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"{archive} is damaged"):
        main(["tiny_imagenet"])
    assert entries_of(folders.downloads) == [archive.name]
    archive.write_bytes(content)
    main(["tiny_imagenet"])
    check_tiny(folders)


def test_incomplete_tiny_imagenet_is_not_laid_out(folders, tiny):
    published = tiny(folders.downloads / "tiny-imagenet-200")
    (published / "val" / "images" / "val_4.JPEG").unlink()
    with pytest.raises(UserError, match=r"val/images/val_4.JPEG is missing: extract the archive again"):
        main(["tiny_imagenet"])
    assert entries_of(folders.val) == []
    annotations = published / "val" / "val_annotations.txt"
    annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=rf"class {WNIDS[0]} in .*/val has 1 images, not 2"):
        main(["tiny_imagenet"])
    annotations.write_text("")
    with pytest.raises(UserError, match=r"/val has 0 classes, tiny_imagenet 3"):
        main(["tiny_imagenet"])
    assert entries_of(folders.val) == []


def test_two_published_folders_are_not_mixed(folders, tiny):
    tiny(folders.train / "tiny-imagenet-200")
    tiny(folders.train / "tiny_imagenet")
    with pytest.raises(UserError, match="remove one of the two"):
        main(["tiny_imagenet"])


def test_missing_tiny_imagenet_says_what_to_do(folders):
    with pytest.raises(
        UserError, match=rf"missing; put tiny-imagenet-200.zip, or the folder in it, into {folders.downloads}"
    ):
        main(["tiny_imagenet"])
