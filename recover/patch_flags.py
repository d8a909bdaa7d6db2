"""The flags of make_patches, and what must hold between them."""

import argparse
from pathlib import Path

from utils.cli import StageParser
from utils.datasets import DATASETS, Dataset
from utils.errors import UserError
from utils.patches import DIFFICULTIES


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
    parser.add_dry_run_flag()
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
