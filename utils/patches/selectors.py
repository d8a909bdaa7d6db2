"""Selectors: which crops, or which images, of a class are taken, and in which order.

A selector is a function of the candidates of a class, how many to take and a generator of its own; it gives their
places: int64, count x 2, the image and the crop of each. A smaller count gives the first ones of a larger one.
"""

import itertools
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.data.images import normalise
from utils.data.table import Dataset
from utils.patches.features import last_features, require_features
from utils.run.errors import UserError
from utils.seams import SELECTORS

CAD_EPOCHS, CAD_WINDOWS = 6, 2  # J and W
COVERED = 0.7  # the share of a class's images, those of lowest loss, that are not noisy: for coverage and balanced
CLUSTERS, K_MEANS_ROUNDS = 5, 100  # of balanced: how many a class has, and when to stop at the latest


class Observed(NamedTuple):
    """What an observer makes of N crops of one class, on the CPU: its cross-entropy for each (N) and the input of its
    last linear layer, scaled to length 1 (N x D; None where it has no such layer)."""

    losses: Tensor
    features: Tensor | None


class Candidates:
    """What a selector may take from: `crops` crops of each of `images` images of a class.

    observe: what the observer of that name makes of them, in this order; asked once, when a selector wants to know.
    history: the images' scores after each epoch of its training (epochs x images), asked likewise.
    """

    def __init__(
        self,
        class_index: int,
        images: int,
        crops: int,
        observer: str,
        observe: Callable[[], Observed],
        history: Callable[[], Tensor] | None = None,
    ) -> None:
        self.class_index, self.images, self.crops = class_index, images, crops
        self._observer, self._observe, self._history = observer, observe, history

    @cached_property
    def observed(self) -> Observed:
        """UserError where the losses are not finite."""
        observed = self._observe()
        if not observed.losses.isfinite().all():
            raise UserError(
                f"the observer {self._observer} gives no finite loss for class {self.class_index}: check it"
            )
        return observed

    @property
    def losses(self) -> Tensor:
        """The observer's cross-entropy for every crop against its class: images x crops."""
        return self.observed.losses.view(self.images, self.crops)

    @cached_property
    def difficulty(self) -> Tensor:
        """How much each image's score still changed near the end of the observer's training (see `cad`). UserError
        where scores are not to be had."""
        if self._history is None:
            raise UserError("cad-prune and r-cad go by scores of whole training images: take them with choose_images")
        return cad(self._history())

    @property
    def features(self) -> Tensor:
        """The observer's features of every crop, of length 1: images x crops x D. UserError where it has none."""
        features = require_features(self.observed.features, f"the observer {self._observer}")
        return features.view(self.images, self.crops, -1)


@SELECTORS.add("random")
def random(candidates: Candidates, count: int, generator: torch.Generator) -> Tensor:
    """Images in random order, the first crop of each; where these are too few, all again with the second, and so on."""
    rounds = []
    for crop in range(min(candidates.crops, -(-count // candidates.images))):
        images = torch.randperm(candidates.images, generator=generator)
        rounds.append(torch.stack((images, torch.full_like(images, crop)), dim=1))
    return torch.cat(rounds)[:count]


def best_crops_first(
    candidates: Candidates, count: int, generator: torch.Generator, order: Callable[[Candidates, Tensor, int], Tensor]
) -> Tensor:
    """Each image's best crop, that of the lowest loss (RDED), the images in some order.

    order: gives images, at least as many as are asked for if there are, by the crop of each (N) that stands for it.
    Where the images are too few, each one's second best crop follows after all the best ones, ordered among themselves
    in the same way, then the third best, and so on. Ties go to the earlier crop.
    """
    crops, rounds = candidates.losses.argsort(dim=1, stable=True), []
    for place in range(min(candidates.crops, -(-count // candidates.images))):
        images = order(candidates, crops[:, place], min(candidates.images, count - place * candidates.images))
        rounds.append(torch.stack((images, crops[images, place]), dim=1))
    return torch.cat(rounds)[:count]


def by_difficulty(candidates: Candidates, crops: Tensor, count: int, difficulty: str) -> Tensor:
    """Images by their crops' loss, as `select` takes them; ties go to the earlier image."""
    losses = candidates.losses.gather(1, crops[:, None])[:, 0]
    return select(losses.argsort(stable=True), difficulty)


for _difficulty in ("easy", "medium", "hard"):
    SELECTORS.add(_difficulty)(partial(best_crops_first, order=partial(by_difficulty, difficulty=_difficulty)))


def select(ranking: Tensor, difficulty: str) -> Tensor:
    """A ranking (M, lowest loss first) in the order in which a difficulty takes from it.

    easy: from the front; hard: from the back; medium: outward from the middle, the lower loss first of two that are
    as far from it.
    """
    if difficulty == "easy":
        return ranking
    if difficulty == "hard":
        return ranking.flip(0)
    places = torch.arange(len(ranking), device=ranking.device)
    return ranking[(2 * places - (len(ranking) - 1)).abs().argsort(stable=True)]


def by_features(candidates: Candidates, crops: Tensor, count: int, greedy: Callable[..., Tensor]) -> Tensor:
    """Images one by one, each the best beside those before it."""
    places = torch.arange(candidates.images)
    return greedy(candidates.features[places, crops], candidates.losses[places, crops], count)


def herding(features: Tensor, losses: Tensor, count: int) -> Tensor:
    """Images (of N x D features) whose mean stays as near as can be to that of all (Welling 2009)."""
    mean, total, taken = features.mean(dim=0), torch.zeros_like(features[0]), []
    for number in range(1, count + 1):
        distances = (mean - (total + features) / number).norm(dim=1)
        distances[taken] = torch.inf
        taken.append(int(distances.argmin()))
        total = total + features[taken[-1]]
    return torch.tensor(taken)


def k_centre(features: Tensor, losses: Tensor, count: int) -> Tensor:
    """The image next to the mean, then each time the one farthest from those taken (Gonzalez 1985)."""
    taken = [int((features - features.mean(dim=0)).norm(dim=1).argmin())]
    nearest = torch.full((len(features),), torch.inf)
    while len(taken) < count:
        nearest = nearest.minimum((features - features[taken[-1]]).norm(dim=1))
        nearest[taken] = -1
        taken.append(int(nearest.argmax()))
    return torch.tensor(taken)


def coverage(features: Tensor, losses: Tensor, count: int) -> Tensor:
    """Images that stand for all others: each time the one that adds most to the sum, over all images, of the
    similarity (cosine, at least 0) to the most similar one taken: facility location, greedily. From the share COVERED
    of lowest loss, then from the rest."""
    return facility_location((features @ features.T).clamp_min(0), torch.ones(len(features)), count, noisy(losses))


def noisy(losses: Tensor) -> Tensor:
    """Which images (N, bool) are not of the share COVERED of lowest loss, which has one image at least."""
    found = torch.ones(len(losses), dtype=torch.bool)
    found[losses.argsort(stable=True)[: max(1, round(COVERED * len(losses)))]] = False
    return found


def facility_location(similar: Tensor, weights: Tensor, count: int, late: Tensor | None = None) -> Tensor:
    """Images one by one, each adding most to the sum over all images of weight times similarity to the most similar
    one taken. similar: N x N, from 0 to 1; late: those (N, bool) that come after all others."""
    covered, taken = torch.zeros(len(similar)), []
    for _ in range(count):
        gains = weights @ similar.maximum(covered[:, None])
        if late is not None:
            gains -= len(similar) * late
        gains[taken] = -torch.inf
        taken.append(int(gains.argmax()))
        covered = covered.maximum(similar[:, taken[-1]])
    return torch.tensor(taken)


def balanced(features: Tensor, losses: Tensor, count: int) -> Tensor:
    """Images of every cluster, in proportion to its size: first the one nearest to its centre, then its hardest that is
    not noisy, then the second nearest, and so on, each once (after BPS, CVPR 2026: half of both, by cluster size).

    So that more images begin with the same ones, the next one is of the cluster with the largest size / (2 taken + 1):
    at any count each cluster has its share, rounded (Webster; BPS rounds and gives the difference to the largest).
    """
    similar = (features @ features.T).clamp_min(0)
    starts = facility_location(similar, torch.ones(len(features)), min(CLUSTERS, len(features)))
    clusters, centres = k_means(features, features[starts])
    closeness, easy = (features * centres[clusters]).sum(dim=1), ~noisy(losses)
    orders = []
    for cluster in range(len(centres)):
        near = (clusters == cluster).nonzero()[:, 0]
        near = near[closeness[near].argsort(descending=True, stable=True)].tolist()
        hard = sorted((image for image in near if easy[image]), key=losses.__getitem__, reverse=True)
        by_turns = itertools.chain.from_iterable(itertools.zip_longest(near, hard))
        orders.append([image for image in dict.fromkeys(by_turns) if image is not None])
    taken, numbers = [], [0] * len(orders)
    for _ in range(count):
        shares = [len(order) / (2 * number + 1) for order, number in zip(orders, numbers, strict=True)]
        cluster = shares.index(max(shares))
        taken.append(orders[cluster][numbers[cluster]])
        numbers[cluster] += 1
    return torch.tensor(taken)


def k_means(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Spherical k-means from these centres on (Dhillon and Modha 2001). features: N x D, centres: K x D, of length 1.
    Returns the cluster of each (N), by the largest cosine, and its centre: the mean of its features, at length 1."""
    for _ in range(K_MEANS_ROUNDS):
        clusters = (features @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, clusters, features)
        moved = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums), centres)  # an empty one stays
        if torch.equal(moved, centres):
            break
        centres = moved
    return clusters, centres


def cad(history: Tensor) -> Tensor:
    """Confidence-aware difficulty (CA2D, arXiv 2604.18811): the mean over the CAD_WINDOWS windows before the last of
    the standard deviation of a score within CAD_EPOCHS epochs. history: epochs x N. UserError where it is too short."""
    epochs = len(history)
    if epochs < CAD_EPOCHS + CAD_WINDOWS:
        raise UserError(f"scores of {epochs} epochs: cad-prune and r-cad take {CAD_EPOCHS + CAD_WINDOWS} or more")
    starts = range(epochs - CAD_EPOCHS - CAD_WINDOWS, epochs - CAD_EPOCHS)
    return torch.stack([history[start : start + CAD_EPOCHS].std(dim=0) for start in starts]).mean(dim=0)


def most_difficult(candidates: Candidates, crops: Tensor, count: int) -> Tensor:
    """Images by difficulty, the greatest first (CAD-Prune)."""
    return candidates.difficulty.argsort(descending=True, stable=True)


def difficult_coverage(candidates: Candidates, crops: Tensor, count: int) -> Tensor:
    """As coverage, from all images, each counting as much as it is difficult (R-CAD)."""
    features = candidates.features[torch.arange(candidates.images), crops]
    return facility_location((features @ features.T).clamp_min(0), candidates.difficulty, count)


SELECTORS.add("cad-prune")(partial(best_crops_first, order=most_difficult))
SELECTORS.add("r-cad")(partial(best_crops_first, order=difficult_coverage))
for _name, _greedy in {"herding": herding, "k-centre": k_centre, "coverage": coverage, "balanced": balanced}.items():
    SELECTORS.add(_name)(partial(best_crops_first, order=partial(by_features, greedy=_greedy)))


@torch.inference_mode()
def observe(observer: nn.Module, crops: Tensor, class_index: int, dataset: Dataset, batch_size: int) -> Observed:
    """What the observer (in eval mode) makes of crops of one class, in float32.

    crops: uint8, N x 3 x s x s, anywhere; they go through the observer, on its own device, batch_size at a time. A crop
    smaller than S is padded after normalisation, not resized, as RDED does.
    """
    device = next(observer.parameters()).device
    losses = []
    with last_features(observer) as features:
        for batch in crops.split(batch_size):
            views = pad_centred(normalise(batch.to(device), dataset), dataset.size)
            labels = torch.full((len(batch),), class_index, device=device)
            losses.append(F.cross_entropy(observer(views).float(), labels, reduction="none"))
    return Observed(torch.cat(losses).cpu(), torch.cat(features) if features else None)


def pad_centred(images: Tensor, size: int) -> Tensor:
    """Normalised images (N x 3 x s x s) in the middle of zeros, the mean colour: N x 3 x size x size."""
    before = (size - images.shape[-1]) // 2
    after = size - images.shape[-1] - before
    return F.pad(images, (before, after, before, after))
