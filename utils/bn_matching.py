"""BN-statistic matching: an image batch should give each BatchNorm layer the statistics it saw in training.

R_bn of the method, after Yin et al. 2020 (DeepInversion) as SRe2L and FADRM use it. The layers' inputs are large, so
each is read once on the way forward, for its statistics, and once on the way back, where the gradient of the
statistics joins the layer's own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cpu_statistics import has_cpu_kernels, statistics_of_rows, weighted_sum


class Statistics(NamedTuple):
    """Mean and biased variance per channel (C each, float32)."""

    mean: Tensor
    var: Tensor


def channel_statistics(activations: Tensor) -> Statistics:
    """Statistics of N x C x H x W over batch and space, in float32 even where the activations are narrower."""
    var, mean = torch.var_mean(
        activations.to(torch.promote_types(activations.dtype, torch.float32)), dim=(0, 2, 3), correction=0
    )
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
    """R_bn: the sum of the terms, the first layer's times `first_multiplier`. Layers in module order; none gives 0."""
    if not batch:
        return torch.zeros(())
    terms = bn_matching_terms(batch, running)
    return terms.sum() + (first_multiplier - 1) * terms[0]


class MatchedTeacher(nn.Module):
    """A frozen teacher that answers with its logits and R_bn of the batch it saw.

    teacher: in eval mode, its running statistics as targets; its BatchNorm2d layers are replaced by ones that note
    their input's statistics, so it is the caller's own copy. A teacher without BatchNorm2d has R_bn = 0.
    """

    def __init__(self, teacher: nn.Module, first_multiplier: float) -> None:
        super().__init__()
        self.seen: list[Statistics] = []
        layers = [(name, module) for name, module in teacher.named_modules() if isinstance(module, nn.BatchNorm2d)]
        for name, layer in layers:
            if type(layer) is nn.BatchNorm2d:
                teacher.set_submodule(name, NotingBatchNorm2d(layer, self.seen))
            else:  # a subclass that does more than to normalise
                layer.register_forward_pre_hook(lambda _, inputs: self.seen.append(channel_statistics(inputs[0])))
        self.teacher = teacher
        vectors = [layer.running_mean for _, layer in layers] + [layer.running_var for _, layer in layers]
        sizes = torch.tensor([len(vector) for vector in vectors], dtype=torch.int64)
        weights = torch.ones(len(vectors))
        weights[: len(vectors) : max(1, len(layers))] = first_multiplier  # the first layer's mean and variance
        device = vectors[0].device if vectors else None
        self.register_buffer("running", torch.cat(vectors).float() if vectors else torch.zeros(0), persistent=False)
        self.register_buffer(
            "vector_of", torch.repeat_interleave(torch.arange(len(vectors)), sizes).to(device), persistent=False
        )
        self.register_buffer("weights", weights.to(device), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: B x 3 x S x S, normalised. Returns float32 logits (B x C) and R_bn (a scalar)."""
        self.seen.clear()
        logits = self.teacher(images).float()
        if not self.seen:
            return logits, logits.new_zeros(())
        vectors = [seen.mean for seen in self.seen] + [seen.var for seen in self.seen]
        squares = (torch.cat(vectors) - self.running).square()
        self.seen.clear()  # nothing is held beyond the step, and a compiled forward leaves nothing behind
        # all norms at once: sums of squares by vector; a norm of zero has gradient zero
        sums = torch.zeros_like(self.weights).index_add(0, self.vector_of, squares)
        return logits, (self.weights * sums.clamp_min(torch.finfo(sums.dtype).tiny).sqrt()).sum()


class NotingBatchNorm2d(nn.Module):
    """An eval-mode BatchNorm2d that appends its input's statistics to a list."""

    def __init__(self, layer: nn.BatchNorm2d, seen: list[Statistics]) -> None:
        super().__init__()
        self.layer = layer
        self.seen = seen

    def forward(self, activations: Tensor) -> Tensor:
        layer = self.layer
        if activations.requires_grad:
            output, mean, var = _NormaliseAndNote.apply(
                activations, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps
            )
            self.seen.append(Statistics(mean, var))
            return output
        self.seen.append(one_pass_statistics(activations))
        return layer(activations)


class _NormaliseAndNote(torch.autograd.Function):
    """BatchNorm by running statistics, with the input's own statistics beside its output."""

    @staticmethod
    def forward(
        ctx, activations: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = one_pass_statistics(activations)
        scale = torch.rsqrt(running_var + eps) if weight is None else weight * torch.rsqrt(running_var + eps)
        ctx.save_for_backward(activations, scale, mean)
        output = F.batch_norm(activations, running_mean, running_var, weight, bias, training=False, eps=eps)
        return output, mean, var

    @staticmethod
    def backward(ctx, grad_output: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
        activations, scale, mean = ctx.saved_tensors
        count = activations.numel() // activations.shape[1]
        slope = grad_var * (2 / count)
        offset = grad_mean / count - mean * slope
        return matched_gradient(grad_output, activations, scale, slope, offset), None, None, None, None, None


def one_pass_statistics(activations: Tensor) -> Statistics:
    """`channel_statistics` by the kernel that reads the activations once, where the device has one."""
    if has_cpu_kernels(activations):
        if not activations.is_contiguous(memory_format=torch.channels_last):  # then the kernel adds up in float64
            return Statistics(*torch.batch_norm_update_stats(activations, None, None, 0.0))
        return Statistics(*statistics_of_rows(activations.permute(0, 2, 3, 1).flatten(0, 2)))
    if activations.device.type == "cuda" and not torch.compiler.is_compiling():
        mean, inverse_std = torch.batch_norm_stats(activations, 0.0)  # in float32, of 16-bit activations too
        return Statistics(mean, inverse_std.pow(-2))
    return channel_statistics(activations)  # fused by the compiler; or of a type that wants float32 first


def matched_gradient(grad_output: Tensor, activations: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """`grad_output * scale + activations * slope + offset`, the vectors by channel; in the activations' type.

    grad_output, activations: N x C x H x W.
    """
    if has_cpu_kernels(activations):
        return weighted_sum(grad_output, scale, activations, slope, offset, out=torch.empty_like(activations))
    scale, slope, offset = (vector.view(1, -1, 1, 1) for vector in (scale, slope, offset))
    return torch.addcmul(offset + activations * slope, grad_output, scale).to(activations.dtype)
