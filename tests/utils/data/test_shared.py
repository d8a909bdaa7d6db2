"""Images as others share them: each form, read beside a plain reading of it, and what is wrong with some."""

import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distilled_sets import FASHION, NAMES, WORDS, config_at, pixels
from utils.data import shared, table
from utils.data.shared import are_numbered, load_tensor, read_shared
from utils.data.table import get_dataset

IPC = 2


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    config_at(monkeypatch, tmp_path / "here")


@pytest.fixture
def images():
    """Two images of each class, by class."""
    return pixels(10 * IPC)


def as_image(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def write_folders(root, images, names, suffix="png", ipc=IPC):
    for place, image in enumerate(images):
        path = root / names[place // ipc] / f"some_{place % ipc}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        as_image(image).save(path)


def read(source, dataset=FASHION):
    found, labels = read_shared(source, dataset)
    assert found.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.tolist() == [label for label in range(10) for _ in range(len(found) // 10)]
    return found


# Class folders


@pytest.mark.parametrize("form", ["{:05d}", "new{:03d}", "class{}", "{}"])
def test_numbered_folders(tmp_path, images, form, capsys):
    write_folders(tmp_path / "set", images, [form.format(label) for label in range(10)])
    assert torch.equal(read(tmp_path / "set"), images)
    assert "gives its classes by number alone" in capsys.readouterr().out


@pytest.mark.parametrize("names", [NAMES, WORDS, [word.title().replace("-", " ") for word in WORDS]])
def test_named_folders_are_brought_into_the_datasets_order(tmp_path, images, names, capsys):
    write_folders(tmp_path / "set", images, names)
    assert torch.equal(read(tmp_path / "set"), images)
    assert "WARNING" not in capsys.readouterr().out


def test_jpg_is_decoded_once(tmp_path, images):
    write_folders(tmp_path / "set", images, NAMES, suffix="jpg")
    with Image.open(tmp_path / "set" / NAMES[3] / "some_1.jpg") as image:
        assert torch.equal(read(tmp_path / "set")[7], torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_other_names_are_refused_with_the_first_difference(tmp_path, images, refusal):
    write_folders(tmp_path / "set", images, [*NAMES[:4], "4_cat", *NAMES[5:]])
    line = refusal(lambda _: read(tmp_path / "set"), [])
    assert "class 4 is '4_cat' in" in line and "'4_coat' in fashion_mnist's own" in line


def test_names_of_a_dataset_that_is_not_here(tmp_path, images, refusal, monkeypatch):
    monkeypatch.setitem(table.DATASETS, "imagewoof", replace(get_dataset("imagewoof"), size=32))
    write_folders(tmp_path / "set", images, [f"n{2086240 + 7 * label}" for label in range(10)])
    line = refusal(lambda _: read(tmp_path / "set", get_dataset("imagewoof")), [])
    assert "(n2086240), and the real images of imagewoof" in line and "are not laid out" in line


def test_what_numbers_are():
    assert are_numbered(["new000", "new001"]) and are_numbered(["1", "2", "3"])
    assert not are_numbered(["0", "2"]) and not are_numbered(["a0", "b1"]) and not are_numbered(["0", "b"])
    assert not are_numbered(["n01440764", "n01443537"])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "00003" / "some_0.png").unlink(), "2 images in class 0, 1 in class 3: every class needs"),
        (lambda root: Image.new("RGB", (32, 30)).save(root / "00003" / "some_0.png"), "32 x 30 pixels, not 32 x 32"),
        (lambda root: (root / "00003" / "some_0.png").write_text("words"), "some_0.png does not decode"),
        (lambda root: (root / "00003").rename(root / ".hidden"), "has 9 class folders, fashion_mnist has 10 classes"),
    ],
)
def test_folders_that_cannot_be(tmp_path, images, refusal, harm, message):
    write_folders(tmp_path / "set", images, [f"{label:05d}" for label in range(10)])
    harm(tmp_path / "set")
    assert message in refusal(lambda _: read(tmp_path / "set"), [])


def test_nothing_there(tmp_path, refusal):
    assert "nothing is missing: name the folder" in refusal(lambda _: read(tmp_path / "nothing"), [])


# Hugging Face


def write_metadata(root, images, order, column="class_id", **changes):
    """An imagefolder with its images in this order."""
    root.mkdir()
    for place in order:
        as_image(images[place]).save(root / f"{place}.png")
    rows = [{"file_name": f"{place}.png", column: place // IPC, **changes} for place in order]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("column", ["class_id", "label"])
def test_an_imagefolder_in_any_order(tmp_path, images, column):
    order = [*range(1, 20, 2), *range(0, 20, 2)]
    write_metadata(tmp_path / "set", images, order, column)
    by_class = [place for label in range(10) for place in order if place // IPC == label]
    assert torch.equal(read(tmp_path / "set"), images[by_class])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_id": 10}, "has the label 10: fashion_mnist has 0 to 9"),
        ({"class_id": -1}, "has the label -1"),
        ({"class_id": "boot"}, "has the label 'boot'"),
        ({"class_id": None}, "has the label None"),
        ({"file_name": "../0.png"}, "names ../0.png, a file outside of its folder"),
        ({"file_name": "/etc/0.png"}, "names /etc/0.png, a file outside of its folder"),
        ({"file_name": "away.png"}, "away.png is missing"),
        ({"file_name": None}, "metadata.jsonl is damaged (TypeError"),
    ],
)
def test_rows_that_cannot_be(tmp_path, images, refusal, changes, message):
    write_metadata(tmp_path / "set", images, range(20), **changes)
    assert message in refusal(lambda _: read(tmp_path / "set"), [])


def test_parquet(tmp_path, images):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow.parquet import write_table

    write_folders(tmp_path / "files", images, NAMES)
    encoded = [(tmp_path / "files" / NAMES[n // IPC] / f"some_{n % IPC}.png").read_bytes() for n in range(20)]
    (tmp_path / "set" / "data").mkdir(parents=True)
    for part in range(2):
        places = range(part, 20, 2)
        columns = {"image": [{"bytes": encoded[place], "path": f"{place}.png"} for place in places]}
        table = pyarrow.table({**columns, "class_id": [place // IPC for place in places]})
        write_table(table, tmp_path / "set" / "data" / f"train-0000{part}-of-00002.parquet")
    assert torch.equal(read(tmp_path / "set"), images)
    write_table(pyarrow.table({"image": [1]}), tmp_path / "set" / "data" / "train-00000-of-00002.parquet")
    with pytest.raises(shared.UserError, match="has no columns image and class_id or label"):
        read(tmp_path / "set")


def test_parquet_without_pyarrow_is_one_line(tmp_path, refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "set.parquet").touch()
    assert "set.parquet needs pyarrow: `pip install pyarrow`" in refusal(lambda _: read(tmp_path), [])


# DD-Ranking


def normalised(images, mean, std):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - mean) / std


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("fashion_mnist", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # not those of this project
    ],
)
def test_tensors_class_by_class(tmp_path, images, name, mean, std):
    torch.save(normalised(images, mean, std), tmp_path / "images.pt")
    torch.save(torch.randn(20, 10), tmp_path / "labels.pt")  # soft ones tell no class
    for source in (tmp_path, tmp_path / "images.pt"):
        assert torch.equal(read(source, get_dataset(name)), images)


def test_tensors_by_their_hard_labels(tmp_path, images):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.save(normalised(images, FASHION.mean, FASHION.std)[order], tmp_path / "images.pt")
    torch.save(order // IPC, tmp_path / "labels.pt")
    found = read(tmp_path)
    expected = images[torch.tensor(sorted(order.tolist(), key=lambda place: place // IPC))]
    assert torch.equal(found, expected)


def test_values_that_no_pixel_has_are_told(tmp_path, images, capsys):
    torch.save(normalised(images, FASHION.mean, FASHION.std) * 2, tmp_path / "images.pt")
    read(tmp_path)
    share = float(((images.float() / 255 - 0.5).abs() > 0.2510).float().mean()) * 100
    assert f"{share:.1f} % of the values are outside of what pixels can have" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(20, 3, 28, 28), "not normalised images of N x 3 x 32 x 32 pixels"),
        (torch.zeros(20, 3, 32, 32, dtype=torch.uint8), "holds torch.uint8 of"),
        (torch.zeros(15, 3, 32, 32), "holds 15 images: as many finite ones for each of 10"),
        (torch.full((20, 3, 32, 32), torch.nan), "as many finite ones"),
        ({"images": torch.zeros(20, 3, 32, 32)}, "is no file of one plain tensor"),
    ],
)
def test_tensors_that_cannot_be(tmp_path, refusal, tensor, message):
    torch.save(tensor, tmp_path / "images.pt")
    assert message in refusal(lambda _: read(tmp_path), [])


def test_labels_for_other_images(tmp_path, images, refusal):
    torch.save(normalised(images, FASHION.mean, FASHION.std), tmp_path / "images.pt")
    torch.save(torch.arange(10), tmp_path / "hard_labels.pt")
    assert "has 10 labels for 20 images" in refusal(lambda _: read(tmp_path), [])


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(tmp_path, refusal):
    (tmp_path / "images.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    assert "nothing in it was run" in refusal(lambda _: load_tensor(tmp_path / "images.pt"), [])
    torch.save(Harmful(tmp_path / "ran"), tmp_path / "images.pt")
    assert "nothing in it was run" in refusal(lambda _: load_tensor(tmp_path / "images.pt"), [])
    assert not (tmp_path / "ran").exists()
    (tmp_path / "images.pt").write_text("words")
    assert "images.pt is" in refusal(lambda _: load_tensor(tmp_path / "images.pt"), [])
