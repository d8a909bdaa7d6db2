"""Make the real patches that recover starts from: for each class, the crops that an observer teacher ranks.

    python -m recover.make_patches --dataset-name cifar100 --train-dir data/train/cifar100 \\
        --patch-dir data/patches/cifar100 --model-pool-dir pretrained_models/cifar100_pretrained_models

A class at a time: draw images, cut crops, score them, choose by difficulty, tile, write the class folder whole. A class
that is complete is skipped, so a stopped run goes on where it was.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import load_teacher
from utils.cli import StageParser, print_settings
from utils.datasets import DATASETS, Dataset, decode, get_dataset
from utils.device import choose_device
from utils.errors import UserError, run_entry
from utils.patches import (
    DIFFICULTIES,
    RECORD,
    choose_crops,
    crop_losses,
    downloaded_patches_complete,
    missing_patch,
    sample_square_crops,
    tile,
    write_class_patches,
)
from utils.randomness import generator_for
from utils.real_images import crop_and_resize, draw, images_by_class
from utils.records import check_record
from utils.report import report_run


def make_parser() -> StageParser:
    parser = StageParser("recover.make_patches", "Make real patches: crops of training images, ranked by a teacher.")
    add = parser.add_argument
    add("--dataset-name", required=True, help=f"one of {' '.join(DATASETS)}")
    parser.add_recipe_flag()
    add("--ipc", type=int, help="images per class, to choose the recipe with; has no other effect")
    add("--train-dir", type=Path, required=True, help="the dataset's own folder of class folders")
    add("--patch-dir", type=Path, required=True, help="the dataset's own folder; patches go to <difficulty>/ in it")
    add("--patch-diff", choices=DIFFICULTIES, default="medium", help="which end of the ranking to take from")
    add("--factor", type=int, default=1, help="tile factor x factor crops into one patch")
    add("--num-crops", type=int, default=5, help="random square crops from each image")
    add("--max-images", type=int, default=300, help="images of a class to look at")
    add("--patches-per-class", type=int, default=50, help="patches to make")
    add("--area-min", type=float, default=0.08, help="least share of the image that a crop covers")
    add("--area-max", type=float, default=1.0, help="largest share")
    add("--observer", default="ResNet18", help="the teacher that scores")
    add("--model-pool-dir", type=Path, help="folder of teacher checkpoints; not needed online")
    add("--pretrained-model-type", choices=("offline", "online"), default="offline", help="online: torchvision's")
    add("--batch-size", type=int, default=250, help="crops in one forward pass")
    add("--start-index", type=int, default=0, help="first class")
    add("--end-index", type=int, help="class after the last (default: all classes)")
    add("--workers", type=int, default=4, help="threads that decode and crop")
    parser.add_common_flags()
    return parser


def check_settings(settings: argparse.Namespace, dataset: Dataset) -> None:
    """UserError for a flag out of its range."""
    for name in ("factor", "num_crops", "max_images", "patches_per_class", "batch_size"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be 1 or more")
    if dataset.size % settings.factor:
        raise UserError(f"--factor {settings.factor} does not divide the {dataset.size} pixels of {dataset.name}")
    if not 0 < settings.area_min <= settings.area_max <= 1:
        raise UserError(f"--area-min {settings.area_min} --area-max {settings.area_max}: must be 0 < min <= max <= 1")
    if not 0 <= settings.start_index < settings.end_index <= dataset.num_classes:
        raise UserError(
            f"--start-index {settings.start_index} --end-index {settings.end_index}: no range of the "
            f"{dataset.num_classes} classes of {dataset.name} (the end is exclusive)"
        )
    if settings.model_pool_dir is None and settings.pretrained_model_type == "offline":
        raise UserError("--model-pool-dir is missing: name the folder of teacher checkpoints, or take them online")


def cut_crops(job: tuple[Path, int], class_index: int, settings: argparse.Namespace, dataset: Dataset) -> Tensor:
    """The random crops of one image; job: its file and its index in its class. uint8, m x 3 x side x side."""
    path, image_index = job
    image = decode(path)
    generator = generator_for(settings.seed, "patches", dataset.name, class_index, image_index)
    area = (settings.area_min, settings.area_max)
    boxes = sample_square_crops(image.height, image.width, settings.num_crops, area, generator)
    return crop_and_resize(image, boxes, dataset.size // settings.factor)


def main(argv: Sequence[str] | None = None) -> None:
    settings = make_parser().parse_with_recipe("patches", argv)
    dataset = get_dataset(settings.dataset_name)
    settings.end_index = dataset.num_classes if settings.end_index is None else settings.end_index
    check_settings(settings, dataset)
    print_settings("make_patches", settings)
    device = choose_device(settings.device)

    folder = settings.patch_dir / settings.patch_diff
    classes = range(settings.start_index, settings.end_index)
    if downloaded_patches_complete(folder, classes, settings.patches_per_class):
        print(f"make_patches: {folder} holds patches from elsewhere, all that are asked for: nothing to make")
        return

    images = images_by_class(settings.train_dir, dataset)
    crops_needed = settings.patches_per_class * settings.factor**2
    for class_index in classes:
        usable = min(len(images[class_index]), settings.max_images)
        if usable * settings.num_crops < crops_needed:
            raise UserError(
                f"class {class_index} of {dataset.name} gives {usable} images x {settings.num_crops} crops, "
                f"{crops_needed} are needed: raise --num-crops or --max-images, or ask for fewer --patches-per-class"
            )

    observer = load_teacher(settings.observer, dataset, settings.model_pool_dir, settings.pretrained_model_type)
    observer.module.to(device)
    # Not how many patches: more of them begin with the same ones.
    shaping = ("dataset_name", "patch_diff", "factor", "num_crops", "max_images", "area_min", "area_max", "seed")
    record = {name: getattr(settings, name) for name in shaping}
    record |= {"observer": observer.name, "observer_sha256": observer.sha256, "train_images": sum(map(len, images))}
    check_record(folder / RECORD, record, "patches")

    started = time.monotonic()
    pending = [index for index in classes if missing_patch(folder, index, settings.patches_per_class)]
    with ThreadPoolExecutor(max(settings.workers, 1)) as pool:
        for class_index in tqdm(pending, desc="patches", unit="class", disable=not pending):
            paths = images[class_index]
            drawn = sorted(draw(len(paths), settings.max_images, settings.seed, "patches", dataset.name, class_index))
            cut = partial(cut_crops, class_index=class_index, settings=settings, dataset=dataset)
            crops = torch.stack(list(pool.map(cut, [(paths[index], index) for index in drawn])))  # M m 3 side side
            losses = crop_losses(observer.module, crops.flatten(0, 1), class_index, dataset, settings.batch_size)
            losses = losses.view(crops.shape[:2])
            if not losses.isfinite().all():
                raise UserError(f"the observer {observer.name} gives no finite loss for class {class_index}: check it")
            chosen = choose_crops(losses, settings.patch_diff, crops_needed)
            patches = tile(crops[chosen[:, 0], chosen[:, 1]], settings.factor)
            write_class_patches(folder, class_index, patches)
    made = len(pending) * settings.patches_per_class
    report_run("make_patches", folder / "report.json", device, started, made, "patches", {"patches": str(folder)})


if __name__ == "__main__":
    run_entry(main)
