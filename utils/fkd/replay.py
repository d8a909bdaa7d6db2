"""What the epochs of a training show of a label store: the stored epochs in their order, or, of a store with fewer,
their batches in another order or fresh views whose labels follow from those that are stored.

A replay's builder takes the store, validate's settings, the student's seed and the images' classes (N); a replay is a
function of the epoch's number that depends on these and the number alone. Every epoch has as many views and batches as
a stored one. `has_fresh_views` is set where some are not of the store: these have labels as probabilities alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.fkd.losses import temperature_at
from utils.fkd.store import LabelStore, read_epoch, read_labels
from utils.fkd.views import Epoch, ViewSettings, draw_epoch
from utils.recipes.settings import ValidateSettings
from utils.run.randomness import generator_for
from utils.seams import REPLAYS

LABEL_SMOOTHING = 0.8  # of HALD's hard labels


class Played(NamedTuple):
    """One epoch of a training: what is drawn for it, its soft labels (N x C logits, by place), how its views are made,
    the temperature of student and labels where it is not the loss's, and whether its views are not of the store."""

    draws: Epoch
    logits: Tensor
    views: ViewSettings
    temperature: float | None = None
    is_fresh: bool = False


Replay = Callable[[int], Played]


@REPLAYS.add("in_order")
def in_order(store: LabelStore, settings: ValidateSettings, seed: int, classes: Tensor) -> Replay:
    """Epoch e of the training is stored epoch e; the store has at least as many."""
    return lambda number: Played(*read_epoch(store, number), store.settings)


@REPLAYS.add("pool")
def pool(store: LabelStore, settings: ValidateSettings, seed: int, classes: Tensor) -> Replay:
    """Whole batches, each drawn from all that are stored, with replacement (LPLD, Xiao and He 2024)."""
    batches = StoredBatches(store)

    def replay(number: int) -> Played:
        generator = generator_for("replay", seed, number)
        picks = (torch.randint(len(ids), (count,), generator=generator) for ids, count in batches.kinds)
        return batches.played(picks)

    return replay


@REPLAYS.add("shuffled_pool")
def shuffled_pool(store: LabelStore, settings: ValidateSettings, seed: int, classes: Tensor) -> Replay:
    """Whole batches of all that are stored, none twice in an epoch; the pool is shuffled for each (LPQLD)."""
    batches = StoredBatches(store)

    def replay(number: int) -> Played:
        generator = generator_for("replay", seed, number)
        picks = (torch.randperm(len(ids), generator=generator)[:count] for ids, count in batches.kinds)
        return batches.played(picks)

    return replay


@REPLAYS.add("soft_hard_soft")
def soft_hard_soft(store: LabelStore, settings: ValidateSettings, seed: int, classes: Tensor) -> Replay:
    """Stored labels, then the images' classes with fresh views, then stored labels again (HALD).

    --fresh-share of the epochs are hard, half of the others (rounded down) come before them. With stored labels the
    pool of batches is shuffled at the start of each stage and whenever it is used up. Classes are smoothed by 0.8,
    mixed by the views' shares and learned at temperature 1.
    """
    batches = StoredBatches(store)
    hard = round(settings.fresh_share * settings.epochs)
    first_hard = (settings.epochs - hard) // 2
    smoothed = F.one_hot(classes, store.manifest["num_classes"]).float()
    smoothed = (1 - LABEL_SMOOTHING) * smoothed + LABEL_SMOOTHING / smoothed.shape[1]

    def replay(number: int) -> Played:
        if first_hard <= number < first_hard + hard:
            return fresh(store, number, smoothed, 1.0)
        stage, place = (0, number) if number < first_hard else (1, number - first_hard - hard)
        shuffle, turn = divmod(place, store.settings.epochs)
        generator = generator_for("replay", seed, stage, shuffle)
        picks = (
            torch.randperm(len(ids), generator=generator)[turn * count : (turn + 1) * count]
            for ids, count in batches.kinds
        )
        return batches.played(picks)

    return replay


@REPLAYS.add("mixed")
def mixed(store: LabelStore, settings: ValidateSettings, seed: int, classes: Tensor) -> Replay:
    """Stored epochs, round and round in their order, and --fresh-share of fresh views spread evenly among them: with
    0.5, every other epoch, the first being a stored one. Our own.

    The label of a fresh view is the mixture, by the view's shares, of the labels of the two images that are in it; for
    these see `labels_of_images`. It is read at the loss's temperature.
    """
    known: dict[float, Tensor] = {}  # the images' labels by temperature; one at a time

    def replay(number: int) -> Played:
        before, through = (int(settings.fresh_share * count + 1e-9) for count in (number, number + 1))
        if before == through:
            return Played(*read_epoch(store, (number - before) % store.settings.epochs), store.settings)
        temperature = temperature_at(settings, number)
        if temperature not in known:
            known.clear()
            known[temperature] = labels_of_images(store, temperature)
        played = fresh(store, number, known[temperature], temperature)
        return played._replace(temperature=None)

    return replay


soft_hard_soft.has_fresh_views = mixed.has_fresh_views = True


class StoredBatches:
    """All epochs of a store in memory, logits as they lie in the files, to put epochs together of their batches.

    kinds: the batches' numbers, through all epochs, of those of full size and of those that are left over at the end of
    an epoch (if they are), each with how many of them an epoch has: a short batch stands for a short batch.
    """

    def __init__(self, store: LabelStore) -> None:
        self.store, views = store, store.settings
        epochs = [read_labels(store, number) for number in range(views.epochs)]
        draws, labels = ([each[place] for each in epochs] for place in (0, 1))
        self.draws = Epoch(**{name: torch.cat([getattr(each, name) for each in draws]) for name in draws[0].tensors()})
        self.labels = {name: torch.cat([each[name] for each in labels]) for name in labels[0]}
        numbers, full = (
            torch.arange(views.epochs * views.batches).view(-1, views.batches),
            views.images // views.batch_size,
        )
        parts = (numbers[:, :full], numbers[:, full:])
        self.kinds = [(part.flatten(), part.shape[1]) for part in parts if part.numel()]

    def played(self, picks: Iterable[Tensor]) -> Played:
        """The epoch of these batches, named for each kind by their places among those of the kind."""
        views = self.store.settings
        chosen = torch.cat([ids[places] for (ids, _), places in zip(self.kinds, picks, strict=True)])
        epoch, batch = chosen // views.batches, chosen % views.batches
        starts = (epoch * views.images + batch * views.batch_size).repeat_interleave(views.batch_size)[: views.images]
        rows = starts + torch.arange(views.images) % views.batch_size
        of_batches = {"mix_box", "mix_lam"}
        draws = {name: tensor[chosen if name in of_batches else rows] for name, tensor in self.draws.tensors().items()}
        logits = self.store.codec.decode({name: tensor[rows] for name, tensor in self.labels.items()})
        return Played(Epoch(**draws), logits, views)


def fresh(store: LabelStore, number: int, of_images: Tensor, temperature: float) -> Played:
    """An epoch of views that the store does not have, drawn as those that it has, each labelled by the mixture of its
    images' labels (N x C probabilities), to be read at the temperature. Of whole images, views are cropped, flipped
    and CutMixed, as under FADRM's protocol."""
    views = store.settings
    if store.manifest.get("labels") == "fixed":
        views = replace(views, mix="cutmix", mix_alpha=1.0)
    draws = draw_epoch(views, views.epochs + number)
    own, partner, share = images_in(draws, views)
    mixture = share[:, None] * of_images[own] + (1 - share[:, None]) * of_images[partner]
    logits = temperature * mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()
    return Played(draws, logits, views, temperature, is_fresh=True)


def images_in(draws: Epoch, views: ViewSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The image and the partner of each view (N, int64), and the image's share in it (N, float32): what CutMix's box
    leaves of the area, or MixUp's lam."""
    place = torch.arange(views.images)
    batch = place // views.batch_size
    own = draws.order.long()
    partner = own[batch * views.batch_size + draws.mix_partner.long()]
    share = torch.ones(views.batches)
    if views.mix == "cutmix":
        top, left, bottom, right = draws.mix_box.float().unbind(dim=1)
        share = 1 - (bottom - top) * (right - left) / views.size**2
    if views.mix == "mixup":
        share = draws.mix_lam
    return own, partner, share[batch]


def labels_of_images(store: LabelStore, temperature: float) -> Tensor:
    """Each image's own label, N x C probabilities: the mean over the stored views of it of softmax(logits / T), each
    weighted by the image's share in the view.

    An image is in two views of an epoch, as what is pasted into and as what is pasted, and its shares in them sum to
    1, since both are of one batch, which has one box: the weights sum to the number of stored epochs. Labels of mixed
    views are not taken apart, so that an image's label has something of its partners'. With one label for each whole
    image it is just that one.
    """
    views = store.settings
    total = torch.zeros(views.images, store.manifest["num_classes"])
    for number in range(views.epochs):
        draws, logits = read_epoch(store, number)
        own, partner, share = images_in(draws, views)
        probabilities = F.softmax(logits.float() / temperature, dim=1)
        total.index_add_(0, own, share[:, None] * probabilities)
        total.index_add_(0, partner, (1 - share[:, None]) * probabilities)
    return total / views.epochs
