"""Differentiable siamese augmentation (DSA, Zhao and Bilen 2021), as students are trained with it, on whole batches.

Of its six operations each batch gets one, drawn at random, with parameters of its own for each image: so the authors'
code has it by default (`aug_mode = 'S'`), and after it the re-implementation of CA2D and DD-Ranking. The strengths are
theirs, too. Images are normalised ones, and what comes in from outside of them is 0, the mean.

Each operation takes views (n x 3 x S x S) and numbers from 0 to 1 (n x 3), of which it uses as many as it needs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.run.randomness import generator_for

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
PADDING, CUTOUT, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0


def colour(views: Tensor, uniform: Tensor) -> Tensor:
    """Brightness: adds -0.5 .. 0.5; saturation: 0 .. 2 times the distance from the pixel's grey; contrast: 0.5 .. 1.5
    times that from the image's mean."""
    bright, saturated, contrasted = uniform[:, :, None, None, None].unbind(dim=1)
    views = views + (bright - 0.5) * BRIGHTNESS
    grey = views.mean(dim=1, keepdim=True)
    views = grey + saturated * SATURATION * (views - grey)
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrasted + CONTRAST) * (views - mean)


def crop(views: Tensor, uniform: Tensor) -> Tensor:
    """The image padded on all sides and cropped at a random place: a shift by whole pixels."""
    size = views.shape[-1]
    reach = int(size * PADDING + 0.5)
    shift = (uniform[:, :2, None] * (2 * reach + 1)).long() - reach
    places = torch.arange(size, device=views.device) + shift
    rows, columns = places.clamp(0, size - 1).unbind(dim=1)
    views = views.gather(2, rows[:, None, :, None].expand_as(views))
    views = views.gather(3, columns[:, None, None, :].expand_as(views))
    return views * _box((places >= 0) & (places < size))


def cutout(views: Tensor, uniform: Tensor) -> Tensor:
    """A square of half the side about a random place is blanked out, as much of it as lies inside."""
    size = views.shape[-1]
    side = int(size * CUTOUT + 0.5)
    start = (uniform[:, :2, None] * (size + 1 - side % 2)).long() - side // 2
    places = torch.arange(size, device=views.device)
    return views * ~_box((places >= start) & (places < start + side))


def flip(views: Tensor, uniform: Tensor) -> Tensor:
    """Mirrored, left for right, with probability 1/2."""
    return torch.where(uniform[:, 0, None, None, None] < 0.5, views.flip(-1), views)


def scale(views: Tensor, uniform: Tensor) -> Tensor:
    """Both axes, each by its own factor: the view shows 1 / 1.2 .. 1.2 times the image's height and width."""
    factors = 1 / SCALE + uniform[:, :2] * (SCALE - 1 / SCALE)
    return _warp(views, torch.diag_embed(factors))


def rotate(views: Tensor, uniform: Tensor) -> Tensor:
    """About the centre, by up to 15 degrees either way."""
    angle = (2 * uniform[:, 0] - 1) * math.radians(DEGREES)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1)
    return _warp(views, matrix.view(-1, 2, 2))


def _box(inside: Tensor) -> Tensor:
    """Pixels (n x 1 x S x S) whose row and column are inside. inside: n x 2 x S, rows and columns."""
    return inside[:, 0, None, :, None] & inside[:, 1, None, None, :]


def _warp(views: Tensor, matrices: Tensor) -> Tensor:
    """Views that read, at each place, the image at the matrix (n x 2 x 2) times that place, counted from the centre,
    across and down; bilinear."""
    grid = F.affine_grid(F.pad(matrices, (0, 1)), list(views.shape), align_corners=False)
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


OPERATIONS = (colour, crop, cutout, flip, scale, rotate)


class Draws(NamedTuple):
    """What is drawn for one epoch of N images in B batches. which: the place of each batch's operation in OPERATIONS;
    uniform (N x 3, float32): the numbers of the image at each place, on the device of the views."""

    which: Sequence[int]
    uniform: Tensor


def draw_augmentation(images: int, batch_size: int, seed: int, epoch: int, device: torch.device) -> Draws:
    """Everything random of one epoch. It depends on the arguments alone, and is drawn on the CPU."""
    generator = generator_for("dsa", seed, epoch)
    which = torch.randint(len(OPERATIONS), (-(-images // batch_size),), generator=generator)
    return Draws(which.tolist(), torch.rand(images, 3, generator=generator).to(device))


def augment_batches(views: Tensor, draws: Draws, first: int, batch_size: int) -> Tensor:
    """Each batch by its operation. views: float32, those of batches `first` and following of the epoch."""
    uniform = draws.uniform[first * batch_size :][: len(views)]
    batches = zip(views.split(batch_size), uniform.split(batch_size), draws.which[first:], strict=False)
    return torch.cat([OPERATIONS[which](batch, numbers) for batch, numbers, which in batches])
