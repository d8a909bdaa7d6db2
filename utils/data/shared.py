"""Distilled images as others share them: class folders, DD-Ranking's tensors, Hugging Face's sets."""

import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from utils.data.images import channel_tensors, class_folders, images_in, load_images, to_pixels
from utils.data.package import METADATA, first_difference, labels_by_name, own_class_names
from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.files import reading

CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
OF_DD_RANKING = {"cifar10": CIFAR, "cifar100": CIFAR}  # what its version 0.2.0 normalises with, where it is not ours
LABELS = ("class_id", "label")  # columns that hold the class, the first that is there
UNSURE = "WARNING: {} gives its classes by number alone: that these are the dataset's own numbers is taken on trust"


def as_in_ddranking(dataset: Dataset) -> Dataset:
    """The dataset with the mean and deviation that DD-Ranking takes for it."""
    return replace(dataset, **OF_DD_RANKING.get(dataset.name, {}))


def read_shared(source: Path, dataset: Dataset, workers: int = 0) -> tuple[Tensor, Tensor]:
    """All images of a set, by class and within one in the set's order, and whatever form it has.

    source: class folders; a folder with metadata.jsonl or .parquet files; a file images.pt or a folder with one.
    Returns pixels (uint8, N x 3 x S x S) and labels (N, int64). UserError: it is none of these, its classes are not the
    dataset's, not all have as many images, or an image has another size.
    """
    if not source.exists():
        raise UserError(f"{source} is missing: name the folder of the set that you downloaded")
    tensors = source if source.is_file() else source / "images.pt"
    if tensors.is_file():
        images, labels = read_tensors(tensors, dataset)
    elif (source / METADATA).is_file():
        images, labels = read_metadata(source / METADATA)
    elif tables := sorted(source.rglob("*.parquet")):
        images, labels = read_parquet(tables, dataset)
    else:
        images, labels = read_folders(source, dataset)
    if wrong := next((repr(n) for n in labels if type(n) is not int or not 0 <= n < dataset.num_classes), None):
        raise UserError(f"{source} has the label {wrong}: {dataset.name} has 0 to {dataset.num_classes - 1}")
    labels = torch.tensor(labels, dtype=torch.int64)
    counts = labels.bincount(minlength=dataset.num_classes)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] != counts[least] or not counts[most]:
        raise UserError(
            f"{source} has {counts[most]} images in class {most}, {counts[least]} in class {least}: "
            "every class needs as many"
        )
    order = labels.argsort(stable=True)
    if isinstance(images, list):
        return load_images([images[place] for place in order], dataset, workers, "shared images"), labels[order]
    return images[order], labels[order]


def read_folders(source: Path, dataset: Dataset) -> tuple[list[Path], list[int]]:
    """Class folders: named as the dataset's own, or numbered in the order of its labels."""
    folders, known = class_folders(source, dataset), own_class_names(dataset)
    names = [folder.name for folder in folders]
    labels = known and labels_by_name(names, known)
    if labels is None:
        if not are_numbered(names):
            if known is None:
                raise UserError(
                    f"{source} has class folders with names ({names[0]}), and the real images of {dataset.name}, whose "
                    "folders tell their order, are not laid out: see `python -m utils.data.prepare`"
                )
            raise UserError(first_difference(names, known, source, dataset))
        labels = list(range(len(names)))
        print(UNSURE.format(source), flush=True)
    by_class = [images_in(folder) for folder in folders]
    counted = [label for label, paths in zip(labels, by_class, strict=True) for _ in paths]
    return [path for paths in by_class for path in paths], counted


def are_numbered(names: Sequence[str]) -> bool:
    """Whether names are a word, or nothing, with numbers without a gap behind it, from 0 or 1 on."""
    found = [re.fullmatch(r"(\D*)(\d+)", name) for name in names]
    numbers = [int(match[2]) for match in found if match]
    return len({match and match[1] for match in found}) == 1 and numbers in (
        list(range(len(names))),
        list(range(1, len(names) + 1)),
    )


def read_metadata(path: Path) -> tuple[list[Path], list[int]]:
    """An "imagefolder" of Hugging Face: a line of JSON an image, with `file_name` and `class_id` or `label`."""
    images, labels = [], []
    with reading(path, "fetch the set again"):
        for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            name = Path(row["file_name"])
            if name.is_absolute() or ".." in name.parts:
                raise UserError(f"{path} names {name}, a file outside of its folder: name a set of which it has all")
            images.append(path.parent / name)
            labels.append(next((row[key] for key in LABELS if key in row), None))
    print(UNSURE.format(path), flush=True)
    return images, labels


def read_parquet(paths: Sequence[Path], dataset: Dataset) -> tuple[Tensor, list[int]]:
    """Parquet files of Hugging Face: a column `image` with encoded images, and `class_id` or `label`."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{paths[0]} needs pyarrow: `pip install pyarrow`, or take the set as image files") from None
    parts, labels = [], []
    with tempfile.TemporaryDirectory(prefix="parquet_") as folder:
        for path in paths:
            with reading(path, "fetch the set again"):
                table = ParquetFile(path)
                column = next((name for name in LABELS if name in table.schema_arrow.names), None)
                if column is None or "image" not in table.schema_arrow.names:
                    raise UserError(f"{path} has no columns image and class_id or label: it is no such set")
                for batch in table.iter_batches(256, columns=["image", column]):
                    files = []
                    for image in batch.column("image").to_pylist():
                        files.append(Path(folder) / f"{path.stem}_row{len(labels) + len(files)}")
                        files[-1].write_bytes(image["bytes"])
                    parts.append(load_images(files, dataset, progress=None))
                    labels += batch.column(column).to_pylist()
                    for file in files:
                        file.unlink()
    print(UNSURE.format(paths[0].parent), flush=True)
    return torch.cat(parts), labels


def read_tensors(path: Path, dataset: Dataset) -> tuple[Tensor, list[int]]:
    """DD-Ranking's tensors: normalised images, and their classes from hard_labels.pt or labels.pt beside them; without
    class numbers there, class by class."""
    images = load_tensor(path)
    if not images.is_floating_point() or images.shape[1:] != (3, dataset.size, dataset.size):
        raise UserError(
            f"{path} holds {images.dtype} of {list(images.shape)}, not normalised images of N x 3 x {dataset.size} x "
            f"{dataset.size} pixels, those of {dataset.name}"
        )
    if not len(images) or len(images) % dataset.num_classes or not images.isfinite().all():
        raise UserError(f"{path} holds {len(images)} images: as many finite ones for each of {dataset.num_classes}")
    labels = torch.arange(dataset.num_classes).repeat_interleave(len(images) // dataset.num_classes)
    for beside in (path.with_name("hard_labels.pt"), path.with_name("labels.pt")):
        if beside.is_file() and (given := load_tensor(beside)).dim() == 1 and not given.is_floating_point():
            if len(given) != len(images):
                raise UserError(f"{beside} has {len(given)} labels for {len(images)} images")
            labels = given.long()
            break
    theirs = as_in_ddranking(dataset)
    mean, std = channel_tensors(theirs)
    values = images.float() * std + mean
    outside = ((values < -0.002) | (values > 1.002)).float().mean().item()
    if outside:
        print(
            f"WARNING: {path}: {100 * outside:.1f} % of the values are outside of what pixels can have, and clipped: "
            f"where they are many, it was not normalised by {theirs.mean}, {theirs.std}, or was whitened",
            flush=True,
        )
    print(UNSURE.format(path), flush=True)
    return to_pixels(images, theirs), labels.tolist()


def load_tensor(path: Path) -> Tensor:
    """The tensor in a file of torch.save, by torch's safe loader; UserError for anything else."""
    try:
        with warnings.catch_warnings(action="ignore"), reading(path, "fetch it again"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = None
    if not isinstance(content, Tensor) or content.layout != torch.strided or content.is_quantized:
        raise UserError(f"{path} is no file of one plain tensor; nothing in it was run: save the tensor alone")
    return content
