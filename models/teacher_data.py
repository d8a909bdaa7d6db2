"""What a teacher trains on: real images, shuffled and augmented anew in every epoch.

Order and augmentation follow from the seed and the epoch alone, so a training that stopped after any epoch goes on as
if it had not. Both classes here give the same thing, `batches(seed, epoch, batch_size)`: pixels (uint8, B x 3 x S x S)
and labels (int64, B) on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from utils.augmentation import ASPECT_RANGE, sample_flips
from utils.datasets import Dataset, decode
from utils.errors import UserError
from utils.randomness import generator_for
from utils.real_images import crop_and_resize, sample_boxes_of

PADDING = 4  # pixels on each side
AREA_RANGE = (0.08, 1.0)


def split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an epoch's order (N, int64) in batches; the last one is what is left.

    A single image left over joins the batch before it: BatchNorm has no variance of one value.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def crop_and_flip(padded: Tensor, which: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
    """S x S windows of padded images, mirrored or not.

    padded: M x 3 x (S + 2 PADDING) x (S + 2 PADDING); which (B): the image of each window; corners (B x 2): its top
    and left; flips (B, bool). Returns B x 3 x S x S of the same type.
    """
    size = padded.shape[-1] - 2 * PADDING
    place = torch.arange(size, device=padded.device)
    rows = corners[:, :1] + place
    columns = corners[:, 1:] + torch.where(flips[:, None], size - 1 - place, place)
    channel = torch.arange(3, device=padded.device)
    return padded[which[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


class ResidentImages:
    """A set of small images, all on the device: random crop with 4 pixels of black padding, flip.

    images: uint8, N x 3 x S x S; labels: int64, N. Cost: (1 + 8 / S)^2 bytes for each byte of the images.
    """

    def __init__(self, images: Tensor, labels: Tensor, dataset: Dataset, device: torch.device) -> None:
        self.padded = F.pad(images, (PADDING,) * 4).to(device)
        self.labels = labels.to(device)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, seed: int, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = generator_for(seed, "pretrain", self.dataset.name, epoch)
        order = torch.randperm(len(self), generator=generator)
        corners = torch.randint(0, 2 * PADDING + 1, (len(self), 2), generator=generator)
        flips = sample_flips(len(self), generator)
        device = self.labels.device
        corners, flips = corners.to(device), flips.to(device)
        for batch in split_batches(order.to(device), batch_size):
            yield crop_and_flip(self.padded, batch, corners[batch], flips[batch]), self.labels[batch]


class DecodedImages:
    """A set of images of any size, decoded in every epoch by worker processes: random resized crop, flip.

    paths, labels: N files and their classes; workers: processes (0: this one), without influence on the batches.
    A file that does not decode raises UserError from `batches`.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, dataset: Dataset, device: torch.device, workers: int
    ) -> None:
        self.labels, self.dataset, self.device = labels, dataset, device
        self.plan: list[_Batch] = []  # of the epoch at hand; the workers live longer
        self.loader = DataLoader(
            _Views(list(paths), dataset),
            sampler=self.plan,
            batch_size=None,  # an item of the loader is a whole batch
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers > 0 else None,  # a fork of threads or CUDA can hang
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, seed: int, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self), generator=generator_for(seed, "pretrain", self.dataset.name, epoch))
        batches = split_batches(order, batch_size)
        self.plan[:] = [_Batch(seed, epoch, batch.tolist()) for batch in batches]
        for batch, views in zip(batches, self.loader, strict=True):
            if isinstance(views, str):
                raise UserError(views)
            yield views.to(self.device, non_blocking=True), self.labels[batch].to(self.device, non_blocking=True)


class _Batch(NamedTuple):
    seed: int
    epoch: int
    indices: list[int]


@dataclass(frozen=True)
class _Views:
    """Batches of views as items of a loader; an error travels between processes as its text."""

    paths: list[Path]
    dataset: Dataset

    def __getitem__(self, batch: _Batch) -> Tensor | str:
        try:
            return torch.stack([self.view(batch.seed, batch.epoch, index) for index in batch.indices])
        except UserError as error:
            return str(error)

    def view(self, seed: int, epoch: int, index: int) -> Tensor:
        """Image `index` as an epoch shows it: uint8, 3 x S x S."""
        image = decode(self.paths[index])
        generator = generator_for(seed, "pretrain", self.dataset.name, epoch, index)
        box = sample_boxes_of(image.height, image.width, 1, AREA_RANGE, ASPECT_RANGE, generator)
        view = crop_and_resize(image, box, self.dataset.size)[0]
        return view.flip(2) if sample_flips(1, generator).item() else view
