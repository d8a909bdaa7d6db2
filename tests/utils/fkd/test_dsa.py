"""Differentiable siamese augmentation against a plain version, one image and one pixel at a time."""

import math

import numpy as np
import pytest
import torch

from utils.fkd import dsa
from utils.fkd.dsa import OPERATIONS, Draws, augment_batches, draw_augmentation
from utils.run.randomness import generator_for

CPU = torch.device("cpu")
ENDS = torch.tensor([[0.0, 0.0, 0.0], [1 - 2**-24] * 3, [0.5, 0.5, 0.5], [0.0, 0.999, 0.25]])


@pytest.fixture
def views():
    return torch.randn(12, 3, 16, 16, generator=generator_for("views"))


@pytest.fixture
def uniform():
    """Numbers as they are drawn, and those at the ends of their range."""
    return torch.cat([ENDS, torch.rand(8, 3, generator=generator_for("numbers"))])


def bilinear(image, row, column):
    """The value at a place between pixels, 0 outside of the image."""
    size, value = image.shape[-1], np.zeros(3)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < size and 0 <= c < size:
                value += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return value


def plain_warp(image, place_of):
    """place_of: from coordinates across and down, -1 to 1 over the whole image, to those that are read."""
    size, view = image.shape[-1], np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            across, down = place_of((2 * column + 1) / size - 1, (2 * row + 1) / size - 1)
            view[:, row, column] = bilinear(image, ((down + 1) * size - 1) / 2, ((across + 1) * size - 1) / 2)
    return view


def plain_colour(image, a, b, c):
    image = image + (a - 0.5)
    grey = sum(image) / 3
    image = np.stack([grey + 2 * b * (channel - grey) for channel in image])
    return (image - image.mean()) * (c + 0.5) + image.mean()


def plain_crop(image, a, b, c):
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))  # an eighth of 16
    top, left = int(5 * a), int(5 * b)
    return padded[:, top : top + 16, left : left + 16]


def plain_cutout(image, a, b, c):
    image, row, column = image.copy(), int(17 * a), int(17 * b)
    image[:, max(0, row - 4) : row + 4, max(0, column - 4) : column + 4] = 0
    return image


def plain_flip(image, a, b, c):
    return image[..., ::-1] if a < 0.5 else image


def plain_scale(image, a, b, c):
    wide, high = (1 / 1.2 + number * (1.2 - 1 / 1.2) for number in (a, b))
    return plain_warp(image, lambda x, y: (wide * x, high * y))


def plain_rotate(image, a, b, c):
    angle = math.pi / 12 * (2 * a - 1)
    cos, sin = math.cos(angle), math.sin(angle)
    return plain_warp(image, lambda x, y: (cos * x - sin * y, sin * x + cos * y))


PLAIN = (plain_colour, plain_crop, plain_cutout, plain_flip, plain_scale, plain_rotate)


PAIRS = list(zip(OPERATIONS, PLAIN, strict=True))


@pytest.mark.parametrize(("operation", "plain"), PAIRS, ids=lambda each: each.__name__)
def test_an_operation_is_the_plain_one(views, uniform, operation, plain):
    expected = [plain(view.double().numpy(), *map(float, u)) for view, u in zip(views, uniform, strict=True)]
    got = operation(views, uniform)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), np.stack(expected), atol=2e-5)
    assert not torch.equal(got, views)


def test_an_odd_side_is_cut_out_about_one_of_its_own_pixels():
    views = torch.ones(1, 3, 10, 10)
    holes = {}
    for place in range(10):
        holes[place] = (dsa.cutout(views, torch.tensor([[place / 10 + 0.01, 0.5, 0.0]])) == 0)[0, 0].any(dim=1)
    assert [hole.nonzero().flatten().tolist() for hole in holes.values()] == [
        list(range(max(0, place - 2), min(10, place + 3))) for place in range(10)
    ]


def test_what_is_drawn_follows_from_seed_and_epoch():
    draws = draw_augmentation(37, 8, 3, 5, CPU)
    assert len(draws.which) == 5 and tuple(draws.uniform.shape) == (37, 3)
    again, *others = (draw_augmentation(37, 8, *what, CPU) for what in ((3, 5), (4, 5), (3, 6)))
    assert again.which == draws.which and torch.equal(again.uniform, draws.uniform)
    assert not any(torch.equal(other.uniform, draws.uniform) for other in others)


def test_every_operation_has_its_turn_and_numbers_are_even():
    draws = draw_augmentation(60_000, 10, 0, 0, CPU)
    counts = torch.bincount(torch.tensor(draws.which), minlength=6)
    assert (counts - 1000).abs().max() < 150  # five deviations
    assert draws.uniform.min() >= 0 and draws.uniform.max() < 1
    assert (draws.uniform.mean(dim=0) - 0.5).abs().max() < 0.01


def test_each_batch_has_its_operation_and_each_image_its_numbers(views, uniform):
    """Batches of 5, 5 and 2, all together and from the second on."""
    draws = Draws([4, 1, 3], uniform)
    parts = [operation(views[a:b], uniform[a:b]) for operation, a, b in
             ((dsa.scale, 0, 5), (dsa.crop, 5, 10), (dsa.flip, 10, 12))]  # fmt: skip
    assert torch.equal(augment_batches(views, draws, 0, 5), torch.cat(parts))
    assert torch.equal(augment_batches(views[5:], draws, 1, 5), torch.cat(parts[1:]))
    assert torch.equal(augment_batches(views[5:10], draws, 1, 5), parts[1])
