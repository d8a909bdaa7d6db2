"""Folders that appear whole: written images, links, and what a killed process leaves."""

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.images import list_images, load_images
from utils.data.layout import is_absent, lay_out, link_out, whole_folder
from utils.data.table import get_dataset
from utils.run.files import FORGOTTEN

ROOT = Path(__file__).parents[3]


def write_image(path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def entries_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_absent_is_what_has_nothing_in_it(tmp_path):
    assert is_absent(tmp_path / "set") and is_absent(tmp_path)
    (tmp_path / "set").touch()
    assert not is_absent(tmp_path / "set") and not is_absent(tmp_path)


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


def test_a_killed_layout_is_cleared_once_it_is_forgotten(tmp_path):
    killed = (
        "import os, signal, sys; from pathlib import Path; from utils.data.layout import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as part:\n"
        "    (part / 'image').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "set")], check=False, cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".set.") and left.name.endswith(".part")
    with whole_folder(tmp_path / "set") as part:
        (part / "class").mkdir()
    assert entries_of(tmp_path) == [left.name, "set"]  # another process may still be at it
    os.utime(left, (time.time() - FORGOTTEN - 60,) * 2)
    with whole_folder(tmp_path / "set"):
        assert not left.exists()
    assert entries_of(tmp_path) == ["set"] and entries_of(tmp_path / "set") == ["class"]


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


def test_a_missing_image_leaves_nothing_and_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        link_out({"a": [tmp_path / "image.png"]}, tmp_path / "linked")
    assert caught.value.filename == str(tmp_path / "image.png")
    assert entries_of(tmp_path) == []
