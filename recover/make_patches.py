"""Make the real patches that recover starts from: for each class, the crops that an observer teacher ranks.

    bash recover/scripts/cifar100/make_patches.sh
    python -m recover.make_patches --dataset-name cifar100 --train-dir data/train/cifar100 \\
        --patch-dir data/patches/cifar100 --model-pool-dir pretrained_models/cifar100_pretrained_models

A class at a time: draw images, cut crops, score them, choose, tile, write. A patch that is there is not made again, so
a stopped run goes on where it was. Several processes (torchrun) share the classes out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from models.checkpoints import load_teacher
from utils import recipes
from utils.data.digests import LISTING, listing_digest
from utils.data.embedded import ensure_embedded
from utils.data.images import images_by_class
from utils.data.table import Dataset
from utils.patches.making import class_patches
from utils.patches.patches import (
    RECORD,
    downloaded_patches_complete,
    missing_patch,
    patches_output,
    write_class_patches,
)
from utils.recipes.settings import PatchSettings
from utils.run.device import choose_device
from utils.run.errors import UserError, run_entry
from utils.run.records import check_record
from utils.run.report import report_run, start_run
from utils.run.settings import identity_of, show
from utils.run.space import print_dry_run, require_space
from utils.run.team import Team, teamwork


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        make_patches(recipes.parse("patches", argv), team)


def make_patches(settings: PatchSettings, team: Team) -> None:
    show("patches", settings)
    dataset = settings.dataset
    if settings.recipe and not recipes.stage_of("recover", dataset, settings.recipe, settings.ipc).uses_patches:
        print(f"patches: {settings.recipe} starts from noise: nothing to make")
        return
    device = choose_device(settings.device, team.local_rank)
    folder = settings.patch_dir / settings.selector
    classes, count = range(settings.start_index, settings.end_index), settings.patches_per_class
    from_elsewhere = downloaded_patches_complete(folder, classes, count)
    team.wait()  # until all have looked: what the first makes is not from elsewhere
    if from_elsewhere:
        print(f"patches: {folder} holds patches from elsewhere, all that are asked for: nothing to make")
        return

    if not settings.dry_run:
        ensure_embedded(dataset, train=settings.train_dir)
    images = images_by_class(settings.train_dir, dataset)
    require_images(images, classes, settings, dataset)
    observer = load_teacher(settings.observer, dataset, settings.model_pool_dir, settings.source)
    observer.module.to(device)
    # Not how many patches: more of them begin with the same ones.
    record = {"dataset_name": dataset.name, **identity_of(settings), "observer_sha256": observer.sha256}
    record |= {"train_images": sum(map(len, images)), LISTING: listing_digest(settings.train_dir, images)}
    check_record(folder / RECORD, record, "patches", younger=[LISTING])
    absent = [index for index in classes if missing_patch(folder, index, count)]
    team.wait()  # until all have looked
    output = patches_output(len(absent) * count, dataset)
    require_space(folder, output)
    if settings.dry_run:
        print_dry_run("patches", {"classes": len(absent), "patches": output.files}, folder, output)
        return

    started = start_run(device)
    pending = list(team.share(absent))
    with ThreadPoolExecutor(max(settings.workers, 1)) as pool:
        for class_index in tqdm(pending, desc="patches", unit="class", disable=not pending):
            patches = class_patches(class_index, images[class_index], observer.module, pool, settings, dataset)
            check_record(folder / RECORD, record, "patches", write=True, younger=[LISTING])
            write_class_patches(folder, class_index, patches)
    made = team.total(len(pending) * count)
    if team.is_main:
        files = {"patches": str(folder)}
        report_run("patches", folder / "report.json", device, started, made, "patches", files, team.count)


def require_images(
    images: Sequence[Sequence[Path]], classes: Sequence[int], settings: PatchSettings, dataset: Dataset
) -> None:
    """UserError for a class that has too few images for its patches."""
    needed = settings.patches_per_class * settings.factor**2
    for class_index in classes:
        usable = min(len(images[class_index]), settings.max_images)
        if usable * settings.num_crops < needed:
            raise UserError(
                f"class {class_index} of {dataset.name} gives {usable} images x {settings.num_crops} crops, "
                f"{needed} are needed: raise --num-crops or --max-images, or ask for fewer --patches-per-class"
            )


if __name__ == "__main__":
    run_entry(main)
