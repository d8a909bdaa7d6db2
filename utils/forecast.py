"""Knowing before paying: what the stages make, write and hold, as functions of their settings.

    python -m utils.forecast --dataset imagenet1k --method fadrm+ --ipc 50
    python -m utils.forecast --num-classes 10450 --size 224 --ipc 50      # by the recipe of imagenet1k

What all that costs in memory and time, only the device at hand can say: `--dry-run` on a stage (utils/dry_run.py).
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

import torch

from models.registry import build_network
from utils import recipes
from utils.background import MOST_PENDING
from utils.cli import StageParser
from utils.datasets import Dataset, get_dataset
from utils.errors import UserError, run_entry
from utils.fkd import ViewSettings, epoch_tensors

BLOCK = 4096  # bytes: a file takes whole ones, and so does a folder
BESIDE = 2**21  # bytes, at most, of the records, reports and pictures that a run leaves beside what it makes
METRICS_LINE = 512  # bytes, at most, that validate writes for an epoch
TENSOR_ENTRY = 1024  # bytes, at most, that a training checkpoint spends on a tensor beside its values
ITEM_BYTES = {"F32": 4, "I32": 4, "F16": 2, "I16": 2, "U8": 1}  # in the order that safetensors stores them in
PIXEL_TENSORS = 6  # of a class batch in recover: pixels, gradient, Adam's two moments, patches, view


class Output(NamedTuple):
    """What a run will write: how many files; the bytes of what it makes, at most; what all may take on the disk.

    size counts images, labels or metrics; disk counts whole blocks, folders, records and what is there for a while.
    """

    files: int
    size: int
    disk: int


NOTHING = Output(0, 0, 0)


class Held(NamedTuple):
    """Bytes that a process of a run holds beside its networks and their activations, on the host and on a GPU."""

    host: int
    device: int

    def __add__(self, other: "Held") -> "Held":
        return Held(self.host + other.host, self.device + other.device)


# ---- files


def blocks(size: int) -> int:
    """Bytes that a file of `size` bytes takes on a disk."""
    return ceil(size / BLOCK) * BLOCK


def png_bytes(size: int) -> int:
    """The most bytes of a distilled image of `size` pixels a side as PNG: its pixels, what a compressor adds to those
    that it cannot compress, and the chunks around them."""
    raw = size * (3 * size + 1)
    return raw + raw // 500 + 400


def jpeg_bytes(size: int) -> int:
    """The most bytes of a patch as JPEG: in the settings of utils/patches.py that is a sixth above its pixels, for a
    small one of black and white noise."""
    return 3 * size**2 * 5 // 4 + 1024


def epoch_bytes(views: ViewSettings, num_classes: int, logits_type: str) -> int:
    """The bytes of an epoch's file in a label store: its tensors, and the header that describes them.

    In float16 that is 2 C + 17 bytes an image of C classes, 12 a batch, and some 500.
    """
    tensors = epoch_tensors(views, num_classes, logits_type)
    header: dict[str, object] = {"__metadata__": {}}
    end = 0
    for name in sorted(tensors, key=lambda name: (list(ITEM_BYTES).index(tensors[name][0]), name)):
        kind, shape = tensors[name]
        start, end = end, end + ITEM_BYTES[kind] * prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    return 8 + ceil(len(json.dumps(header, separators=(",", ":"))) / 8) * 8 + end


def checkpoint_bytes(name: str, dataset: Dataset, moments: int = 2) -> int:
    """The most bytes of a training checkpoint: a network and its optimiser's moments (AdamW has 2, SGD 1)."""
    with torch.random.fork_rng(devices=[]):  # the weights are thrown away: they cost no random numbers
        network = build_network(name, dataset)
    tensors = [*network.state_dict().values(), *(moments * list(network.parameters()))]
    return sum(tensor.nbytes for tensor in tensors) + TENSOR_ENTRY * len(tensors) + BLOCK


def pretrain_output(finished: Sequence[int], unfinished: Sequence[int]) -> Output:
    """A checkpoint and a record of each teacher; report.

    finished, unfinished: bytes of a teacher's checkpoint, and of the one that its training goes on from: one after the
    other, each written anew beside the one before.
    """
    if not finished:
        return NOTHING
    disk = sum(map(blocks, finished)) + 2 * max(map(blocks, unfinished)) + len(finished) * BLOCK + BESIDE
    return Output(2 * len(finished) + 1, sum(finished), disk)


def patches_output(classes: int, patches: int, dataset: Dataset) -> Output:
    """JPEG files in class folders, `patches` in each; record and report."""
    if classes == 0:
        return NOTHING
    jpeg, count = jpeg_bytes(dataset.size), classes * patches
    return Output(count + 2, count * jpeg, count * blocks(jpeg) + classes * BLOCK + BESIDE)


def recover_output(images: int, folders: int, dataset: Dataset) -> Output:
    """PNG files in class folders; record, report and contact sheet."""
    if images == 0:
        return NOTHING
    png = png_bytes(dataset.size)
    return Output(images + 3, images * png, images * blocks(png) + folders * BLOCK + BESIDE)


def relabel_output(epochs: int, views: ViewSettings, dataset: Dataset, logits_type: str) -> Output:
    """A file an epoch; record, manifest and report."""
    if epochs == 0:
        return NOTHING
    epoch = epoch_bytes(views, dataset.num_classes, logits_type)
    return Output(epochs + 3, epochs * epoch, epochs * blocks(epoch) + BESIDE)


def validate_output(checkpoints: Sequence[int], epochs: Sequence[int], summaries: int, processes: int = 1) -> Output:
    """Record, metrics and result of each student that is to be trained; summary and curve of as many folders.

    checkpoints, epochs: of each student, the bytes of a checkpoint and the number of epochs; while a student is trained
    there is one checkpoint, and for moments the next beside it.
    """
    if not checkpoints:
        return NOTHING
    students = len(checkpoints)
    size = sum(epochs) * METRICS_LINE + students * 4 * BLOCK
    meanwhile = 2 * sum(map(blocks, sorted(checkpoints, reverse=True)[:processes]))
    return Output(3 * students + 2 * summaries, size, size + meanwhile + summaries * BESIDE)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` lies on, or will lie on."""
    place = folder.absolute()
    return shutil.disk_usage(next(place for place in (place, *place.parents) if place.exists())).free


def require_space(folder: Path, output: Output) -> None:
    """UserError, with needed and free bytes, if what a run may write into `folder` does not fit on its disk."""
    if output.disk > (free := free_bytes(folder)):
        raise UserError(
            f"no space for {folder}: it needs up to {output.disk:,} bytes, its disk has {free:,} free; "
            "free some, or name a folder on another disk"
        )


# ---- memory and work


def recover_held(class_batch: int, size: int) -> Held:
    """Beyond what an iteration shows: class batches whose files wait to be written."""
    return Held(MOST_PENDING * class_batch * 3 * size**2, 0)


def relabel_held(images: int, num_classes: int, logits_type: str) -> Held:
    """Beyond what a chunk shows: an epoch's labels; those of the one before, while they are written (as a tensor, its
    bytes, and the file's)."""
    stored = {"float16": 2, "float32": 4}[logits_type]
    return Held(images * num_classes * 4 * stored, 0)


def validate_held(epoch: int, checkpoint: int, test_images: int, size: int) -> Held:
    """Beyond what a step shows: the real images, the labels of two epochs (the one at hand and the next), and a
    checkpoint while it is written (its bytes, in a buffer that doubles as it grows).

    epoch, checkpoint: bytes of their files.
    """
    return Held(test_images * 3 * size**2 + 2 * epoch + 2 * checkpoint, epoch)


def iterations_by(sizes: Sequence[int], budgets: Sequence[int], teachers: Sequence[str]) -> Counter[tuple[int, str]]:
    """How many iterations of a class batch each teacher has at each size, the teachers taking turns."""
    stages = chain.from_iterable(repeat(size, budget) for size, budget in zip(sizes, budgets, strict=True))
    return Counter((size, teachers[iteration % len(teachers)]) for iteration, size in enumerate(stages))


def slowest_share(costs: Sequence[float], processes: int) -> float:
    """What the process with most to do has to do, given the cost of each part in order (see Team.share)."""
    return max(sum(costs[rank::processes]) for rank in range(processes))


# ---- by a recipe, without images and networks


class StageForecast(NamedTuple):
    """One stage of a recipe: amounts of work by name, what it writes, what it holds in memory beside its networks."""

    work: Mapping[str, int]
    output: Output
    held: Held


def by_recipe(
    dataset: Dataset, method: str, ipc: int, student: str | None = None, based_on: str | None = None
) -> dict[str, StageForecast]:
    """The three stages of a recipe in one process.

    dataset: its classes, size and validation images count; based_on: the dataset whose recipe is taken, if it is
    another; student: if it is another than the recipe's.
    """
    recover, relabel, validate = (
        recipes.settings(stage, based_on or dataset.name, method, ipc, student)
        for stage in ("recover", "relabel", "validate")
    )
    images, image_bytes = dataset.num_classes * ipc, 3 * dataset.size**2
    class_batches = ipc * ceil(dataset.num_classes / recover["batch_size"])
    class_batch = min(recover["batch_size"], dataset.num_classes)
    views = ViewSettings(images, dataset.size, relabel["batch_size"], relabel["epochs"], 0.08, 1, None, 1, 0, 0)
    logits_type = "float16" if relabel["use_fp16"] else "float32"
    teachers = len(recipes.teachers(based_on or dataset.name, method, ipc))
    epoch = epoch_bytes(views, dataset.num_classes, logits_type)
    checkpoint = checkpoint_bytes(validate["model"], dataset)
    distilled = Held(images * image_bytes, images * image_bytes)
    return {
        "recover": StageForecast(
            {
                "images": images,
                "class batches": class_batches,
                "iterations": class_batches * sum(recover["optimization_budgets"]),
            },
            recover_output(images, dataset.num_classes, dataset),
            recover_held(class_batch, dataset.size) + Held(0, PIXEL_TENSORS * 4 * class_batch * image_bytes),
        ),
        "relabel": StageForecast(
            {"epochs": views.epochs, "views": views.epochs * images, "forwards": views.epochs * images * teachers},
            relabel_output(views.epochs, views, dataset, logits_type),
            relabel_held(images, dataset.num_classes, logits_type) + distilled,
        ),
        "validate": StageForecast(
            {
                "views": validate["epochs"] * images,
                "steps": validate["epochs"] * views.batches,
                "test images": dataset.val_images * ceil(validate["epochs"] / 10),
            },
            validate_output([checkpoint], [validate["epochs"]], 1),
            validate_held(epoch, checkpoint, dataset.val_images, dataset.size) + distilled,
        ),
    }


def in_bytes(size: float) -> str:
    """1234567 as `1.23 MB`, in decimal units."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} TB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = StageParser("utils.forecast", "What the stages make, write and hold by a recipe, without any image.")
    parser.add_argument("--dataset", "--dataset-name", default="imagenet1k", help="whose recipe is taken")
    parser.add_argument("--method", default="fadrm+", help="the method of the recipe")
    parser.add_argument("--ipc", type=int, required=True, help="images per class")
    parser.add_argument("--model", help="the student (default: the recipe's)")
    instead = {"type": int, "default": argparse.SUPPRESS}
    parser.add_argument("--num-classes", help="instead of the dataset's", **instead)
    parser.add_argument("--size", help="pixels a side, instead of the dataset's", **instead)
    parser.add_argument("--val-images", help="real validation images (default: as many a class)", **instead)
    given = vars(parser.parse_args(argv))
    known = get_dataset(given["dataset"])
    changed = {name: given[name] for name in ("num_classes", "size", "val_images") if name in given}
    if any(number < 1 for number in changed.values()):
        raise UserError("--num-classes, --size and --val-images take numbers from 1 up")
    if "num_classes" in changed:
        changed = {"val_images": changed["num_classes"] * known.val_images // known.num_classes} | changed
    dataset = replace(known, **changed)
    stages = by_recipe(dataset, given["method"], given["ipc"], given["model"], known.name)
    print(
        f"recipe of {known.name}, {given['method']}, IPC {given['ipc']}; "
        f"{dataset.num_classes:,} classes, {dataset.size} pixels, {dataset.val_images:,} validation images"
    )
    for stage, (work, output, held) in stages.items():
        most = "" if stage == "relabel" else "at most "
        print(f"{stage}: {', '.join(f'{amount:,} {name}' for name, amount in work.items())}")
        print(f"  files   {output.files:,}, {most}{in_bytes(output.size)}; space needed {in_bytes(output.disk)}")
        print(f"  memory  beside the networks {in_bytes(held.host)} on the host, {in_bytes(held.device)} on the device")


if __name__ == "__main__":
    run_entry(main)
