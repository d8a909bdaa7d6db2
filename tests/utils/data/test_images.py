"""Class folders, and decoding."""

import errno
import os
import re
import struct
import tempfile
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from utils.data import images as images_module
from utils.data.images import (
    channel_tensors,
    check_images,
    class_folders,
    class_names,
    decode,
    folder_names,
    images_by_class,
    images_digest,
    images_in,
    list_images,
    load_images,
    load_test_images,
    load_test_images_once,
    normalise,
    open_image,
    to_pixels,
)
from utils.data.table import DATASETS, get_dataset
from utils.run.errors import UserError
from utils.run.team import Team

CIFAR10 = get_dataset("cifar10")
NETTE = get_dataset("imagenet-nette")


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def make_classes(root, names, images=2):
    for number, name in enumerate(names):
        for index in range(images):
            save(root / name / f"{index}.png", noise(32, 32, 100 * number + index))
    return root


def test_channel_tensors_are_mean_and_std():
    mean, std = channel_tensors(CIFAR10)
    assert mean.shape == std.shape == (3, 1, 1) and mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean.flatten(), torch.tensor(CIFAR10.mean)) and torch.equal(
        std.flatten(), torch.tensor(CIFAR10.std)
    )


def test_pixels_survive_normalising():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    for dataset in DATASETS.values():
        assert torch.equal(to_pixels(normalise(pixels, dataset), dataset), pixels)


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(7, 17)],
        [f"new{number:03d}" for number in range(995, 1005)],
        [f"class{number}" for number in range(3, 13)],
        [f"n{number:08d}" for number in range(1440764, 1440774)],
        [f"{number}_name" for number in range(10)],
        sorted(f"{letter}{9 - number}" for number, letter in enumerate("abcdefghij")),
    ],
)
def test_class_order(tmp_path, names):
    for name in reversed(names):
        (tmp_path / name).mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "settings.json").touch()
    assert [folder.name for folder in class_folders(tmp_path, CIFAR10)] == names
    assert folder_names(tmp_path) == names


def test_missing_root_names_the_variables_and_the_command(tmp_path):
    with pytest.raises(UserError, match=r"absent.*train_dir and val_dir in config.sh.*utils.data.prepare cifar10"):
        class_folders(tmp_path / "absent", CIFAR10)


def test_wrong_number_of_classes_names_both_counts(tmp_path):
    (tmp_path / "0").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path} has 1 class folders, cifar10 has 10 classes: put the folders of"):
        list_images(tmp_path, CIFAR10)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ([f"{number}_{name}" for number, name in enumerate("abcdefghij")], list("abcdefghij")),
        ([f"0{number}-ankle boot {number}" for number in range(10)], [f"ankle boot {number}" for number in range(10)]),
        ([f"n0144076{number}" for number in range(10)], [f"n0144076{number}" for number in range(10)]),
        ([*"abcdefghi", "9_lives"], ["9_lives", *"abcdefghi"]),
        ([f"0000{number}" for number in range(10)], [f"class {number}" for number in range(10)]),
        (list("abcdefghi"), [f"class {number}" for number in range(10)]),  # one is missing
    ],
)
@pytest.mark.parametrize("split", ["train_dir", "val_dir"])
def test_classes_are_called_as_their_folders(tmp_path, monkeypatch, split, folders, names):
    for name in folders:
        (tmp_path / split / "cifar10" / name).mkdir(parents=True)
    for each in ("train_dir", "val_dir"):
        monkeypatch.setenv(each, str(tmp_path / each))
    assert class_names(CIFAR10) == names


def test_without_folders_classes_have_their_numbers(tmp_path, monkeypatch):
    numbers = [f"class {number}" for number in range(10)]
    monkeypatch.setenv("train_dir", str(tmp_path))
    monkeypatch.setenv("val_dir", "")
    assert class_names(CIFAR10) == numbers
    monkeypatch.delenv("train_dir")
    monkeypatch.delenv("val_dir")
    assert class_names(CIFAR10) == numbers


@pytest.mark.parametrize("odd", ["__MACOSX", "lost+found"])
def test_what_systems_leave_is_named_whatever_the_classes_are_called(tmp_path, odd):
    for name in ("plane", "car", "bird", "n", "deer", "dog", "frog", "horse", "ship", "wagon", odd):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"has 11 class folders, {re.escape(repr(odd))} among them"):
        list_images(tmp_path, CIFAR10)


@pytest.mark.parametrize("odd", ["val", "__MACOSX", "copy_of_3"])
def test_one_folder_too_many_is_named(tmp_path, odd):
    for name in [odd, *(f"n{number:08d}" for number in range(10))]:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"has 11 class folders, '{odd}' among them, cifar10 has 10 classes"):
        class_folders(tmp_path, CIFAR10)


def test_list_images(tmp_path):
    make_classes(tmp_path, map(str, range(10)), images=3)
    save(tmp_path / "4" / "0a.JPEG", noise(32, 32))
    save(tmp_path / "4" / ".hidden.png", noise(32, 32))
    (tmp_path / "4" / "boxes.txt").touch()
    paths, labels = list_images(tmp_path, CIFAR10)
    expected = [(c, n) for c in range(10) for n in (["0.png", "0a.JPEG"] if c == 4 else ["0.png"]) + ["1.png", "2.png"]]
    assert [(int(path.parent.name), path.name) for path in paths] == expected
    assert labels.dtype == torch.int64
    assert labels.tolist() == [label for label, _ in expected]


def test_images_by_class(tmp_path):
    for class_index in range(10):
        for index in range(class_index + 1):
            save(tmp_path / f"new{class_index:03d}" / f"{index}.png", noise(32, 32))
    images = images_by_class(tmp_path, get_dataset("fashion_mnist"))
    assert [len(paths) for paths in images] == list(range(1, 11))
    assert images[2][1] == tmp_path / "new002" / "1.png"


def test_images_in_an_inner_folder(tmp_path):
    expected = save(tmp_path / "n01443537" / "images" / "n01443537_0.JPEG", noise(8, 8))
    assert images_in(tmp_path / "n01443537") == [expected]


def test_empty_class_folder_is_named(tmp_path):
    make_classes(tmp_path, map(str, range(9)), images=1)
    (tmp_path / "9").mkdir()
    with pytest.raises(UserError, match=rf"class folder {tmp_path / '9'} has no images: put its images there"):
        list_images(tmp_path, CIFAR10)


def test_images_that_lie_deeper_are_named(tmp_path):
    deeper = save(tmp_path / "9" / "cropped" / "a.PNG", noise(8, 8))
    with pytest.raises(UserError, match=rf"9 has no images \({deeper} lies deeper: move such images up\): put"):
        images_in(tmp_path / "9")


def test_decode_converts_to_rgb(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = np.asarray(decode(save(tmp_path / "grey.png", ramp)))
    assert np.array_equal(grey, np.repeat(ramp[..., None], 3, axis=2))
    deep = np.asarray(decode(save(tmp_path / "deep.png", ramp.astype(np.uint16) * 257)))
    assert np.array_equal(deep, grey)
    colours = noise(16, 16)
    Image.fromarray(colours).quantize(16).save(tmp_path / "palette.png")
    expected = Image.fromarray(colours).quantize(16).convert("RGB")
    assert np.array_equal(np.asarray(decode(tmp_path / "palette.png")), np.asarray(expected))
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(decode(tmp_path / "alpha.png")), colours)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "print.jpg")
    assert decode(tmp_path / "print.jpg").mode == "RGB"


@pytest.mark.parametrize("kind", ["<i4", "<u2", ">u2"])
def test_grey_of_more_than_8_bits_keeps_its_upper_ones(tmp_path, kind):
    values = (np.arange(256) * 257).reshape(16, 16)
    path = save(tmp_path / "deep.tif", values.astype(kind))
    assert np.array_equal(np.asarray(decode(path))[..., 1], values >> 8)


def test_grey_of_12_bits_fills_the_range(tmp_path):
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 4 1 4095\n" + np.array([0, 1024, 2048, 4095], dtype=">u2").tobytes())
    assert np.asarray(decode(path))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_grey_between_0_and_1_is_scaled(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    path = save(tmp_path / "grey.tif", values)
    assert np.array_equal(np.asarray(decode(path))[..., 2], (values * 255).round())


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.array([[0, 7.5]], dtype=np.float32), "grey values from 0 to 7.5, not from 0 to 1"),
        (np.array([[-0.1, 1]], dtype=np.float32), "grey values from -0.1 to 1, not from 0 to 1"),
        (np.array([[0, 65536]], dtype=np.int32), "grey values from 0 to 65536, more than 16 bits"),
        (np.array([[-1, 3]], dtype=np.int32), "grey values from -1 to 3, more than 16 bits"),
    ],
)
def test_grey_of_another_range_is_refused(tmp_path, values, problem):
    path = save(tmp_path / "grey.tif", values)
    with pytest.raises(UserError) as error:
        decode(path)
    assert str(error.value) == f"{path} does not decode ({problem}): replace the file or remove it"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_truncated_file_is_named(tmp_path, suffix, share):
    path = save(tmp_path / f"image.{suffix}", noise(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"{path} does not decode"):
        decode(path)


def png(rows, side=32):
    """An RGB PNG, written by hand, of which only so many rows are there."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = zlib.compress((b"\0" + bytes(range(3 * side))) * rows)
    half = len(pixels) // 2
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", pixels[:half])
        + chunk(b"IDAT", pixels[half:])
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("rows", [1, 16, 31])
def test_a_png_that_ends_after_some_of_its_rows_is_refused(tmp_path, rows):
    path = tmp_path / "image.png"
    path.write_bytes(png(rows))
    with Image.open(path) as image:
        assert image.convert("RGB").size == (32, 32)  # which Pillow takes as it is
    with pytest.raises(UserError, match=rf"{path} does not decode \(its pixels end early\)"):
        decode(path)
    path.write_bytes(png(32))
    assert (np.asarray(decode(path)) == np.arange(96).reshape(1, 32, 3)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("side", [1, 7, 32])
def test_whole_pngs_of_every_kind_decode(tmp_path, mode, side):
    image = Image.new(mode, (side, side), 2**15 if mode == "I;16" else 1)
    for name, options in (("plain", {}), ("palette", {"bits": 1} if mode == "P" else {})):
        image.save(tmp_path / f"{name}.png", **options)
        assert decode(tmp_path / f"{name}.png").size == (side, side)


def test_what_lies_behind_a_pngs_rows_is_not_unpacked(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(32 * 10_000))  # 31 MB of rows
    tracemalloc.start()
    images_module.require_all_rows(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(("values", "most"), [([0, 100, 200], 200), ([0, 4000], 4000)])
def test_deep_images_that_would_be_nearly_black_are_refused(tmp_path, values, most):
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match=rf"grey values up to {most} of 16 bits, nearly black"):
        decode(tmp_path / "image.tif")
    Image.fromarray(np.zeros((2, 2), dtype=np.int32)).save(tmp_path / "black.tif")
    assert not np.asarray(decode(tmp_path / "black.tif")).any()


def test_processes_of_a_machine_hold_test_images_once(tmp_path, monkeypatch):
    """The first decodes them into a file, the second maps it, and then it has no name any more."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    make_classes(tmp_path / "val", [f"class{number}" for number in range(10)])
    paths, _ = list_images(tmp_path / "val", CIFAR10)
    seen = {}

    class Member(Team):
        def gather(self, value):
            if self.rank == 2:  # the first of the second machine
                (name,) = (tmp_path / "temporary").iterdir()
                assert value == str(name)
                seen["other"] = load_test_images_once(paths, CIFAR10, 0, Member(3, 4, 1))
                return [None, None, value, None]
            (name,) = (tmp_path / "temporary").iterdir()
            assert value is None
            return [None, None, str(name), None]

        def wait(self):
            pass

    seen["first"] = load_test_images_once(paths, CIFAR10, 0, Member(2, 4, 0))
    assert list((tmp_path / "temporary").iterdir()) == []
    assert torch.equal(seen["first"], load_test_images(paths, CIFAR10)) and torch.equal(seen["first"], seen["other"])
    seen["first"][0, 0, 0, 0] ^= 255
    assert torch.equal(seen["first"], seen["other"])  # the same memory


def test_no_room_for_test_images_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images_module, "_decoded", full)
    with pytest.raises(UserError, match=rf"{tmp_path}/test_images_\w+: no room .* name a folder with more in TMPDIR"):
        load_test_images_once([], CIFAR10, 0, Team(0, 2, 0))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_image_is_named(tmp_path):
    path = tmp_path / "image.png"
    with pytest.raises(UserError, match=rf"{path} is missing"):
        decode(path)
    path.write_text("words")
    with pytest.raises(UserError, match=rf"{path} does not decode"):
        decode(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=rf"{path} is no file: put an image there, or remove it"):
        decode(path)


def test_a_format_that_no_dataset_has_is_not_tried(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "image.png", format="TGA")
    with pytest.raises(UserError, match=r"image\.png does not decode"):
        decode(tmp_path / "image.png")
    Image.fromarray(noise(8, 8)).save(tmp_path / "other.png", format="BMP")
    assert decode(tmp_path / "other.png").size == (8, 8)


@pytest.mark.parametrize("side", [11, 20])  # of which Pillow warns, and which it refuses
def test_a_file_that_swells_is_refused(tmp_path, monkeypatch, side):
    path = save(tmp_path / "image.png", noise(side, side))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=f"{path} swells to more pixels than any dataset's image has: remove it"):
        decode(path)


def test_what_the_system_says_of_a_file_stays(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "image.png", noise(8, 8))
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError):
        decode(path)


def test_an_opened_image_is_the_callers(tmp_path):
    with open_image(save(tmp_path / "image.png", noise(8, 9))) as image:
        assert image.format == "PNG" and image.size == (9, 8)
        image.load()


def test_load_images_keeps_order_and_pixels(tmp_path):
    pixels = [noise(32, 32, seed) for seed in range(5)]
    paths = [save(tmp_path / f"{9 - seed}.png", image) for seed, image in enumerate(pixels)]
    images = load_images(paths, CIFAR10)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    assert torch.equal(load_test_images(paths, CIFAR10, progress=None), images)
    assert load_images([], CIFAR10).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("load", [load_images, load_test_images, check_images])
def test_another_size_names_file_and_sizes(tmp_path, load):
    paths = [save(tmp_path / "right.png", noise(32, 32)), save(tmp_path / "wrong.png", noise(28, 30))]
    with pytest.raises(UserError, match=rf"{paths[1]} is 30 x 28 pixels, not 32 x 32"):
        load(paths, CIFAR10)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (375, 500), (500, 333), (257, 900), (60, 45), (301, 299)])
def test_test_images_at_224_are_torchvisions(tmp_path, size):
    pixels = noise(*size)
    path = save(tmp_path / "image.png", pixels)
    expected = Compose([Resize(256), CenterCrop(224)])(Image.fromarray(pixels))
    image = load_test_images([path], NETTE)[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_distilled_images_at_224_are_not_resized(tmp_path):
    path = save(tmp_path / "image.png", noise(224, 224))
    assert np.array_equal(load_images([path], NETTE)[0].permute(1, 2, 0).numpy(), noise(224, 224))


def test_worker_processes_give_the_same(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{seed}.png", noise(32, 32, seed)) for seed in range(7)]
    alone = load_images(paths, CIFAR10)
    monkeypatch.setattr(images_module, "PIXELS_WORTH_WORKERS", 0)
    monkeypatch.setattr(images_module, "DECODED_TOGETHER", 2)
    assert torch.equal(load_images(paths, CIFAR10, workers=1), alone)
    paths[4].write_text("words")
    with pytest.raises(UserError, match=rf"{paths[4]} does not decode"):
        load_images(paths, CIFAR10, workers=1)


def test_a_worker_that_dies_is_a_user_error():
    with pytest.raises(UserError, match="fewer --workers"):
        list(images_module._in_workers(os._exit, [1, 1], workers=1))


def test_digest_tells_pixels_labels_and_shape():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    labels = torch.tensor([0, 1])
    digest = images_digest(images, labels)
    assert digest == images_digest(images.to(memory_format=torch.channels_last), labels.int())
    assert len({digest, images_digest(images.flip(0), labels), images_digest(images, labels.flip(0))}) == 3
    assert digest != images_digest(images.view(2, 3, 2, 8), labels)
