"""The datasets: one table that all stages read, and the user's own, which `python -m utils.data.prepare` describes."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.run.errors import UserError
from utils.run.files import read_json, write_json
from utils.run.records import check_shape

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROOT = "Main_Data_Path"  # the variable of config.sh that names the folder of everything
SIZES = (32, 64, 224)  # pixels a side for which there are networks and recipes


@dataclass(frozen=True)
class Dataset:
    """What is fixed for a dataset, whatever the method.

    mean, std: per channel, of pixels in [0, 1]; jitter: largest circular roll in recover, in pixels.
    train_images, val_images: how many images the full dataset has.
    """

    name: str
    num_classes: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    jitter: int
    train_images: int
    val_images: int


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("cifar10", 10, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 4, 50_000, 10_000),
        Dataset("cifar100", 100, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 4, 50_000, 10_000),
        Dataset("tiny_imagenet", 200, 64, IMAGENET_MEAN, IMAGENET_STD, 4, 100_000, 10_000),
        Dataset("imagenet-nette", 10, 224, IMAGENET_MEAN, IMAGENET_STD, 32, 9_469, 3_925),
        Dataset("imagewoof", 10, 224, IMAGENET_MEAN, IMAGENET_STD, 32, 9_025, 3_929),
        Dataset("imagenet1k", 1000, 224, IMAGENET_MEAN, IMAGENET_STD, 32, 1_281_167, 50_000),
        Dataset("fashion_mnist", 10, 32, (0.5,) * 3, (0.5,) * 3, 4, 6_000, 1_000),
    )
}


def get_dataset(name: str) -> Dataset:
    """The dataset of that name, of the table or described by its user; UserError with the names there are."""
    if name in DATASETS:
        return DATASETS[name]
    own = {path.stem: path for path in descriptions()}
    if name not in own:
        raise UserError(
            f"unknown dataset {name!r}; there are: {' '.join([*DATASETS, *own])}; your own class folders become one "
            f"with `python -m utils.data.prepare NAME --train FOLDER --val FOLDER --size 32, 64 or 224`"
        )
    return read_description(own[name])


def description_path(name: str) -> Path:
    """Where a user's dataset is described; UserError where config.sh was not sourced."""
    if not (root := os.environ.get(ROOT)):
        raise UserError(f"{ROOT} is not set: `source config.sh` first, or set it in the environment")
    return Path(root) / "datasets" / f"{name}.json"


def descriptions() -> list[Path]:
    """The description files of the user's own datasets."""
    return sorted(description_path("*").parent.glob("*.json")) if os.environ.get(ROOT) else []


def write_description(dataset: Dataset) -> Path:
    path = description_path(dataset.name)
    write_json(path, asdict(dataset))
    return path


def read_description(path: Path) -> Dataset:
    """A user's dataset; UserError where the file is not what `write_description` writes."""
    content, counts = read_json(path), ("num_classes", "size", "jitter", "train_images", "val_images")
    remedy = f"remove it and run `python -m utils.data.prepare {path.stem}` with your folders again"
    check_shape(path, content, {"name": str, **dict.fromkeys(counts, int), "mean": [float], "std": [float]}, remedy)
    sound = content["name"] == path.stem and content["size"] in SIZES and len(content) == len(counts) + 3
    sound = sound and len(content["mean"]) == len(content["std"]) == 3 and min(content["std"]) > 0
    if not sound or min(content[name] for name in counts) < 0 or content["num_classes"] < 1:
        raise UserError(f"{path} describes no dataset: {remedy}")
    return Dataset(**content | {name: tuple(content[name]) for name in ("mean", "std")})
