"""Measures on the way: what becomes of a batch's images while they are optimised, as a reference network sees them.

A batch's file, `<images>_measures/<batch>.jsonl`, has one JSON object a line: what was measured; the images as they
start; after every few iterations and the last the images, and each term of the loss before its weight, the mean over
the iterations since the last such line (teachers take turns, and views are random); both sides of each merge. Without a
reference nothing looks at the images, and the terms alone are left. The paper prints no formula for its information
score: `information_score` is our reading.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recover.batches import Batch
from recover.optimise import Step
from utils.data.images import to_pixels
from utils.data.table import Dataset
from utils.recipes.settings import NO_REFERENCE
from utils.residual.residuals import Residual, resize
from utils.run.errors import UserError
from utils.run.files import read_bytes, reading, write_json_lines
from utils.run.records import Shape, check_shape

REMEDY = "remove it, move the images of its batch away and run recover again"
ABOUT: Shape = {"batch": str, "images": int, "reference": str, "every": int, "made_with": str}
LOOK: Shape = {"information": float, "pixel_entropy": float, "top1": float}
LINE: Shape = {"iteration": int, "terms": {}}
MERGE: Shape = {"iteration": int, "merge": int}
BOTH_SIDES: Shape = {"cosine": float, "before": LOOK, "after": LOOK}


@torch.no_grad()
def see(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a convolutional network makes of images: its last feature map, and its logits.

    images: B x 3 x S x S, normalised. The map (B x C x H x W) is what the last module gives that gives one of more than
    one position, behind an activation that works in place. UserError where none does.
    """
    maps = []

    def keep(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            maps[:] = [output]

    hooks = [layer.register_forward_hook(keep) for layer in network.modules()]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    if not maps:
        raise UserError("the reference has no feature map of more than one position: name another --reference")
    return maps[0].float(), logits


def information_score(features: Tensor) -> Tensor:
    """How evenly a feature map (B x C x H x W) is active over its positions, in nats, from 0 to ln(H * W); our reading.

    The mean over images of -sum_p q_p ln q_p, where q_p is the share of position p in the sum of squares of the map.
    """
    energy = features.square().sum(dim=1).flatten(1)
    shares = energy / energy.sum(dim=1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    return torch.special.entr(shares).sum(dim=1).mean()


def pixel_entropy(pixels: Tensor) -> Tensor:
    """The entropy of the 256-bin histogram of an image's values, all channels together, in nats, from 0 to ln 256: the
    mean over images (uint8, B x 3 x S x S)."""
    counts = torch.stack([image.flatten().bincount(minlength=256) for image in pixels])
    return torch.special.entr(counts / pixels[0].numel()).sum(dim=1).mean()


def feature_cosine(before: Tensor, after: Tensor) -> Tensor:
    """The cosine between two feature maps (B x C x H x W), each averaged over its positions: the mean over images."""
    return F.cosine_similarity(before.mean((2, 3)), after.mean((2, 3))).mean()


class Measures:
    """The measures of one batch, line by line.

    about: the first line; reference: in eval mode, on the device; it sees the images at the dataset's size, whatever
    the stage's (None: nothing looks); start: what they start as (B x 3 x s x s, normalised); labels: B; iterations: of
    the whole plan.
    """

    def __init__(
        self,
        about: Mapping[str, object],
        reference: nn.Module | None,
        start: Tensor,
        labels: Tensor,
        iterations: int,
        dataset: Dataset,
    ) -> None:
        self.reference, self.labels, self.dataset = reference, labels, dataset
        self.every, self.last, self.iteration = about["every"], iterations, 0
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.lines = [dict(about), {"iteration": 0, **self.look(start)[0], "terms": {}}]

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[dict[str, float], Tensor | None]:
        """Information score, pixel entropy and the reference's top-1 in percent; the feature map beside them."""
        if self.reference is None:
            return {}, None
        features, logits = see(self.reference, resize(images, self.dataset.size))
        found = {
            "information": information_score(features),
            "pixel_entropy": pixel_entropy(to_pixels(images, self.dataset)),
            "top1": 100 * (logits.argmax(dim=1) == self.labels).float().mean(),
        }
        return {name: value.item() for name, value in found.items()}, features

    def after(self, step: Step) -> None:
        """Take in an iteration; look at the images after it, if it is one of those that are measured."""
        self.iteration = step.iteration + 1
        self.summed += 1
        self.sums = {name: self.sums.get(name, 0) + value for name, value in step.losses.items()}
        if self.iteration % self.every == 0 or self.iteration == self.last:
            terms = {name: value.item() / self.summed for name, value in self.sums.items()}
            self.lines.append({"iteration": self.iteration, **self.look(step.images)[0], "terms": terms})
            self.sums, self.summed = {}, 0

    def around(self, residual: Residual) -> Residual:
        """The same residual, measured on both sides."""

        def measured(images: Tensor, stage: int, size: int) -> Tensor:
            merged = residual(images, stage, size)
            (before, seen_before), (after, seen_after) = self.look(images), self.look(merged)
            line = {"iteration": self.iteration, "merge": stage}
            if self.reference is not None:
                line |= {"cosine": feature_cosine(seen_before, seen_after).item(), "before": before, "after": after}
            self.lines.append(line)
            return merged

        return measured

    def write(self, path: Path) -> None:
        write_json_lines(path, self.lines)


def measures_folder(folder: Path) -> Path:
    """Where the measures of the images of `folder` are: beside it, since every folder in it is a class."""
    return folder.with_name(f"{folder.name}_measures")


def measures_path(folder: Path, batch: Batch) -> Path:
    return measures_folder(folder) / f"{'_'.join(map(str, batch.key))}.jsonl"


def read_measures(path: Path) -> list[dict]:
    """The lines of a batch's file, what was measured first; UserError for one that is damaged."""
    with reading(path, REMEDY):
        about, *lines = map(json.loads, read_bytes(path).splitlines())
    check_shape(path, about, ABOUT, REMEDY)
    is_seen = about["reference"] != NO_REFERENCE
    a_line, a_merge = (LINE | LOOK, MERGE | BOTH_SIDES) if is_seen else (LINE, MERGE)
    for line in lines:
        check_shape(path, line, a_merge if "merge" in line else a_line, REMEDY)
    return [about, *lines]


def is_measured(path: Path, about: Mapping[str, object]) -> bool:
    """Whether a batch has these measures."""
    return path.exists() and read_measures(path)[0] == about
