"""Passes of a teacher over the training images as they are: its features, or what else is asked of each.

What a pass gave is kept by the teacher's checkpoint and the images' content, in `<model-pool-dir>/statistics/`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import Teacher
from recover.real_images import statistics_path
from utils.data.images import list_images, load_test_images, normalise
from utils.data.table import Dataset
from utils.patches.features import last_features, require_features
from utils.recipes.settings import RecoverSettings
from utils.run.training_state import load_training, save_training

VERSION = 1  # raise it where the same images begin to give other numbers
CHUNK_BYTES = 2**30  # of pixels that are held at a time: decoding processes start anew for each
AT_ONCE = 250  # images in one forward pass
WORKERS = 4  # processes that decode where there is much to do


class TrainingImages(NamedTuple):
    """The training images: files, classes (N), digest of them all, and the dataset."""

    paths: Sequence[Path]
    labels: Tensor
    sha256: str
    dataset: Dataset


def training_images(settings: RecoverSettings, sha256: str) -> TrainingImages:
    paths, labels = list_images(settings.train_dir, settings.dataset)
    return TrainingImages(paths, labels, sha256, settings.dataset)


def batches_of(images: TrainingImages, device: torch.device, what: str) -> Iterator[tuple[slice, Tensor]]:
    """The images as networks are tested on them, normalised, on the device, a batch at a time, with their places."""
    chunk = CHUNK_BYTES // (3 * images.dataset.size**2) // AT_ONCE * AT_ONCE
    for first in tqdm(range(0, len(images.paths), chunk), desc=what, unit="chunk", leave=False):
        pixels = load_test_images(images.paths[first : first + chunk], images.dataset, WORKERS, progress=None)
        for start in range(0, len(pixels), AT_ONCE):
            part = pixels[start : start + AT_ONCE]
            places = slice(first + start, first + start + len(part))
            yield places, normalise(part.to(device), images.dataset)


def kept(
    settings: RecoverSettings,
    teacher: Teacher,
    images: TrainingImages,
    what: str,
    make: Callable[[Teacher, TrainingImages], Mapping[str, Tensor]],
    **more: object,
) -> Mapping[str, Tensor]:
    """What a pass over the training images gave, from the pool where it is there, else made and put there.

    more: what else it depends on.
    """
    made_with = {"version": VERSION, "what": what, "teacher_sha256": teacher.sha256, **more}
    made_with["train_images_sha256"] = images.sha256
    path = statistics_path(settings, teacher, made_with, what)
    state = load_training(path, made_with)
    if state is None:
        state = make(teacher, images)
        save_training(path, made_with, state)
    return state


def all_features(teacher: Teacher, images: TrainingImages) -> Mapping[str, Tensor]:
    """The teacher's features of each training image (N x D, float16). UserError where it has none."""
    device, found = next(teacher.module.parameters()).device, []
    with torch.no_grad(), last_features(teacher.module) as features:
        for _, part in batches_of(images, device, f"{teacher.name}: features"):
            teacher.module(part)
            found.append(require_features(features, teacher.name).pop().half())
    return {"features": torch.cat(found)}
