"""Say which images of a dataset are there and which are missing, and lay out what can be had.

    source config.sh && python -m utils.prepare_data cifar100

Real images lie in class folders: `<train_dir>/<dataset>/<class>/*` and `<val_dir>/<dataset>/<class>/*`.
- fashion_mnist ships with the project (a subset, see embedded/NOTICE) and is laid out from there.
- cifar10, cifar100 and imagenet-nette are fetched and verified by torchvision; an archive that is already in the
  download folder is used instead.
- tiny_imagenet is laid out from its published folder `tiny-imagenet-200` or the archive of it, in the download folder
  or where the class folders belong; its validation images are regrouped by class from their annotation file.
- imagenet1k and imagewoof are checked where they are.

Every class folder and image is counted, with --check-images also decoded. Exit status 0 where all is there and right,
2 and one line of what to do where not. A split is laid out whole or not at all.
"""

import argparse
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from utils.cli import StageParser
from utils.datasets import DATASETS, Dataset, check_images, class_folders, get_dataset, images_in, list_images
from utils.errors import UserError, run_entry
from utils.layout import extract_folder, extract_zip, is_absent, lay_out, link_out

EMBEDDED_DATASET = "fashion_mnist"
EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_mini.npz"
EMBEDDED_PADDING = 2  # pixels of zeros on each side: 28 become 32
SPLITS = ("train", "val")


class Folders(NamedTuple):
    """Where things lie: train and val hold one folder a dataset, downloads the archives."""

    train: Path
    val: Path
    downloads: Path

    def of(self, dataset: Dataset, split: str) -> Path:
        return getattr(self, split) / dataset.name


def main(argv: Sequence[str] | None = None) -> None:
    parser = StageParser("utils.prepare_data", "Say what images of a dataset are there and lay out what can be had.")
    add = parser.add_argument
    add("dataset", type=get_dataset, metavar="DATASET", help=f"one of {' '.join(DATASETS)}")
    add("--train-dir", type=Path, default=_from_config("train_dir"), help="holds training images by dataset")
    add("--val-dir", type=Path, default=_from_config("val_dir"), help="holds validation images by dataset")
    downloads = _from_config("Main_Data_Path", "downloads")
    add("--download-dir", type=Path, default=downloads, help="holds downloaded archives")
    add("--check-images", action="store_true", help="decode every image too")
    add("--workers", "-j", type=int, default=os.cpu_count(), help="processes that decode for --check-images")
    arguments = parser.parse_args(argv)
    dataset = arguments.dataset
    folders = Folders(
        train=_given(arguments.train_dir, "train_dir", "--train-dir"),
        val=_given(arguments.val_dir, "val_dir", "--val-dir"),
        downloads=_given(arguments.download_dir, "Main_Data_Path", "--download-dir"),
    )
    if folders.train.absolute() == folders.val.absolute():
        raise UserError(f"train_dir and val_dir are the same folder {folders.train}: give each its own in config.sh")

    source = SOURCES[dataset.name]
    problems = []
    try:
        source.lay_out(dataset, folders)
    except UserError as error:
        problems.append(str(error))
    missing = [split for split in SPLITS if is_absent(folders.of(dataset, split))]
    if missing and not problems:
        places = " and ".join(str(folders.of(dataset, split)) for split in missing)
        problems.append(f"{places}: missing; {source.by_hand(dataset, folders)}")
    for split in SPLITS:
        if split in missing:
            print(f"{split}: {folders.of(dataset, split)}: missing", flush=True)
            continue
        try:
            print(f"{split}: {_check_split(dataset, split, folders, arguments)}", flush=True)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    _check_same_classes(*(class_folders(folders.of(dataset, split), dataset) for split in SPLITS))


def _from_config(variable: str, below: str = "") -> Path | None:
    """The folder that config.sh put into the environment, or one below it; None where it did not."""
    value = os.environ.get(variable)
    return Path(value) / below if value else None


def _given(folder: Path | None, variable: str, flag: str) -> Path:
    if folder is None:
        raise UserError(f"{variable} is not set: `source config.sh` first, or give {flag}")
    return folder


def _check_split(dataset: Dataset, split: str, folders: Folders, arguments: argparse.Namespace) -> str:
    root = folders.of(dataset, split)
    check_counts(root, dataset, split)
    what = f"{dataset.num_classes} classes, {_total(dataset, split):,} images"
    if arguments.check_images:
        check_images(list_images(root, dataset)[0], dataset, arguments.workers, f"checking {split}")
        what += ", all decode"
    return f"{root}: complete, {what}"


def _total(dataset: Dataset, split: str) -> int:
    return dataset.train_images if split == "train" else dataset.val_images


def check_counts(root: Path, dataset: Dataset, split: str) -> None:
    """UserError unless `root` has the dataset's class folders and as many images as the split has.

    It names the class that has too few or too many where all are of the same size, else the smallest.
    """
    counts = {folder.name: len(images_in(folder)) for folder in class_folders(root, dataset)}
    _check_class_sizes(counts, _total(dataset, split), root)


def _check_class_sizes(counts: Mapping[str, int], expected: int, where: Path) -> None:
    remedy = "put the missing images there, or remove the folder and run utils.prepare_data again"
    each, unequal = divmod(expected, len(counts))
    for name, count in counts.items():
        if not unequal and count != each:
            raise UserError(f"class {name} in {where} has {count} images, not {each}: {remedy}")
    if sum(counts.values()) != expected:
        smallest = min(counts, key=counts.__getitem__)
        raise UserError(
            f"{where} has {sum(counts.values())} images, not {expected} (the smallest class is {smallest} with "
            f"{counts[smallest]}): {remedy}"
        )


def _check_same_classes(train: Sequence[Path], val: Sequence[Path]) -> None:
    """UserError where the folders of a label have different names in the two splits, so that labels may not agree."""
    for label, (train_folder, val_folder) in enumerate(zip(train, val, strict=True)):
        if train_folder.name != val_folder.name:
            raise UserError(
                f"class {label} is {train_folder} in training and {val_folder} in validation: give the folders of a "
                "class the same name in both"
            )


# fashion_mnist: shipped with the project


def ensure_embedded(train_dir: Path, val_dir: Path) -> None:
    """Lay out the embedded fashion_mnist below `train_dir` and `val_dir` where it is not there yet.

    Takes milliseconds where it is there: its files are counted, and a UserError names the class that misses some.
    """
    dataset = get_dataset(EMBEDDED_DATASET)
    for split, parent in zip(SPLITS, (train_dir, val_dir), strict=True):
        root = parent / dataset.name
        if is_absent(root):
            _lay_out_embedded(split, root)
        check_counts(root, dataset, split)


def _lay_out_embedded(split: str, root: Path) -> None:
    with np.load(EMBEDDED) as arrays:
        margin = (EMBEDDED_PADDING, EMBEDDED_PADDING)
        images = np.pad(arrays[f"{split}_images"], ((0, 0), margin, margin))
        lay_out(images, arrays[f"{split}_labels"].tolist(), arrays["classes"].tolist(), root)


# cifar10, cifar100, imagenet-nette: torchvision fetches and verifies. It is imported only here, since that takes a
# second which every stage that calls `ensure_embedded` would wait.


def _lay_out_cifar(dataset: Dataset, folders: Folders) -> None:
    published = _torchvision_class(dataset)
    for split in SPLITS:
        root = folders.of(dataset, split)
        if is_absent(root):
            with _fetching(dataset, folders):
                data = published(folders.downloads, train=split == "train", download=True)
            lay_out(data.data, data.targets, data.classes, root)


def _lay_out_imagenette(dataset: Dataset, folders: Folders) -> None:
    from torchvision.datasets.utils import download_url

    absent = [split for split in SPLITS if is_absent(folders.of(dataset, split))]
    if absent:
        url, md5 = _torchvision_archive(dataset)
        archive = folders.downloads / PurePosixPath(url).name
        with _fetching(dataset, folders):
            download_url(url, folders.downloads, archive.name, md5)
        for split in absent:
            extract_folder(archive, f"{archive.stem}/{split}", folders.of(dataset, split))


def _torchvision_class(dataset: Dataset) -> type:
    from torchvision import datasets

    names = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "imagenet-nette": "Imagenette"}
    return getattr(datasets, names[dataset.name])


def _torchvision_archive(dataset: Dataset) -> tuple[str, str]:
    """Address and md5 of the archive that torchvision knows."""
    published = _torchvision_class(dataset)
    if dataset.name == "imagenet-nette":
        return published._ARCHIVES["full"]
    return published.url, published.tgz_md5


@contextmanager
def _fetching(dataset: Dataset, folders: Folders) -> Iterator[None]:
    """Turn what goes wrong while torchvision fetches into a UserError that says how to do it by hand."""
    folders.downloads.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise UserError(f"{dataset.name} could not be fetched ({error}): {_fetch_by_hand(dataset, folders)}") from None


def _fetch_by_hand(dataset: Dataset, folders: Folders) -> str:
    url, md5 = _torchvision_archive(dataset)
    archive = folders.downloads / PurePosixPath(url).name
    return f"download {url} (md5 {md5}) by hand to {archive} and run the same command again"


# tiny_imagenet: laid out from the published folder

TINY_PUBLISHED = "tiny-imagenet-200"
TINY_ANNOTATIONS = "val_annotations.txt"


def _lay_out_tiny_imagenet(dataset: Dataset, folders: Folders) -> None:
    archive = folders.downloads / f"{TINY_PUBLISHED}.zip"
    extracted = folders.downloads / TINY_PUBLISHED
    for split in SPLITS:
        root = folders.of(dataset, split)
        published = _published_tiny_imagenet(dataset, split, folders)
        if published is None and is_absent(root) and is_absent(extracted) and archive.exists():
            extract_zip(archive, extracted)
            published = _published_tiny_imagenet(dataset, split, folders)
        if published is None:
            continue
        if published.is_relative_to(root):  # it stands where the class folders belong
            published = _set_aside(root) / published.relative_to(root)
        if is_absent(root):
            images = _tiny_train_images(published) if split == "train" else _tiny_val_images(published)
            _lay_out_links(images, dataset, split, published, root)


def _published_tiny_imagenet(dataset: Dataset, split: str, folders: Folders) -> Path | None:
    """The published folder of the split, if it is at any of the places where people put it."""
    parents = (getattr(folders, split), folders.train, folders.val)
    bases = [parent / name for parent in parents for name in (dataset.name, TINY_PUBLISHED)]
    for base in (*bases, folders.downloads / TINY_PUBLISHED):
        for place in (base, base / TINY_PUBLISHED):
            if split == "train" and any(place.glob("train/*/images")):
                return place / "train"
            if split == "val":
                for folder in (place / "val", place):
                    if (folder / TINY_ANNOTATIONS).is_file():
                        return folder
    return None


def _set_aside(root: Path) -> Path:
    aside = root.with_name(TINY_PUBLISHED)
    if not is_absent(aside):
        raise UserError(f"{root} holds the published folder, but so does {aside}: remove one of the two")
    root.rename(aside)
    print(f"{root}: the published folder is now {aside}; nothing needs it once the class folders are laid out")
    return aside


def _tiny_train_images(published: Path) -> dict[str, list[Path]]:
    return {folder.name: images_in(folder) for folder in sorted(published.glob("[!.]*")) if folder.is_dir()}


def _tiny_val_images(published: Path) -> dict[str, list[Path]]:
    by_class: dict[str, list[Path]] = {}
    for line in (published / TINY_ANNOTATIONS).read_text().splitlines():
        if "\t" not in line:
            continue
        name, class_name = line.split("\t")[:2]
        by_class.setdefault(class_name, []).append(published / "images" / name)
    return by_class


def _lay_out_links(
    by_class: Mapping[str, list[Path]], dataset: Dataset, split: str, published: Path, root: Path
) -> None:
    if len(by_class) != dataset.num_classes:
        raise UserError(
            f"{published} has {len(by_class)} classes, {dataset.name} {dataset.num_classes}: extract it again"
        )
    _check_class_sizes({name: len(paths) for name, paths in by_class.items()}, _total(dataset, split), published)
    link_out(by_class, root)


def _tiny_by_hand(dataset: Dataset, folders: Folders) -> str:
    return f"put {TINY_PUBLISHED}.zip, or the folder in it, into {folders.downloads} and run the same command again"


# Where each dataset comes from


class Source(NamedTuple):
    """lay_out: makes the splits that are absent, where a program can; by_hand: what a person can do about them."""

    lay_out: Callable[[Dataset, Folders], None]
    by_hand: Callable[[Dataset, Folders], str]


def _in_place(what: str) -> Source:
    return Source(
        lay_out=lambda dataset, folders: None,
        by_hand=lambda dataset, folders: f"put {what} there, one folder a class, of the same names in both",
    )


SOURCES = {
    "fashion_mnist": Source(
        lay_out=lambda dataset, folders: ensure_embedded(folders.train, folders.val),
        by_hand=lambda dataset, folders: "run the same command again",
    ),
    "cifar10": Source(_lay_out_cifar, _fetch_by_hand),
    "cifar100": Source(_lay_out_cifar, _fetch_by_hand),
    "imagenet-nette": Source(_lay_out_imagenette, _fetch_by_hand),
    "tiny_imagenet": Source(_lay_out_tiny_imagenet, _tiny_by_hand),
    "imagewoof": _in_place("the folders train and val of the archive imagewoof2.tgz"),
    "imagenet1k": _in_place("the training and validation images of ILSVRC2012 (n01440764 ... n15075141)"),
}


if __name__ == "__main__":
    run_entry(main)
