"""The table of datasets, class folders, and decoding."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from utils import datasets
from utils.datasets import (
    DATASETS,
    check_images,
    class_folders,
    decode,
    get_dataset,
    images_digest,
    images_in,
    list_images,
    load_images,
    load_test_images,
    normalise,
    to_pixels,
)
from utils.errors import UserError

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


def test_table():
    rows = {
        "cifar10": (10, 32, 4, 50_000, 10_000),
        "cifar100": (100, 32, 4, 50_000, 10_000),
        "tiny_imagenet": (200, 64, 4, 100_000, 10_000),
        "imagenet-nette": (10, 224, 32, 9_469, 3_925),
        "imagewoof": (10, 224, 32, 9_025, 3_929),
        "imagenet1k": (1000, 224, 32, 1_281_167, 50_000),
        "fashion_mnist": (10, 32, 4, 6_000, 1_000),
    }
    table = {d.name: (d.num_classes, d.size, d.jitter, d.train_images, d.val_images) for d in DATASETS.values()}
    assert table == rows
    assert get_dataset("cifar100").mean == (0.5071, 0.4867, 0.4408)
    assert get_dataset("cifar100").std == (0.2675, 0.2565, 0.2761)
    assert get_dataset("fashion_mnist").std == (0.5, 0.5, 0.5)


def test_unknown_dataset_lists_those_there_are():
    with pytest.raises(UserError, match=r"'mnist'.*cifar10.*fashion_mnist"):
        get_dataset("mnist")


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


def test_missing_root_names_the_variables_and_the_command(tmp_path):
    with pytest.raises(UserError, match=r"absent.*train_dir and val_dir in config.sh.*utils.prepare_data cifar10"):
        class_folders(tmp_path / "absent", CIFAR10)


def test_wrong_number_of_classes_names_both_counts(tmp_path):
    (tmp_path / "0").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path} has 1 class folders, cifar10 has 10"):
        list_images(tmp_path, CIFAR10)


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

    paths, labels = list_images(tmp_path, CIFAR10, limit_per_class=2)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert [path.name for path in paths[8:10]] == ["0.png", "0a.JPEG"]


def test_images_in_an_inner_folder(tmp_path):
    expected = save(tmp_path / "n01443537" / "images" / "n01443537_0.JPEG", noise(8, 8))
    assert images_in(tmp_path / "n01443537") == [expected]


def test_empty_class_folder_is_named(tmp_path):
    make_classes(tmp_path, map(str, range(9)), images=1)
    (tmp_path / "9").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path / '9'} has no images"):
        list_images(tmp_path, CIFAR10)


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


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_truncated_file_is_named(tmp_path, suffix, share):
    path = save(tmp_path / f"image.{suffix}", noise(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"{path} does not decode"):
        decode(path)


def test_what_is_no_image_is_named(tmp_path):
    path = tmp_path / "image.png"
    with pytest.raises(UserError, match=rf"{path} is missing"):
        decode(path)
    path.write_text("words")
    with pytest.raises(UserError, match=rf"{path} does not decode"):
        decode(path)


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
    monkeypatch.setattr(datasets, "PIXELS_WORTH_WORKERS", 0)
    monkeypatch.setattr(datasets, "DECODED_TOGETHER", 2)
    assert torch.equal(load_images(paths, CIFAR10, workers=1), alone)
    paths[4].write_text("words")
    with pytest.raises(UserError, match=rf"{paths[4]} does not decode"):
        load_images(paths, CIFAR10, workers=1)


def test_a_worker_that_dies_is_a_user_error():
    with pytest.raises(UserError, match="fewer --workers"):
        list(datasets._in_workers(os._exit, [1, 1], workers=1))


def test_digest_tells_pixels_labels_and_shape():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    labels = torch.tensor([0, 1])
    digest = images_digest(images, labels)
    assert digest == images_digest(images.to(memory_format=torch.channels_last), labels.int())
    assert len({digest, images_digest(images.flip(0), labels), images_digest(images, labels.flip(0))}) == 3
    assert digest != images_digest(images.view(2, 3, 2, 8), labels)
