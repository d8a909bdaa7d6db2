"""prepare: what it says of the images of a dataset, and what it makes of a user's own. Nothing here needs a network."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import recipes
from utils.data import embedded, table
from utils.data.images import decode, list_images, load_images
from utils.data.prepare import check_counts, class_names, describe, folders_of, lay_out_at, main, measure, square
from utils.data.sources import Folders
from utils.data.table import Dataset, description_path, get_dataset
from utils.run.errors import UserError

ROOT = Path(__file__).parents[3]
VARIABLES = ("train_dir", "val_dir", "Main_Data_Path")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """train_dir, val_dir and Main_Data_Path as config.sh sets them, all in the folder that this gives."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """Make a dataset of the table smaller."""

    def make(name, **changes):
        monkeypatch.setitem(table.DATASETS, name, replace(get_dataset(name), **changes))

    return make


def write_image(path, size=(32, 32), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(root, names, images, size=(32, 32)):
    for name in names:
        for index in range(images):
            write_image(root / name / f"{index}.png", size, index)


def entries_of(folder):
    return sorted(path.name for path in folder.iterdir())


# What it says


def test_unset_variable_is_named(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    said = "is not set: `source config.sh` first, or set it in the environment"
    with pytest.raises(UserError, match=f"train_dir {said}"):
        main(["cifar10"])
    monkeypatch.setenv("train_dir", "a")
    monkeypatch.setenv("val_dir", "")
    with pytest.raises(UserError, match=f"val_dir {said}"):
        main(["cifar10"])
    monkeypatch.setenv("val_dir", "a")
    with pytest.raises(UserError, match=f"Main_Data_Path {said}"):
        main(["cifar10"])
    monkeypatch.setenv("Main_Data_Path", "b")
    with pytest.raises(UserError, match=r"train_dir and val_dir are the same folder a: give each its own in config.sh"):
        main(["cifar10"])
    assert folders_of("cifar10") == Folders(Path("a/cifar10"), Path("a/cifar10"), Path("b/downloads"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mnist", "unknown dataset 'mnist'; there are: cifar10 .* your own class folders become one with"),
        ("cifar10 --train-dir a", "unrecognized arguments: --train-dir a; `python -m utils.data.prepare --help`"),
        ("", "the following arguments are required: DATASET"),
    ],
)
def test_words_that_cannot_be(root, words, message):
    with pytest.raises(UserError, match=message):
        main(words.split())


def test_missing_imagenet_says_where_it_goes(root, capsys):
    places = f"{root}/train_dir/imagenet1k and {root}/val_dir/imagenet1k"
    with pytest.raises(UserError, match=f"{places}: missing; put the training and validation images of ILSVRC2012"):
        main(["imagenet1k"])
    assert capsys.readouterr().out == ""


def test_imagewoof_is_checked_in_place(root, small, capsys):
    small("imagewoof", train_images=21, val_images=10)
    train, val = root / "train_dir" / "imagewoof", root / "val_dir" / "imagewoof"
    names = [f"n{number:08d}" for number in range(10)]
    write_classes(train, names, 2)
    with pytest.raises(UserError, match=r"imagewoof has 20 images, not 21 \(the smallest class is n00000000 with 2\)"):
        main(["imagewoof"])
    write_image(train / names[3] / "2.png")
    with pytest.raises(UserError, match=rf"{val}: missing; .*imagewoof2.tgz"):
        main(["imagewoof"])
    assert capsys.readouterr().out == f"train: {train}: complete, 10 classes, 21 images\n"
    write_classes(val, names, 1)
    main(["imagewoof", "--check-images"])
    assert capsys.readouterr().out == (
        f"train: {train}: complete, 10 classes, 21 images, all decode\n"
        f"val: {val}: complete, 10 classes, 10 images, all decode\n"
    )
    (val / names[9]).rename(val / "n00000010")
    with pytest.raises(UserError, match=r"class 9 is .*n00000009 in training and .*n00000010 in validation: give the"):
        main(["imagewoof"])
    (val / names[0] / "0.png").write_text("words")
    with pytest.raises(UserError, match=r"n00000000/0.png does not decode"):
        main(["imagewoof", "--check-images"])


def test_everything_that_is_wrong_is_in_one_line(root, small):
    small("imagewoof", train_images=20, val_images=10)
    write_classes(root / "train_dir" / "imagewoof", map(str, range(9)), 2)
    with pytest.raises(
        UserError, match=f"^{root}/val_dir/imagewoof: missing; .*; {root}/train_dir/imagewoof has 9 class"
    ):
        main(["imagewoof"])


@pytest.fixture
def little_fashion(tmp_path, small, monkeypatch):
    """An embedded dataset of 20 training and 10 validation images."""
    small("fashion_mnist", train_images=20, val_images=10)
    arrays = {f"{split}_labels": np.arange(count) % 10 for split, count in (("train", 20), ("val", 10))}
    arrays |= {name.replace("labels", "images"): np.zeros((len(v), 28, 28), np.uint8) for name, v in arrays.items()}
    np.savez(tmp_path / "little.npz", classes=[f"thing {number}" for number in range(10)], **arrays)
    monkeypatch.setattr(embedded, "FILE", tmp_path / "little.npz")


def test_the_embedded_are_laid_out_and_checked(root, little_fashion, capsys):
    for _ in range(2):
        main(["fashion_mnist", "--check-images", "--workers", "0"])
        assert capsys.readouterr().out == (
            f"train: {root}/train_dir/fashion_mnist: complete, 10 classes, 20 images, all decode\n"
            f"val: {root}/val_dir/fashion_mnist: complete, 10 classes, 10 images, all decode\n"
        )


def test_a_missing_image_names_its_class(root, little_fashion):
    main(["fashion_mnist"])
    (root / "train_dir" / "fashion_mnist" / "3_thing-3" / "00013.png").unlink()
    said = r"class 3_thing-3 in .*train_dir/fashion_mnist has 1 images, not 2: put the missing images there, or remove"
    with pytest.raises(UserError, match=said):
        main(["fashion_mnist"])


def test_counts(tmp_path, small):
    small("cifar10", num_classes=3)
    write_classes(tmp_path, "abc", 2)
    check_counts(tmp_path, get_dataset("cifar10"), 6)
    with pytest.raises(UserError, match=f"class a in {tmp_path} has 2 images, not 3: put the missing images there"):
        check_counts(tmp_path, get_dataset("cifar10"), 9)
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path} has 5 images, not 7 \(the smallest class is b with 1\): put"):
        check_counts(tmp_path, get_dataset("cifar10"), 7)
    # a user's own classes need not be of the same size
    check_counts(tmp_path, replace(get_dataset("cifar10"), name="own"), 5)
    with pytest.raises(UserError, match=rf"{tmp_path} has 5 images, not 6 \(the smallest class is b with 1\)"):
        check_counts(tmp_path, replace(get_dataset("cifar10"), name="own"), 6)


def test_exit_status_and_one_line(root):
    command = [sys.executable, "-m", "utils.data.prepare", "imagenet1k"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# A user's own


@pytest.fixture
def own(root):
    """Class folders of a user, unequal, of several sizes: --train and --val of `flowers`."""
    for split, images in (("train", 3), ("val", 1)):
        write_classes(root / "my" / split, ["daisy", "rose"], images, (50, 40))
        write_classes(root / "my" / split, ["tulip"], 1, (30, 64))
    return ["flowers", "--train", str(root / "my" / "train"), "--val", str(root / "my" / "val")]


@pytest.mark.parametrize(("size", "jitter"), [(32, 4), (64, 4)])
def test_own_images_are_laid_out_as_squares_of_the_size(own, root, capsys, size, jitter):
    main([*own, "--size", str(size)])
    dataset = get_dataset("flowers")
    assert replace(dataset, mean=(), std=()) == Dataset("flowers", 3, size, (), (), jitter, 7, 3)
    train, val = root / "train_dir" / "flowers", root / "val_dir" / "flowers"
    assert capsys.readouterr().out == (
        f"flowers: 3 classes, {size} pixels, mean {dataset.mean}, std {dataset.std}: "
        f"{root}/Main_Data_Path/datasets/flowers.json\n"
        f"train: {train}: complete, 3 classes, 7 images\nval: {val}: complete, 3 classes, 3 images\n"
    )
    paths, labels = list_images(train, dataset)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert [f"{path.parent.name}/{path.name}" for path in paths[:2]] == ["daisy/000000.png", "daisy/000001.png"]
    with Image.open(root / "my" / "train" / "daisy" / "1.png") as source:  # 50 x 40
        whole = source.resize((size * 5 // 4, size), Image.Resampling.BILINEAR)
    expected = whole.crop((size // 8, 0, size // 8 + size, size))
    images = load_images(paths, dataset)
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), np.asarray(expected))
    pixels = images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=6e-5)
    assert dataset.std == pytest.approx(pixels.permute(1, 0, 2, 3).flatten(1).std(1, correction=0).tolist(), abs=6e-5)


def test_own_images_of_224_pixels_are_links(own, root):
    main([*own, "--size", "224"])
    dataset = get_dataset("flowers")
    assert (dataset.size, dataset.jitter) == (224, 32)
    paths, _ = list_images(root / "train_dir" / "flowers", dataset)
    assert [path.name for path in paths[:3]] == ["0.png", "1.png", "2.png"]
    assert paths[0].samefile(root / "my" / "train" / "daisy" / "0.png")


def test_a_described_dataset_is_checked_like_any(own, root, capsys):
    main([*own, "--size", "32"])
    capsys.readouterr()
    main(["flowers", "--check-images", "--workers", "0"])
    said = capsys.readouterr().out
    assert "3 classes, 7 images, all decode" in said and "3 classes, 3 images, all decode" in said
    (root / "train_dir" / "flowers" / "rose" / "000002.png").unlink()
    with pytest.raises(UserError, match=r"flowers has 6 images, not 7 \(the smallest class is tulip with 1\)"):
        main(["flowers"])
    for split in ("train", "val"):
        (root / f"{split}_dir" / "flowers").rename(root / f"gone_{split}")
    with pytest.raises(
        UserError, match=f"{root}/train_dir/flowers and .*: missing; put your images there, one folder a"
    ):
        main(["flowers"])


@pytest.mark.parametrize(("size", "like"), [(32, "cifar100"), (64, "tiny_imagenet"), (224, "imagenet-nette")])
def test_its_recipes_are_those_of_its_size(own, size, like):
    main([*own, "--size", str(size)])
    teachers = recipes.parse("pretrain", ["--dataset-name", "flowers", *folders_of_pretrain()])
    expected = recipes.parse("pretrain", ["--dataset-name", like, *folders_of_pretrain()])
    assert replace(teachers, dataset_name=like) == expected
    recipe = recipes.recipe_of(get_dataset("flowers"), "fadrm+", 10)
    assert recipe.recover.sizes[-1] == size and recipe.patches.patches_per_class == 50
    assert recipe.recover.classes_a_batch == 3


def folders_of_pretrain():
    return ["--train-dir", "a", "--val-dir", "b", "--model-pool-dir", "c"]


def test_stopped_between_the_splits_it_goes_on(own, root, monkeypatch):
    whole = root / "my" / "val" / "rose" / "0.png"
    content = whole.read_bytes()
    whole.write_bytes(content[:50])
    with pytest.raises(UserError, match=rf"{whole} does not decode"):
        main([*own, "--size", "32"])
    assert entries_of(root / "train_dir") == ["flowers"] and not (root / "val_dir" / "flowers").exists()
    assert not description_path("flowers").exists()
    whole.write_bytes(content)
    kept = (root / "train_dir" / "flowers").stat().st_mtime_ns
    main([*own, "--size", "32"])
    assert (root / "train_dir" / "flowers").stat().st_mtime_ns == kept


def test_a_dataset_is_described_once(own, root):
    main([*own, "--size", "32"])
    with pytest.raises(
        UserError, match=rf"{description_path('flowers')} is there: remove it, and the dataset's folders"
    ):
        main([*own, "--size", "32"])


@pytest.mark.parametrize("lacking", ["--train", "--val", "--size"])
def test_all_three_are_needed(own, root, lacking):
    words = [*own, "--size", "32"]
    at = words.index(lacking)
    with pytest.raises(UserError, match="a dataset of your own needs all of --train FOLDER --val FOLDER --size PIXELS"):
        main(words[:at] + words[at + 2 :])


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "a/b", "..", ".hidden", "_", "", "with space", "é"])
def test_names_that_an_own_dataset_cannot_have(own, root, name):
    said = f"{name!r}: a dataset of your own has another name than cifar10 .*, of letters, digits, _ . -"
    with pytest.raises(UserError, match=said):
        main([name, *own[1:], "--size", "32"])
    assert entries_of(root) == ["my"]


def test_sizes_that_no_network_takes_are_refused(own):
    with pytest.raises(UserError, match=r"argument --size: invalid choice: 48 \(choose from 32, 64, 224\)"):
        main([*own, "--size", "48"])


def test_classes_of_one_split_alone_are_named(own, root):
    (root / "my" / "val" / "rose").rename(root / "my" / "val" / "roses")
    said = f"{root}/my/train and {root}/my/val have other class folders, first 'rose': give both the same"
    with pytest.raises(UserError, match=said):
        main([*own, "--size", "32"])
    assert entries_of(root) == ["my"]


def test_a_folder_without_classes_is_named(root):
    (root / "empty" / ".hidden").mkdir(parents=True)
    for folder in (root / "empty", root / "absent"):
        with pytest.raises(UserError, match=f"{folder} has no class folders: name the folder that holds one folder a"):
            class_names(folder)
    write_classes(root / "set", ["c10", "c9"], 1)
    assert class_names(root / "set") == ["c9", "c10"]


def test_a_class_without_images_is_named(own, root):
    for path in (root / "my" / "train" / "tulip").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"class folder {root}/my/train/tulip has no images"):
        main([*own, "--size", "32"])
    assert not (root / "train_dir" / "flowers").exists()


def test_images_of_one_colour_are_refused(root):
    for split in ("train", "val"):
        for name in "ab":
            (root / "my" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), (7, 7, 7)).save(root / "my" / split / name / "0.png")
    with pytest.raises(UserError, match="flowers are all of one colour: name other ones"):
        describe("flowers", root / "my" / "train", root / "my" / "val", 32)
    assert not description_path("flowers").exists()


def test_the_middle_square_is_taken():
    pixels = np.zeros((20, 31, 3), dtype=np.uint8)
    pixels[:, 5:25] = 200  # from the outside the outermost pixels take a little, as wherever one resizes before cutting
    wide, high = Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))
    assert (np.asarray(square(wide, 8))[:, 1:-1] == 200).all() and np.asarray(square(wide, 8)).min() > 150
    assert (np.asarray(square(high, 40))[1:-1] == 200).all()
    assert square(wide, 8).size == (8, 8) and square(high, 40).size == (40, 40)


def test_mean_and_deviation_are_over_all_pixels(tmp_path):
    for index, colour in enumerate([(0, 102, 0), (255, 51, 255), (255, 51, 255)]):
        Image.new("RGB", (10, 12), colour).save(tmp_path / f"{index}.png")
    mean, std = measure(sorted(tmp_path.iterdir()), 32)
    assert mean == (0.6667, 0.2667, 0.6667) and std == (0.4714, 0.0943, 0.4714)


def test_lay_out_at(tmp_path):
    write_classes(tmp_path / "set", ["b"], 1, (9, 5))
    lay_out_at(tmp_path / "set", ["b"], tmp_path / "small", 64)
    assert decode(tmp_path / "small" / "b" / "000000.png").size == (64, 64)
    lay_out_at(tmp_path / "set", ["b"], tmp_path / "large", 224)
    assert decode(tmp_path / "large" / "b" / "0.png").size == (9, 5)


def test_the_description_is_plain_json(own, root):
    main([*own, "--size", "64"])
    told = json.loads((root / "Main_Data_Path" / "datasets" / "flowers.json").read_text())
    assert (told["name"], told["num_classes"], told["size"], told["train_images"]) == ("flowers", 3, 64, 7)
