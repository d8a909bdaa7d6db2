"""Committees: which teachers an iteration of recover asks, and with which weight.

A committee is a function of the batch and the iteration that gives pairs of a teacher, by its place in
--teacher-model-list, and a weight; its builder takes the settings, in whose `priors` there is a score for each teacher,
or nothing.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from recover.batches import Batch
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.seams import COMMITTEES

Committee = Callable[[Batch, int], Sequence[tuple[int, float]]]
PAIR_TEMPERATURE = 5.0  # percent points, of priors within a pair


@COMMITTEES.add("in_turn")
def in_turn(settings: RecoverSettings) -> Committee:
    """One teacher an iteration, the next of the list each time; every batch begins with the first (FADRM+)."""
    count = len(settings.teachers)
    return lambda batch, iteration: ((iteration % count, 1.0),)


@COMMITTEES.add("all")
def all_at_once(settings: RecoverSettings) -> Committee:
    """All teachers in every iteration, equally weighed."""
    count = len(settings.teachers)
    asked = tuple((place, 1 / count) for place in range(count))
    return lambda batch, iteration: asked


@COMMITTEES.add("pairs")
def pairs(settings: RecoverSettings) -> Committee:
    """A pair of teachers for each image index, both in every iteration, weighed by softmax(prior / 5) (CV-DD).

    Of n teachers the two of highest prior at IPC 1; the i-th of their pairs in lexicographic order where there are as
    many images a class as pairs; else one drawn by seed, dataset and index. UserError for a single teacher.
    """
    if len(settings.teachers) < 2:
        raise UserError("--committee pairs asks two teachers at a time: name more than one in --teacher-model-list")
    priors = settings.priors or (0.0,) * len(settings.teachers)
    possible = list(itertools.combinations(range(len(priors)), 2))
    ipc = settings.images_per_class

    def committee(batch: Batch, iteration: int) -> Sequence[tuple[int, float]]:
        index = batch.members[0][1]
        if ipc == 1:
            pair = tuple(sorted(sorted(range(len(priors)), key=lambda place: -priors[place])[:2]))
        elif ipc == len(possible):
            pair = possible[index % ipc]
        else:
            generator = generator_for(settings.seed + settings.draw, "pair", settings.dataset_name, index)
            pair = possible[int(torch.randint(len(possible), (), generator=generator))]
        return tuple(zip(pair, softmax([priors[place] for place in pair], PAIR_TEMPERATURE), strict=True))

    return committee


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """exp(score / temperature), scaled to a sum of 1."""
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]
