"""Distilled images on disk: their names, what they say of themselves, reading them back."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from utils.data.distilled import (
    distilled_path,
    images_output,
    is_made_with,
    on_device_if_fits,
    read_distilled,
    record_path,
    write_distilled,
)
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import write_png

FASHION = get_dataset("fashion_mnist")


def noise(count):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    """Three images of each class, written by image index as recover does."""
    pixels = noise(30)
    for ipc_id in range(3):
        paths = [distilled_path(tmp_path, 10, index, ipc_id) for index in range(10)]
        write_distilled(paths, pixels[10 * ipc_id : 10 * ipc_id + 10], "digest")
    return tmp_path


def test_names_have_three_digits_and_five_above_a_thousand_classes(tmp_path):
    assert distilled_path(tmp_path, 1000, 7, 12) == tmp_path / "new007" / "class007_id012.png"
    assert distilled_path(tmp_path, 1001, 7, 12) == tmp_path / "new00007" / "class00007_id00012.png"
    assert distilled_path(tmp_path, 10, 9, 1234) == tmp_path / "new009" / "class009_id1234.png"
    assert record_path(tmp_path) == tmp_path / "settings.json"


def test_images_come_back_by_class_and_then_by_index(folder):
    pixels, labels, ipc = read_distilled(folder, FASHION)
    assert ipc == 3
    assert labels.tolist() == [index for index in range(10) for _ in range(3)]
    assert torch.equal(pixels, noise(30).view(3, 10, 3, 32, 32).transpose(0, 1).flatten(0, 1))


def test_an_image_says_what_it_was_made_with(folder):
    path = distilled_path(folder, 10, 4, 2)
    assert is_made_with(path, "digest", 32)
    assert not is_made_with(path, "digest", 64)
    assert not is_made_with(distilled_path(folder, 10, 4, 3), "digest", 32)
    with pytest.raises(UserError, match=r"class004_id002\.png was made from other patches: move it away"):
        is_made_with(path, "another", 32)


def test_an_image_of_somebody_else_is_not_overwritten(folder):
    path = distilled_path(folder, 10, 0, 0)
    write_png(path, Image.new("RGB", (32, 32)))
    said = "does not say what it was made with, as images of recover do: move it away"
    with pytest.raises(UserError, match=f"{path} {said}"):
        is_made_with(path, "digest", 32)


def test_what_the_system_says_of_an_image_stays(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError):
        is_made_with(distilled_path(folder, 10, 0, 0), "digest", 32)


def test_any_damage_is_as_good_as_no_image(folder):
    """Cut anywhere, or with any byte changed, it is made again; or refused, where the byte is in what it says."""
    path = distilled_path(folder, 10, 0, 0)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert not is_made_with(path, "digest", 32) or length >= len(whole) - 12  # all but its end mark
    for place in range(0, len(whole) - 12, 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert not is_made_with(path, "digest", 32), place
        except UserError:
            assert place < 100


def test_no_image_of_few_colours_hides_damage(tmp_path):
    """Where pixels compress well, one wrong byte of the file changes many of them and still decodes."""
    path = tmp_path / "image.png"
    pixels = torch.randint(0, 9, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    write_distilled([path], pixels, "digest")
    whole = path.read_bytes()
    for place in range(100, len(whole) - 12, 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert not is_made_with(path, "digest", 32), place


@pytest.mark.parametrize("extra", [[(5, 3)], [(index, 3) for index in range(9)]])
def test_classes_need_as_many_images_each(folder, extra):
    for index, ipc_id in extra:
        write_distilled([distilled_path(folder, 10, index, ipc_id)], noise(1), "digest")
    lacking = 0 if len(extra) == 1 else 9
    with pytest.raises(UserError, match=f"4 images in some classes, 3 in class {lacking}: every class needs as many"):
        read_distilled(folder, FASHION)


def test_no_more_paths_than_images_are_written(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_distilled([tmp_path / "a.png", tmp_path / "b.png"], noise(1), "digest")


def test_images_that_a_gpu_has_no_room_for_stay_where_they_are(monkeypatch):
    images = noise(4)
    memory = SimpleNamespace(total_memory=4 * images.nbytes - 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert on_device_if_fits(images, torch.device("cuda", 0)) is images
    assert on_device_if_fits(images, torch.device("cpu")) is images
    assert on_device_if_fits(images, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("size", [32, 64, 224])
def test_noise_takes_nearly_the_bytes_that_are_reckoned_with(tmp_path, size):
    dataset = replace(FASHION, size=size)
    output = images_output(2, dataset)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    write_distilled(paths, pixels, 64 * "a")  # a digest's length
    written = max(path.stat().st_size for path in paths)
    assert output.files == 2 and 0.8 * output.size / 2 < written <= output.size / 2
