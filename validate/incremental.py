"""incremental: classes come in steps; at each a student learns from the distilled images of all classes so far.

    python -m validate.incremental tiny_imagenet fadrm 50 ResNet18 --steps 5 10 --seed 0 1 2
    python -m validate.incremental tiny_imagenet rded 50 ResNet18 --seed 0 1 2                     # a second row
    python -m validate.incremental tiny_imagenet fadrm 50 ResNet18 --seed 0 1 2 --images random    # and a third

Figure 6 of the paper compares FADRM with RDED so, and prints neither a setting nor a number: this is our reading of it,
by the protocol of the field (Zhao and Bilen 2021, SRe2L). The classes are split into equal steps, in an order that is
drawn by the seed. At each step a student trains from scratch, under the recipe's protocol, on the images of all classes
so far, and is tested on the validation images of these. It has no outputs but for these classes; views mix images of
these alone, and the recipe's teachers label them, whose other logits are left out.

A step is known by its seed and its number of classes: where 5 steps and 10 are asked for, every second of the 10 is one
of the 5. The last has all classes, and is what validate makes: labels and results of both are in the same place. Flags
are those of validate; what is made is not made again. Several processes (torchrun) share labels and students out.
"""

import itertools
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import escape
from typing import NamedTuple

import torch
from torch import Tensor

from models.registry import check_network, training_bytes
from models.testing import LabelledImages
from relabel.relabel import label, packing_of, view_settings
from utils import recipes
from utils.data.digests import digest_of_folder
from utils.data.distilled import read_distilled
from utils.data.embedded import ensure_embedded
from utils.data.images import list_images, load_test_images_once
from utils.data.table import Dataset
from utils.fkd.store import MANIFEST, epochs_output, open_store
from utils.recipes.settings import RelabelSettings, ValidateSettings
from utils.run.device import choose_device
from utils.run.errors import UserError, run_entry
from utils.run.pictures import accuracy_curves
from utils.run.randomness import generator_for
from utils.run.settings import Parser
from utils.run.space import Output, print_dry_run, require_space
from utils.run.team import Team, teamwork
from validate.report import (
    flags_of_cell,
    holds,
    read_results,
    reports_folder,
    require_labels_for,
    results_folder,
    run_command,
    shown,
    spread,
    words_and_flags,
)
from validate.tables import markdown, write_table
from validate.validate import make_result, runs_of, settled

APART = "_incremental"  # what names of folders of steps end in
STEPS = (5, 10)
USAGE = (
    "usage: python -m validate.incremental DATASET METHOD IPC [STUDENT] [--steps N ...] [--seed N ...] [--images NAME] "
    "and other flags of validate"
)


class Step(NamedTuple):
    """What a student is trained for: its seed, the classes so far in ascending order, and the settings of the run."""

    seed: int
    classes: list[int]
    settings: ValidateSettings

    @property
    def is_last(self) -> bool:
        return len(self.classes) == self.settings.dataset.num_classes

    @property
    def dataset(self) -> Dataset:
        """The dataset as it is at this step."""
        return replace(self.settings.dataset, num_classes=len(self.classes))


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        incremental(*parse(sys.argv[1:] if argv is None else argv), team)


def incremental(settings: ValidateSettings, relabelling: RelabelSettings, numbers: Sequence[int], team: Team) -> None:
    """numbers: of steps."""
    dataset = settings.dataset
    device = choose_device(settings.device, team.local_rank)
    check_network(settings.model, dataset)
    require_images(settings)
    if not settings.dry_run:
        ensure_embedded(dataset, val=settings.val_dir)
    test_digest = digest_of_folder(settings.val_dir, dataset, keep=not settings.dry_run)
    images, labels, ipc = read_distilled(settings.original_data_path, dataset, team.workers)
    settings = settled(settings, ipc)
    steps = list(steps_of(settings, numbers))
    output = output_of(steps, relabelling)
    require_space(results_folder(settings), output)
    if settings.dry_run:
        left = [step for step in steps if not has_result(step)]
        views = sum(ipc * len(step.classes) * settings.epochs for step in left)
        print_dry_run("incremental", {"students": len(left), "views": views}, results_folder(settings).parent, output)
        return
    for step in stores_of(steps):
        its_images = (*of_classes(images, labels, step.classes), ipc)
        label(its_images, step.settings.fkd_path, relabelling, team, None if step.is_last else step.classes)
    is_complete = all(map(has_result, steps))
    team.wait()  # until all have looked, and all labels are there
    if not is_complete:
        paths, test_labels = list_images(settings.val_dir, dataset)
        test_images = load_test_images_once(paths, dataset, settings.workers, team)
    for step in team.share(steps):
        its_images = (*of_classes(images, labels, step.classes), ipc)
        (run,) = runs_of(step.settings, its_images, open_store(step.settings.fkd_path), test_digest)
        if not run.is_done:
            test_set = LabelledImages(*of_classes(test_images, test_labels, step.classes))
            make_result(run, test_set, step.dataset, device, quiet=not team.is_main)
    team.wait()
    if team.is_main:
        for number in numbers:
            report_steps(settings, number)


def parse(argv: Sequence[str]) -> tuple[ValidateSettings, RelabelSettings, list[int]]:
    """The settings of validate and of relabel, and the numbers of steps. UserError for words that cannot be."""
    words, flags = words_and_flags(argv, USAGE)
    finder = Parser("validate.incremental", add_help=False)
    finder.add_argument("--steps", type=int, nargs="+", default=STEPS)
    found, others = finder.parse_known_args(flags)
    settings = recipes.parse("validate", [*flags_of_cell(*words), *others])
    require_labels_for(settings)
    if settings.image_weights:
        raise UserError("--image-weights: they are of all classes together, and not for classes in steps; leave it out")
    shared = {name: getattr(settings, name) for name in ("images", "draw", "labels", "device", "verify")}
    relabelling = recipes.in_places(
        "relabel", settings.dataset, settings.recipe, settings.ipc, os.environ, **shared
    ).resolved()
    for number in found.steps:
        class_counts(settings.dataset, number)
    return settings, relabelling, list(dict.fromkeys(found.steps))


def class_order(dataset: Dataset, seed: int) -> list[int]:
    """The classes in the order in which they come."""
    return torch.randperm(dataset.num_classes, generator=generator_for(seed, "class order", dataset.name)).tolist()


def class_counts(dataset: Dataset, steps: int) -> list[int]:
    """How many classes there are at each of so many equal steps. UserError where that cannot be."""
    classes = dataset.num_classes
    if not 2 <= steps <= classes or classes % steps:
        possible = " ".join(str(number) for number in range(2, classes + 1) if classes % number == 0)
        raise UserError(f"--steps {steps}: the {classes} classes of {dataset.name} make {possible} equal steps")
    return list(range(classes // steps, classes + 1, classes // steps))


def of_classes(images: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images (N x 3 x S x S) of some classes (ascending), in their order, and their places among these classes."""
    chosen = torch.isin(labels, torch.tensor(classes))
    return images[chosen], torch.searchsorted(torch.tensor(classes), labels[chosen])


def step_name(name: str, seed: int | str, classes: int, dataset: Dataset) -> str:
    """The name of a folder of a step's results or labels: below one beside `name`, and with all classes `name`."""
    return name if classes == dataset.num_classes else f"{name}{APART}/classes{classes:04d}_order{seed}"


def steps_of(settings: ValidateSettings, numbers: Sequence[int]) -> Iterator[Step]:
    """The steps of each seed, by number of classes, each once."""
    dataset = settings.dataset
    counts = sorted({count for number in numbers for count in class_counts(dataset, number)})
    for seed, count in itertools.product(settings.seed, counts):
        its = replace(
            settings,
            seed=(seed,),
            exp_name=step_name(settings.exp_name, seed, count, dataset),
            fkd_path=settings.fkd_path.parent / step_name(settings.fkd_path.name, seed, count, dataset),
        )
        yield Step(seed, sorted(class_order(dataset, seed)[:count]), its)


def stores_of(steps: Sequence[Step]) -> list[Step]:
    """A step for each label store: with all classes, seeds share one."""
    return list({step.settings.fkd_path: step for step in steps}.values())


def require_images(settings: ValidateSettings) -> None:
    """UserError, with a command that makes them, where the images are missing."""
    name, method, ipc = settings.dataset_name, settings.recipe, settings.ipc
    command = run_command(name, method, ipc, settings.model)
    if settings.images:
        command = f"python -m recover.choose_images --dataset-name {name} --ipc {ipc} --selector {settings.images}"
        command += f" --draw {settings.draw}" if settings.draw else ""
    if not settings.original_data_path.is_dir():
        raise UserError(f"{settings.original_data_path} is missing: `{command}` makes it")


def has_result(step: Step) -> bool:
    return (results_folder(step.settings) / f"seed{step.seed}" / "result.json").exists()


def output_of(steps: Sequence[Step], relabelling: RelabelSettings) -> Output:
    """What is still to be written: label stores, and of each student as validate counts it."""
    found = [Output(0, 0)]
    for step in stores_of(steps):
        if not (step.settings.fkd_path / MANIFEST).exists():
            views = view_settings(relabelling, step.settings.ipc * len(step.classes), step.dataset)
            logits_type = "float16" if relabelling.use_fp16 else "float32"
            of_store = (views, len(step.classes), logits_type, packing_of(relabelling))
            found.append(epochs_output(views.epochs, *of_store))
    for step in steps:
        if not has_result(step):
            kept = 2 * training_bytes(step.settings.model, step.dataset)
            found.append(Output(3, 1024 * step.settings.epochs + 2**15 + kept))
    return Output(*map(sum, zip(*found, strict=True)))


def read_curves(settings: ValidateSettings, name: str, counts: Sequence[int]) -> dict[int, list[float]]:
    """Top-1 of a row of results at each number of classes, by seed: of the seeds that have all. name: of the folder of
    its results with all classes."""
    by_count = []
    for count in counts:
        folders = results_folder(settings).parent.glob(step_name(escape(name), "*", count, settings.dataset))
        results = itertools.chain.from_iterable(map(read_results, folders))
        cell = (settings.ipc, settings.model)
        by_count.append({each["seed"]: each["top1"] for each in results if (each["ipc"], each["student"]) == cell})
    whole = set.intersection(*map(set, by_count))
    return {seed: [top1[seed] for top1 in by_count] for seed in sorted(whole)}


def report_steps(settings: ValidateSettings, number: int) -> None:
    """Print and write top-1 against the number of classes: every row of dataset, IPC and student that has results at so
    many steps."""
    dataset, ipc, model = settings.dataset, settings.ipc, recipes.file_name(settings.model)
    counts, rows = class_counts(dataset, number), {}
    for folder in sorted(results_folder(settings).parent.glob(f"*{APART}")):
        name = folder.name.removesuffix(APART)
        if curves := read_curves(settings, name, counts):
            rows[name.replace(f"_ipc{ipc}_{model}", "")] = curves
    title = f"{dataset.name}, IPC {ipc}, {settings.model}, {number} steps"
    heads = [f"{title}: top-1 %", *(f"{count} classes" for count in counts), "seeds"]
    body = [
        [row, *(shown(spread(list(curves.values()), place)) for place in range(number)), len(curves)]
        for row, curves in rows.items()
    ]
    lines = markdown(heads, body)
    seeds = sorted({seed for curves in rows.values() for seed in curves})
    content = {"dataset": dataset.name, "ipc": ipc, "student": settings.model, "steps": number, "classes": counts}
    content["orders"] = {str(seed): class_order(dataset, seed) for seed in seeds}
    content["top1"] = {row: {str(seed): curve for seed, curve in curves.items()} for row, curves in rows.items()}
    content["missing"] = []
    path = reports_folder(settings) / f"{dataset.name}{APART}{number}_ipc{ipc}_{model}.json"
    picture = path.with_suffix(".png")
    if not (holds(path, content) and picture.exists()):
        means = {row: list(map(statistics.fmean, zip(*curves.values(), strict=True))) for row, curves in rows.items()}
        lines_of = {row: list(zip(counts, values, strict=True)) for row, values in means.items()}
        accuracy_curves(picture, lines_of, title, over="classes so far")
    write_table(path, lines, content, [])
    print(f"  curves: {picture}", flush=True)


if __name__ == "__main__":
    run_entry(main)
