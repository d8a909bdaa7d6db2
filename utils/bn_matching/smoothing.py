"""Statistics that are smoothed over the iterations of a batch, against those of all real images and of its classes.

G-VBSM (Shao et al. 2024) smooths, and leaves layers out by chance; EDC (Shao et al. 2024) adds the targets by class.
"""

import torch
from torch import Tensor, nn

from utils.bn_matching.matching import MatchedTeacher


class SmoothedTeacher(nn.Module):
    """A `MatchedTeacher` that compares a running mean of its statistics with their targets.

    momentum: the share of the mean so far, which begins at 0 with each batch. Its gradient is that of the iteration's
    own statistics, as if these were the mean (straight-through). drop: how probably a convolution is left out of an
    iteration, its mean with it. by_class: statistics of each class (C x L, joined like the teacher's targets), which
    have the share `class_share` of R. `begin` comes before each batch: what is carried over belongs to the batch. Asked
    without a gradient it is that teacher alone, and carries nothing over.
    """

    def __init__(
        self, matched: MatchedTeacher, momentum: float, drop: float, class_share: float, by_class: Tensor | None
    ) -> None:
        super().__init__()
        self.matched = matched
        self.momentum, self.drop, self.class_share = momentum, drop, class_share
        self.by_class = by_class
        self.optional = torch.tensor([issubclass(kind, nn.Conv2d) for kind in matched.kinds], dtype=torch.bool)

    def begin(self, labels: Tensor, generator: torch.Generator) -> None:
        """labels: B, the batch's classes; generator: the batch's own, on the CPU."""
        self.mean = torch.zeros_like(self.matched.targets)
        self.generator = generator
        if self.class_share:
            self.class_targets = self.by_class[labels.cpu()].mean(dim=0).to(self.mean)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As of `MatchedTeacher`: logits and R."""
        matched = self.matched
        if not torch.is_grad_enabled():
            return matched(images)
        logits, found = matched.statistics(images)
        mean = self.momentum * self.mean + (1 - self.momentum) * found.detach()
        weights = matched.weights
        if self.drop:
            kept = ~self.optional | (torch.rand(len(self.optional), generator=self.generator) >= self.drop)
            of_vectors = kept.to(weights.device)[matched.slot_of]
            weights = weights * of_vectors
            mean = torch.where(of_vectors[matched.vector_of], mean, self.mean)
        self.mean = mean
        smoothed = mean + found - found.detach()
        distance = matched.distance(smoothed, matched.targets, weights)
        if self.class_share:
            to_classes = matched.distance(smoothed, self.class_targets, weights)
            distance = (1 - self.class_share) * distance + self.class_share * to_classes
        return logits, distance
