"""Real images: which ones a seed draws, and crops of images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from utils.datasets import get_dataset
from utils.randomness import generator_for
from utils.real_images import crop_and_resize, draw, images_by_class, sample_boxes_of


def test_images_by_class(tmp_path):
    for class_index in range(10):
        folder = tmp_path / f"new{class_index:03d}"
        folder.mkdir()
        for index in range(class_index + 1):
            Image.new("RGB", (32, 32)).save(folder / f"{index}.png")
    images = images_by_class(tmp_path, get_dataset("fashion_mnist"))
    assert [len(paths) for paths in images] == list(range(1, 11))
    assert images[2][1] == tmp_path / "new002" / "1.png"


def test_draws_depend_on_what_they_are_for_alone():
    drawn = draw(100, 20, 0, "random", "cifar10", 3)
    assert len(set(drawn)) == 20
    assert draw(100, 5, 0, "random", "cifar10", 3) == drawn[:5]
    assert draw(100, 20, 0, "random", "cifar10", 4) != drawn
    assert sorted(draw(7, 300, 0, "patches")) == list(range(7))


def test_boxes_follow_area_and_aspect():
    boxes = sample_boxes_of(375, 500, 4000, (0.08, 1.0), (3 / 4, 4 / 3), generator_for(0, "test")).double()
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 375).all() and (left + width <= 500).all()
    assert (width / height).log().abs().max() < np.log(4 / 3) + 0.01
    assert (height * width / (375 * 500)).min() > 0.079
    assert (top == 0).any() and (top + height == 375).any() and (left + width == 500).any()


@pytest.mark.parametrize(
    ("height", "width", "aspect", "expected"),
    [
        (100, 300, (1.0, 1.0), [0, 100, 100, 100]),
        (300, 100, (1.0, 1.0), [100, 0, 100, 100]),
        (90, 400, (3 / 4, 4 / 3), [0, 140, 90, 120]),
        (400, 90, (3 / 4, 4 / 3), [140, 0, 120, 90]),
    ],
)
def test_oblong_images_fall_back_on_the_middle(height, width, aspect, expected):
    boxes = sample_boxes_of(height, width, 2, (1.0, 1.0), aspect, generator_for(0, "test"))
    assert boxes.tolist() == [expected] * 2


def test_crop_and_resize_agrees_with_torchvision():
    pixels = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator_for("pixels"))
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    boxes = torch.tensor([[3, 10, 40, 40], [0, 0, 9, 9], [10, 30, 40, 40]])
    crops = crop_and_resize(image, boxes, 16)
    assert crops.shape == (3, 3, 16, 16) and crops.dtype == torch.uint8
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        expected = reference.resized_crop(image, *box, [16, 16], antialias=True)
        assert np.array_equal(crop.permute(1, 2, 0).numpy(), np.asarray(expected))
