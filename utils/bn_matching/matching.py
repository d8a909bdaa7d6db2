"""Statistic matching: an image batch should give each watched layer the statistics it saw in training.

The layers' inputs are large, so a BatchNorm's is read once on the way forward, for its statistics, and once on the way
back, where the gradient of the statistics joins the layer's own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.bn_matching.kernels import agrees, has_cpu_kernels, statistics_of_rows, weighted_sum
from utils.bn_matching.probes import BatchNormInput, Probe, Statistics, channel_statistics
from utils.run.errors import UserError

T = TypeVar("T")
Slots = list[Sequence[Tensor] | None]


class MatchedTeacher(nn.Module):
    """A frozen teacher that answers with its logits and the distance R of what its layers saw from their targets.

    teacher: in eval mode; its plain BatchNorm2d layers are replaced by ones that note their input's statistics, where
    these are what the probe measures: modifies the network in place. probe: makes what watches it. first_multiplier:
    weight of the first watched layer that runs, all others have 1; size: side in pixels of the images that tell in
    which order they run; scale: "sum", or "mean", which divides each vector's distance by the number of layers and the
    square root of its length, so that networks of all sizes count alike; with_map: the answer also has what enters the
    layer in the middle. Every layer has a slot of its own, with its own targets. A teacher in which none runs has R =
    0.
    """

    def __init__(
        self,
        teacher: nn.Module,
        probe: Callable[[], Probe],
        first_multiplier: float,
        size: int,
        scale: str = "sum",
        with_map: bool = False,
    ) -> None:
        super().__init__()
        self.probe = probe()
        names = running_order(teacher, self.probe, size)
        layers = [teacher.get_submodule(name) for name in names]
        self.kinds = [type(layer) for layer in layers]
        targets = [self.probe.target(name, layer) for name, layer in zip(names, layers, strict=True)]
        self.seen: Slots = [None] * len(names)
        for slot, (name, layer) in enumerate(zip(names, layers, strict=True)):
            if type(self.probe) is BatchNormInput and type(layer) is nn.BatchNorm2d:
                teacher.set_submodule(name, NotingBatchNorm2d(layer, self.seen, slot))
            else:  # another measure, or a subclass that does more than to normalise
                layer.register_forward_pre_hook(partial(self._measure, slot=slot))
        self.map: list[Tensor] = []
        if with_map:
            middle = teacher.get_submodule(names[len(names) // 2])
            middle.register_forward_pre_hook(lambda _, inputs: self.map.append(inputs[0]))
        self.with_map = with_map
        self.teacher = teacher
        vectors = in_turn(targets)
        slots = torch.tensor(
            in_turn([[slot] * len(vectors) for slot, vectors in enumerate(targets)]), dtype=torch.int64
        )
        weights = torch.where(slots == 0, first_multiplier, 1.0)
        sizes = torch.tensor([len(vector) for vector in vectors], dtype=torch.int64)
        if scale == "mean":
            weights = weights / (len(names) * sizes.sqrt())
        vector_of = torch.repeat_interleave(torch.arange(len(vectors)), sizes)
        device = next(teacher.parameters()).device
        joined = torch.cat([torch.zeros(0, device=device), *(vector.to(device) for vector in vectors)])
        self.register_buffer("targets", joined, persistent=False)
        self.register_buffer("vector_of", vector_of.to(device), persistent=False)
        self.register_buffer("slot_of", slots.to(device), persistent=False)
        self.register_buffer("weights", weights.to(device), persistent=False)
        self.register_buffer("sizes", sizes.to(device), persistent=False)

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...], slot: int) -> None:
        note(self.seen, slot, self.probe.measure(layer, inputs[0]))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: B x 3 x S x S, normalised. Returns float32 logits (B x C), R (a scalar) and, where it is asked for,
        the map (B x K x h x w)."""
        self.map.clear()
        logits, found = self.statistics(images)
        distance = self.distance(found, self.targets, self.weights)
        return (logits, distance, self.map.pop().float()) if self.with_map else (logits, distance)

    def statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 logits (B x C), and all vectors that the layers saw, joined like `targets`."""
        self._forget()
        logits = self.teacher(images).float()
        if any(vectors is None for vectors in self.seen):
            raise UserError("a layer that is matched did not run: this network cannot be matched, take another teacher")
        found = torch.cat(in_turn(self.seen)) if self.seen else self.targets
        self._forget()  # nothing is held beyond the step, and a compiled forward leaves nothing behind
        return logits, found

    def distance(self, found: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The sum over vectors of weight times the L2 norm of the difference."""
        # all norms at once: sums of squares by vector; a norm of zero has gradient zero
        squares = (found - targets).square()
        if squares.device.type == "cuda":  # in a fixed order, which scattered additions have not there
            sums = torch.segment_reduce(squares, "sum", lengths=self.sizes, unsafe=True)
        else:
            sums = torch.zeros_like(self.weights).index_add(0, self.vector_of, squares)
        return (weights * sums.clamp_min(torch.finfo(sums.dtype).tiny).sqrt()).sum()

    def _forget(self) -> None:
        for slot in range(len(self.seen)):
            self.seen[slot] = None


def in_turn(of_layers: Sequence[Sequence[T]]) -> list[T]:
    """The first vector of every layer, then the second of each that has two, and so on."""
    most = max([0, *map(len, of_layers)])
    return [vectors[k] for k in range(most) for vectors in of_layers if k < len(vectors)]


def note(seen: Slots, slot: int, vectors: Sequence[Tensor]) -> None:
    """Put what a layer measured into its slot; UserError where it ran a second time in a forward."""
    if seen[slot] is not None:
        raise UserError("a layer whose input is matched ran twice in one forward: take another teacher")
    seen[slot] = vectors


@torch.no_grad()
def running_order(teacher: nn.Module, probe: Probe, size: int) -> list[str]:
    """The names of the layers that a probe watches, in the order in which a forward runs them; those that do not run
    are left out. UserError for one that runs twice: it would have two inputs for one target."""
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, layer in teacher.named_modules()
        if probe.watches(layer)
    ]
    if hooks:
        teacher(torch.zeros(2, 3, size, size, device=next(teacher.parameters()).device))
    for hook in hooks:
        hook.remove()
    if twice := next((name for name in order if order.count(name) > 1), None):
        raise UserError(f"the layer {twice}, whose input is matched, runs twice in one forward: take another teacher")
    return order


class NotingBatchNorm2d(nn.Module):
    """An eval-mode BatchNorm2d that notes its input's statistics in its slot."""

    def __init__(self, layer: nn.BatchNorm2d, seen: Slots, slot: int) -> None:
        super().__init__()
        self.layer = layer
        self.seen = seen
        self.slot = slot

    def forward(self, activations: Tensor) -> Tensor:
        layer = self.layer
        if activations.requires_grad:
            output, mean, var = _NormaliseAndNote.apply(
                activations, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps
            )
            note(self.seen, self.slot, Statistics(mean, var))
            return output
        note(self.seen, self.slot, one_pass_statistics(activations))
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
        # In float32, of 16-bit activations too; where a channel is constant its variance is 0.
        found = Statistics(*torch.batch_norm_update_stats(activations, None, None, 0.0))
        plain = partial(channel_statistics, activations)
        return found if agrees("batch_norm_update_stats", found, plain) else plain()
    return channel_statistics(activations)  # fused by the compiler; or of a type that wants float32 first


def matched_gradient(grad_output: Tensor, activations: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """`grad_output * scale + activations * slope + offset`, the vectors by channel; in the activations' type.

    grad_output, activations: N x C x H x W.
    """
    if has_cpu_kernels(activations):
        return weighted_sum(grad_output, scale, activations, slope, offset, out=torch.empty_like(activations))
    scale, slope, offset = (vector.view(1, -1, 1, 1) for vector in (scale, slope, offset))
    if torch.compiler.is_compiling():
        return (grad_output * scale + activations * slope + offset).to(activations.dtype)
    # added up in the vectors' type, and rounded once
    return torch.addcmul(
        torch.addcmul(offset, activations, slope), grad_output, scale, out=torch.empty_like(activations)
    )
