"""What teachers see of real images, for probes that match it: one pass over the training images, kept in the pool.

A pass goes on where it was stopped. What it gave is kept by the teacher's checkpoint and the images' content, in
`<model-pool-dir>/statistics/`.
"""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import Teacher
from models.teacher_data import training_images_of
from utils.bn_matching.real import RealObserver
from utils.data.digests import digest_of_folder
from utils.data.images import list_images, normalise
from utils.data.table import Dataset
from utils.recipes import file_name
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.run.training_state import SUFFIX, load_training, save_training
from utils.seams import PROBES

VERSION = 1  # raise it where the same images begin to give other statistics
BATCHES_A_CHUNK = 64  # whose images are held at a time, and after which a pass may be saved
SAVE_EVERY = 60.0  # seconds
WORKERS = 4  # processes that decode where images are cropped out of larger ones


class Real(NamedTuple):
    """The vectors of each watched layer over all real images, by its name, and those of each class (C x L, joined as
    `MatchedTeacher` joins them; None where nobody asks)."""

    whole: Mapping[str, list[Tensor]]
    by_class: Tensor | None


def real_images_digest(settings: RecoverSettings) -> str | None:
    """Of the training images, where the probe asks for them. UserError where their folder or the pool is not named."""
    if not settings.needs_real_images:
        return None
    for folder, flag in ((settings.train_dir, "--train-dir"), (settings.model_pool_dir, "--model-pool-dir")):
        if folder is None:
            raise UserError(f"{_who_asks(settings)} looks at real images: name {flag}")
    return digest_of_folder(settings.train_dir, settings.dataset, keep=not settings.dry_run)


def _who_asks(settings: RecoverSettings) -> str:
    if settings.probes_real_images:
        return f"--probe {settings.probe}"
    return f"--group-by {settings.group_by}" if settings.is_grouped else f"--residual {settings.residual}"


def statistics_path(
    settings: RecoverSettings, teacher: Teacher, made_with: Mapping[str, object], what: str | None = None
) -> Path:
    """Where the pool keeps what a pass of a teacher over the training images gave. made_with: all that it depends on;
    what: a word for its kind, if it has one."""
    digest = hashlib.sha256(repr(sorted(made_with.items())).encode()).hexdigest()[:16]
    name = "_".join(filter(None, (file_name(teacher.name), what, digest)))
    return settings.model_pool_dir / "statistics" / f"{name}{SUFFIX}"


def observe_real_images(teacher: Teacher, settings: RecoverSettings, dataset: Dataset, images_sha256: str) -> Real:
    """What the teacher sees of the training images, augmented as its own training augments them."""
    classes = dataset.num_classes if settings.class_share else 0
    made_with = {"version": VERSION, "dataset": dataset.name, "probe": settings.probe, "classes": classes}
    made_with |= {"teacher_sha256": teacher.sha256, "train_images_sha256": images_sha256}
    path = statistics_path(settings, teacher, made_with)
    observer = RealObserver(teacher.module, PROBES[settings.probe](dataset.size), dataset.size, classes)
    state = load_training(path, made_with)
    if state is not None:
        observer.restore(state)
    if state is None or not state["is_whole"]:
        _go_on(observer, path, made_with, 0 if state is None else state["chunks"], teacher, settings, dataset)
    return Real(observer.whole(), observer.by_class() if classes else None)


def _go_on(
    observer: RealObserver,
    path: Path,
    made_with: Mapping[str, object],
    first: int,
    teacher: Teacher,
    settings: RecoverSettings,
    dataset: Dataset,
) -> None:
    """The pass from its chunk `first` on; leaves its state at `path`."""
    device = next(teacher.module.parameters()).device
    paths, labels = list_images(settings.train_dir, dataset)
    batch = 256 if dataset.size == 224 else 64
    order = torch.randperm(len(paths), generator=generator_for(0, "real images", dataset.name))
    chunks, saved = order.split(BATCHES_A_CHUNK * batch), time.monotonic()
    for number in tqdm(range(first, len(chunks)), desc=f"{teacher.name} sees real images", unit="chunk"):
        its_paths = [paths[place] for place in chunks[number].tolist()]
        images = training_images_of(its_paths, labels[chunks[number]], dataset, device, WORKERS)
        observer.add((normalise(part.pixels, dataset), part.labels) for part in images.batches(0, number, batch))
        is_whole = number == len(chunks) - 1
        if is_whole or time.monotonic() - saved > SAVE_EVERY:
            save_training(path, made_with, {**observer.state(), "chunks": number + 1, "is_whole": is_whole})
            saved = time.monotonic()
