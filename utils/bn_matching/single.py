"""What a teacher's BatchNorm layers see of single images: how far each is from the rest, and statistics of groups.

Per image and channel two moments over the positions, the mean and the mean square, say both: those of a group are the
means over its images, so that one pass over the data serves every group (PSM, arXiv 2609.34299, lets BatchNorm run
through a group for many epochs instead, towards the same mean).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.bn_matching.matching import running_order
from utils.bn_matching.probes import BatchNormInput

EPS = 1e-6


class Moments(NamedTuple):
    """Mean and mean square over positions of the input of each BatchNorm2d, for each of B images: B x L each, the
    channels of all layers in the order in which these run."""

    mean: Tensor
    square: Tensor

    @property
    def var(self) -> Tensor:
        return (self.square - self.mean.square()).clamp_min(0)


class SingleImages:
    """Asks a teacher (in eval mode, on its device) for the moments of single images. size: their side in pixels."""

    def __init__(self, teacher: nn.Module, size: int) -> None:
        self.teacher = teacher
        self.layers = [teacher.get_submodule(name) for name in running_order(teacher, BatchNormInput(), size)]
        self.channels = [layer.num_features for layer in self.layers]

    @torch.no_grad()
    def moments(self, images: Tensor) -> Moments:
        """images: B x 3 x S x S, normalised."""
        found: list[Moments] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: found.append(moments(inputs[0]))) for layer in self.layers
        ]
        self.teacher(images)
        for hook in hooks:
            hook.remove()
        return Moments(*(torch.cat(of_layers, dim=1) for of_layers in zip(*found, strict=True)))

    def difficulty(self, seen: Moments) -> Tensor:
        """How far each image's statistics are from the running ones (PSM's GPS score): B.

        The mean over layers of (||mean - running mean||_2 + ||log((var + eps) / (running var + eps))||_2) / sqrt(C).
        """
        total = torch.zeros(len(seen.mean), device=seen.mean.device)
        parts = (each.split(self.channels, dim=1) for each in (seen.mean, seen.var))
        for layer, mean, var in zip(self.layers, *parts, strict=True):
            wanted = (layer.running_var + EPS).log()
            distance = (mean - layer.running_mean).norm(dim=1) + ((var + EPS).log() - wanted).norm(dim=1)
            total += distance / layer.num_features**0.5
        return total / len(self.layers)


def moments(activations: Tensor) -> Moments:
    """Of N x C x H x W over the positions: N x C each, in float32."""
    wide = activations.float()
    return Moments(wide.mean(dim=(2, 3)), wide.square().mean(dim=(2, 3)))


def group_targets(sums: Moments, counts: Tensor, prior: float) -> Tensor:
    """What `MatchedTeacher` matches for each group of images: G x 2L, the means and then the biased variances.

    sums: of the images' moments in each group (G x L); counts: its images (G); prior: how many images of the whole
    set's mean moments join each group, which steadies small ones.
    """
    whole = (each.sum(dim=0) / counts.sum() for each in sums)
    share = (counts + prior)[:, None]
    mean, square = ((each + prior * all_of) / share for each, all_of in zip(sums, whole, strict=True))
    return torch.cat((mean, Moments(mean, square).var), dim=1)
