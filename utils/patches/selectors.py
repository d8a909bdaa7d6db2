"""Selectors: which crops, or which images, of a class are taken, and in which order.

A selector is a function of the candidates of a class, how many to take and a generator of its own; it gives their
places: int64, count x 2, the image and the crop of each.
"""

from collections.abc import Callable
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.data.images import normalise
from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.seams import SELECTORS


class Candidates:
    """What a selector may take from: `crops` crops of each of `images` images of a class.

    score: gives the losses of the observer of that name.
    """

    def __init__(self, class_index: int, images: int, crops: int, observer: str, score: Callable[[], Tensor]) -> None:
        self.class_index, self.images, self.crops = class_index, images, crops
        self._observer, self._score = observer, score

    @cached_property
    def losses(self) -> Tensor:
        """The observer's cross-entropy for every crop against its class: images x crops, on the CPU.

        UserError where they are not finite.
        """
        losses = self._score().view(self.images, self.crops)
        if not losses.isfinite().all():
            raise UserError(
                f"the observer {self._observer} gives no finite loss for class {self.class_index}: check it"
            )
        return losses


@SELECTORS.add("random")
def random(candidates: Candidates, count: int, generator: torch.Generator) -> Tensor:
    """Images in random order, the first crop of each; where these are too few, all again with the second, and so on.

    A smaller count gives the first ones of a larger one.
    """
    rounds = []
    for crop in range(min(candidates.crops, -(-count // candidates.images))):
        images = torch.randperm(candidates.images, generator=generator)
        rounds.append(torch.stack((images, torch.full_like(images, crop)), dim=1))
    return torch.cat(rounds)[:count]


def by_difficulty(candidates: Candidates, count: int, generator: torch.Generator, difficulty: str) -> Tensor:
    """Crops by the observer's loss, each image's best crop first (RDED).

    The images are ranked by their best crop's loss and taken as `select` says. Where these are fewer than `count`, each
    one's second best crop follows after all the best ones, ranked and selected among themselves in the same way, then
    the third best, and so on. Ties go to the earlier image, and within an image to the earlier crop.
    """
    ordered, crops = candidates.losses.sort(dim=1, stable=True)
    rounds = []
    for place in range(candidates.crops):
        images = select(ordered[:, place].argsort(stable=True), difficulty)
        rounds.append(torch.stack((images, crops[images, place]), dim=1))
    return torch.cat(rounds)[:count]


for _difficulty in ("easy", "medium", "hard"):
    SELECTORS.add(_difficulty)(partial(by_difficulty, difficulty=_difficulty))


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


@torch.inference_mode()
def crop_losses(observer: nn.Module, crops: Tensor, class_index: int, dataset: Dataset, batch_size: int) -> Tensor:
    """Cross-entropy of the observer (in eval mode) for crops of one class: float32, N, on the CPU.

    crops: uint8, N x 3 x s x s, anywhere; they go through the observer, on its own device, batch_size at a time. A crop
    smaller than S is padded after normalisation, not resized, as RDED does.
    """
    device = next(observer.parameters()).device
    losses = []
    for batch in crops.split(batch_size):
        views = pad_centred(normalise(batch.to(device), dataset), dataset.size)
        labels = torch.full((len(batch),), class_index, device=device)
        losses.append(F.cross_entropy(observer(views).float(), labels, reduction="none"))
    return torch.cat(losses).cpu()


def pad_centred(images: Tensor, size: int) -> Tensor:
    """Normalised images (N x 3 x s x s) in the middle of zeros, the mean colour: N x 3 x size x size."""
    before = (size - images.shape[-1]) // 2
    after = size - images.shape[-1] - before
    return F.pad(images, (before, after, before, after))
