"""The patches of one class: draw images, cut crops, score them, choose by difficulty, tile."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints import Teacher
from utils.datasets import Dataset, decode
from utils.errors import UserError
from utils.patches import choose_crops, crop_losses, sample_square_crops, tile
from utils.randomness import generator_for
from utils.real_images import crop_and_resize, draw


def cut_crops(job: tuple[Path, int], class_index: int, settings: argparse.Namespace, dataset: Dataset) -> Tensor:
    """The random crops of one image; job: its file and its index in its class. uint8, m x 3 x side x side."""
    path, image_index = job
    image = decode(path)
    generator = generator_for(settings.seed, "patches", dataset.name, class_index, image_index)
    area = (settings.area_min, settings.area_max)
    boxes = sample_square_crops(image.height, image.width, settings.num_crops, area, generator)
    return crop_and_resize(image, boxes, dataset.size // settings.factor)


def class_patches(
    class_index: int,
    paths: Sequence[Path],
    observer: Teacher,
    pool: ThreadPoolExecutor,
    settings: argparse.Namespace,
    dataset: Dataset,
) -> Tensor:
    """The patches of a class, in order: uint8, N x 3 x S x S. paths: its real images; pool: decodes and crops.

    UserError where the observer's losses are not finite.
    """
    drawn = sorted(draw(len(paths), settings.max_images, settings.seed, "patches", dataset.name, class_index))
    cut = partial(cut_crops, class_index=class_index, settings=settings, dataset=dataset)
    crops = torch.stack(list(pool.map(cut, [(paths[index], index) for index in drawn])))  # M m 3 side side
    losses = crop_losses(observer.module, crops.flatten(0, 1), class_index, dataset, settings.batch_size)
    losses = losses.view(crops.shape[:2])
    if not losses.isfinite().all():
        raise UserError(f"the observer {observer.name} gives no finite loss for class {class_index}: check it")
    chosen = choose_crops(losses, settings.patch_diff, settings.patches_per_class * settings.factor**2)
    return tile(crops[chosen[:, 0], chosen[:, 1]], settings.factor)
