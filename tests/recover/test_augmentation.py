"""The augmentation of recover against slicing, resizing, flipping and rolling."""

import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from recover.augmentation import augment_batch, augmentation_matrices, sample_batch_augmentations
from tests.plain import plain_augmentation
from utils.run.randomness import generator_for


@pytest.mark.parametrize("size", [24, 32, 56])
def test_matrices_do_what_crop_flip_and_roll_do(size, relative):
    draws = sample_batch_augmentations(24, size, True, 4, generator_for("draws", size))
    rows, columns = augmentation_matrices(draws, size)
    images = torch.randn(3, 3, size, size, generator=generator_for("images"))
    weights = torch.randn(images.shape, generator=generator_for("weights"))
    for draw, row, column in zip(draws, rows, columns, strict=True):
        plain, fast = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
        expected, got = plain_augmentation(plain, draw), augment_batch(fast, row, column)
        (expected * weights).sum().backward()
        (got * weights).sum().backward()
        assert relative(got, expected) < 1e-5
        assert relative(fast.grad, plain.grad) < 1e-5


def test_draws_are_integers_that_follow_from_the_generator_alone():
    draws = sample_batch_augmentations(500, 32, True, 4, generator_for("draws"))
    assert (draws.dtype, tuple(draws.shape)) == (torch.int64, (500, 7))
    assert torch.equal(draws, sample_batch_augmentations(500, 32, True, 4, generator_for("draws")))
    top, left, height, width, flip, down, right = draws.T
    assert ((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 32)).all()
    share = height * width / 32**2
    assert 0.06 < share.min() < 0.12 and share.max() > 0.9  # 0.08 to 1, in whole pixels
    assert 0.4 < flip.float().mean() < 0.6
    assert sorted(set(down.tolist())) == sorted(set(right.tolist())) == [0, 1, 2, 3, 4]


def largest_gap(ours, theirs):
    """The largest difference between two samples in the share that is below a value (Kolmogorov-Smirnov)."""
    values = torch.cat((ours, theirs)).unique()
    below = [torch.searchsorted(drawn.sort().values, values, right=True) / len(drawn) for drawn in (ours, theirs)]
    return (below[0] - below[1]).abs().max().item()


def test_draws_are_distributed_as_torchvisions(size=224, count=4000):
    """Gaps of two samples of one distribution: 0.044 in one of a thousand pairs. Of areas from 0.25 up: 0.18."""
    top, left, height, width, flip, down, right = sample_batch_augmentations(
        count, size, True, 32, generator_for("draws")
    ).T.double()
    image = torch.empty(3, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    their_top, their_left, their_height, their_width = torch.tensor(theirs).T.double()
    assert largest_gap(height * width, their_height * their_width) < 0.044
    assert largest_gap(width / height, their_width / their_height) < 0.044
    assert largest_gap(top, their_top) < 0.044 and largest_gap(left, their_left) < 0.044
    assert flip.mean() == pytest.approx(0.5, abs=0.03)
    for roll in (down, right):
        assert largest_gap(roll, torch.arange(33.0).double()) < 0.04  # each of 0..32 as often
    assert abs(torch.corrcoef(torch.stack((down, right)))[0, 1]) < 0.05


def test_without_augmentation_only_the_roll_is_drawn():
    draws = sample_batch_augmentations(300, 32, False, 4, generator_for("roll"))
    assert (draws[:, :5] == torch.tensor([0, 0, 32, 32, 0])).all()
    assert draws[:, 5:].min() == 0
    assert draws[:, 5:].max() == 4  # both ends included
    images = torch.randn(1, 3, 32, 32, generator=generator_for("images"))
    rows, columns = augmentation_matrices(draws[:1], 32)
    rolled = images.roll(tuple(draws[0, 5:].tolist()), dims=(2, 3))
    assert torch.equal(augment_batch(images, rows[0], columns[0]), rolled)
