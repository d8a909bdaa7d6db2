"""The patches of a class: crops of its images, the observer's choice among them, tiles."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from utils.data.crops import SQUARE, crop_and_resize, sample_crops
from utils.data.table import get_dataset
from utils.patches.making import class_patches, cut_crops, tile
from utils.patches.selectors import Candidates, observe
from utils.recipes.settings import PatchSettings
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.seams import SELECTORS

FASHION = get_dataset("fashion_mnist")
SETTINGS = PatchSettings(
    dataset_name="fashion_mnist", num_crops=3, patches_per_class=2, max_images=5, crops_at_once=4, selector="easy"
)


@pytest.fixture
def paths(tmp_path):
    """Seven images of random pixels, of several sizes."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(7):
        found.append(tmp_path / f"{index}.png")
        pixels = rng.integers(0, 256, (40 + index, 60 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(found[-1])
    return found


class Observer(nn.Module):
    """Ten logits by a random map of the mean colour; NaN instead of what is not finite."""

    def __init__(self, scale: float = 100) -> None:
        super().__init__()
        weight = torch.randn(10, 3, generator=generator_for("observer"))
        self.weight = nn.Parameter(weight * scale)

    def forward(self, images):
        return images.mean(dim=(2, 3)) @ self.weight.T


# Tiles


def test_tiles_are_filled_row_by_row_with_consecutive_crops():
    crops = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 2, 2)
    tiles = tile(crops, 2)
    assert tiles.shape == (2, 3, 4, 4)
    assert tiles[0, 1].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert tiles[1, 0, 3, 3] == 7
    assert torch.equal(tile(crops, 1), crops)


def plain_tiles(crops, factor, stride):
    """The tiles crop by crop: blocks of `stride` images, cell by cell over all images of a block."""
    side, cells = crops.shape[-1], factor**2
    count = len(crops) // cells
    tiles = torch.zeros(count, 3, factor * side, factor * side, dtype=crops.dtype)
    for image in range(count):
        block, place = divmod(image, stride)
        for cell in range(cells):
            rank = block * stride * cells + cell * stride + place
            top, left = side * (cell // factor), side * (cell % factor)
            tiles[image, :, top : top + side, left : left + side] = crops[rank]
    return tiles


@pytest.mark.parametrize(
    ("images", "factor", "stride"), [(6, 2, 1), (6, 2, 6), (6, 2, 3), (6, 2, 2), (4, 3, 4), (5, 1, 5), (1, 2, 1)]
)
def test_tiles_agree_with_a_plain_loop(images, factor, stride):
    generator = generator_for("crops")
    crops = torch.randint(0, 256, (images * factor**2, 3, 4, 4), dtype=torch.uint8, generator=generator)
    assert torch.equal(tile(crops, factor, stride), plain_tiles(crops, factor, stride))


@pytest.mark.parametrize("count", [1, 3, 10])
def test_with_the_number_of_images_as_stride_tiles_are_rdeds(count):
    """Image j holds the crops of rank j, n + j, 2 n + j and 3 n + j, its cells in row-major order."""
    ranks = torch.arange(4 * count).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    tiles = tile(ranks, 2, stride=count)
    for j in range(count):
        cells = [tiles[j, 0, row, column].item() for row in (0, 2) for column in (0, 2)]
        assert cells == [j, count + j, 2 * count + j, 3 * count + j]


def test_a_larger_number_of_images_begins_with_the_same_ones():
    crops = torch.randint(0, 256, (48, 3, 4, 4), dtype=torch.uint8, generator=generator_for("crops"))
    for stride, fewer in ((1, 5), (3, 6), (4, 8)):
        assert torch.equal(tile(crops[: 4 * fewer], 2, stride), tile(crops, 2, stride)[:fewer])


# Crops


@pytest.mark.parametrize("factor", [1, 2])
def test_crops_of_an_image_are_squares_drawn_for_it_alone(paths, factor):
    settings = replace(SETTINGS, factor=factor, crop_area=(0.2, 0.6))
    crops = cut_crops((paths[2], 5), 7, settings, FASHION)
    assert crops.shape == (3, 3, 32 // factor, 32 // factor) and crops.dtype == torch.uint8
    with Image.open(paths[2]) as image:
        generator = generator_for(0, "patches", "fashion_mnist", 7, 5)
        boxes = sample_crops(image.height, image.width, 3, (0.2, 0.6), generator, SQUARE)
        assert torch.equal(crops, crop_and_resize(image, boxes, 32 // factor))
    assert not torch.equal(cut_crops((paths[2], 4), 7, settings, FASHION), crops)
    assert not torch.equal(cut_crops((paths[2], 5), 6, settings, FASHION), crops)
    assert not torch.equal(cut_crops((paths[2], 5), 7, replace(settings, seed=1), FASHION), crops)


# A class


def make(paths, settings, observer=None):
    with ThreadPoolExecutor(2) as pool:
        return class_patches(3, paths, (observer or Observer()).eval(), pool, settings, FASHION)


def test_the_patches_of_a_class_are_its_best_crops(paths):
    settings = replace(SETTINGS, max_images=7, patches_per_class=21)
    crops = torch.stack([cut_crops((path, index), 3, settings, FASHION) for index, path in enumerate(paths)])
    observed = observe(Observer().eval(), crops.flatten(0, 1), 3, FASHION, batch_size=100)
    for selector in ("easy", "medium", "hard"):
        chosen = SELECTORS[selector](Candidates(0, 7, 3, "observer", lambda: observed), 21, generator_for("unused"))
        patches = make(paths, replace(settings, selector=selector))
        assert torch.equal(patches, crops[chosen[:, 0], chosen[:, 1]])


def test_some_images_are_drawn_and_a_smaller_number_of_patches_is_the_first_ones(paths):
    whole = make(paths, replace(SETTINGS, patches_per_class=5))
    assert whole.shape == (5, 3, 32, 32)
    assert torch.equal(make(paths, SETTINGS), whole[:2])
    assert not torch.equal(make(paths, replace(SETTINGS, seed=1)), whole[:2])


def test_tiles_of_a_class(paths):
    settings = replace(SETTINGS, factor=2, patches_per_class=3, max_images=7)
    crops = make(paths, replace(settings, factor=2, patches_per_class=3))
    assert crops.shape == (3, 3, 32, 32)
    spread = make(paths, replace(settings, tile_stride=3))
    cells = [patches.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5) for patches in (crops, spread)]
    by_rank, by_image = cells[0].flatten(0, 2), cells[1].flatten(1, 2)
    for image in range(3):
        assert torch.equal(by_image[image], by_rank[image::3])


def test_random_patches_ask_no_observer(paths):
    broken = Observer(scale=float("nan"))
    patches = make(paths, replace(SETTINGS, selector="random", patches_per_class=5), broken)
    assert patches.shape == (5, 3, 32, 32)


def test_losses_that_are_not_finite_name_the_observer(paths):
    said = "the observer ResNet18 gives no finite loss for class 3: check it"
    with pytest.raises(UserError, match=said):
        make(paths, SETTINGS, Observer(scale=float("nan")))
