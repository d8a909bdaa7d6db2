"""The patches of one class, after RDED (Sun et al. 2024): draw images, cut crops, score them, choose, tile."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.data.crops import SQUARE, crop_and_resize, draw, sample_crops
from utils.data.images import decode
from utils.data.table import Dataset
from utils.patches.selectors import Candidates, observe
from utils.recipes.settings import PatchSettings
from utils.run.randomness import generator_for
from utils.seams import SELECTORS


def class_patches(
    class_index: int,
    paths: Sequence[Path],
    observer: nn.Module,
    pool: ThreadPoolExecutor,
    settings: PatchSettings,
    dataset: Dataset,
) -> Tensor:
    """The patches of a class, in order: uint8, N x 3 x S x S. paths: its real images; pool: decodes and crops."""
    drawn = sorted(draw(len(paths), settings.max_images, settings.seed, "patches", dataset.name, class_index))
    cut = partial(cut_crops, class_index=class_index, settings=settings, dataset=dataset)
    crops = torch.stack(list(pool.map(cut, [(paths[index], index) for index in drawn])))  # M m 3 side side

    look = partial(observe, observer, crops.flatten(0, 1), class_index, dataset, settings.crops_at_once)
    candidates = Candidates(class_index, *crops.shape[:2], settings.observer, look)
    generator = generator_for(settings.seed, "choice", dataset.name, class_index)
    count = settings.patches_per_class * settings.factor**2
    chosen = SELECTORS[settings.selector](candidates, count, generator)
    return tile(crops[chosen[:, 0], chosen[:, 1]], settings.factor, settings.tile_stride)


def cut_crops(job: tuple[Path, int], class_index: int, settings: PatchSettings, dataset: Dataset) -> Tensor:
    """The random square crops of one image; job: its file and its index in its class. uint8, m x 3 x side x side."""
    path, image_index = job
    image = decode(path)
    generator = generator_for(settings.seed, "patches", dataset.name, class_index, image_index)
    boxes = sample_crops(image.height, image.width, settings.num_crops, settings.crop_area, generator, SQUARE)
    return crop_and_resize(image, boxes, dataset.size // settings.factor)


def tile(crops: Tensor, factor: int, stride: int = 1) -> Tensor:
    """Join factor * factor crops, row by row, into one image.

    crops: (N * factor * factor) x 3 x s x s, in order of their rank, N a multiple of stride. Those of a tile lie
    `stride` ranks apart: with 1 they follow each other, so that every number of images shares its first ones with a
    larger one; with the number of images (RDED) the best crops are spread over all of them. Returns N x 3 x (factor *
    s) x (factor * s).
    """
    cells, side = factor**2, crops.shape[-1]
    crops = crops.unflatten(0, (-1, cells, stride)).transpose(1, 2)  # block, image, cell
    grids = crops.reshape(-1, factor, factor, crops.shape[3], side, side)
    return grids.permute(0, 3, 1, 4, 2, 5).reshape(-1, grids.shape[3], factor * side, factor * side)
