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
        sizes = self.grouping.sizes
        output, means, variances = normalise_groups(activations, sizes, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            self._update(means.detach(), variances.detach(), sizes, activations[0, 0].numel())
        return output

    @torch.no_grad()
    def _update(self, means: Tensor, variances: Tensor, sizes: Sequence[int], places: int) -> None:
        """Move the running statistics as the groups would one after the other."""
        for mean, var, size in zip(means, variances, sizes, strict=True):
            count = size * places
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
        self.num_batches_tracked += len(sizes)


def normalise_groups(
    activations: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm of N x C x H x W in consecutive groups of images, each by its own statistics.

    sizes: images in each of the G groups, N together; weight, bias: C each, or None. Returns the output and the
    groups' means and biased variances (G x C, float32 or wider).
    """
    if activations.device.type == "cpu" and activations.dtype == torch.float32:
        return _GroupKernels.apply(activations, weight, bias, eps, tuple(sizes))
    runs = [(size, len(list(same))) for size, same in itertools.groupby(sizes)]  # of groups that are equally large
    parts = activations.split([size * groups for size, groups in runs])
    normalised = [
        _normalise_run(part, groups, weight, bias, eps) for part, (_, groups) in zip(parts, runs, strict=True)
    ]
    return tuple(torch.cat(tensors) if len(runs) > 1 else tensors[0] for tensors in zip(*normalised, strict=True))


def _normalise_run(
    activations: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`normalise_groups` for groups of one size, as one reduction and one product for all of them."""
    by_group = activations.unflatten(0, (groups, -1))
    by_group = by_group.to(torch.promote_types(activations.dtype, torch.float32))
    var, mean = torch.var_mean(by_group, dim=(1, 3, 4), correction=0)  # G x C
    scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    output = torch.addcmul(shift[:, None, :, None, None], by_group, scale[:, None, :, None, None])
    return output.flatten(0, 1).to(activations.dtype), mean, var


class _GroupKernels(torch.autograd.Function):
    """`normalise_groups` on a CPU: PyTorch's own kernel for each group, which is small enough to stay in the cache."""

    @staticmethod
    def forward(
        ctx, activations: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(activations)
        means, inverse_stds = (activations.new_empty(len(sizes), activations.shape[1]) for _ in range(2))
        groups = zip(activations.split(sizes), output.split(sizes), means, inverse_stds, strict=True)
        for group, its_output, mean, inverse_std in groups:
            torch.ops.aten.native_batch_norm.out(
                group,
                *(weight, bias, None, None, True, 0.0, eps),
                out=its_output,
                save_mean=mean,
                save_invstd=inverse_std,
            )
        ctx.save_for_backward(activations, weight, means, inverse_stds)
        ctx.eps, ctx.sizes, ctx.affine = eps, sizes, weight is not None
        variances = inverse_stds.pow(-2) - eps
        ctx.mark_non_differentiable(means, variances)
        return output, means, variances

    @staticmethod
    def backward(ctx, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        activations, weight, means, inverse_stds = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.affine, ctx.affine]
        groups = zip(grad_output.split(ctx.sizes), activations.split(ctx.sizes), means, inverse_stds, strict=True)
        grads = [
            torch.ops.aten.native_batch_norm_backward(
                grad, group, weight, None, None, mean, inverse_std, True, ctx.eps, wanted
            )
            for grad, group, mean, inverse_std in groups
        ]
        by_input, by_weight, by_bias = zip(*grads, strict=True)
        return (
            torch.cat(by_input) if wanted[0] else None,
            sum(by_weight) if ctx.affine else None,
            sum(by_bias) if ctx.affine else None,
            None,
            None,
        )
