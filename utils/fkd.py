"""FKD soft-label storage: what is drawn for an epoch, how views are made from it, and the label store on disk.

A store is a folder: `manifest.json` and one `epoch_<e:05d>.safetensors` an epoch, each whole or absent. Place i of an
epoch's tensors is place i of its order, not image i. After FKD (Shen and Xing 2022) with one difference: an epoch is
one file of plain tensors, which can be mapped and cannot run code.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.augmentation import apply_views, cutmix, mixup, sample_beta, sample_boxes, sample_crops, sample_flips
from utils.datasets import Dataset, normalise
from utils.errors import UserError
from utils.files import read_json, sha256_of, write_json, write_safetensors
from utils.randomness import generator_for

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ViewSettings:
    """All that the views of an epoch depend on.

    images: distilled images; size: their side; min_scale, max_scale: share of the area a crop may take;
    mix: "cutmix", "mixup" or None; mix_alpha: of the Beta distribution; fkd_seed: of the order; seed: of the views.
    """

    images: int
    size: int
    batch_size: int
    epochs: int
    min_scale: float
    max_scale: float
    mix: str | None
    mix_alpha: float
    fkd_seed: int
    seed: int

    @property
    def batches(self) -> int:
        return -(-self.images // self.batch_size)


class Epoch(NamedTuple):
    """What is drawn for one epoch of N images in B batches, on the CPU, in the types of the store.

    order (N, int32): the image at each place; crop (N x 4, int16): top, left, height, width; flip (N, uint8);
    mix_partner (N, int32): the partner's place within its batch; mix_box (B x 4, int16): rows from, columns from,
    rows to, columns to; mix_lam (B, float32).
    """

    order: Tensor
    crop: Tensor
    flip: Tensor
    mix_partner: Tensor
    mix_box: Tensor
    mix_lam: Tensor

    def beside(self, images: Tensor, device: torch.device) -> "Epoch":
        """The same on the device, where views are made; the order where the images are that it picks."""
        moved = Epoch(*(tensor.to(device, non_blocking=True) for tensor in self))
        return moved._replace(order=self.order.to(images.device, non_blocking=True))


def draw_epoch(settings: ViewSettings, epoch: int) -> Epoch:
    """Everything random of one epoch. It depends on the settings and the epoch alone."""
    count, batches = settings.images, settings.batches
    order = torch.randperm(count, generator=generator_for("order", settings.fkd_seed, epoch))
    generator = generator_for("views", settings.seed, epoch)
    crop = sample_crops(count, settings.size, settings.min_scale, settings.max_scale, generator)
    flip = sample_flips(count, generator)
    lengths = [min(settings.batch_size, count - first) for first in range(0, count, settings.batch_size)]
    partner = torch.cat([torch.arange(length) for length in lengths])
    box = torch.zeros(batches, 4, dtype=torch.int64)
    lam = torch.ones(batches, dtype=torch.float64)
    if settings.mix is not None:
        partner = torch.cat([torch.randperm(length, generator=generator) for length in lengths])
        lam = sample_beta(batches, settings.mix_alpha, generator)
    if settings.mix == "cutmix":
        box = sample_boxes(lam, settings.size, generator)
    return Epoch(order.int(), crop.short(), flip.byte(), partner.int(), box.short(), lam.float())


def render_views(
    images: Tensor, epoch: Epoch, first: int, last: int, settings: ViewSettings, dataset: Dataset
) -> Tensor:
    """The mixed views of batches first .. last - 1 of an epoch, ready for a network.

    images: all distilled images, uint8, N x 3 x S x S; epoch: `beside` them. Returns float32, normalised, on the device
    of the draws.
    """
    places = slice(first * settings.batch_size, min(last * settings.batch_size, settings.images))
    order, crop, flip, partner = (tensor[places] for tensor in epoch[:4])
    views = normalise(apply_views(images, order, crop, flip), dataset)
    if settings.mix is None:
        return views
    row = torch.arange(len(order), device=crop.device)
    batch = row // settings.batch_size
    partner_row = batch * settings.batch_size + partner
    if settings.mix == "cutmix":
        return cutmix(views, partner_row, epoch.mix_box[first:last][batch])
    return mixup(views, partner_row, epoch.mix_lam[first:last][batch])


def chunks_of_batches(settings: ViewSettings, views_at_once: int) -> Iterator[tuple[int, int]]:
    """Cut an epoch's batches into chunks of about `views_at_once` views: pairs (first, last) of batches."""
    step = max(1, views_at_once // settings.batch_size)
    for first in range(0, settings.batches, step):
        yield first, min(first + step, settings.batches)


def store_folder(prefix: Path, batch_size: int, ipc: int) -> Path:
    """Where relabel puts a store: `<fkd-path>_bs<bs>_ipc<N>`."""
    return prefix.with_name(f"{prefix.name}_bs{batch_size}_ipc{ipc}")


def has_manifest(folder: Path) -> bool:
    """Whether a store is complete."""
    return (folder / MANIFEST).is_file()


def epoch_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:05d}.safetensors"


def write_epoch(folder: Path, number: int, epoch: Epoch, logits: Tensor) -> None:
    """Store one epoch. logits: N x C on the CPU, float16 or float32, by place."""
    write_safetensors(epoch_path(folder, number), {**epoch._asdict(), "logits": logits.contiguous()})


def read_epoch(folder: Path, number: int) -> tuple[Epoch, Tensor]:
    """The draws and the logits of one epoch, on the CPU."""
    try:
        tensors = safetensors.torch.load_file(epoch_path(folder, number))
    except (OSError, safetensors.SafetensorError):
        raise _damaged(epoch_path(folder, number)) from None
    return Epoch(**{name: tensors[name] for name in Epoch._fields}), tensors["logits"]


def epoch_tensors(settings: ViewSettings, num_classes: int, logits_type: str) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of an epoch's file, by name, as safetensors calls them."""
    count, batches = settings.images, settings.batches
    return {
        "order": ("I32", [count]),
        "crop": ("I16", [count, 4]),
        "flip": ("U8", [count]),
        "mix_partner": ("I32", [count]),
        "mix_box": ("I16", [batches, 4]),
        "mix_lam": ("F32", [batches]),
        "logits": ({"float16": "F16", "float32": "F32"}[logits_type], [count, num_classes]),
    }


def is_whole(path: Path, settings: ViewSettings, num_classes: int, logits_type: str) -> bool:
    """Whether an epoch's file is there with its full size and the tensors that an epoch has (header only is read)."""
    expected = epoch_tensors(settings, num_classes, logits_type)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()} == expected
    except (OSError, safetensors.SafetensorError):
        return False


def write_manifest(folder: Path, record: dict, epochs: int) -> None:
    """Close a store: its record and the checksum of every epoch. The manifest's own sha256 is the store's identity."""
    checksums = [sha256_of(epoch_path(folder, epoch)) for epoch in range(epochs)]
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, **record, "epoch_sha256": checksums})


def manifest_record(dataset: Dataset, settings: ViewSettings, **labels: object) -> dict:
    """What a store says of itself. labels: how the soft labels were made (teachers, batch statistics, type, images)."""
    return {"dataset": dataset.name, "num_classes": dataset.num_classes, "views": asdict(settings), **labels}


class LabelStore(NamedTuple):
    """An opened store: where it is, how its views are made, what its manifest says, and its identity."""

    folder: Path
    settings: ViewSettings
    manifest: dict
    sha256: str


def open_store(folder: Path, verify: bool = False) -> LabelStore:
    """Open a store and check that every epoch is whole: headers and sizes, or with `verify` every byte.

    Raises UserError for a store that is missing, unfinished, of another format, damaged or with epochs damaged.
    """
    path = folder / MANIFEST
    if not has_manifest(folder):
        raise UserError(f"{folder} is no finished label store (it has no {MANIFEST}): run relabel to its end first")
    manifest = read_json(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} has format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}")
    try:
        settings = ViewSettings(**manifest["views"])
        checksums, num_classes, logits_type = (manifest[key] for key in ("epoch_sha256", "num_classes", "logits_type"))
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged: remove the folder and run relabel again") from None
    for epoch, checksum in enumerate(checksums):
        file = epoch_path(folder, epoch)
        if not is_whole(file, settings, num_classes, logits_type) or (verify and sha256_of(file) != checksum):
            raise _damaged(file)
    return LabelStore(folder, settings, manifest, sha256_of(path))


def check_store(store: LabelStore, expected: dict[str, object]) -> None:
    """Raise UserError, naming the first difference, unless the store has what a run expects of it.

    expected: values by name, of the manifest or its views; `epochs` is a minimum.
    """
    found = {**store.manifest, **store.manifest["views"]}
    for name, wanted in expected.items():
        if name == "epochs" and found[name] >= wanted:
            continue
        if found[name] != wanted:
            raise UserError(
                f"the labels in {store.folder} are for {name.replace('_', ' ')} {found[name]}, this run has {wanted}: "
                f"name another --fkd-path, or relabel for this run"
            )


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is missing or damaged: run the same relabel command again, it makes what is missing")
