"""What a student is trained with: loss, learning rate and parameter groups."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, batch: int) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) summed over the rows given, over `batch`; no factor T^2.

    student_logits, teacher_logits: n x C, n <= batch: summed over the micro-batches of a batch it is the batch's
    mean, each image weighing the same whatever its micro-batch (FKD, Shen and Xing 2022).
    """
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) / batch


def epoch_rate(base: float, epoch: int, epochs: int, eta: float, cosine: bool = True) -> float:
    """Learning rate of `epoch` of `epochs`: a cosine that reaches zero with eta 1 and half of `base` with eta 2
    (EDC's smoothed schedule), or a straight line to zero."""
    if cosine:
        return 0.5 * base * (1 + math.cos(math.pi * epoch / epochs / eta))
    return base * (1 - epoch / epochs)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for parameters named `...weight...` of more than one dimension; none for the rest."""
    decayed, rest = [], []
    for name, parameter in network.named_parameters():
        (decayed if "weight" in name and parameter.dim() > 1 else rest).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def committee_weights(scores: list[float] | None, teachers: int) -> Tensor:
    """Weights of the teachers' logits: equal, or softmax(scores / 10) (CV-DD). Float32, one a teacher."""
    if scores is None:
        return torch.full((teachers,), 1 / teachers)
    return torch.softmax(torch.tensor(scores) / 10, dim=0)


@torch.no_grad()
def top_accuracy(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent of a network in eval mode over batches of (normalised images, labels)."""
    right1 = right5 = torch.zeros(())
    total = 0
    for images, labels in batches:
        logits = network(images)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        right1, right5 = right1.to(labels.device) + ranked[:, 0].sum(), right5.to(labels.device) + ranked.sum()
        total += len(labels)
    return 100 * right1.item() / total, 100 * right5.item() / total
