"""Patches on disk: the files that make_patches writes and recover reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.images import decode
from utils.data.table import get_dataset
from utils.patches.patches import (
    EXTENSIONS,
    downloaded_patches_complete,
    find_patch,
    jpeg_of,
    load_patches,
    missing_patch,
    patch_path,
    patches_output,
    require_patches,
    write_class_patches,
)
from utils.run.errors import UserError

FASHION = get_dataset("fashion_mnist")


def write_image(path, size=32, value=0, image_format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path, format=image_format)
    return path


def test_layout(tmp_path):
    assert patch_path(tmp_path, 3, 12) == tmp_path / "00003" / "class00003_id00012.jpg"
    assert find_patch(tmp_path, 3, 12) is None
    png = write_image(patch_path(tmp_path, 3, 12, "png"))
    assert find_patch(tmp_path, 3, 12) == png
    jpg = write_image(patch_path(tmp_path, 3, 12))
    assert find_patch(tmp_path, 3, 12) == jpg
    assert missing_patch(tmp_path, 3, 2) == patch_path(tmp_path, 3, 0)
    write_image(patch_path(tmp_path, 3, 0))
    assert missing_patch(tmp_path, 3, 1) is None


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_spelling_of_an_ending_is_found(tmp_path, extension):
    path = write_image(patch_path(tmp_path, 3, 0, extension))
    assert find_patch(tmp_path, 3, 0) == path


def test_written_patches_read_back_nearly_the_same(tmp_path):
    ramp = torch.arange(32, dtype=torch.uint8).mul(8)
    patches = torch.stack((ramp.expand(3, 32, 32), ramp.view(32, 1).expand(3, 32, 32)))
    write_class_patches(tmp_path / "easy", 4, patches)
    assert sorted(path.name for path in (tmp_path / "easy").iterdir()) == ["00004"]
    read = load_patches(tmp_path, "easy", [(4, 0), (4, 1)], FASHION)
    assert read.shape == (2, 3, 32, 32)
    assert (read.int() - patches.int()).abs().max() <= 4


def test_only_patches_that_are_not_there_are_written(tmp_path):
    write_class_patches(tmp_path, 4, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    other = write_image(patch_path(tmp_path, 4, 2, "png"), value=9)
    kept = {path: path.read_bytes() for path in (patch_path(tmp_path, 4, 0), other)}
    write_class_patches(tmp_path, 4, torch.full((4, 3, 32, 32), 200, dtype=torch.uint8))
    assert {path: path.read_bytes() for path in kept} == kept
    names = ["class00004_id00000.jpg", "class00004_id00001.jpg", "class00004_id00002.png", "class00004_id00003.jpg"]
    assert sorted(path.name for path in (tmp_path / "00004").iterdir()) == names


def test_a_full_disk_leaves_whole_patches_alone(tmp_path, monkeypatch):
    write_bytes, written = type(tmp_path).write_bytes, []

    def full(path, content):
        written.append(path)
        write_bytes(path, content[: len(content) // 2 if len(written) == 2 else None])
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    patches = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(type(tmp_path), "write_bytes", full)
        write_class_patches(tmp_path, 0, patches)
    assert caught.value.filename == str(patch_path(tmp_path, 0, 1))
    assert list((tmp_path / "00000").iterdir()) == [patch_path(tmp_path, 0, 0)]
    write_class_patches(tmp_path, 0, patches)
    assert missing_patch(tmp_path, 0, 3) is None


def test_colours_are_not_halved(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "patch.jpg").write_bytes(jpeg_of(noise))
    with Image.open(tmp_path / "patch.jpg") as image:
        assert image.format == "JPEG" and image.layer[0][1:3] == image.layer[1][1:3]
    assert np.abs(np.asarray(decode(tmp_path / "patch.jpg")).astype(int) - noise).mean() < 6


@pytest.mark.parametrize("size", [32, 64, 224])
def test_noise_takes_no_more_bytes_than_are_reckoned_with(size):
    output = patches_output(7, replace(FASHION, size=size))
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    assert output.files == 7 and 0.5 * output.size / 7 < len(jpeg_of(noise)) <= output.size / 7


def test_patches_that_are_wanting(tmp_path):
    both = [(0, 0), (1, 0)]
    making = "`python -m recover.make_patches --dataset-name fashion_mnist --recipe METHOD --ipc N`"
    with pytest.raises(UserError) as error:
        load_patches(tmp_path, "medium", both, FASHION)
    assert str(error.value) == f"no patches in {tmp_path}/medium: make them with {making}, or put downloaded ones there"
    folder = tmp_path / "medium"
    write_image(patch_path(folder, 0, 0), value=10)
    with pytest.raises(UserError) as error:
        load_patches(tmp_path, "medium", both, FASHION)
    missing = patch_path(folder, 1, 0)
    assert str(error.value) == (
        f"the patch {missing} is missing: make more with {making} and --patches-per-class, or put it there"
    )
    with pytest.raises(UserError, match="class00000_id00001"):
        require_patches(tmp_path, "medium", [(0, 0), (0, 1), (1, 1)], FASHION)
    require_patches(tmp_path, "medium", [(0, 0)], FASHION)
    write_image(patch_path(folder, 1, 0, "png"), value=200)
    assert load_patches(tmp_path, "medium", both, FASHION)[:, 0, 0, 0].tolist() == [10, 200]
    write_image(patch_path(folder, 1, 0, "png"), size=31)
    with pytest.raises(UserError, match=r"class00001_id00000\.png is 31 x 31"):
        load_patches(tmp_path, "medium", both, FASHION)
    patch_path(folder, 1, 0, "png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"class00001_id00000\.png does not decode"):
        load_patches(tmp_path, "medium", both, FASHION)


def test_patches_come_in_the_order_asked_for(tmp_path):
    for class_index in range(2):
        for ipc_id in range(3):
            write_image(patch_path(tmp_path / "easy", class_index, ipc_id, "png"), value=10 * class_index + ipc_id)
    members = [(1, 2), (0, 0), (1, 0), (0, 2)]
    assert load_patches(tmp_path, "easy", members, FASHION)[:, 0, 0, 0].tolist() == [12, 0, 10, 2]


def test_downloaded_patches(tmp_path):
    assert not downloaded_patches_complete(tmp_path / "absent", range(1), 1)
    write_image(patch_path(tmp_path, 0, 0))
    assert downloaded_patches_complete(tmp_path, [0], 1)
    with pytest.raises(UserError, match=r"not 00000/class00000_id00001\.jpg"):
        downloaded_patches_complete(tmp_path, [0], 2)
    (tmp_path / "patches.json").write_text("{}")
    assert not downloaded_patches_complete(tmp_path, [0], 1)
