"""What making patches will make and take, from those of one class."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from statistics import fmean

from torch import Tensor

from models.checkpoints import Teacher
from recover.class_patches import class_patches
from utils.datasets import Dataset
from utils.distributed import Team
from utils.dry_run import DryRun, measure
from utils.forecast import Held, Output, slowest_share
from utils.patches import jpeg_of


def forecast_patches(
    settings: argparse.Namespace,
    images: Sequence[Sequence[Path]],
    observer: Teacher,
    absent: Sequence[int],
    output: Output,
    dataset: Dataset,
    team: Team,
) -> DryRun:
    """The dry run of make_patches. images: the real ones of every class; absent: the classes whose patches are to be
    made; the rest as in make_patches. Writes nothing."""
    needed = ceil(settings.patches_per_class * settings.factor**2 / settings.num_crops)
    usable = [min(len(paths), settings.max_images) for paths in images]
    amounts = {
        "classes": len(absent),
        "patches": len(absent) * settings.patches_per_class,
        "real images": sum(usable[index] for index in absent),
    }
    folder, seconds, typical, held = settings.patch_dir / settings.patch_diff, 0.0, None, Held(0, 0)
    if absent:
        team.wait()  # processes on one machine slow each other down, here as later
        enough = max(needed, ceil(settings.batch_size / settings.num_crops))  # for a class, and for one whole forward
        few = argparse.Namespace(**vars(settings) | {"max_images": min(usable[absent[0]], enough)})
        with ThreadPoolExecutor(max(settings.workers, 1)) as pool:

            def make() -> Tensor:
                return class_patches(absent[0], images[absent[0]], observer, pool, few, dataset)

            patches, timing = measure(make, next(observer.module.parameters()).device)
        an_image = timing.each / few.max_images
        costs = [an_image * usable[index] if index in absent else 0.0 for index in range(len(images))]
        seconds = timing.setup + slowest_share(costs[settings.start_index : settings.end_index], team.count)
        mean = fmean(len(jpeg_of(patch)) for patch in patches.permute(0, 2, 3, 1).numpy())
        typical = round(mean * amounts["patches"])
        more_crops = (max(usable) - few.max_images) * settings.num_crops
        held = Held(2 * more_crops * 3 * (dataset.size // settings.factor) ** 2, 0)  # each by itself, and all in one
    return DryRun("make_patches", amounts, folder, output, held, seconds, typical)
