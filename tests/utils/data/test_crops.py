"""Which images a seed draws, and crops of images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from utils.data.crops import ASPECTS, SQUARE, crop_and_resize, draw, sample_crops, sample_flips
from utils.run.randomness import generator_for


def test_draws_depend_on_what_they_are_for_alone():
    drawn = draw(100, 20, 0, "random", "cifar10", 3)
    assert len(set(drawn)) == 20
    assert draw(100, 5, 0, "random", "cifar10", 3) == drawn[:5]
    assert draw(100, 20, 0, "random", "cifar10", 4) != drawn
    assert sorted(draw(7, 300, 0, "patches")) == list(range(7))


def test_boxes_follow_area_and_aspect():
    boxes = sample_crops(375, 500, 4000, (0.08, 1.0), generator_for(0, "test")).double()
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 375).all() and (left + width <= 500).all()
    assert (width / height).log().abs().max() < np.log(4 / 3) + 0.01
    assert (height * width / (375 * 500)).min() > 0.079
    assert (top == 0).any() and (top + height == 375).any() and (left + width == 500).any()


@pytest.mark.parametrize(
    ("height", "width", "aspects", "expected"),
    [
        (100, 300, SQUARE, [0, 100, 100, 100]),
        (300, 100, SQUARE, [100, 0, 100, 100]),
        (90, 400, ASPECTS, [0, 140, 90, 120]),
        (400, 90, ASPECTS, [140, 0, 120, 90]),
    ],
)
def test_oblong_images_fall_back_on_the_middle(height, width, aspects, expected):
    boxes = sample_crops(height, width, 2, (1.0, 1.0), generator_for(0, "test"), aspects)
    assert boxes.tolist() == [expected] * 2


def test_square_crops_are_square_inside_and_of_the_area_asked_for():
    boxes = sample_crops(300, 400, 2000, (0.2, 0.5), generator_for(0, "test"), SQUARE)
    top, left, height, width = boxes.T
    assert boxes.dtype == torch.int64 and torch.equal(height, width)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 300).all() and (left + width <= 400).all()
    share = height * width / (300 * 400)
    assert 0.198 < share.min() < 0.21 and 0.49 < share.max() < 0.503
    assert share.float().mean() == pytest.approx(0.35, abs=0.01)  # uniform in area, not in side


def test_whole_image_crops():
    boxes = sample_crops(32, 32, 3, (1.0, 1.0), generator_for(0, "test"), SQUARE)
    assert boxes.tolist() == [[0, 0, 32, 32]] * 3


def test_every_second_view_is_flipped():
    flips = sample_flips(4000, generator_for(0, "test"))
    assert flips.dtype == torch.bool and flips.float().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(sample_flips(4000, generator_for(0, "test")), flips)


def test_crop_and_resize_agrees_with_torchvision():
    pixels = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator_for("pixels"))
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    boxes = torch.tensor([[3, 10, 40, 40], [0, 0, 9, 9], [10, 30, 40, 40]])
    crops = crop_and_resize(image, boxes, 16)
    assert crops.shape == (3, 3, 16, 16) and crops.dtype == torch.uint8
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        expected = reference.resized_crop(image, *box, [16, 16], antialias=True)
        assert np.array_equal(crop.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_each_crop_may_have_a_least_area_of_its_own():
    """Of one, the crop is the whole image; the draws are those of one area for all."""
    least = torch.tensor([1.0, 0.3, 1.0, 0.3] * 50)
    found = sample_crops(100, 100, 200, (least, 1.0), generator_for("areas"))
    assert (found[0::2] == torch.tensor([0, 0, 100, 100])).all()
    assert torch.equal(found[1::2], sample_crops(100, 100, 200, (0.3, 1.0), generator_for("areas"))[1::2])
