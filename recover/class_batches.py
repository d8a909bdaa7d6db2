"""Class batches: the unit of work of recover, what shapes one, and what it starts from."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models.checkpoints import Teacher
from utils.datasets import Dataset, channel_tensors, normalise
from utils.distilled import distilled_path
from utils.patches import load_patches, require_patches
from utils.pictures import contact_sheet

Work = list[tuple[int, range]]  # pairs of image index and class batch


def class_batches(num_classes: int, batch_size: int, start: int, end: int) -> list[range]:
    """The class batches that hold a class of start .. end - 1. Batches count from class 0, whatever the range:
    BatchNorm statistics make every image depend on its batch companions."""
    batches = (range(first, min(first + batch_size, num_classes)) for first in range(0, num_classes, batch_size))
    return [batch for batch in batches if batch.start < end and batch.stop > start]


def plan_work(settings: Namespace, dataset: Dataset) -> Work:
    """Every (image index, class batch) of a run. Raises UserError for the first patch that is missing."""
    classes = class_batches(dataset.num_classes, settings.batch_size, settings.start_index, settings.end_index)
    work = [(ipc_id, batch) for ipc_id in range(settings.ipc_start, settings.ipc_end) for batch in classes]
    if settings.patch_dir is not None:
        require_patches(settings.patch_dir, settings.patch_diff, work, dataset)
    return work


def what_shapes_images(settings: Namespace, teachers: Sequence[Teacher], dtype: torch.dtype | None) -> dict:
    """Everything but the patches themselves that a distilled image depends on: the record of the run."""
    names = (
        "dataset_name initialisation_method patch_diff input_size_lis optimization_budgets alpha lr r_bn "
        "first_bn_multiplier jitter apply_data_augmentation batch_size seed"
    )
    return {
        **{name: getattr(settings, name) for name in names.split()},
        "residual_patches": settings.patch_dir is not None,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "teachers": [{"name": teacher.name, "sha256": teacher.sha256} for teacher in teachers],
    }


def read_patches(settings: Namespace, classes: range, ipc_id: int, dataset: Dataset) -> Tensor | None:
    """The patches of a class batch (uint8, B x 3 x S x S); None where a run has none."""
    if settings.patch_dir is None:
        return None
    return load_patches(settings.patch_dir, settings.patch_diff, classes, ipc_id, dataset)


def batch_digest(made_with: dict, patches: Tensor | None) -> str:
    """Identity of a class batch: the run's record and the patches it starts from."""
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode())
    if patches is not None:
        digest.update(patches.numpy().tobytes())
    return digest.hexdigest()


def starting_images(
    settings: Namespace,
    patches: Tensor | None,
    batch: int,
    dataset: Dataset,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """What the images start as, and the patches that are merged back: both normalised, on the device."""
    if patches is not None:
        patches = normalise(patches.to(device), dataset)
    if settings.initialisation_method == "Patches":
        return patches, patches
    size = settings.input_size_lis[0]
    return torch.randn(batch, 3, size, size, generator=generator).to(device), patches


def valid_range_of(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of a normalised image, 3 x 1 x 1 each."""
    mean, std = channel_tensors(dataset, device)
    return -mean / std, (1 - mean) / std


def draw_contact_sheet(settings: Namespace, folder: Path, dataset: Dataset, work: Work) -> Path:
    """A picture of the first images of the first classes, beside the patches they come from."""
    ids, classes = sorted({ipc_id for ipc_id, _ in work})[:5], work[0][1][:10]
    distilled = [
        [Image.open(distilled_path(folder, dataset.num_classes, index, ipc_id)) for ipc_id in ids] for index in classes
    ]
    panels = {"distilled": distilled}
    if settings.patch_dir is not None:
        columns = [read_patches(settings, classes, ipc_id, dataset).permute(0, 2, 3, 1).numpy() for ipc_id in ids]
        patches = [[Image.fromarray(column[row]) for column in columns] for row in range(len(classes))]
        panels = {"patches": patches, **panels}
    return contact_sheet(folder / "contact_sheet.png", panels, [f"class {index}" for index in classes])
