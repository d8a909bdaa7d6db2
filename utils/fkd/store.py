"""FKD soft-label storage: the label store on disk.

A store is a folder: `manifest.json` and one `epoch_<e:05d>.safetensors` an epoch, each whole or absent. Place i of an
epoch's tensors is place i of its order, not image i. After FKD (Shen and Xing 2022) with one difference: an epoch is
one file of plain tensors, which can be mapped and cannot run code. Format 2 is format 1 and `tile_order`; a store
without tiles is one of format 1. Format 3 says how its epochs are kept (utils/fkd/codec.py): logits in another way, or
without the draws, which are a function of the views' settings.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.data.table import Dataset
from utils.fkd.codec import LOGITS_TYPES, PLAIN, Codec, Packing
from utils.fkd.views import Epoch, ViewSettings, draw_epoch
from utils.run.errors import UserError
from utils.run.files import read_bytes, read_json, safetensors_header, sha256_of, write_json, write_safetensors
from utils.run.records import Shape, check_shape
from utils.run.space import Output

MANIFEST = "manifest.json"
ALGORITHM = 1  # of labels: raise it where the same settings begin to give others
FORMATS = (1, 2, 3)
TYPES = {"order": "I32", "crop": "I16", "flip": "U8", "mix_partner": "I32", "mix_box": "I16", "mix_lam": "F32"}
BYTES = {"F16": 2, "F32": 4, "U8": 1, "I16": 2, "I32": 4}


def store_folder(prefix: Path, batch_size: int, ipc: int) -> Path:
    """Where relabel puts a store: `<fkd-path>_bs<bs>_ipc<N>`."""
    return prefix.with_name(f"{prefix.name}_bs{batch_size}_ipc{ipc}")


def epoch_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:05d}.safetensors"


def epochs_output(
    epochs: int, settings: ViewSettings, num_classes: int, logits_type: str, packing: Packing = PLAIN
) -> Output:
    """What storing so many epochs writes."""
    size = settings.images * bytes_a_view(num_classes, logits_type, packing) + 2048
    if packing.store_draws:
        size += settings.images * (17 + 2 * settings.tiles) + 12 * settings.batches
    return Output(epochs, epochs * size)


def bytes_a_view(num_classes: int, logits_type: str, packing: Packing = PLAIN) -> int:
    """What the soft label of a view takes, without draws."""
    tensors = packing.codec_for(num_classes, logits_type).expected(1).values()
    return sum(BYTES[kind] * shape[1] for kind, shape in tensors)


def write_epoch(folder: Path, number: int, epoch: Epoch, logits: Tensor, packing: Packing = PLAIN) -> None:
    """Store one epoch. logits: N x C on the CPU, float16 or float32, by place."""
    codec = packing.codec_for(logits.shape[1], str(logits.dtype).removeprefix("torch."))
    labels = codec.encode(logits)
    both = {**epoch.tensors(), **labels}  # the checksum is of both, so that what is drawn again can be told from it
    write_safetensors(epoch_path(folder, number), both if packing.store_draws else labels, {"sha256": digest_of(both)})


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the names and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def expected_tensors(
    settings: ViewSettings, num_classes: int, logits_type: str, packing: Packing = PLAIN
) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of an epoch's file, by name, as safetensors calls them."""
    count, batches = settings.images, settings.batches
    labels = packing.codec_for(num_classes, logits_type).expected(count)
    if not packing.store_draws:
        return labels
    shapes = {"order": [count], "crop": [count, 4], "flip": [count], "mix_partner": [count]}
    shapes |= {"mix_box": [batches, 4], "mix_lam": [batches]}
    expected = {name: (TYPES[name], shape) for name, shape in shapes.items()}
    if settings.tiles > 1:
        expected["tile_order"] = ("U8", [count, 2, settings.tiles])
    return expected | labels


def is_whole(path: Path, settings: ViewSettings, num_classes: int, logits_type: str, packing: Packing = PLAIN) -> bool:
    """Whether an epoch's file is there with its full size and the tensors that an epoch has (header only is read)."""
    header = safetensors_header(path) if path.exists() else None
    return header is not None and header[0] == expected_tensors(settings, num_classes, logits_type, packing)


def is_right(
    path: Path, number: int, settings: ViewSettings, num_classes: int, logits_type: str, packing: Packing = PLAIN
) -> bool:
    """Whether an epoch's file is whole, holds what is drawn for that epoch, and has the checksum that it tells."""
    if not is_whole(path, settings, num_classes, logits_type, packing):
        return False
    told = safetensors_header(path)[1].get("sha256")
    try:
        tensors = safetensors.torch.load(read_bytes(path))
    except safetensors.SafetensorError:
        return False
    drawn = draw_epoch(settings, number).tensors()
    is_drawn = not packing.store_draws or all(torch.equal(tensors[name], drawn[name]) for name in drawn)
    codec = packing.codec_for(num_classes, logits_type)
    is_sound = codec.problem(tensors) is None and bool(codec.decode(tensors).isfinite().all())
    is_old = told is None and packing.store_draws  # from before checksums
    return is_drawn and is_sound and (is_old or told == digest_of({**drawn, **tensors}))


def read_epoch(store: "LabelStore", number: int) -> tuple[Epoch, Tensor]:
    """The draws and the logits of one epoch, on the CPU. UserError unless checksum and values are right."""
    epoch, _, logits = _read(store, number)
    return epoch, logits


def read_labels(store: "LabelStore", number: int) -> tuple[Epoch, dict[str, Tensor]]:
    """The draws of one epoch, and its labels as the store's codec has them, on the CPU. UserErrors of `read_epoch`."""
    epoch, labels, _ = _read(store, number)
    return epoch, labels


def _read(store: "LabelStore", number: int) -> tuple[Epoch, dict[str, Tensor], Tensor]:
    """Draws, labels as stored and their logits. UserError also where draws are not stored and are drawn as others
    now."""
    path = epoch_path(store.folder, number)
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != store.checksums[number]:
        raise _damaged(path)
    labels = safetensors.torch.load(content)
    if store.packing.store_draws:
        draws = labels.keys() - store.codec.expected(store.settings.images).keys()
        epoch = Epoch(**{name: labels.pop(name) for name in draws})
    else:
        epoch = draw_epoch(store.settings, number)
        if safetensors_header(path)[1].get("sha256") != digest_of({**epoch.tensors(), **labels}):
            raise UserError(
                f"{path}: the views that these labels are of are not stored, and PyTorch {torch.__version__} draws "
                f"others; read it with the version that is in {store.folder}/report.json, or run relabel again"
            )
    logits = None
    if not (problem := store.codec.problem(labels)):
        logits = store.codec.decode(labels)
        problem = out_of_range(epoch, logits, store.settings)
    if problem:
        raise UserError(f"{path}: {problem}; remove the store's folder and run relabel again")
    return epoch, labels, logits


def out_of_range(epoch: Epoch, logits: Tensor, settings: ViewSettings) -> str | None:
    """What is wrong with the values of an epoch, in words; None where each is in its range."""
    size, count = settings.size, settings.images
    top, left, height, width = epoch.crop.int().unbind(dim=1)
    box_top, box_left, bottom, right = epoch.mix_box.int().unbind(dim=1)
    place = torch.arange(count)
    length = (count - place // settings.batch_size * settings.batch_size).clamp(max=settings.batch_size)
    in_batch = (place // settings.batch_size) * settings.batch_size + epoch.mix_partner.long()
    checks = {
        "order is no permutation of the images": epoch.order.sort().values.equal(place.int()),
        "a crop is empty or leaves the image": ((height > 0) & (width > 0)).all()
        and (top.minimum(left) >= 0).all()
        and ((top + height).maximum(left + width) <= size).all(),
        "a flip is neither 0 nor 1": (epoch.flip <= 1).all(),
        "a partner is outside of its batch": ((epoch.mix_partner >= 0) & (epoch.mix_partner < length)).all()
        and in_batch.sort().values.equal(place),
        "a box is reversed or leaves the image": (box_top.minimum(box_left) >= 0).all()
        and ((bottom >= box_top) & (right >= box_left) & (bottom.maximum(right) <= size)).all(),
        "a share is outside of 0 to 1": ((epoch.mix_lam >= 0) & (epoch.mix_lam <= 1)).all(),
        "a soft label is not finite": logits.isfinite().all(),
    }
    if epoch.tile_order is not None:
        in_place = torch.arange(settings.tiles).expand(count, 2, -1)
        checks["tiles are no permutation"] = epoch.tile_order.sort(dim=2).values.equal(in_place.byte())
    return next((problem for problem, is_right in checks.items() if not is_right), None)


def manifest_record(dataset: Dataset, settings: ViewSettings, **labels: object) -> dict:
    """What a store says of itself. labels: how the soft labels were made (teachers, batch statistics, type, images)."""
    record = {"dataset": dataset.name, "num_classes": dataset.num_classes, "views": settings.as_record(), **labels}
    return record if ALGORITHM == 1 else {**record, "algorithm": ALGORITHM}


def write_manifest(folder: Path, record: dict, epochs: int) -> None:
    """Close a store: its record and the checksum of every epoch. The manifest's own sha256 is the store's identity."""
    checksums = [sha256_of(epoch_path(folder, epoch)) for epoch in range(epochs)]
    version = 3 if "codec" in record else 2 if "tiles" in record["views"] else 1
    write_json(folder / MANIFEST, {"format_version": version, **record, "epoch_sha256": checksums})


class LabelStore(NamedTuple):
    """An opened store: where it is, how its views are made, what its manifest says, its epochs' and its own sha256."""

    folder: Path
    settings: ViewSettings
    manifest: dict
    checksums: list[str]
    sha256: str

    @property
    def packing(self) -> Packing:
        """How its epochs are kept."""
        return packing_of(self.manifest)

    @property
    def codec(self) -> Codec:
        """That of its logits."""
        return self.packing.codec_for(self.manifest["num_classes"], self.manifest["logits_type"])


MANIFEST_SHAPE: Shape = {
    "format_version": int,
    "dataset": str,
    "num_classes": int,
    "views": {
        **dict.fromkeys(("images", "size", "batch_size", "epochs", "fkd_seed", "seed"), int),
        **dict.fromkeys(("min_scale", "max_scale", "mix_alpha"), float),
        "mix": (None, "cutmix", "mixup"),
    },
    "ipc": int,
    "batch_statistics": bool,
    "logits_type": tuple(LOGITS_TYPES),
    "teachers": [{"name": str, "sha256": str, "weight": float}],
    "images_sha256": str,
    "epoch_sha256": [str],
}


PACKING_SHAPE: Shape = {"codec": str, "top_k": int, "store_draws": bool}


def packing_of(manifest: Mapping) -> Packing:
    """How a manifest says that its epochs are kept."""
    return Packing(*(manifest[name] for name in PACKING_SHAPE)) if manifest["format_version"] == 3 else PLAIN


def read_manifest(path: Path) -> dict:
    """What a store says of itself; UserError where it is of another format, or damaged."""
    manifest = read_json(path)
    if manifest.get("format_version") not in FORMATS:
        raise UserError(f"{path} has format {manifest.get('format_version')}, this version reads {FORMATS}")
    shape = MANIFEST_SHAPE | (PACKING_SHAPE if manifest["format_version"] == 3 else {})
    check_shape(path, manifest, shape, "remove the folder and run relabel again")
    return manifest


def open_store(folder: Path, verify: bool = False) -> LabelStore:
    """Open a store and check that every epoch is whole: headers and sizes, or with `verify` every byte.

    Raises UserError for a store that is missing, unfinished, of another format, damaged or with epochs damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no finished label store (it has no {MANIFEST}): run relabel to its end first")
    manifest = read_manifest(path)
    try:
        settings = ViewSettings(**manifest["views"])
    except TypeError:
        raise UserError(f"{path} is damaged: remove the folder and run relabel again") from None
    checksums, num_classes, logits_type = (manifest[key] for key in ("epoch_sha256", "num_classes", "logits_type"))
    sound = isinstance(settings.tiles, int) and settings.tiles > 0 and settings.size % settings.tiles == 0
    if not sound or len(checksums) != settings.epochs or settings.batch_size < 1 or settings.images < 1:
        raise UserError(
            f"{path} is damaged (its numbers contradict each other): remove the folder and run relabel again"
        )
    packing = packing_of(manifest)
    for epoch, checksum in enumerate(checksums):
        file = epoch_path(folder, epoch)
        if not is_whole(file, settings, num_classes, logits_type, packing) or (verify and sha256_of(file) != checksum):
            raise _damaged(file)
    return LabelStore(folder, settings, manifest, checksums, sha256_of(path))


def check_store(store: LabelStore, expected: dict[str, object]) -> None:
    """Raise UserError, naming the first difference, unless the store has what a run expects of it.

    expected: values by name, of the manifest or its views; `epochs` is a minimum.
    """
    found = {"labels": "views", **store.manifest, **store.manifest["views"]}
    for name, wanted in expected.items():
        if name == "epochs" and found[name] >= wanted:
            continue
        if found[name] != wanted:
            fewer = ", or another --replay, which takes fewer" if name == "epochs" else ""
            raise UserError(
                f"the labels in {store.folder} are for {name.replace('_', ' ')} {found[name]}, this run has {wanted}: "
                f"name another --fkd-path, or relabel for this run{fewer}"
            )


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is missing or damaged: run the same relabel command again with --verify, it makes what is not right"
    )
