"""Batches: the unit of work of recover, which images make one, what shapes it, and what it starts from."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from models.checkpoints import Teacher
from utils.data.distilled import distilled_path
from utils.data.images import channel_tensors, class_names, normalise
from utils.data.table import Dataset
from utils.patches.patches import load_patches, require_patches
from utils.recipes.settings import RecoverSettings
from utils.run.pictures import contact_sheet
from utils.run.settings import identity_of
from utils.seams import LAYOUTS

ALGORITHM = 1  # of images: raise it where the same settings begin to give others


class Batch(NamedTuple):
    """Images that are optimised together.

    members: class and image index of each; key: what the batch's random numbers follow from, apart from seed and
    dataset.
    """

    members: tuple[tuple[int, int], ...]
    key: tuple[int | str, ...]

    @property
    def labels(self) -> list[int]:
        return [class_index for class_index, _ in self.members]

    def paths(self, folder: Path, dataset: Dataset) -> list[Path]:
        """Where its distilled images go."""
        return [distilled_path(folder, dataset.num_classes, *member) for member in self.members]

    def __str__(self) -> str:
        classes, indices = ({member[place] for member in self.members} for place in (0, 1))
        return f"image {_span(indices)}, classes {_span(classes)}"


def _span(numbers: Iterable[int]) -> str:
    first, last = min(numbers), max(numbers)
    return str(first) if first == last else f"{first} to {last}"


@LAYOUTS.add("one_per_class")
def one_per_class(num_classes: int, indices: range, size: int) -> list[Batch]:
    """One image of each class: an image index at a time, its classes in batches of `size`, counted from class 0."""
    return [
        Batch(
            tuple((class_index, ipc_id) for class_index in range(first, min(first + size, num_classes))),
            (ipc_id, first),
        )
        for ipc_id in indices
        for first in range(0, num_classes, size)
    ]


@LAYOUTS.add("class_major")
def class_major(num_classes: int, indices: range, size: int) -> list[Batch]:
    """All images of a class together, as many classes as `size` images hold (G-VBSM); where a class alone has more, its
    images in batches of `size`."""
    together, whole = max(1, size // len(indices)), range(indices.start, indices.stop, size)
    return [
        Batch(
            tuple(
                (class_index, ipc_id)
                for class_index in range(first, min(first + together, num_classes))
                for ipc_id in indices[start - indices.start :][:size]
            ),
            ("class_major", first, start),
        )
        for first in range(0, num_classes, together)
        for start in whole
    ]


def plan_batches(settings: RecoverSettings, dataset: Dataset) -> list[Batch]:
    """The batches of a run: those of its layout that hold a class that is asked for, whole.

    BatchNorm statistics make every image depend on its companions, so that a range of classes never cuts a batch.
    UserError for the first patch that is missing.
    """
    indices = range(settings.ipc_start, settings.ipc_end)
    asked = range(settings.start_index, settings.end_index)
    batches = LAYOUTS[settings.layout](dataset.num_classes, indices, settings.classes_a_batch)
    batches = [batch for batch in batches if any(label in asked for label in batch.labels)]
    if settings.patch_dir is not None:
        require_patches(settings.patch_dir, settings.selector, [m for batch in batches for m in batch.members], dataset)
    return batches


def what_shapes_images(
    settings: RecoverSettings, teachers: Sequence[Teacher], dtype: torch.dtype | None, real_images: str | None = None
) -> dict:
    """Everything but the patches themselves that a distilled image depends on: the record of the run. real_images:
    digest of the training images, where they are matched."""
    record = {
        "dataset_name": settings.dataset_name,
        **identity_of(settings),
        "residual_patches": settings.patch_dir is not None,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "teachers": [{"name": teacher.name, "sha256": teacher.sha256} for teacher in teachers],
    }
    # whose draws, groups, anchors or stages depend on how many images there are
    if {"committee", "layout", "group_by", "late_starts"} & record.keys() or settings.retrieves:
        record["ipc"] = settings.images_per_class
    if "layout" in record:  # batches of other members than those that each index has by itself
        record["images"] = [settings.ipc_start, settings.ipc_end]
    if real_images is not None:
        record["train_images_sha256"] = real_images
    return record if ALGORITHM == 1 else {**record, "algorithm": ALGORITHM}


def read_patches(settings: RecoverSettings, batch: Batch, dataset: Dataset) -> Tensor | None:
    """The patches of a batch (uint8, B x 3 x S x S); None where a run has none."""
    if settings.patch_dir is None:
        return None
    return load_patches(settings.patch_dir, settings.selector, batch.members, dataset)


def batch_digest(made_with: dict, patches: Tensor | None, groups: str | None = None) -> str:
    """Identity of a batch: the run's record, the patches it starts from, and the digest of the groups of real images
    that it is matched to, if there are some."""
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode())
    if patches is not None:
        digest.update(patches.numpy().tobytes())
    if groups is not None:
        digest.update(groups.encode())
    return digest.hexdigest()


def starting_images(
    settings: RecoverSettings,
    patches: Tensor | None,
    batch: int,
    dataset: Dataset,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """What `batch` images start as, and the patches that are merged back: both normalised, on the device."""
    if patches is not None:
        patches = normalise(patches.to(device), dataset)
    if settings.start == "Patches":
        return patches, patches
    size = settings.sizes[0]
    return torch.randn(batch, 3, size, size, generator=generator).to(device), patches


def valid_range_of(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of a normalised image, 3 x 1 x 1 each."""
    mean, std = channel_tensors(dataset, device)
    return -mean / std, (1 - mean) / std


def draw_contact_sheet(
    path: Path,
    settings: RecoverSettings,
    folders: Mapping[str, Path],
    dataset: Dataset,
    batches: Sequence[Batch],
) -> None:
    """Draw a picture of the first images of the first classes, beside the patches they come from.

    folders: of images, by what they are.
    """
    members = {member for batch in batches for member in batch.members}
    classes = sorted({class_index for class_index, _ in members})[:10]
    rows = [sorted(member for member in members if member[0] == class_index)[:5] for class_index in classes]
    panels = {}
    if settings.patch_dir is not None:
        patches = [load_patches(settings.patch_dir, settings.selector, row, dataset) for row in rows]
        panels["patches"] = [[Image.fromarray(p) for p in row.permute(0, 2, 3, 1).numpy()] for row in patches]
    for title, place in folders.items():
        panels[title] = [[Image.open(distilled_path(place, dataset.num_classes, *m)) for m in row] for row in rows]
    names = class_names(dataset)
    contact_sheet(path, panels, [names[index] for index in classes])
