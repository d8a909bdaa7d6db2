"""Batch statistics: how a batch is cut into groups, and networks whose BatchNorm normalises each group by itself.

Batch-specific soft labels (BSSL) only make sense if teacher and student normalise over the same images: relabel and
validate both cut their batches here. The groups are small (8 images, or 5), and a forward of 8 images leaves any
device idle: so many groups go through a network together, and only its BatchNorm layers tell them apart.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.bn_matching.kernels import VECTOR, gradient_sums, has_cpu_kernels, statistics_of_rows, weighted_sum
from utils.run.errors import UserError

# Bytes of a group. Up to the first a CPU is faster with all groups at once, above it group by group; above the second
# it is worth while to put a gradient together from sums and products.
SMALL_GROUP, WORTH_SUMS = 2**19, 2**17


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

    Modifies the network in place and returns it.
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
    BatchNorm2d layers are replaced in place, their parameters and their names in the state dict stay. A network with
    other layers that look at the batch is forwarded group by group.
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
        else:
            for _, layer in layers:
                layer.register_forward_pre_hook(_check_group)
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
        sizes, affine = self.grouping.sizes, (self.weight, self.bias)
        require_several_values(activations, sizes)
        if not self.training:
            return normalise_groups(activations, sizes, *affine, self.eps)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(len(sizes))
        if torch.compiler.is_compiling():
            output, means, variances = normalise_for_a_compiler(activations, sizes, *affine, self.eps)
            if self.running_mean is not None:
                self.move_running_statistics(means, variances)
            return output
        # Few groups, one after the other: the running statistics move with each.
        running = (self.running_mean, self.running_var)
        if has_slow_gradient(activations, max(sizes)) and self.affine:
            return _NormaliseInTurn.apply(activations, *affine, *running, sizes, self.momentum, self.eps)
        settings = (*running, *affine, True, self.momentum, self.eps)
        return torch.cat([F.batch_norm(group, *settings) for group in activations.split_with_sizes(sizes)])

    @torch.no_grad()
    def move_running_statistics(self, means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        """Move them by mean and unbiased variance of one group (C each) after the other."""
        for mean, var in zip(means, variances, strict=True):
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)


def has_slow_gradient(activations: Tensor, group: int) -> bool:
    """Whether the CPU's own gradient of BatchNorm takes several times what its sums and products take: where channels
    fill no whole vectors. group: images in a group; small ones are not worth the calls."""
    fills = activations.shape[1] % VECTOR == 0
    return not fills and has_cpu_kernels(activations) and activations[:group].nbytes > WORTH_SUMS


def require_several_values(activations: Tensor, sizes: Sequence[int]) -> None:
    """UserError for a group of one image on a map (N x C x H x W) of one pixel: it has no statistics."""
    if min(sizes) == 1 and activations.shape[2:].numel() == 1:
        raise UserError(
            "a group of one image has no BatchNorm statistics on a map of one pixel: take a --batch-size that leaves "
            "no such group, or a network with larger maps"
        )


def _check_group(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
    if layer.training or layer.running_mean is None:
        require_several_values(inputs[0], [len(inputs[0])])


def normalise_groups(
    activations: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """BatchNorm of N x C x H x W in consecutive groups of images, each by its own statistics, all in a few calls.

    sizes: images in each of the G groups, N together; weight, bias: C each, or None. The output has the activations'
    type; statistics are float32 or wider.
    """
    outputs = []
    for part, size, groups in runs_of_groups(activations, sizes):
        if has_cpu_kernels(part) and part[:size].nbytes > SMALL_GROUP:
            outputs.append(normalise_in_turn(part, [size] * groups, weight, bias, eps=eps)[0])
            continue
        mean, var = _group_statistics(part, size, groups)
        scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
        shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
        scale, shift = (vector[:, None, :, None, None] for vector in (scale, shift))
        output = torch.addcmul(shift, part.unflatten(0, (groups, size)).to(scale.dtype), scale)
        outputs.append(output.flatten(0, 1).to(activations.dtype))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def runs_of_groups(activations: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, int, int]]:
    """Consecutive groups that are equally large, together: their part of the activations, their size, how many."""
    runs = [(size, len(list(same))) for size, same in itertools.groupby(sizes)]
    parts = activations.split([size * groups for size, groups in runs])
    for part, (size, groups) in zip(parts, runs, strict=True):
        yield part, size, groups


def _group_statistics(activations: Tensor, size: int, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of groups of `size` images: G x C each."""
    if has_cpu_kernels(activations):
        # One call for all groups, to which each channel of each group is a column: they lie side by side for it.
        channels = activations.shape[1]
        values = activations.unflatten(0, (groups, size)).permute(1, 3, 4, 0, 2)  # size H W G C
        mean, var = statistics_of_rows(values.reshape(-1, groups * channels))
        return mean.view(groups, channels), var.view(groups, channels)
    wide = activations.to(torch.promote_types(activations.dtype, torch.float32)).unflatten(0, (groups, size))
    var, mean = torch.var_mean(wide, dim=(1, 3, 4), correction=0)
    return mean, var


def normalise_for_a_compiler(
    activations: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`normalise_groups` in operations whose gradient a compiler fuses with what comes before and behind.

    Differences from the mean are what is scaled, so that the gradient loses no digits. Returns the output, and each
    group's mean and unbiased variance (C each).
    """
    outputs, means, variances = [], [], []
    for part, size, groups in runs_of_groups(activations, sizes):
        wide = part.unflatten(0, (groups, size)).to(torch.promote_types(part.dtype, torch.float32))
        var, mean = torch.var_mean(wide, dim=(1, 3, 4), correction=0, keepdim=True)
        output = (wide - mean) * torch.rsqrt(var + eps)
        if weight is not None:
            output = output * weight[:, None, None] + bias[:, None, None]
        outputs.append(output.flatten(0, 1).to(activations.dtype))
        count = size * part.shape[2] * part.shape[3]
        means += mean.detach().flatten(1).unbind()
        variances += (var.detach().flatten(1) * (count / (count - 1))).unbind()
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0], means, variances


def normalise_in_turn(
    activations: Tensor,
    sizes: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.0,
    eps: float = 1e-5,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """BatchNorm of N x C x H x W by the kernel of the CPU, group by group, each written to its place in the output.

    Running statistics, where given, are moved by each group. Returns the output, and for each group mean and
    1 / sqrt(variance + eps), C each.
    """
    output = torch.empty_like(activations)
    means, inverse_stds = (list(torch.empty(len(sizes), activations.shape[1])) for _ in range(2))
    for group, its_output, mean, inverse_std in zip(
        activations.split(sizes), output.split(sizes), means, inverse_stds, strict=True
    ):
        torch.native_batch_norm(
            group, weight, bias, running_mean, running_var, True, momentum, eps, out=(its_output, mean, inverse_std)
        )
    return output, means, inverse_stds


class _NormaliseInTurn(torch.autograd.Function):
    """`normalise_in_turn` with a gradient that is put together from sums and products (see has_slow_gradient)."""

    @staticmethod
    def forward(
        ctx,
        activations: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        sizes: Sequence[int],
        momentum: float,
        eps: float,
    ) -> Tensor:
        output, means, inverse_stds = normalise_in_turn(
            activations, sizes, weight, bias, running_mean, running_var, momentum, eps
        )
        ctx.save_for_backward(activations, weight, *means, *inverse_stds)
        ctx.sizes = sizes
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        activations, weight, *statistics = ctx.saved_tensors
        means, inverse_stds = statistics[: len(ctx.sizes)], statistics[len(ctx.sizes) :]
        gradient, of_weight, of_bias = torch.empty_like(activations), 0, 0
        groups = (each.split(ctx.sizes) for each in (gradient, grad_output, activations))
        for its_gradient, its_grad, group, mean, inverse_std in zip(*groups, means, inverse_stds, strict=True):
            products, sums = gradient_sums(its_grad, group, mean, inverse_std)
            scale, share = weight * inverse_std, -1 / (group.numel() // len(mean))
            slope = scale * inverse_std * products * share
            offset = torch.addcmul(scale * sums * share, slope, mean, value=-1)
            weighted_sum(its_grad, scale, group, slope, offset, out=its_gradient)
            of_weight, of_bias = of_weight + products, of_bias + sums
        return gradient, of_weight, of_bias, None, None, None, None, None
