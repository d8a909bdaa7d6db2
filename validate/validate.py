"""validate: a student trains from scratch on views and soft labels alone, and is tested on real images.

    bash validate/scripts/cifar100/validate_fadrm+.sh 10 ResNet18 --seed 0 1 2
    python -m validate.validate --dataset-name cifar100 --recipe fadrm+ --ipc 10 --model ResNet18 \\
        --original-data-path syn/mine --fkd-path labels/mine_bs16_ipc10 --val-dir val/cifar100 \\
        --output-dir results --exp-name mine

The result is the last epoch's top-1; the best seen is reported beside it, since choosing an epoch on the test set
flatters. A stopped run goes on from its last checkpoint; a seed that has its result is skipped. `--ipc` and `--model`
may name several, which have a folder each: with several IPCs, paths that have {ipc} where the number goes. Several
processes (torchrun) share IPCs, students and seeds out.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from torch import Tensor

from utils.cli import print_settings
from utils.datasets import get_dataset, images_digest, list_images, load_test_images
from utils.device import choose_device, describe_device, peak_memory_bytes, versions
from utils.distilled import read_distilled
from utils.distributed import Team, teamwork
from utils.dry_run import tell
from utils.errors import UserError, run_entry
from utils.files import write_json
from utils.fkd import LabelStore, check_store, open_store
from utils.forecast import require_space
from utils.records import check_record
from validate import flags
from validate.forecast import forecast_validate, output_of
from validate.student import CHECKPOINT, Run, train_student
from validate.summary import accuracies, print_table, summarise


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        validate(flags.parse_cells(argv), team)


def validate(cells: Sequence[Namespace], team: Team) -> None:
    """cells: the settings of each IPC and student, which differ in these and what follows from them."""
    settings = cells[0]
    dataset = get_dataset(settings.dataset_name)
    device = choose_device(settings.device, team.local_rank)
    runs = []
    for (images_path, labels_path), same in groupby(cells, key=attrgetter("original_data_path", "fkd_path")):
        images, labels, ipc = read_distilled(images_path, dataset)
        digest = images_digest(images, labels)
        store = open_store(labels_path, verify=settings.verify)
        for cell in same:
            runs += runs_of(cell, images, digest, ipc, store)
    folders = list(dict.fromkeys(run.place.parent for run in runs))
    output = output_of(runs, dataset, team)
    require_space(folders[0], output)
    mine = team.share(runs)
    for run in mine:
        check_record(run.place / "settings.json", run.made_with, "results", write=not settings.dry_run)
    if settings.dry_run:
        tell(forecast_validate(runs, output, dataset, device, team), device, team)
        return
    pending = [run for run in mine if not run.is_done]
    for run in mine:
        if run.is_done:
            (run.place / CHECKPOINT).unlink(missing_ok=True)  # of a run that was killed just then
    if pending:
        paths, test_labels = list_images(settings.val_dir, dataset)
        test_set = load_test_images(paths, dataset, workers=settings.workers, progress="test images"), test_labels
    for run in pending:
        started = time.monotonic()
        metrics = train_student(run, test_set, dataset, device, quiet=not team.leads)
        used = {
            "seconds": round(sum(line["seconds"] for line in metrics), 2),
            "seconds_this_run": round(time.monotonic() - started, 2),
            "peak_memory_gib": peak_memory_bytes(device) / 2**30,
            "device": describe_device(device),
            "versions": versions(),
        }
        write_json(run.place / "result.json", {**run.made_with, **accuracies(metrics), **used, "metrics": metrics})
        (run.place / CHECKPOINT).unlink(missing_ok=True)
    team.wait()
    if team.leads:
        summaries = {folder: summarise(folder) for folder in folders}
        if len(folders) > 1:
            print_table({(cell.model, cell.ipc): summaries[results_folder(cell)] for cell in cells})


def results_folder(settings: Namespace) -> Path:
    """Where the seeds of an IPC and student have their folders."""
    return settings.output_dir / settings.dataset_name / settings.exp_name


def runs_of(settings: Namespace, images: Tensor, digest: str, ipc: int, store: LabelStore) -> list[Run]:
    """A run for each seed of an IPC and student, if images and labels are what its settings say.

    images, ipc: as of read_distilled; digest: the images' sha256. UserError where the two do not fit the settings.
    """
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {settings.original_data_path} has {ipc} images a class")
    settings.ipc = ipc
    flags.fill_rates(settings, ipc)
    print_settings("validate", settings)
    check_store(store, what_labels_must_have(settings, digest))
    made_with, folder = what_shapes_result(settings, ipc, digest, store), results_folder(settings)
    return [
        Run(settings, seed, images, store, folder / f"seed{seed}", {**made_with, "seed": seed})
        for seed in settings.seed
    ]


def what_labels_must_have(settings: Namespace, images_sha256: str) -> dict[str, object]:
    """What the label store has to agree with, by the names of its manifest."""
    expected = {
        "dataset": settings.dataset_name,
        "images_sha256": images_sha256,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "min_scale": settings.min_scale,
    }
    return expected if settings.mix_type is None else {**expected, "mix": settings.mix_type}


def what_shapes_result(settings: Namespace, ipc: int, images_sha256: str, store: LabelStore) -> dict[str, object]:
    """What a result file says of how it came about: everything the student's accuracy depends on but the seed."""
    elsewhere = {
        *("dataset_name", "recipe", "ipc", "model", "method", "seed", "epochs"),
        *("device", "workers", "verify", "dry_run", "original_data_path", "fkd_path", "val_dir", "output_dir"),
        "exp_name",
    }
    return {
        "dataset": settings.dataset_name,
        "method": settings.method,
        "ipc": ipc,
        "student": settings.model,
        "epochs": settings.epochs,
        "settings": {name: value for name, value in sorted(vars(settings).items()) if name not in elsewhere},
        "images_sha256": images_sha256,
        "labels_sha256": store.sha256,
        "teachers": store.manifest["teachers"],
    }


if __name__ == "__main__":
    run_entry(main)
