"""Batch statistics: how a batch is cut into groups, and forwards whose BatchNorm sees one group at a time.

Batch-specific soft labels (BSSL) only make sense if teacher and student normalise over the same images: relabel and
validate both cut their batches here.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def group_sizes(batch: int, parts: int = 2) -> list[int]:
    """Cut a batch into `parts` groups as even as can be, the smaller first: 16 to 8 8, 5 to 2 3, 1 to 1."""
    edges = [batch * part // parts for part in range(parts + 1)]
    return [high - low for low, high in itertools.pairwise(edges) if high > low]


def epoch_groups(images: int, batch_size: int, parts: int = 2) -> list[list[int]]:
    """The groups of every batch of an epoch of `images` images, the last batch being what is left."""
    batches = [min(batch_size, images - first) for first in range(0, images, batch_size)]
    return [group_sizes(batch, parts) for batch in batches]


def forget_running_statistics(network: nn.Module) -> nn.Module:
    """Make every BatchNorm of an eval-mode network normalise with the batch it sees; dropout stays off.

    Changes the network in place (it is the caller's own copy) and returns it.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


def forward_in_groups(network: nn.Module, images: Tensor, groups: Sequence[int]) -> Tensor:
    """Logits (N x C) of images (N x 3 x S x S), each group of consecutive images forwarded on its own."""
    return torch.cat([network(group) for group in images.split(list(groups))])
