"""Batch statistics: how a batch is cut into groups, and networks whose BatchNorm normalises each group by itself.

Batch-specific soft labels (BSSL) only make sense if teacher and student normalise over the same images: relabel and
validate both cut their batches here. The groups are small (8 images, or 5), and a forward of 8 images leaves any
device idle: so many groups go through a network together, and only its BatchNorm layers tell them apart.
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


class GroupedNetwork(nn.Module):
    """A network forwarded for several groups of images at once, as if each were forwarded on its own.

    network: in eval mode a teacher (every group is normalised by its own statistics, nothing is updated, dropout is
    off), in training mode a student (the running statistics move as the sequence of groups would move them). Its
    BatchNorm2d layers are replaced, their parameters and their names in the state dict stay: it is the caller's own
    copy. A network with other layers that look at the batch is forwarded group by group.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)]
        self.at_once = all(type(layer) is nn.BatchNorm2d and layer.momentum is not None for _, layer in layers)
        self.grouping = _Grouping()
        if not network.training:
            forget_running_statistics(network)
        if self.at_once:
            for name, layer in layers:
                network.set_submodule(name, GroupedBatchNorm2d(layer, self.grouping))
        self.network = network

    def forward(self, images: Tensor, groups: Sequence[int]) -> Tensor:
        """Logits (N x C) of images (N x 3 x S x S) in consecutive groups of these sizes."""
        if not self.at_once:
            return torch.cat([self.network(group) for group in images.split(list(groups))])
        self.grouping.sizes = tuple(groups)
        return self.network(images)


class _Grouping:
    """The groups of the forward at hand, seen by all layers of a network."""

    sizes: tuple[int, ...] = ()


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over consecutive groups of images: each normalised by its own statistics.

    In eval mode a layer with running statistics uses them, as any BatchNorm does.
    """

    def __init__(self, layer: nn.BatchNorm2d, grouping: _Grouping) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.grouping = grouping
        self.train(layer.training)

    def forward(self, activations: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(activations)
        if self.training:  # few groups, one after the other: the running statistics move with each
            groups = activations.split(self.grouping.sizes)
            return torch.cat([super(GroupedBatchNorm2d, self).forward(group) for group in groups])
        return normalise_groups(activations, self.grouping.sizes, self.weight, self.bias, self.eps)


def normalise_groups(
    activations: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """BatchNorm of N x C x H x W in consecutive groups of images, each by its own statistics, all in a few calls.

    sizes: images in each of the G groups, N together; weight, bias: C each, or None. The output has the activations'
    type; statistics are float32 or wider.
    """
    runs = [(size, len(list(same))) for size, same in itertools.groupby(sizes)]  # of groups that are equally large
    parts = activations.split([size * groups for size, groups in runs])
    outputs = []
    for part, (size, groups) in zip(parts, runs, strict=True):
        mean, var = _group_statistics(part, size, groups)
        scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
        shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
        scale, shift = (vector[:, None, :, None, None] for vector in (scale, shift))
        output = torch.addcmul(shift, part.unflatten(0, (groups, size)).to(scale.dtype), scale)
        outputs.append(output.flatten(0, 1).to(activations.dtype))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _group_statistics(activations: Tensor, size: int, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of groups of `size` images: G x C each."""
    on_cpu = activations.device.type == "cpu" and activations.dtype == torch.float32
    if on_cpu and not torch.compiler.is_compiling():  # one pass over a group that is small enough for the cache
        found = [torch.batch_norm_update_stats(group, None, None, 0.0) for group in activations.split(size)]
        means, variances = zip(*found, strict=True)
        return torch.stack(means), torch.stack(variances)
    wide = activations.to(torch.promote_types(activations.dtype, torch.float32)).unflatten(0, (groups, size))
    var, mean = torch.var_mean(wide, dim=(1, 3, 4), correction=0)
    return mean, var
