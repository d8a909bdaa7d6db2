"""Where the published datasets come from: fetched and verified by torchvision, or laid out from what was downloaded.

torchvision is imported where it is used, since that takes a second.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from utils.data.embedded import ensure_embedded
from utils.data.images import images_in
from utils.data.layout import is_absent, lay_out, link_out, whole_folder
from utils.data.table import Dataset
from utils.run.errors import UserError

SPLITS = ("train", "val")
TINY, ANNOTATIONS = "tiny-imagenet-200", "val_annotations.txt"


class Folders(NamedTuple):
    """Where a dataset's images lie, and downloaded archives."""

    train: Path
    val: Path
    downloads: Path

    def absent(self) -> list[str]:
        return [split for split in SPLITS if is_absent(getattr(self, split))]


class Source(NamedTuple):
    """lay_out: makes the splits that are absent, where a program can; by_hand: what a person can do about them."""

    lay_out: Callable[[Dataset, Folders], None]
    by_hand: Callable[[Dataset, Folders], str]


def lay_out_cifar(dataset: Dataset, folders: Folders) -> None:
    from torchvision import datasets

    published = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset.name]
    for split in folders.absent():
        data = fetch(
            dataset, folders, lambda split=split: published(folders.downloads, split == "train", download=True)
        )
        lay_out(data.data, data.targets, data.classes, getattr(folders, split))


def lay_out_imagenette(dataset: Dataset, folders: Folders) -> None:
    from torchvision.datasets import Imagenette
    from torchvision.datasets.utils import download_url, extract_archive

    (url, md5), extracted = Imagenette._ARCHIVES["full"], folders.downloads / "imagenette2"
    if folders.absent() and is_absent(extracted):
        archive = folders.downloads / Path(url).name
        fetch(dataset, folders, lambda: download_url(url, folders.downloads, archive.name, md5))
        with whole_folder(extracted) as part:
            fetch(dataset, folders, lambda: extract_archive(archive, part))
    for split in folders.absent():
        inner = extracted / "imagenette2"
        link_classes((inner if inner.is_dir() else extracted) / split, getattr(folders, split), dataset)


def fetch(dataset: Dataset, folders: Folders, call: Callable[[], object]) -> object:
    """What a torchvision dataset gives, downloaded if need be; UserError where that fails."""
    folders.downloads.mkdir(parents=True, exist_ok=True)
    try:
        return call()
    except PermissionError:
        raise
    except Exception as error:  # whatever the network, the disk, the archive or torchvision raised
        if getattr(error, "errno", None) in (28, 122):  # no space
            raise
        raise UserError(f"{dataset.name} could not be fetched ({error}); {fetch_by_hand(dataset, folders)}") from None


def fetch_by_hand(dataset: Dataset, folders: Folders) -> str:
    from torchvision import datasets

    published = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}.get(dataset.name)
    url, md5 = (published.url, published.tgz_md5) if published else datasets.Imagenette._ARCHIVES["full"]
    return f"download {url} (md5 {md5}) by hand to {folders.downloads / Path(url).name} and run the same command again"


def link_classes(published: Path, destination: Path, dataset: Dataset) -> None:
    """Lay out the class folders of a published split; UserError where they are not one for each class."""
    classes = [folder for folder in sorted(published.glob("[!._]*")) if folder.is_dir()]
    if len(classes) != dataset.num_classes:
        raise UserError(
            f"{published} has {len(classes)} class folders, not {dataset.num_classes}: remove {published.parent} "
            f"and run the same command again"
        )
    link_out({folder.name: images_in(folder) for folder in classes}, destination)


def lay_out_tiny_imagenet(dataset: Dataset, folders: Folders) -> None:
    """From `tiny-imagenet-200` or the archive of it; validation images regrouped by class from their annotations."""
    if not folders.absent():
        return
    archive, extracted = folders.downloads / f"{TINY}.zip", folders.downloads / TINY
    if archive.is_file() and is_absent(extracted):
        extract_zip(archive, extracted)
    beside = (folders.train.with_name(TINY), folders.val.with_name(TINY))
    places = [place for base in (extracted, *beside) for place in (base, base / TINY, base / TINY / TINY)]
    published = next((place for place in places if (place / "train").is_dir() and (place / "val").is_dir()), None)
    for split in folders.absent() if published else ():
        if (published / split / ANNOTATIONS).is_file():
            link_out(annotated(published / split), getattr(folders, split))
        else:  # the training images, or validation images that someone has regrouped
            link_classes(published / split, getattr(folders, split), dataset)


def annotated(folder: Path) -> dict[str, list[Path]]:
    """Images by class as an annotation file has them: lines of file name, tab, class and more."""
    by_class: dict[str, list[Path]] = {}
    for line in (folder / ANNOTATIONS).read_text().splitlines():
        name, tab, rest = line.partition("\t")
        if tab:
            by_class.setdefault(rest.split("\t")[0], []).append(folder / "images" / Path(name).name)
    return by_class


def extract_zip(archive: Path, destination: Path) -> None:
    """Extract a zip archive into the folder `destination`, whole or not at all. UserError if it is damaged."""
    try:
        with whole_folder(destination) as part, zipfile.ZipFile(archive) as zipped:
            for member in tqdm(zipped.infolist(), desc=f"extracting {destination}", unit="file", delay=1):
                zipped.extract(member, part)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise UserError(f"{archive} is damaged: download it again") from None


def in_place(what: str) -> Source:
    return Source(
        lay_out=lambda dataset, folders: None,
        by_hand=lambda dataset, folders: f"put {what} there, one folder a class, of the same names in both",
    )


SOURCES = {
    "fashion_mnist": Source(
        lambda dataset, folders: ensure_embedded(dataset, train=folders.train, val=folders.val),
        lambda dataset, folders: "remove the folder, and it is laid out again",
    ),
    "cifar10": Source(lay_out_cifar, fetch_by_hand),
    "cifar100": Source(lay_out_cifar, fetch_by_hand),
    "imagenet-nette": Source(lay_out_imagenette, fetch_by_hand),
    "tiny_imagenet": Source(
        lay_out_tiny_imagenet,
        lambda dataset, folders: f"put {TINY}.zip, or the folder in it, into {folders.downloads} and run this again",
    ),
    "imagewoof": in_place("the folders train and val of the archive imagewoof2.tgz"),
    "imagenet1k": in_place("the training and validation images of ILSVRC2012 (n01440764 ... n15075141)"),
}
YOUR_OWN = in_place("your images")
