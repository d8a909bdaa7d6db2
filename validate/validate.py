"""validate: a student trains from scratch on views and soft labels alone, and is tested on real images.

    bash validate/scripts/cifar100/validate_fadrm+.sh 10 ResNet18 --seed 0 1 2
    python -m validate.validate --dataset-name cifar100 --recipe fadrm+ --ipc 10 --model ResNet18 \\
        --original-data-path syn/mine --fkd-path labels/mine_bs16_ipc10 --val-dir val/cifar100 \\
        --output-dir results --exp-name mine

The result is the last epoch's top-1; the best seen is reported beside it, since choosing an epoch on the test set
flatters. A stopped run goes on from its last checkpoint; a seed that has its result is skipped. `--ipc`, `--model`
and `--draw` may name several, which have a folder each: paths have {ipc} or {draw} where the number goes. Several
processes (torchrun) share IPCs, students, draws and seeds out.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

from models.registry import check_network, training_bytes
from models.testing import LabelledImages
from utils import recipes
from utils.data.digests import digest_of_folder
from utils.data.distilled import read_distilled, read_weights
from utils.data.embedded import ensure_embedded
from utils.data.images import images_digest, list_images, load_test_images_once
from utils.data.table import Dataset
from utils.fkd.store import LabelStore, check_store, open_store
from utils.recipes.settings import OF_WHOLE_IMAGES, ValidateSettings, loss_reads
from utils.run.device import choose_device, describe_device, peak_memory_bytes, reset_peak_memory, versions
from utils.run.errors import UserError, run_entry
from utils.run.files import only_one, remove, sweep, write_json
from utils.run.records import check_record
from utils.run.settings import identity_of, show
from utils.run.space import Output, print_dry_run, require_space
from utils.run.team import Team, teamwork
from utils.run.training_state import load_training
from validate.report import RECORD_VERSION, accuracies, print_students, results_folder, summarise
from validate.training import CHECKPOINT, Run, train_student


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        validate(parse_cells(argv), team)


def validate(cells: Sequence[ValidateSettings], team: Team) -> None:
    """cells: the settings of each IPC and student, which differ in these and what follows from them."""
    settings, dataset = cells[0], cells[0].dataset
    device = choose_device(settings.device, team.local_rank)
    for cell in cells:
        check_network(cell.model, dataset)
    if not settings.dry_run:
        ensure_embedded(dataset, val=settings.val_dir)
    test_images = digest_of_folder(settings.val_dir, dataset, keep=not settings.dry_run)
    runs: list[Run] = []
    for (images_path, labels_path), same in groupby(cells, key=attrgetter("original_data_path", "fkd_path")):
        distilled = read_distilled(images_path, dataset, team.workers)
        store = open_store(labels_path, verify=settings.verify)
        for cell in same:
            runs += runs_of(settled(cell, distilled[2]), distilled, store, test_images)
    folders = list(dict.fromkeys(run.place.parent for run in runs))
    pending = [run for run in runs if not run.is_done]
    team.wait()  # until all have looked
    output = output_of(pending, dataset, team)
    require_space(folders[0], output)
    if settings.dry_run:
        views = sum(epochs_left(run) * len(run.images) for run in pending)
        print_dry_run("validate", {"students": len(pending), "views": views}, folders[0].parent, output)
        return
    for run in team.share([run for run in runs if run.is_done]):
        remove(run.place / CHECKPOINT)  # of a run that was killed just then
    if pending:
        paths, test_labels = list_images(settings.val_dir, dataset)
        test_set = LabelledImages(load_test_images_once(paths, dataset, settings.workers, team), test_labels)
    for run in team.share(pending):
        make_result(run, test_set, dataset, device, quiet=not team.is_main)
    team.wait()
    if team.is_main:
        summaries = {folder: summarise(folder) for folder in folders}
        for folder in folders:
            sweep(folder)
        if len(folders) > 1:
            rows = [(name_of(cell), cell.ipc) for cell in cells]
            print_students({row: summaries[results_folder(cell)] for row, cell in zip(rows, cells, strict=True)})


def make_result(run: Run, test_set: LabelledImages, dataset: Dataset, device: torch.device, quiet: bool) -> None:
    """Train the student of a run and write `result.json` at its place. quiet: no progress bar."""
    started = time.monotonic()
    with only_one(run.place, f"the student {run.settings.model} with seed {run.seed} is being trained"):
        reset_peak_memory(device)
        metrics, was_compiled = train_student(run, test_set, dataset, device, quiet)
        used = {
            "seconds": round(sum(line["seconds"] for line in metrics), 2),
            "seconds_this_run": round(time.monotonic() - started, 2),
            "peak_memory_gib": peak_memory_bytes(device) / 2**30,
            "device": describe_device(device),
            "compiled": was_compiled,
            "versions": versions(),
        }
        write_json(run.place / "result.json", {**run.made_with, **accuracies(metrics), **used, "metrics": metrics})
        remove(run.place / CHECKPOINT)


def name_of(cell: ValidateSettings) -> str:
    """What tells a run from others of one command: student, protocol, draw."""
    return f"{cell.model}{recipes.protocol_suffix(cell.labels)}{recipes.draw_suffix(cell.draw)}"


def parse_cells(argv: Sequence[str] | None) -> list[ValidateSettings]:
    """Settings of a validate run for each draw, IPC and student that --draw, --ipc and --model name.

    A recipe gives each its own. Several have a folder of results each: where --exp-name gives several the same, IPC,
    student and draw are put behind it. UserError for one that is named twice, and for several IPCs or draws whose
    images or labels would be the same.
    """
    cells = recipes.parse_each("validate", argv, "--draw", "--labels --protocol", "--ipc", "--model")
    if len({cell.exp_name for cell in cells}) < len(cells):
        behind = [
            ("" if cell.ipc is None else f"_ipc{cell.ipc}") + f"_{recipes.file_name(name_of(cell))}" for cell in cells
        ]
        cells = [replace(cell, exp_name=cell.exp_name + name) for cell, name in zip(cells, behind, strict=True)]
    for name, flag in (("original_data_path", "--original-data-path"), ("fkd_path", "--fkd-path")):
        places = {(cell.ipc, cell.draw): getattr(cell, name) for cell in cells}
        if len(set(places.values())) < len(places):
            missing = "{ipc}" if len({ipc for ipc, _ in places}) > 1 else "{draw}"
            raise UserError(f"{flag} {getattr(cells[0], name)}: for several it needs {missing} in its place")
    return cells


def output_of(pending: Sequence[Run], dataset: Dataset, team: Team) -> Output:
    """What the students that are to be trained write: records, metrics, results, and a checkpoint beside the next one
    for as many as are trained at a time."""
    size = sum(1024 * run.settings.epochs + 2**15 for run in pending)
    largest = sorted((training_bytes(run.settings.model, dataset) for run in pending), reverse=True)
    return Output(3 * len(pending), size + 2 * sum(largest[: team.count]))


def epochs_left(run: Run) -> int:
    """The epochs that a student has before it, from its last checkpoint on."""
    state = load_training(run.place / CHECKPOINT, run.made_with)
    return run.settings.epochs - (len(state["metrics"]) if state else 0)


def settled(settings: ValidateSettings, ipc: int) -> ValidateSettings:
    """The settings for images that are so many a class, with the learning rates of these; printed. UserError where the
    settings say another IPC."""
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {settings.original_data_path} has {ipc} images a class")
    settings = with_rates(replace(settings, ipc=ipc))
    show("validate", settings)
    return settings


def runs_of(
    settings: ValidateSettings, distilled: tuple[Tensor, Tensor, int], store: LabelStore, test_images: str
) -> Iterator[Run]:
    """A run for each seed of an IPC and student, if the labels are what its settings say.

    settings: as of `settled`; distilled: as of read_distilled; test_images: digest of the real ones. UserError where
    labels or weights of the images do not fit, or the folder has results of other settings.
    """
    images, classes, ipc = distilled
    digest = images_digest(images, classes)
    check_store(store, what_labels_must_have(settings, digest))
    require_loss_for(settings, store)
    made_with = {
        "record_version": RECORD_VERSION,
        "dataset": settings.dataset_name,
        "method": settings.method,
        "ipc": ipc,
        "student": settings.model,
        "settings": {name: value for name, value in identity_of(settings).items() if name != "epochs"},
        "epochs": settings.epochs,
        "images_sha256": digest,
        "labels_sha256": store.sha256,
        "test_images_sha256": test_images,
        "teachers": store.manifest["teachers"],
    }
    weights = None
    if settings.image_weights:
        weights, made_with["image_weights_sha256"] = read_weights(settings.original_data_path, digest, len(images))
    folder = results_folder(settings)
    for other in sorted(folder.glob("seed*/settings.json")):
        check_record(other, made_with, "results", ignore=("seed",))
    for seed in settings.seed:
        yield Run(settings, seed, images, classes, store, folder / f"seed{seed}", {**made_with, "seed": seed}, weights)


def require_loss_for(settings: ValidateSettings, store: LabelStore) -> None:
    """UserError where the loss reads logits that the store does not have."""
    if not store.codec.is_whole and loss_reads(settings.loss) == "logits":
        raise UserError(
            f"--loss {settings.loss} reads all logits, and {store.folder} has the largest alone: take another, or "
            f"labels of --codec dense"
        )


def with_rates(settings: ValidateSettings) -> ValidateSettings:
    """The settings with the learning rate and eta that were not given: those of dataset, method, student and IPC."""
    if settings.optimizer == "sgd":
        return replace(settings, eta=1.0 if settings.eta is None else settings.eta)
    rate, eta, is_default = recipes.student_rate(settings.dataset, settings.recipe, settings.model, settings.ipc)
    if is_default and settings.labels == "views" and settings.adamw_lr in (None, rate) and settings.eta in (None, eta):
        print(
            f"note: no rate is published for {settings.model} on {settings.dataset_name} at IPC {settings.ipc}: "
            f"taking the default, lr {rate} and eta {eta}",
            flush=True,
        )
    return replace(
        settings,
        adamw_lr=rate if settings.adamw_lr is None else settings.adamw_lr,
        eta=eta if settings.eta is None else settings.eta,
    )


def what_labels_must_have(settings: ValidateSettings, images_sha256: str) -> dict[str, object]:
    """What the label store has to agree with, by the names of its manifest."""
    expected = {
        "dataset": settings.dataset_name,
        "images_sha256": images_sha256,
        "size": settings.dataset.size,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs_needed,
        "min_scale": settings.min_scale,
    }
    expected["labels"] = "fixed" if settings.labels in OF_WHOLE_IMAGES else "views"
    return expected if settings.mix is None else {**expected, "mix": settings.mix}


if __name__ == "__main__":
    run_entry(main)
