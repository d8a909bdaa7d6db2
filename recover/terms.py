"""Terms of recover's loss: what an image is optimised for.

A term is a function of what one teacher saw; its builder takes the settings. The loss is the sum over the teachers
asked of their weight times the weighted sum of all terms. A term's weight is that in --terms, else the setting of its
name (--r-bn), else 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.recipes.settings import RecoverSettings
from utils.residual.residuals import resize
from utils.run.errors import UserError
from utils.seams import TERMS

SPECTRUM_SIDE, SPECTRUM_TEMPERATURE = 32, 4.0
FLATNESS_TEMPERATURE, FLATNESS_SHARE = 4.0, 0.99  # the share of the mean so far that an iteration keeps


class Seen(NamedTuple):
    """What a teacher saw of a batch: view (B x 3 x s x s, normalised), labels (B), its logits (B x C, float32) and how
    far the statistics it watches are from their targets (R, a scalar).

    images: what it is a view of, the leaf that is optimised; iteration: of the batch, from 0; ask: the teacher's answer
    for other images (B x 3 x s x s) in the same view, without a gradient and with its statistics left alone: logits, R
    and map; patches: the batch's (B x 3 x S x S; None where there are none); map: what enters the middle one of the
    watched layers (B x K x h x w, float32), for terms whose `of_map` is true, else None.
    """

    view: Tensor
    labels: Tensor
    logits: Tensor
    matching: Tensor
    images: Tensor
    iteration: int
    ask: Callable[[Tensor], tuple[Tensor, ...]]
    patches: Tensor | None = None
    map: Tensor | None = None


Term = Callable[[Seen], Tensor]


@TERMS.add("cross_entropy")
def cross_entropy(settings: RecoverSettings) -> Term:
    """Cross-entropy against the images' classes, the mean over the batch."""
    return lambda seen: F.cross_entropy(seen.logits, seen.labels)


@TERMS.add("r_bn")
def r_bn(settings: RecoverSettings) -> Term:
    """How far the watched statistics are from their targets (see utils/bn_matching)."""
    return lambda seen: seen.matching


@TERMS.add("gram_spectrum")
def gram_spectrum(settings: RecoverSettings) -> Term:
    """G-VBSM's data densification: the spectra of each class's images, pulled towards flatter ones."""
    of_batch: list = [None, []]  # the labels of the batch at hand, and where its classes are: to look waits for the GPU

    def term(seen: Seen) -> Tensor:
        if of_batch[0] is not seen.labels:
            of_batch[:] = seen.labels, list(classes_by_size(seen.labels))
        return spectrum_loss(seen.view, of_batch[1])

    return term


def spectrum_loss(views: Tensor, classes: Sequence[tuple[int, Tensor]]) -> Tensor:
    """The sum over classes of KL(softmax(e / 4), held fixed, || softmax(e)), e the eigenvalues of the Gram matrix of
    the class's views (B x 3 x s x s) at 32 x 32 pixels. A class of one image gives 0. classes: of `classes_by_size`."""
    small = F.adaptive_avg_pool2d(views.float(), SPECTRUM_SIDE).flatten(1)
    total = small.new_zeros(())
    for count, members in classes:
        images = small[members].view(-1, count, small.shape[1])
        spectrum = torch.linalg.eigvalsh(images @ images.transpose(1, 2))
        flatter = (spectrum.detach() / SPECTRUM_TEMPERATURE).softmax(dim=1)
        total = total + F.kl_div(spectrum.log_softmax(dim=1), flatter, reduction="sum")
    return total


def classes_by_size(labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A number of images, and the places of those of all classes that have so many, class by class."""
    counts = labels.bincount()
    order = labels.argsort(stable=True)
    for count in counts.unique().tolist():
        if count > 0:
            yield count, order[(counts == count)[labels[order]]]


@TERMS.add("flatness")
def flatness(settings: RecoverSettings) -> Term:
    """EDC's: the logits stay near those of a running mean of the batch's images, which begins as these and takes them
    up after each iteration has seen it."""
    mean, coming, at = None, None, None  # for this iteration, for the next; of which it is

    def term(seen: Seen) -> Tensor:
        nonlocal mean, coming, at
        images = seen.images.detach()
        if seen.iteration == 0:
            mean = coming = images.clone()
        elif seen.iteration != at:  # once, however many teachers are asked
            mean = resize(coming, images.shape[-1])
            coming = FLATNESS_SHARE * mean + (1 - FLATNESS_SHARE) * images
        at = seen.iteration
        return flatness_loss(seen.logits, seen.ask(mean)[0])

    return term


def flatness_loss(logits: Tensor, of_mean: Tensor) -> Tensor:
    """KL(softmax(of_mean / 4) || softmax(logits / 4)), the mean over all B x C elements."""
    log_seen, log_mean = ((each / FLATNESS_TEMPERATURE).log_softmax(dim=1) for each in (logits, of_mean))
    return F.kl_div(log_seen, log_mean, reduction="sum", log_target=True) / logits.numel()


@TERMS.add("paired")
def paired(settings: RecoverSettings) -> Term:
    """CIM's: what the middle layer sees of each image stays near what it sees of its own patch in the same view; the
    mean absolute difference (arXiv 2607.00916, which optimises for this alone). UserError for a run without patches.
    """
    if settings.patch_dir is None:
        raise UserError("--terms paired compares with patches: name --patch-dir, and start from Patches")

    def term(seen: Seen) -> Tensor:
        return (seen.map - seen.ask(resize(seen.patches, seen.images.shape[-1]))[2]).abs().mean()

    return term


paired.of_map = True


def build_terms(settings: RecoverSettings) -> Mapping[str, tuple[float, Term]]:
    """The terms of a run with their weights, by name. UserError for an unknown name or an invalid weight."""
    terms = {}
    for word in settings.terms:
        name, _, weight = word.partition("=")
        try:
            share = float(weight or getattr(settings, name, 1))
        except ValueError:
            raise UserError(f"--terms {word}: {weight} is no number") from None
        if not 0 <= share <= 1e9:
            raise UserError(f"--terms {word}: it must be from 0 to 1,000,000,000")
        terms[name] = share, TERMS[name](settings)
    return terms
