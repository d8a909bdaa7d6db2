"""Terms of recover's loss: what an image is optimised for.

A term is a function of what one teacher saw; its builder takes the settings. The loss is the sum over the teachers
asked of their weight times the weighted sum of all terms. A term's weight is that in --terms, else the setting of its
name (--r-bn), else 1.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError
from utils.seams import TERMS


class Seen(NamedTuple):
    """What a teacher saw of a batch: view (B x 3 x s x s, normalised), labels (B), its logits (B x C, float32) and how
    far the statistics it watches are from their targets (R, a scalar)."""

    view: Tensor
    labels: Tensor
    logits: Tensor
    matching: Tensor


Term = Callable[[Seen], Tensor]


@TERMS.add("cross_entropy")
def cross_entropy(settings: RecoverSettings) -> Term:
    """Cross-entropy against the images' classes, the mean over the batch."""
    return lambda seen: F.cross_entropy(seen.logits, seen.labels)


@TERMS.add("r_bn")
def r_bn(settings: RecoverSettings) -> Term:
    """How far the watched statistics are from their targets (see utils/bn_matching)."""
    return lambda seen: seen.matching


def build_terms(settings: RecoverSettings) -> Mapping[str, tuple[float, Term]]:
    """The terms of a run with their weights, by name. UserError for an unknown name or an invalid weight."""
    terms = {}
    for word in settings.terms:
        name, _, weight = word.partition("=")
        try:
            terms[name] = float(weight or getattr(settings, name, 1)), TERMS[name](settings)
        except ValueError:
            raise UserError(f"--terms {word}: {weight} is no number") from None
    return terms
