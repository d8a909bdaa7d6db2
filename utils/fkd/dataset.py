"""Distilled images and their label store as a dataset of PyTorch, for a training loop other than this suite's.

    batches = DistilledBatches("syn_data/cifar100/fadrm+_ipc10", "new_labels/cifar100/fadrm+_bs16_ipc10")
    loader = DataLoader(batches, batch_size=None, sampler=Epochs(batches), num_workers=2)

relabel/README.md has a whole loop.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from utils.data.distilled import read_distilled
from utils.data.images import images_digest
from utils.data.table import get_dataset
from utils.fkd.store import check_store, open_store, read_epoch
from utils.fkd.views import render_views
from utils.run.errors import UserError


class LabelledViews(NamedTuple):
    """One batch as it was labelled: views (float32, B x 3 x S x S, normalised, mixed), soft labels (float32, B x C,
    logits), and the classes of the images (int64, B), of which CutMix and MixUp know nothing."""

    views: Tensor
    soft: Tensor
    hard: Tensor


class DistilledBatches(Dataset[LabelledViews]):
    """The batches of all stored epochs, one epoch behind the other: item `epoch * per_epoch + batch`.

    An item is a whole batch, since mixing and the teachers' BatchNorm went by batches: the loader takes
    `batch_size=None`. Views are made as validate makes them, where the item is asked for: on the CPU, also in worker
    processes.

    images: a folder of distilled images; labels: the label store made of them; verify: read all labels against their
    checksums first, else each epoch as it comes; workers: processes that decode the images, once. UserError where one
    of them is missing or damaged, or the labels are of other images.
    """

    def __init__(self, images: Path | str, labels: Path | str, verify: bool = False, workers: int = 0) -> None:
        self.store = open_store(Path(labels), verify)
        self.settings = self.store.settings
        self.dataset = get_dataset(self.store.manifest["dataset"])
        self.images, self.classes, _ = read_distilled(Path(images), self.dataset, workers)
        expected = {"images_sha256": images_digest(self.images, self.classes), "size": self.dataset.size}
        check_store(self.store, expected)
        self.epochs, self.per_epoch = self.settings.epochs, self.settings.batches
        self._at_hand = -1, None, None  # number, draws and logits of the epoch that was read last

    def __len__(self) -> int:
        return self.epochs * self.per_epoch

    def __getitem__(self, index: int) -> LabelledViews:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        number, batch = divmod(index, self.per_epoch)
        if self._at_hand[0] != number:
            self._at_hand = number, *read_epoch(self.store, number)
        _, epoch, logits = self._at_hand
        views = render_views(self.images, epoch, batch, batch + 1, self.settings, self.dataset)
        places = slice(batch * self.settings.batch_size, (batch + 1) * self.settings.batch_size)
        soft = logits[places].to(torch.float32, copy=True)  # a part of a tensor goes to another process as the whole
        return LabelledViews(views, soft, self.classes[epoch.order[places].long()])


class Epochs(Sampler[int]):
    """The batches of one epoch in their order; each pass is the next epoch. Lightning and others call `set_epoch`."""

    def __init__(self, batches: DistilledBatches, epoch: int = 0) -> None:
        self.batches, self.epoch = batches, epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches.per_epoch

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        if not 0 <= epoch < self.batches.epochs:
            raise UserError(f"{self.batches.store.folder} has labels of {self.batches.epochs} epochs: none of {epoch}")
        self.epoch += 1
        yield from range(epoch * len(self), (epoch + 1) * len(self))
