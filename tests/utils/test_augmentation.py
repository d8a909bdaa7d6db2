"""Views against PIL, torchvision and the published implementation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomResizedCrop

from utils import augmentation as aug
from utils.datasets import get_dataset, normalise
from utils.plain import plain_augmentation, plain_view
from utils.randomness import generator_for

FASHION = get_dataset("fashion_mnist")


def test_views_agree_with_the_published_ones(golden):
    expected = golden("relabel_batch")
    crops = (expected["crop"] * 32).round().long()
    views = aug.apply_views(expected["images"], torch.arange(16), crops, expected["flip"])
    assert (views - expected["views"].float()).abs().max() <= 2


def test_cutmix_agrees_with_the_published_one(golden):
    expected = golden("relabel_batch")
    views = normalise(expected["views"], FASHION)
    boxes = expected["cutmix_box"].expand(16, 4)
    mixed = aug.cutmix(views, expected["cutmix_partner"], boxes)
    assert (mixed - expected["mixed"]).abs().max() < 1e-5


def test_the_published_box_follows_from_its_share():
    # share and box as recorded in the golden relabel batch: side int(32 sqrt(1 - 0.9025)) = 9, half of it 4
    box = aug.sample_boxes(torch.tensor([0.9024994454072202], dtype=torch.float64), 32, generator_for("box"))[0]
    assert (box[2:] - box[:2] <= 8).all()
    assert (box[2:] - box[:2] > 0).all()


def photographs():
    """Two natural photographs at 224 pixels (uint8, 2 x 3 x 224 x 224)."""
    images = [
        Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in load_sample_images().images
    ]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def test_views_of_photographs_agree_with_pil_edges_included():
    images = photographs()
    crops = aug.sample_crops(12, 224, 0.08, 1.0, generator_for("photographs"))
    corner_crops = torch.tensor([[0, 0, 90, 110], [134, 114, 90, 110], [0, 0, 224, 224], [100, 100, 64, 64]])
    crops = torch.cat((crops, corner_crops))
    flips = torch.arange(len(crops)) % 2 == 0
    which = torch.arange(len(crops)) % 2
    views = aug.apply_views(images, which, crops, flips)
    expected = torch.stack([plain_view(images[w], c, f) for w, c, f in zip(which, crops, flips, strict=True)])
    difference = (views - expected.float()).abs()
    assert difference.max() <= 2  # PIL rounds to 8 bits twice
    assert difference.mean() < 0.5


def test_pixels_outside_the_crop_never_bleed_in():
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    image[:, :, 2:6, 3:5] = 0
    view = aug.apply_views(image, torch.tensor([0]), torch.tensor([[2, 3, 4, 2]]), torch.tensor([False]))
    assert view.abs().max() == 0


def test_crops_are_distributed_as_torchvisions():
    mine = aug.sample_crops(20_000, 32, 0.08, 1.0, generator_for("crops")).float()
    image = torch.empty(3, 32, 32)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(20_000)], dtype=torch.float32
    )
    for quantile in (0.1, 0.5, 0.9):
        assert (mine.quantile(quantile, dim=0) - theirs.quantile(quantile, dim=0)).abs().max() <= 1
    assert (mine.mean(dim=0) - theirs.mean(dim=0)).abs().max() < 0.25
    assert (mine[:, 0] + mine[:, 2] <= 32).all()
    assert (mine[:, 1] + mine[:, 3] <= 32).all()


def test_a_crop_that_never_fits_becomes_the_whole_image():
    # area 1 with an aspect that is not exactly 1 is larger than the image on one side, so nearly all tries fail
    crops = aug.sample_crops(200, 100, 1.0, 1.0, generator_for("fallback"))
    assert (crops == torch.tensor([0, 0, 100, 100])).all(dim=1).float().mean() > 0.7


@pytest.mark.parametrize("alpha", [0.8, 1.0, 2.0])
def test_beta_draws_have_the_moments_of_their_distribution(alpha):
    draws = aug.sample_beta(50_000, alpha, generator_for("beta", str(alpha)))
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert ((draws >= 0) & (draws <= 1)).all()


def test_boxes_follow_the_method():
    lam = torch.rand(500, generator=generator_for("lam"), dtype=torch.float64)
    boxes = aug.sample_boxes(lam, 32, generator_for("boxes"))
    assert ((boxes >= 0) & (boxes <= 32)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    expected = torch.tensor([2 * (int(32 * math.sqrt(1 - share)) // 2) for share in lam.tolist()])
    inside = ((boxes > 0) & (boxes < 32)).all(dim=1)
    assert (sides[inside] == expected[inside, None]).all()
    assert (sides <= expected[:, None]).all()


def test_mixup_mixes_the_views_by_their_share():
    views = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    mixed = aug.mixup(views, torch.tensor([1, 0]), torch.tensor([0.75, 0.75]))
    assert mixed[0].unique().item() == pytest.approx(0.25)
    assert mixed[1].unique().item() == pytest.approx(0.75)


def test_images_elsewhere_are_picked_there():
    images = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1)
    which = torch.tensor([2, 0, 2], dtype=torch.int32)
    assert aug.pick(images, which, images.device).flatten(1).tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
    elsewhere = aug.pick(images, which, torch.device("meta"))
    assert (elsewhere.shape, elsewhere.dtype, elsewhere.device.type) == ((3, 3, 1, 1), torch.uint8, "meta")


@pytest.mark.parametrize("size", [24, 32, 56])
def test_matrices_do_what_crop_flip_and_roll_do(size, relative):
    draws = aug.sample_batch_augmentations(24, size, True, 4, generator_for("draws", size))
    rows, columns = aug.augmentation_matrices(draws, size)
    images = torch.randn(3, 3, size, size, generator=generator_for("images"))
    weights = torch.randn(images.shape, generator=generator_for("weights"))
    for draw, row, column in zip(draws, rows, columns, strict=True):
        plain, fast = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
        expected, got = plain_augmentation(plain, draw), aug.augment_batch(fast, row, column)
        (expected * weights).sum().backward()
        (got * weights).sum().backward()
        assert relative(got, expected) < 1e-5
        assert relative(fast.grad, plain.grad) < 1e-5


def test_without_augmentation_only_the_roll_is_drawn():
    draws = aug.sample_batch_augmentations(300, 32, False, 4, generator_for("roll"))
    assert (draws[:, :5] == torch.tensor([0, 0, 32, 32, 0])).all()
    assert draws[:, 5:].min() == 0
    assert draws[:, 5:].max() == 4  # both ends included
    images = torch.randn(1, 3, 32, 32, generator=generator_for("images"))
    rows, columns = aug.augmentation_matrices(draws[:1], 32)
    rolled = images.roll(tuple(draws[0, 5:].tolist()), dims=(2, 3))
    assert torch.equal(aug.augment_batch(images, rows[0], columns[0]), rolled)
