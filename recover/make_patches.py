"""Make the real patches that recover starts from: for each class, the crops that an observer teacher ranks.

    python -m recover.make_patches --dataset-name cifar100 --train-dir data/train/cifar100 \\
        --patch-dir data/patches/cifar100 --model-pool-dir pretrained_models/cifar100_pretrained_models

A class at a time: draw images, cut crops, score them, choose by difficulty, tile, write the class folder whole. A class
that is complete is skipped, so a stopped run goes on where it was. Several processes (torchrun) share the classes out.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from models.checkpoints import load_teacher
from recover.class_patches import class_patches
from recover.patch_flags import check_settings, make_parser
from recover.patch_forecast import forecast_patches
from utils.cli import print_settings
from utils.datasets import get_dataset
from utils.device import choose_device
from utils.distributed import Team, teamwork
from utils.dry_run import tell
from utils.errors import UserError, run_entry
from utils.forecast import patches_output, require_space
from utils.patches import RECORD, downloaded_patches_complete, missing_patch, write_class_patches
from utils.real_images import images_by_class
from utils.records import check_record
from utils.report import report_run


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        make_patches(make_parser().parse_with_recipe("patches", argv), team)


def make_patches(settings: argparse.Namespace, team: Team) -> None:
    dataset = get_dataset(settings.dataset_name)
    settings.end_index = dataset.num_classes if settings.end_index is None else settings.end_index
    check_settings(settings, dataset)
    print_settings("make_patches", settings)
    device = choose_device(settings.device, team.local_rank)

    folder = settings.patch_dir / settings.patch_diff
    classes = range(settings.start_index, settings.end_index)
    from_elsewhere = downloaded_patches_complete(folder, classes, settings.patches_per_class)
    team.wait()  # until all have looked: what the first makes is not from elsewhere
    if from_elsewhere:
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
    absent = [index for index in classes if missing_patch(folder, index, settings.patches_per_class)]
    output = patches_output(len(absent), settings.patches_per_class, dataset)
    require_space(folder, output)
    check_record(folder / RECORD, record, "patches", write=not settings.dry_run)
    if settings.dry_run:
        tell(forecast_patches(settings, images, observer, absent, output, dataset, team), device, team)
        return

    started = time.monotonic()
    pending = [index for index in team.share(classes) if index in absent]
    with ThreadPoolExecutor(max(settings.workers, 1)) as pool:
        for class_index in tqdm(pending, desc="patches", unit="class", disable=not pending):
            patches = class_patches(class_index, images[class_index], observer, pool, settings, dataset)
            write_class_patches(folder, class_index, patches)
    made = team.total(len(pending) * settings.patches_per_class)
    if team.leads:
        files = {"patches": str(folder)}
        report_run("make_patches", folder / "report.json", device, started, made, "patches", files, team.count)


if __name__ == "__main__":
    run_entry(main)
