"""Probes: which statistics of a teacher recover matches.

A probe names the layers that it watches, measures vectors of each one's input, and says what these should be. The
distance R is the sum over layers and vectors of the L2 norm of their difference. Built by `MatchedTeacher`, one for
each teacher.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from utils.seams import PROBES


class Statistics(NamedTuple):
    """Mean and biased variance per channel (C each, float32)."""

    mean: Tensor
    var: Tensor


class Probe(Protocol):
    """What is watched, measured and wanted."""

    def watches(self, layer: nn.Module) -> bool:
        """Whether this layer's input is measured."""

    def measure(self, activations: Tensor) -> Sequence[Tensor]:
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

    def measure(self, activations: Tensor) -> Statistics:
        return channel_statistics(activations)

    def target(self, name: str, layer: nn.Module) -> Statistics:
        return Statistics(layer.running_mean.float(), layer.running_var.float())


def channel_statistics(activations: Tensor) -> Statistics:
    """Statistics of N x C x H x W over batch and space, in float32 even where the activations are narrower."""
    wide = activations.to(torch.promote_types(activations.dtype, torch.float32))
    var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
    return Statistics(mean, var)
