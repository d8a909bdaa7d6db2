"""Features of images: what a network's last linear layer takes, scaled to length 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.run.errors import UserError

T = TypeVar("T", list, Tensor)


@contextmanager
def last_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list that each forward pass adds its images' features to (n x D, float32, of length 1, on the CPU); none where
    the network has no linear layer."""
    found: list[Tensor] = []
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1:]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: found.append(F.normalize(inputs[0].float()).cpu()))
        for layer in last
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor) -> Tensor | None:
    """The features of normalised images (N x 3 x S x S): N x D; None where the network has no linear layer."""
    with last_features(network) as found:
        network(images)
    return found[0] if found else None


def require_features(features: T, name: str) -> T:
    """The features of the network of that name; UserError where it has none."""
    if features is None or not len(features):
        raise UserError(f"{name} has no linear layer, whose input would be features: name another network")
    return features
