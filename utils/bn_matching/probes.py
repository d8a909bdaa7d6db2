"""Probes: which statistics of a teacher recover matches.

A probe names the layers that it watches, measures vectors of each one's input, and says what these should be. The
distance R is the sum over layers and vectors of the L2 norm of their difference. Built by `MatchedTeacher`, one for
each teacher.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.seams import PROBES


class Statistics(NamedTuple):
    """Mean and biased variance per channel (C each, float32)."""

    mean: Tensor
    var: Tensor


class Probe(Protocol):
    """What is watched, measured and wanted. With an attribute `of_real_images` that is true its builder takes the size
    of the images and what the teacher's layers see of real ones."""

    def watches(self, layer: nn.Module) -> bool:
        """Whether this layer's input is measured."""

    def measure(self, layer: nn.Module, activations: Tensor) -> Sequence[Tensor]:
        """Vectors (float32) of a layer's input (N x C x H x W)."""

    def target(self, name: str, layer: nn.Module) -> Sequence[Tensor]:
        """What these vectors should be, for the layer of that name in the teacher."""


@PROBES.add("bn_input")
class BatchNormInput:
    """Mean and variance of the input of each BatchNorm2d against its running statistics.

    R_bn of the method, after Yin et al. 2020 (DeepInversion) as SRe2L and FADRM use it.
    """

    def watches(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.BatchNorm2d)

    def measure(self, layer: nn.Module, activations: Tensor) -> Statistics:
        return channel_statistics(activations)

    def target(self, name: str, layer: nn.Module) -> Statistics:
        return Statistics(layer.running_mean.float(), layer.running_var.float())


@PROBES.add("image_input")
class ImageInput(BatchNormInput):
    """Mean and variance over positions of the input of each BatchNorm2d, of every image by itself (B * C each).

    batch: how many images there are; the running statistics stand for all of them until a batch's own targets come, of
    the group of real images that each image stands for.
    """

    of_single_images = True

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch

    def measure(self, layer: nn.Module, activations: Tensor) -> Statistics:
        return Statistics(*(each.flatten() for each in channel_statistics(activations, over=(2, 3))))

    def target(self, name: str, layer: nn.Module) -> Statistics:
        return Statistics(*(vector.repeat(self.batch) for vector in super().target(name, layer)))


@PROBES.add("conv_input")
class ConvInput(BatchNormInput):
    """Also the input of each Conv2d: by channel, and by the places of a grid of patches, against real images'
    (G-VBSM, Shao et al. 2024).

    size: side of the images in pixels; real: the vectors of each convolution over the real images, by the layer's name
    (see utils/bn_matching/real.py). A BatchNorm's targets stay its running statistics.
    """

    of_real_images = True

    def __init__(self, size: int, real: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        self.patch = 16 if size == 224 else 4
        self.real = real or {}

    def watches(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.BatchNorm2d | nn.Conv2d)

    def measure(self, layer: nn.Module, activations: Tensor) -> Sequence[Tensor]:
        by_channel = channel_statistics(activations)
        return (*by_channel, *patch_statistics(activations, self.patch)) if isinstance(layer, nn.Conv2d) else by_channel

    def target(self, name: str, layer: nn.Module) -> Sequence[Tensor]:
        return self.real[name] if isinstance(layer, nn.Conv2d) else super().target(name, layer)


def patch_statistics(activations: Tensor, side: int) -> Statistics:
    """Mean and biased variance over batch, channels and pixels of each patch of side x side (as many as there are,
    float32). activations (N x C x H x W) are first resized, bilinear, to the next multiples of the side."""
    wide = activations.to(torch.promote_types(activations.dtype, torch.float32))
    rows, columns = (-(-length // side) for length in wide.shape[2:])
    if wide.shape[2:] != (rows * side, columns * side):
        wide = F.interpolate(wide, (rows * side, columns * side), mode="bilinear", align_corners=False)
    patches = wide.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # N C rows side columns side
    var, mean = torch.var_mean(patches, dim=(0, 1, 3, 5), correction=0)
    return Statistics(mean.flatten(), var.flatten())


def channel_statistics(activations: Tensor, over: tuple[int, ...] = (0, 2, 3)) -> Statistics:
    """Statistics of N x C x H x W over batch and space, or space alone (N x C each), in float32 even where the
    activations are narrower."""
    wide = activations.to(torch.promote_types(activations.dtype, torch.float32))
    var, mean = torch.var_mean(wide, dim=over, correction=0)
    return Statistics(mean, var)
