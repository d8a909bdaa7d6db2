"""One class batch of recover: from real patches (or noise) to distilled images, against frozen teachers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.augmentation import augment_batch, augmentation_matrices, sample_batch_augmentations
from utils.device import memory_format
from utils.errors import UserError
from utils.precision import autocast, gradient_scaler
from utils.residual import cosine_rate, merge_residual, resize

ADAM_BETAS, ADAM_EPS = (0.5, 0.9), 1e-8
CHECK_EVERY = 50  # iterations between two looks at the losses


@dataclass(frozen=True)
class Plan:
    """How a class batch is optimised: the settings of the method that the loop needs.

    sizes, budgets: side in pixels and iterations of each stage; alpha: share kept of the optimised image at a merge;
    lr: pixels' learning rate; r_bn: weight of R_bn; jitter: largest roll in pixels; crop_and_flip: augmentation.
    """

    sizes: tuple[int, ...]
    budgets: tuple[int, ...]
    alpha: float
    lr: float
    r_bn: float
    jitter: int
    crop_and_flip: bool

    @property
    def iterations(self) -> int:
        return sum(self.budgets)

    def pixels(self, images: int) -> int:
        """How many pixels of a class batch of so many images go through teachers: a backward pass counts twice."""
        return 3 * images * sum(size**2 * budget for size, budget in zip(self.sizes, self.budgets, strict=True))


class Step(NamedTuple):
    """What one iteration leaves to look at: nothing here has been copied from the device."""

    iteration: int
    ce_loss: Tensor
    bn_loss: Tensor
    images: Tensor


def recover_batch(
    start: Tensor,
    patches: Tensor | None,
    labels: Tensor,
    teachers: Sequence[nn.Module],
    plan: Plan,
    valid_range: tuple[Tensor, Tensor],
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
    watch: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Optimise the pixels of one batch of classes, stage by stage, merging the patches back in between.

    start: B x 3 x s x s, normalised: patches or noise; patches: B x 3 x S x S, or None where nothing is merged;
    labels: B; teachers: called in turn, each answers (logits, R_bn); valid_range: lowest and highest normalised value,
    each broadcastable to the batch; generator: the batch's own (CPU); dtype: what the teachers' forward is cast
    to (None: float32); statistics and losses stay float32. `watch` sees every iteration.
    Returns B x 3 x S x S, normalised, within the valid range. Raises UserError where a loss is not finite.
    """
    low, high = valid_range
    device = start.device
    scaler = gradient_scaler(device, dtype)
    bad_iteration = torch.full((), plan.iterations, device=device)  # the first with a loss that is not finite
    iteration = 0
    images = resize(start, plan.sizes[0])
    for stage, (size, budget) in enumerate(zip(plan.sizes, plan.budgets, strict=True)):
        if stage > 0:
            images = resize(images, size) if patches is None else merge_residual(images, patches, plan.alpha, size)
        images = images.detach().clone().requires_grad_(True)
        # On CUDA one kernel for the whole step, which knows by itself of gradients that the scaler found infinite.
        optimiser = torch.optim.Adam([images], plan.lr, ADAM_BETAS, ADAM_EPS, fused=device.type == "cuda")
        draws = sample_batch_augmentations(budget, size, plan.crop_and_flip, plan.jitter, generator)
        for some in draws.to(device, non_blocking=True).split(CHECK_EVERY):
            for rows, columns in zip(*augmentation_matrices(some, size), strict=True):
                optimiser.param_groups[0]["lr"] = cosine_rate(plan.lr, iteration, plan.iterations)
                view = augment_batch(images, rows, columns).contiguous(memory_format=memory_format(device))
                with autocast(device, dtype):
                    logits, bn_loss = teachers[iteration % len(teachers)](view)
                ce_loss = F.cross_entropy(logits, labels)
                loss = ce_loss + plan.r_bn * bn_loss
                optimiser.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimiser)
                scaler.update()
                with torch.no_grad():
                    images.clamp_(low, high)
                    bad_iteration = torch.where(loss.isfinite(), bad_iteration, bad_iteration.clamp(max=iteration))
                watch(Step(iteration, ce_loss.detach(), bn_loss.detach(), images.detach()))
                iteration += 1
            _stop_if_not_finite(bad_iteration, plan.iterations)  # the only wait for the device
    return images.detach()


def _stop_if_not_finite(bad_iteration: Tensor, iterations: int) -> None:
    if (iteration := int(bad_iteration)) < iterations:
        raise UserError(f"the loss is not finite at iteration {iteration}: lower --lr or check the teachers")
