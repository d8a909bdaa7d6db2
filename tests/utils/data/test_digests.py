"""Digests of folders of real images: what they tell apart, and the note of them beside the images."""

import json
import shutil

import pytest
from PIL import Image

from utils.data import digests
from utils.data.digests import CACHE, digest_of_folder
from utils.data.table import get_dataset
from utils.run.errors import UserError

FASHION = get_dataset("fashion_mnist")


@pytest.fixture
def root(tmp_path):
    """Ten classes of two images, each with a grey value of its own."""
    for index in range(10):
        folder = tmp_path / "set" / f"{index}"
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (10 * index + number,) * 3).save(folder / f"{number}.png")
    return tmp_path / "set"


def test_the_place_and_the_times_do_not_count(root, tmp_path):
    digest = digest_of_folder(root, FASHION)
    assert len(digest) == 64
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert digest_of_folder(tmp_path / "copy", FASHION) == digest
    (root / "3" / "boxes.txt").touch()
    (root / "3" / "0.png").touch()
    assert digest_of_folder(root, FASHION) == digest


def swap(root):
    a, b = root / "3" / "0.png", root / "3" / "1.png"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "3" / "0.png").write_bytes((root / "4" / "0.png").read_bytes()),
        swap,
        lambda root: (root / "3" / "0.png").rename(root / "3" / "00.png"),
        lambda root: (root / "3" / "0.png").rename(root / "2" / "9.png"),
        lambda root: (root / "3" / "0.png").unlink(),
        lambda root: (root / "9").rename(root / "10"),
        lambda root: (root / "0").rename(root / "11"),
    ],
    ids=["content", "swapped", "name", "class", "missing", "class name", "class order"],
)
def test_every_change_of_the_images_counts(root, change):
    before = digest_of_folder(root, FASHION)
    change(root)
    assert digest_of_folder(root, FASHION) != before


def test_unchanged_images_are_read_once(root):
    digest = digest_of_folder(root, FASHION)
    known = json.loads((root / CACHE).read_text())
    assert known["sha256"] == digest
    (root / CACHE).write_text(json.dumps(known | {"sha256": "known"}))
    assert digest_of_folder(root, FASHION) == "known"
    (root / "0" / "0.png").touch()
    assert digest_of_folder(root, FASHION) == digest
    assert json.loads((root / CACHE).read_text())["sha256"] == digest


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"listing": 3}', "{"])
def test_a_damaged_note_is_written_anew(root, content):
    digest = digest_of_folder(root, FASHION)
    whole = (root / CACHE).read_text()
    (root / CACHE).write_text(content)
    assert digest_of_folder(root, FASHION) == digest
    assert (root / CACHE).read_text() == whole


def test_a_note_without_its_digest_is_written_anew(root):
    digest = digest_of_folder(root, FASHION)
    known = json.loads((root / CACHE).read_text())
    (root / CACHE).write_text(json.dumps({"listing": known["listing"]}))
    assert digest_of_folder(root, FASHION) == digest


def test_a_folder_that_cannot_be_written_is_read_each_time(root, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    expected = digest_of_folder(root, FASHION)
    (root / CACHE).unlink()
    monkeypatch.setattr(digests, "write_json", refuse)
    assert digest_of_folder(root, FASHION) == expected
    assert not (root / CACHE).exists()


def test_names_of_any_bytes(root):
    (root / "0" / "0.png").rename(root / "0" / "\udcff\u00e9.png")
    first = digest_of_folder(root, FASHION)
    assert digest_of_folder(root, FASHION) == first


def test_what_is_missing_is_named(root):
    with pytest.raises(UserError, match="10 class folders, cifar100 has 100"):
        digest_of_folder(root, get_dataset("cifar100"))
    shutil.rmtree(root)
    with pytest.raises(UserError, match=f"{root} is missing"):
        digest_of_folder(root, FASHION)
