"""BN-statistic matching: an image batch should give each BatchNorm layer the statistics it saw in training.

R_bn of the method, after Yin et al. 2020 (DeepInversion) as SRe2L and FADRM use it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Statistics(NamedTuple):
    """Mean and biased variance per channel (C each, float32)."""

    mean: Tensor
    var: Tensor


def channel_statistics(activations: Tensor) -> Statistics:
    """Statistics of N x C x H x W over batch and space, in float32 whatever the type of the activations."""
    var, mean = torch.var_mean(activations.float(), dim=(0, 2, 3), correction=0)
    return Statistics(mean, var)


def bn_matching_terms(batch: Sequence[Statistics], running: Sequence[Statistics]) -> Tensor:
    """`||running_var - var||_2 + ||running_mean - mean||_2` of each layer: a vector, one value a layer, unweighted."""
    return torch.stack(
        [
            torch.linalg.vector_norm(target.var - seen.var) + torch.linalg.vector_norm(target.mean - seen.mean)
            for seen, target in zip(batch, running, strict=True)
        ]
    )


def bn_matching_loss(batch: Sequence[Statistics], running: Sequence[Statistics], first_multiplier: float) -> Tensor:
    """R_bn: the sum of the terms, the first layer's times `first_multiplier`. Layers in module order."""
    terms = bn_matching_terms(batch, running)
    return terms.sum() + (first_multiplier - 1) * terms[0]


class MatchedTeacher(nn.Module):
    """A frozen teacher that answers with its logits and R_bn of the batch it saw.

    teacher: in eval mode, its running statistics as targets. A teacher without BatchNorm2d has R_bn = 0.
    """

    def __init__(self, teacher: nn.Module, first_multiplier: float) -> None:
        super().__init__()
        self.teacher = teacher
        self.first_multiplier = first_multiplier
        layers = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
        self.running = [Statistics(layer.running_mean.float(), layer.running_var.float()) for layer in layers]
        self._seen: list[Statistics] = []
        for layer in layers:
            layer.register_forward_pre_hook(self._note_input)

    def _note_input(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(channel_statistics(inputs[0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: B x 3 x S x S, normalised. Returns float32 logits (B x C) and R_bn (a scalar)."""
        self._seen.clear()
        logits = self.teacher(images).float()
        if not self.running:
            return logits, logits.new_zeros(())
        return logits, bn_matching_loss(self._seen, self.running, self.first_multiplier)
