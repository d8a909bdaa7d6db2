"""What a teacher trains on: real images, shuffled and augmented anew in every epoch.

Order and augmentation follow from the seed and the epoch alone, so a training that stopped after any epoch goes on as
if it had not. Both classes here give the same thing, `batches(seed, epoch, batch_size, team)`: of every batch the part
that is this process's, on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from utils.data.crops import crop_and_resize, sample_crops, sample_flips
from utils.data.images import decode, load_images, load_test_images
from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.run.team import ALONE, Team

LARGEST_RESIDENT = 64  # pixels a side; larger images come in all sizes and are cropped out of their own
LEAST_PART = 16  # images of a batch for each process: BatchNorm's statistics of fewer are too rough
PADDING = 4  # pixels on each side
TOGETHER = 256  # images that are looked at together as they are
DECODED_TOGETHER = 4096  # and, of 224 pixels, decoded: enough for worker processes
AREA = (0.08, 1.0)  # least and largest share of an image that a crop covers


class Part(NamedTuple):
    """One process's part of a batch: pixels (uint8, B x 3 x S x S), labels (int64, B), and what its mean loss counts.

    The mean over the processes of weight x gradient is the gradient of the whole batch's mean loss.
    """

    pixels: Tensor
    labels: Tensor
    weight: float


def split_batches(order: Tensor, batch_size: int, team: Team = ALONE) -> list[Tensor]:
    """Cut an epoch's order (N, int64) in batches; the last one is what is left.

    Fewer than two images a process that are left over join the batch before them: BatchNorm has no variance of one
    value.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < 2 * team.count:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def worthwhile_team(team: Team, batch_size: int, images: int) -> Team:
    """As many of the processes as batches of so many images are large enough for; others have nothing to do."""
    return team._replace(count=min(team.count, max(1, min(batch_size, images) // LEAST_PART)))


def weight_of(part: Tensor, batch: Tensor, team: Team) -> float:
    """What the mean loss of a process's part of a batch counts; 1 where all parts have the same size."""
    return len(part) * team.count / len(batch)


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

    def as_they_are(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images (uint8, B x 3 x S x S) and their labels, in their order, not augmented."""
        inner = slice(PADDING, -PADDING)
        yield from zip(self.padded[..., inner, inner].split(TOGETHER), self.labels.split(TOGETHER), strict=True)

    def batches(self, seed: int, epoch: int, batch_size: int, team: Team = ALONE) -> Iterator[Part]:
        generator = generator_for(seed, "pretrain", self.dataset.name, epoch)
        order = torch.randperm(len(self), generator=generator)
        corners = torch.randint(0, 2 * PADDING + 1, (len(self), 2), generator=generator)
        flips = sample_flips(len(self), generator)
        device = self.labels.device
        corners, flips = corners.to(device), flips.to(device)
        for batch in split_batches(order.to(device), batch_size, team):
            part = team.share(batch)
            pixels = crop_and_flip(self.padded, part, corners[part], flips[part])
            yield Part(pixels, self.labels[part], weight_of(part, batch, team))


class DecodedImages:
    """A set of images of any size, decoded in every epoch by worker processes: random resized crop, flip.

    paths, labels: N files and their classes; workers: processes (0: this one), without influence on the batches.
    A file that does not decode raises UserError from `batches`.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, dataset: Dataset, device: torch.device, workers: int
    ) -> None:
        self.paths, self.labels, self.dataset, self.device = list(paths), labels, dataset, device
        self.plan: list[_Batch] = []  # of the epoch at hand; the workers live longer
        self.loader = DataLoader(
            _Views(list(paths), dataset),
            sampler=self.plan,
            batch_size=None,  # an item of the loader is a whole batch
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers > 0 else None,  # a fork of threads or CUDA can hang
            collate_fn=as_it_is,  # arrays come through pipes; tensors would need shared memory, scarce in containers
        )

    def __len__(self) -> int:
        return len(self.labels)

    def as_they_are(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images as a network is tested on them (uint8, B x 3 x S x S) and their labels, in their order."""
        for start in range(0, len(self), DECODED_TOGETHER):
            part = slice(start, start + DECODED_TOGETHER)
            pixels = load_test_images(self.paths[part], self.dataset, self.loader.num_workers, progress=None)
            for some, labels in zip(pixels.split(TOGETHER), self.labels[part].split(TOGETHER), strict=True):
                yield some.to(self.device), labels.to(self.device)

    def _views(self) -> Iterator[np.ndarray | str]:
        """What the workers make of the plan. UserError where one of them dies."""
        try:
            yield from self.loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"one of {self.loader.num_workers} decoding processes died, most likely for memory: use fewer --workers"
            ) from None

    def batches(self, seed: int, epoch: int, batch_size: int, team: Team = ALONE) -> Iterator[Part]:
        order = torch.randperm(len(self), generator=generator_for(seed, "pretrain", self.dataset.name, epoch))
        batches = split_batches(order, batch_size, team)
        parts = [team.share(batch) for batch in batches]
        self.plan[:] = [_Batch(seed, epoch, part.tolist()) for part in parts]
        for batch, part, views in zip(batches, parts, self._views(), strict=True):
            if isinstance(views, str):
                raise UserError(views)
            pixels = torch.from_numpy(views).to(self.device)
            yield Part(pixels, self.labels[part].to(self.device), weight_of(part, batch, team))


def training_images_of(
    paths: Sequence[Path], labels: Tensor, dataset: Dataset, device: torch.device, workers: int
) -> ResidentImages | DecodedImages:
    """The training images of a dataset, in the way that suits their size. workers: processes that decode."""
    if dataset.size > LARGEST_RESIDENT:
        return DecodedImages(paths, labels, dataset, device, workers)
    images = load_images(paths, dataset, workers=workers, progress="training images")
    return ResidentImages(images, labels, dataset, device)


def as_it_is(item: np.ndarray | str) -> np.ndarray | str:
    return item


class _Batch(NamedTuple):
    seed: int
    epoch: int
    indices: list[int]


@dataclass(frozen=True)
class _Views:
    """Batches of views as items of a loader; an error travels between processes as its text."""

    paths: list[Path]
    dataset: Dataset

    def __getitem__(self, batch: _Batch) -> np.ndarray | str:
        try:
            return torch.stack([self.view(batch.seed, batch.epoch, index) for index in batch.indices]).numpy()
        except UserError as error:
            return str(error)

    def view(self, seed: int, epoch: int, index: int) -> Tensor:
        """Image `index` as an epoch shows it: uint8, 3 x S x S."""
        image = decode(self.paths[index])
        generator = generator_for(seed, "pretrain", self.dataset.name, epoch, index)
        box = sample_crops(image.height, image.width, 1, AREA, generator)
        view = crop_and_resize(image, box, self.dataset.size)[0]
        return view.flip(2) if sample_flips(1, generator).item() else view
