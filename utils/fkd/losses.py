"""What a student minimises, and how teachers' logits are joined.

A loss is a function of the student's logits (n x C) and a `Target`; its builder takes the settings. What it has of each
row becomes one number by `over_batch`, which knows the images' weights.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.recipes.settings import ValidateSettings
from utils.seams import LOSSES

LABEL_TEMPERATURE = 10.0  # percent points, of the scores that weigh teachers
TRUE_SHARE = 0.9  # of the image's class, in the smoothed one-hot of GIFT


class Target(NamedTuple):
    """What a student should say of n views: soft labels (n x C logits), the images' classes (n), of which epoch (from
    0), the size of the batch that these views are of, and the images' weights (n; None: all alike). A mixed view has
    class and weight of its own image, whatever was pasted in."""

    soft: Tensor
    hard: Tensor
    epoch: int
    batch: int
    weights: Tensor | None = None


StudentLoss = Callable[[Tensor, Target], Tensor]


@LOSSES.add("kl")
def kl(settings: ValidateSettings) -> StudentLoss:
    """The soft labels alone, at --temperature (FKD, Shen and Xing 2022)."""
    return lambda logits, target: distillation_loss(
        logits, target.soft, settings.temperature, target.batch, target.weights
    )


@LOSSES.add("kl_squared")
def kl_squared(settings: ValidateSettings) -> StudentLoss:
    """The same times the square of the temperature (Hinton et al. 2015)."""
    loss = kl(settings)
    return lambda logits, target: settings.temperature**2 * loss(logits, target)


@LOSSES.add("cross_entropy")
def cross_entropy(settings: ValidateSettings) -> StudentLoss:
    """The images' classes alone."""

    def loss(logits: Tensor, target: Target) -> Tensor:
        reduction = "sum" if target.weights is None else "none"  # the former rounds in another way than a sum of these
        return over_batch(
            F.cross_entropy(logits.float(), target.hard, reduction=reduction), target.batch, target.weights
        )

    return loss


@LOSSES.add("mse_ce")
def mse_ce(settings: ValidateSettings) -> StudentLoss:
    """The mean squared distance of logits, and --gamma times the cross-entropy of the images' classes (G-VBSM)."""
    hard = cross_entropy(settings)

    def loss(logits: Tensor, target: Target) -> Tensor:
        squares = (logits.float() - target.soft.float()).square().mean(dim=1)
        return over_batch(squares, target.batch, target.weights) + settings.gamma * hard(logits, target)

    return loss


@LOSSES.add("cosine")
def cosine(settings: ValidateSettings) -> StudentLoss:
    """One minus the cosine between the student's logits and a target: the soft labels at length 1, and --gamma times
    the smoothed one-hot of the image's class at length 1 (GIFT, ICLR 2025). It knows no temperature."""

    def loss(logits: Tensor, target: Target) -> Tensor:
        classes = logits.shape[1]
        smoothed = torch.full_like(logits, (1 - TRUE_SHARE) / (classes - 1), dtype=torch.float32)
        smoothed.scatter_(1, target.hard[:, None], TRUE_SHARE)
        aim = F.normalize(target.soft.float()) + settings.gamma * F.normalize(smoothed)
        return over_batch(1 - F.cosine_similarity(logits.float(), aim), target.batch, target.weights)

    return loss


def over_batch(values: Tensor, batch: int, weights: Tensor | None) -> Tensor:
    """Values of the rows (n, or n x C) summed, each row times its weight (n; None: 1), over the size of the batch."""
    if weights is not None:
        values = values * weights.view(-1, *[1] * (values.dim() - 1))
    return values.sum() / batch


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, batch: int, weights: Tensor | None = None
) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) summed over the rows given, over `batch`; no factor T^2.

    student_logits, teacher_logits: n x C, n <= batch: summed over the micro-batches of a batch it is the batch's
    mean, each image weighing the same whatever its micro-batch. weights: of the rows (n).
    """
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return over_batch(F.kl_div(log_student, log_teacher, reduction="none", log_target=True), batch, weights)


def label_weights(scores: Sequence[float], teachers: int) -> Tensor:
    """Weights of the teachers' logits: equal without scores, else softmax(scores / 10) (CV-DD). Float32, one a
    teacher."""
    if not scores:
        return torch.full((teachers,), 1 / teachers)
    return torch.softmax(torch.tensor(scores) / LABEL_TEMPERATURE, dim=0)
