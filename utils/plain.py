"""The plain version of each hot path: what the fast one is tested against and measured against.

Written for the eye: one hook a layer, one forward a group, one loop a batch. Nothing of the stages uses it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.batch_statistics import forget_running_statistics
from utils.bn_matching import Statistics, bn_matching_loss


class PlainMatchedTeacher(nn.Module):
    """`utils.bn_matching.MatchedTeacher` with a hook on each layer: mean, a permuted copy, variance."""

    def __init__(self, teacher: nn.Module, first_multiplier: float) -> None:
        super().__init__()
        self.teacher, self.first_multiplier = teacher, first_multiplier
        layers = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
        self.running = [Statistics(layer.running_mean.float(), layer.running_var.float()) for layer in layers]
        self.seen: list[Statistics] = []
        for layer in layers:
            layer.register_forward_pre_hook(self.note_input)

    def note_input(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        activations = inputs[0].float()
        by_channel = activations.permute(1, 0, 2, 3).contiguous().flatten(1)
        self.seen.append(Statistics(activations.mean(dim=(0, 2, 3)), by_channel.var(dim=1, correction=0)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.clear()
        logits = self.teacher(images).float()
        return logits, bn_matching_loss(self.seen, self.running, self.first_multiplier)


class PlainGroupedNetwork(nn.Module):
    """`utils.batch_statistics.GroupedNetwork` with one forward a group."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network if network.training else forget_running_statistics(network)

    def forward(self, images: Tensor, groups: Sequence[int]) -> Tensor:
        return torch.cat([self.network(group) for group in images.split(list(groups))])
