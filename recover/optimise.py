"""One batch of recover: from real patches (or noise) to distilled images, against frozen teachers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recover.augmentation import AREA, augment_batch, augmentation_matrices, sample_batch_augmentations
from recover.terms import Seen, Term
from utils.recipes.settings import LEAST_SIZE
from utils.residual.residuals import Residual, resize
from utils.run.device import memory_format
from utils.run.errors import UserError
from utils.run.precision import autocast, fused, gradient_scaler
from utils.run.schedules import cosine

ADAM_BETAS, ADAM_EPS = (0.5, 0.9), 1e-8
CHECK_EVERY = 50  # iterations between two looks at the losses
PATIENCE = 20  # losses in a row that are not finite, which a gradient scaler survives


class Stage(NamedTuple):
    """Some iterations at one size in pixels."""

    size: int
    iterations: int


@dataclass(frozen=True)
class Plan:
    """How a batch is optimised.

    stages: none of them, and the start is the result; lr: the pixels' learning rate at the start, which a cosine over
    all stages takes to 0; terms: of the loss, with their weights, by name; jitter: largest roll in pixels;
    crop_and_flip: whether a random crop, of these shares of the area, and a flip come before it; adaptive: whether the
    images decide on the size of stages that are smaller than the last; narrowing: whether the least share begins at 1
    and comes down to that of `area` as half a cosine (DELT); before: iterations of a longer plan that these go on from.
    """

    stages: Sequence[Stage]
    lr: float
    terms: Mapping[str, tuple[float, Term]]
    jitter: int
    crop_and_flip: bool
    area: tuple[float, float] = AREA
    adaptive: bool = False
    narrowing: bool = False
    before: int = 0

    def from_stage(self, first: int) -> "Plan":
        """The same without the stages before that one: rate and crops go on as if these had been."""
        skipped = sum(stage.iterations for stage in self.stages[:first])
        return replace(self, stages=self.stages[first:], before=self.before + skipped)

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from these stages' first."""
        return cosine(self.lr, self.before + iteration, self.before + self.iterations)

    def areas(self, first: int, count: int) -> tuple[float | Tensor, float]:
        """Least (count, where it narrows) and largest share that a crop covers in so many iterations from `first`."""
        if not self.narrowing:
            return self.area
        done = (self.before + first + torch.arange(count)) / (self.before + self.iterations)
        least, most = self.area
        return least + (most - least) * (1 + (torch.pi * done).cos()) / 2, most

    def size_of(self, stage: Stage, images: Tensor) -> int:
        """The size in pixels of a stage that these images begin."""
        full = self.stages[-1].size
        return adaptive_size(images, full) if self.adaptive and stage.size < full else stage.size

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def pixels(self, images: int) -> int:
        """How many pixels of a batch of so many images go through a teacher: a backward pass counts twice."""
        return 3 * images * sum(stage.size**2 * stage.iterations for stage in self.stages)


class Step(NamedTuple):
    """Device tensors of one iteration, valid only inside `watch`: each term of the loss before its weight, the
    images."""

    iteration: int
    losses: Mapping[str, Tensor]
    images: Tensor


def recover_batch(
    start: Tensor,
    labels: Tensor,
    plan: Plan,
    committee: Callable[[int], Sequence[tuple[nn.Module, float]]],
    residual: Residual,
    valid_range: tuple[Tensor, Tensor],
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
    watch: Callable[[Step], None] = lambda step: None,
    patches: Tensor | None = None,
) -> Tensor:
    """Optimise the pixels of one batch, stage by stage, with the residual in between.

    start: B x 3 x s x s, normalised: patches or noise; labels: B; committee: the teachers that an iteration asks and
    their weights, each of which answers with (logits, R); residual: what becomes of the images between two stages;
    valid_range: lowest and highest normalised value, each broadcastable to the batch; generator: the batch's own (CPU);
    dtype: what the teachers' forward is cast to (None: float32); statistics and losses stay float32. `watch` sees every
    iteration; patches: those of terms that compare with them (B x 3 x S x S). Returns B x 3 x S x S, normalised, within
    the valid range. Raises UserError where a loss is not finite.
    """
    low, high = valid_range
    device = start.device
    scaler = gradient_scaler(device, dtype)
    # A scaler survives a loss that overflows, by leaving out its step; fatal are many in a row, without a scaler the
    # first.
    patience = PATIENCE if scaler.is_enabled() else 1
    bad_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
    bad_iteration = torch.full((), plan.iterations, device=device)  # the first that is fatal
    iteration, images = 0, start
    for number, stage in enumerate(plan.stages):
        size = plan.size_of(stage, images)
        images = residual(images, number, size) if number > 0 else resize(images, size)
        images = images.detach().clone().requires_grad_(True)
        # On CUDA one kernel for the whole step, which knows by itself of gradients that the scaler found infinite.
        is_fused = device.type == "cuda" and fused(torch.optim.Adam, device)
        optimiser = torch.optim.Adam([images], plan.lr, ADAM_BETAS, ADAM_EPS, fused=is_fused)
        draws = sample_batch_augmentations(
            stage.iterations, size, plan.crop_and_flip, plan.jitter, generator, plan.areas(iteration, stage.iterations)
        )
        for some in draws.to(device).split(CHECK_EVERY):
            for rows, columns in zip(*augmentation_matrices(some, size), strict=True):
                optimiser.param_groups[0]["lr"] = plan.rate(iteration)
                view = view_of(images, rows, columns)
                loss, losses = torch.zeros((), device=device), {}
                for teacher, weight in committee(iteration):
                    with autocast(device, dtype):
                        logits, matching, *maps = teacher(view)
                    ask = partial(answer_for, teacher, rows, columns, dtype)
                    seen = Seen(view, labels, logits, matching, images, iteration, ask, patches, *maps)
                    for name, (share, term) in plan.terms.items():
                        value = term(seen)
                        loss = loss + weight * share * value
                        losses[name] = losses.get(name, 0) + weight * value.detach()
                scaler.scale(loss).backward()
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                with torch.no_grad():
                    images.clamp_(low, high)
                    bad_in_a_row = torch.where(loss.isfinite(), 0, bad_in_a_row + 1)
                    fatal = bad_in_a_row >= patience
                    bad_iteration = torch.where(fatal, bad_iteration.clamp(max=iteration), bad_iteration)
                watch(Step(iteration, losses, images.detach()))
                iteration += 1
            _stop_if_not_finite(bad_iteration, plan.iterations)  # the only wait for the device
    return images.detach()


def adaptive_size(images: Tensor, full: int, least: int = LEAST_SIZE) -> int:
    """The side in pixels at which a stage of these images (B x 3 x s x s, normalised) is optimised.

    It is full x min(0.8, 0.5 / TV), rounded down, and no less than `least`; TV is the mean absolute difference of
    neighbours, both directions summed, and at least 1e-4.

    Our reading of what FADRM's appendix prints, whose 0.5 x TV, with its guard against 0, seems to have lost a bar.
    """
    variation = images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()
    return max(int(full * min(0.8, 0.5 / max(float(variation), 1e-4))), least)


def view_of(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`augment_batch`, laid out as teachers take it."""
    return augment_batch(images, rows, columns).contiguous(memory_format=memory_format(images.device))


@torch.no_grad()
def answer_for(
    teacher: nn.Module, rows: Tensor, columns: Tensor, dtype: torch.dtype | None, images: Tensor
) -> tuple[Tensor, ...]:
    """A teacher's answer for images in the view of an iteration (see `augmentation_matrices`)."""
    view = view_of(images, rows, columns)
    with autocast(view.device, dtype):
        return teacher(view)


def _stop_if_not_finite(bad_iteration: Tensor, iterations: int) -> None:
    if (iteration := int(bad_iteration)) < iterations:
        raise UserError(f"the loss is not finite at iteration {iteration}: lower --lr or check the teachers")
