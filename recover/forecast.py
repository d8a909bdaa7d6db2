"""What a recover run will make and take, from a few iterations of a class batch for each teacher and size."""

import io
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from recover import flags
from recover.class_batches import Work, read_patches, starting_images, valid_range_of
from recover.optimise import recover_batch
from utils.datasets import Dataset, to_pixels
from utils.distilled import distilled_path
from utils.distributed import Team
from utils.dry_run import DryRun, measure
from utils.forecast import Output, iterations_by, png_bytes, recover_held, recover_output, slowest_share
from utils.randomness import generator_for

ITERATIONS = 5  # of a calibrating call


def missing_work(work: Work, folder: Path, dataset: Dataset) -> Work:
    """The class batches that have an image without a file. Whether files are whole and right is for the run to see."""

    def is_there(ipc_id: int, class_index: int) -> bool:
        return distilled_path(folder, dataset.num_classes, class_index, ipc_id).exists()

    return [(ipc_id, classes) for ipc_id, classes in work if not all(is_there(ipc_id, index) for index in classes)]


def output_of(missing: Work, settings: Namespace, dataset: Dataset) -> Output:
    """What a run will write that has these class batches to make."""
    copies = 2 if settings.store_initialised_images else 1
    images = sum(len(classes) for _, classes in missing)
    folders = len({index for _, classes in missing for index in classes})
    return recover_output(copies * images, copies * folders, dataset)


def forecast_recover(
    settings: Namespace,
    teachers: Mapping[str, nn.Module],
    work: Work,
    missing: Work,
    output: Output,
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype | None,
    team: Team,
) -> DryRun:
    """The dry run of recover. teachers: by name, as recover_batch takes them; missing: those of `work` that are to be
    made; the rest as in recover. Writes nothing."""
    plan, folder = flags.plan_of(settings), settings.syn_data_path / settings.exp_name
    images = sum(len(classes) for _, classes in missing)
    amounts = {"images": images, "class batches": len(missing), "iterations": len(missing) * plan.iterations}
    if not missing:
        return DryRun("recover", amounts, folder, output, recover_held(0, dataset.size), seconds=0.0)
    team.wait()  # processes on one machine slow each other down, here as later
    ipc_id, classes = max(missing, key=lambda part: len(part[1]))
    started = time.perf_counter()
    patches = read_patches(settings, classes, ipc_id, dataset)
    a_batch, setup = time.perf_counter() - started, 0.0
    generator = generator_for(settings.seed, "recover", dataset.name, ipc_id, classes.start)
    start, patches = starting_images(settings, patches, len(classes), dataset, generator, device)
    labels = torch.tensor(list(classes), device=device)
    made = start
    for (size, name), iterations in iterations_by(plan.sizes, plan.budgets, settings.teacher_model_list).items():
        few = replace(plan, sizes=(size,), budgets=(ITERATIONS,))

        def iterate(few=few, teacher=teachers[name]) -> Tensor:
            return recover_batch(
                start, patches, labels, [teacher], few, valid_range_of(dataset, device), generator, dtype
            )

        made, timing = measure(iterate, device)
        a_batch += iterations * timing.each / ITERATIONS
        setup += timing.setup
    costs = [a_batch * len(part[1]) / len(classes) if part in missing else 0.0 for part in work]
    return DryRun(
        "recover",
        amounts,
        folder,
        output,
        recover_held(len(classes), dataset.size),
        setup + slowest_share(costs, team.count),
        typical=round(output.size * mean_png_bytes(to_pixels(made, dataset)) / png_bytes(dataset.size)),
    )


def mean_png_bytes(pixels: Tensor) -> float:
    """The mean bytes of images (uint8, N x 3 x S x S) as PNG files."""
    total = 0
    for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        total += file.tell()
    return total / len(pixels)
