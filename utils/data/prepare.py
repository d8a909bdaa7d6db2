"""Say which images of a dataset are there and which are missing, lay out what can be had, describe a dataset of your
own.

    source config.sh && python -m utils.data.prepare cifar100
    python -m utils.data.prepare flowers --train my/train --val my/val --size 64   # your class folders, as `flowers`

Real images lie in class folders: `<train_dir>/<dataset>/<class>/*` and `<val_dir>/<dataset>/<class>/*`. Every class
folder and image is counted, with --check-images also decoded. A split is laid out whole or not at all.

With --train and --val, class folders anywhere become a dataset of that name: its classes are counted, each channel's
mean and deviation are measured, images are brought to the size where they have another (32 and 64 pixels) and laid out,
and a description is written to `<Main_Data_Path>/datasets/<name>.json`. From then on `bash run.sh NAME fadrm+ 10`
works, with the recipe of the size: 32 as cifar100, 64 as tiny_imagenet, 224 as imagenet-nette.
"""

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.data.images import check_images, class_folders, decode, folder_names, images_in, list_images
from utils.data.layout import is_absent, link_out, whole_folder
from utils.data.sources import SOURCES, SPLITS, YOUR_OWN, Folders
from utils.data.table import DATASETS, SIZES, Dataset, description_path, get_dataset, write_description
from utils.run.errors import UserError, run_entry
from utils.run.settings import Parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        "utils.data.prepare", "Say what images of a dataset are there; lay out or describe what can be had."
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help=f"one of {' '.join(DATASETS)}, or a name for your own")
    add("--train", type=Path, help="your training images: class folders")
    add("--val", type=Path, help="your validation images: class folders of the same names")
    add("--size", type=int, choices=SIZES, help="pixels a side that networks take them in")
    add("--check-images", action="store_true", help="decode every image too")
    add("--workers", "-j", type=int, default=os.cpu_count(), help="processes that decode for --check-images")
    given = parser.parse_args(argv)
    own = (given.train, given.val, given.size)
    if any(each is not None for each in own):
        if None in own:
            raise UserError("a dataset of your own needs all of --train FOLDER --val FOLDER --size PIXELS")
        describe(given.dataset, *own)
    dataset = get_dataset(given.dataset)
    folders = folders_of(dataset.name)
    if folders.train.absolute() == folders.val.absolute():
        raise UserError(
            f"train_dir and val_dir are the same folder {folders.train.parent}: give each its own in config.sh"
        )
    check(dataset, folders, given)


def folders_of(name: str) -> Folders:
    """A dataset's folders in those of config.sh; UserError where it was not sourced."""
    variables = ("train_dir", "val_dir", "Main_Data_Path")
    if missing := next((variable for variable in variables if not os.environ.get(variable)), None):
        raise UserError(f"{missing} is not set: `source config.sh` first, or set it in the environment")
    train, val, root = (Path(os.environ[variable]) for variable in variables)
    return Folders(train / name, val / name, root / "downloads")


def check(dataset: Dataset, folders: Folders, given: Namespace) -> None:
    """Lay out what is absent and can be had, print what is there; UserError with all that is not right."""
    source, problems = SOURCES.get(dataset.name, YOUR_OWN), []
    try:
        source.lay_out(dataset, folders)
    except UserError as error:
        problems.append(str(error))
    missing = folders.absent()
    if missing and not problems:
        places = " and ".join(str(getattr(folders, split)) for split in missing)
        problems.append(f"{places}: missing; {source.by_hand(dataset, folders)}")
    for split in SPLITS:
        root, expected = getattr(folders, split), getattr(dataset, f"{split}_images")
        if split in missing:
            continue
        try:
            check_counts(root, dataset, expected)
            if given.check_images:
                check_images(list_images(root, dataset)[0], dataset, given.workers, f"checking {split}")
        except UserError as error:
            problems.append(str(error))
            continue
        decoded = ", all decode" if given.check_images else ""
        print(f"{split}: {root}: complete, {dataset.num_classes} classes, {expected:,} images{decoded}", flush=True)
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    for label, pair in enumerate(
        zip(*(class_folders(getattr(folders, split), dataset) for split in SPLITS), strict=True)
    ):
        if pair[0].name != pair[1].name:
            raise UserError(
                f"class {label} is {pair[0]} in training and {pair[1]} in validation: give the folders of a class the "
                "same name in both"
            )


def check_counts(root: Path, dataset: Dataset, expected: int) -> None:
    """UserError unless `root` has the dataset's class folders and as many images as expected.

    It names the class that has too few or too many where all are of the same size, else the smallest.
    """
    counts = {folder.name: len(images_in(folder)) for folder in class_folders(root, dataset)}
    remedy = "put the missing images there, or remove the folder and run utils.data.prepare again"
    each, unequal = divmod(expected, len(counts))
    for name, count in counts.items():
        if not unequal and count != each and dataset.name in DATASETS:
            raise UserError(f"class {name} in {root} has {count} images, not {each}: {remedy}")
    if sum(counts.values()) != expected:
        smallest = min(counts, key=counts.__getitem__)
        raise UserError(
            f"{root} has {sum(counts.values())} images, not {expected} (the smallest class is {smallest} with "
            f"{counts[smallest]}): {remedy}"
        )


def describe(name: str, train: Path, val: Path, size: int) -> None:
    """Make class folders a dataset of this name: lay them out, measure them, write its description."""
    if name in DATASETS or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"{name!r}: a dataset of your own has another name than {' '.join(DATASETS)}, of letters, digits, _ . -"
        )
    folders, sources = folders_of(name), {"train": train, "val": val}
    if description_path(name).exists():
        raise UserError(f"{description_path(name)} is there: remove it, and the dataset's folders, to describe it anew")
    names = {split: class_names(folder) for split, folder in sources.items()}
    if different := sorted(set(names["train"]) ^ set(names["val"])):
        raise UserError(f"{train} and {val} have other class folders, first {different[0]!r}: give both the same")
    for split, source in sources.items():
        target = getattr(folders, split)
        if is_absent(target):
            lay_out_at(source, names[split], target, size)
    counts = {s: sum(len(images_in(getattr(folders, s) / n)) for n in names[s]) for s in SPLITS}
    mean, std = measure([path for n in names["train"] for path in images_in(folders.train / n)], size)
    dataset = Dataset(
        name, len(names["train"]), size, mean, std, 32 if size == 224 else 4, counts["train"], counts["val"]
    )
    for split in SPLITS:  # one may have been there before
        check_images(
            list_images(getattr(folders, split), dataset)[0], dataset, os.cpu_count() or 0, f"checking {split}"
        )
    print(f"{name}: {dataset.num_classes} classes, {size} pixels, mean {mean}, std {std}: {write_description(dataset)}")


def class_names(folder: Path) -> list[str]:
    """The class folders of a user's images; UserError where there are none."""
    names = folder_names(folder) if folder.is_dir() else []
    if not names:
        raise UserError(f"{folder} has no class folders: name the folder that holds one folder a class")
    return names


def lay_out_at(source: Path, names: Sequence[str], target: Path, size: int) -> None:
    """Class folders as the stages read them: links at 224 pixels, which take images of all sizes; below that PNG files,
    the middle square of each image brought to the size."""
    if size == 224:
        link_out({name: images_in(source / name) for name in names}, target)
        return
    with whole_folder(target) as part:
        for name in tqdm(names, desc=f"laying out {target}", unit="class", delay=1):
            (part / name).mkdir()
            for number, path in enumerate(images_in(source / name)):
                square(decode(path), size).save(part / name / f"{number:06d}.png")


def square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image, brought to size x size pixels (bilinear, antialiased)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def measure(paths: Sequence[Path], size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images in [0, 1], as squares of that size, to four digits."""
    sums, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for path in tqdm(paths, desc="measuring", unit="image", delay=1):
        content = bytearray(square(decode(path), size).tobytes())
        pixels: Tensor = torch.frombuffer(content, dtype=torch.uint8).view(-1, 3).double() / 255
        sums, squares = sums + pixels.mean(dim=0), squares + pixels.square().mean(dim=0)
    mean = sums / len(paths)
    std = (squares / len(paths) - mean.square()).clamp_min(0).sqrt()
    if not (std > 1e-4).all():
        raise UserError(f"the images of {paths[0].parents[1]} are all of one colour: name other ones")
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())


if __name__ == "__main__":
    run_entry(main)
