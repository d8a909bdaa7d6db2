"""What came out: one student's accuracies, all seeds of a run, and one cell of the table beside the random baseline.

python -m validate.report cifar100 fadrm+ 10 ResNet18
python -m validate.report --methods cifar100                  # all methods in one table
python -m validate.report --ranking cifar100 10 ResNet18      # DD-Ranking's scores of all methods
python -m validate.report --table 2 cifar100                  # a table of the paper, published beside measured
python -m validate.report --bytes cifar100 fadrm+ 10          # what its label stores weigh, and give
python -m validate.report --page                              # everything that was run, on one HTML page
"""

import glob
import importlib
import itertools
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from models.registry import check_network
from models.teachers import read_record
from utils import recipes
from utils.data.table import get_dataset
from utils.fkd.store import store_folder
from utils.recipes.settings import OF_WHOLE_IMAGES, PROTOCOLS, ValidateSettings, loss_reads
from utils.recipes.teachers import WHOLE_DATA_TOP1
from utils.run.device import choose_device
from utils.run.errors import UserError, run_entry
from utils.run.files import read_json, write_json
from utils.run.pictures import accuracy_curves
from utils.run.precision import amp_type
from utils.run.records import Shape, check_shape, differences
from utils.run.settings import check
from utils.run.spread import shown, spread_of
from utils.seams import CODECS, SELECTORS

WIDTH = 78
COLUMNS = (("top1", 8), ("top5", 8), ("best_top1", 11))
RESULT: Shape = {
    **dict.fromkeys(("dataset", "student", "method"), str),
    **dict.fromkeys(("ipc", "seed", "best_epoch"), int),
    **dict.fromkeys(("top1", "top5", "best_top1", "seconds", "peak_memory_gib"), float),
    "metrics": [{"epoch": int}],
}

RECORD_VERSION = 2  # of results: raise it where the same settings begin to give others
TESTED = ("top1", "top5")  # what a line of metrics has where the student was tested
ONE_RUN = ("dataset", "method", "ipc", "student", "settings", "epochs", "test_images_sha256", "teachers")
ONE_DRAW = ("images_sha256", "labels_sha256")  # what the seeds of a draw have in common besides
REPORT: Shape = {"seconds": float, "peak_memory_gib": float}
USAGE = (
    "usage: python -m validate.report DATASET METHOD IPC [STUDENT], or --methods DATASET [IPC [STUDENT]], or --ranking "
    "DATASET IPC [STUDENT], or --table N DATASET, or --bytes DATASET METHOD IPC [STUDENT], or --page [DATASET ...]"
)
# What is made of what is here: the function and how many words it takes, by its flag.
TABLES = {
    "--methods": ("validate.tables", "report_methods", (1, 2, 3)),
    "--ranking": ("validate.ranking", "report_ranking", (2, 3)),
    "--table": ("validate.tables", "report_published", (2,)),
    "--bytes": ("validate.storage", "report_bytes", (3, 4)),
    "--page": ("validate.page", "report_page", range(1000)),
}


def accuracies(metrics: list[dict]) -> dict[str, float | int]:
    """The last epoch's accuracy, and the best seen with its epoch."""
    tested = [line for line in metrics if "top1" in line]
    best = max(tested, key=lambda line: line["top1"])
    last = tested[-1]
    return {"top1": last["top1"], "top5": last["top5"], "best_top1": best["top1"], "best_epoch": best["epoch"]}


def read_results(folder: Path) -> list[dict]:
    """The results of all seeds that a folder has, by seed; UserError for one that is damaged."""
    results = []
    for path in folder.glob("seed*/result.json"):
        result = read_json(path)
        check_shape(path, result, RESULT, "remove it and run validate again")
        if result.get("record_version", RECORD_VERSION) != RECORD_VERSION:
            raise UserError(f"{path} is of another version of this project: remove it and run validate again")
        for line in result["metrics"]:
            tested = {name: float for name in TESTED if name in line}
            check_shape(path, line, tested, "remove it and run validate again")
        if not curve_of(result):
            raise UserError(f"{path} has no epoch that was tested: remove it and run validate again")
        results.append(result)
    return sorted(results, key=lambda result: result["seed"])


def results_folder(settings: ValidateSettings) -> Path:
    """Where the seeds of an IPC and student have their folders."""
    return settings.output_dir / settings.dataset_name / settings.exp_name


def reports_folder(settings: ValidateSettings) -> Path:
    """Where reports and tables go: beside the results of all datasets."""
    return settings.output_dir.parent / "reports"


def holds(path: Path, content: object) -> bool:
    """Whether a JSON file is there with this content, so that it need not be written, also not on a read-only disk."""
    return path.exists() and read_json(path) == content


def draws_of(folder: Path) -> dict[int, Path]:
    """The folders of results of all draws that there are: that of draw 0, and those beside it that end in _draw<K>."""
    found = {0: folder} if folder.exists() else {}
    for path in folder.parent.glob(f"{glob.escape(folder.name)}_draw*"):
        number = path.name.removeprefix(f"{folder.name}_draw")
        if number.isdecimal():
            found[int(number)] = path
    return dict(sorted(found.items()))


def read_repeats(folder: Path) -> list[dict]:
    """The results of all draws and seeds of a run; UserError where they differ in more than images and labels, or the
    seeds of one draw in these."""
    repeats = [{**result, "draw": draw} for draw, path in draws_of(folder).items() for result in read_results(path)]
    firsts = {result["draw"]: result for result in reversed(repeats)}
    for result in repeats:
        first, other = ({key: its.get(key) for key in ONE_DRAW} for its in (firsts[result["draw"]], result))
        if first != other:
            raise UserError(
                f"{draws_of(folder)[result['draw']]}/seed{result['seed']} has results of other images or labels than "
                f"the other seeds there ({differences(first, other)}): remove those that are not of the images there"
            )
        first, other = (
            {**{key: its.get(key) for key in ONE_RUN}, "tested": [epoch for epoch, _ in curve_of(its)]}
            for its in (repeats[0], result)
        )
        if first != other:
            raise UserError(
                f"{folder}_draw{result['draw']} has results of other settings than draw {repeats[0]['draw']} "
                f"({differences(first, other)}): they are not repeats of one run; remove one of the two"
            )
    return repeats


def summarise(folder: Path) -> dict:
    """Print the table of all seeds there are, with mean and spread; write it and the curves beside the results.

    Returns what it wrote: the seeds, and mean and standard deviation (None for one seed) of each accuracy.
    """
    results = read_results(folder)
    seeds = [result["seed"] for result in results]
    print(f"\n{folder}\n{'seed':>8} {'top-1':>8} {'top-5':>8} {'best top-1':>11} {'at epoch':>9}")
    for result in results:
        print(
            f"{result['seed']:>8} {result['top1']:>8.2f} {result['top5']:>8.2f} {result['best_top1']:>11.2f} "
            f"{result['best_epoch']:>9}"
        )
    summary = {"seeds": seeds, **{name: spread(results, name) for name, _ in COLUMNS}}
    if len(seeds) > 1:
        print(f"{'mean':>8}" + "".join(f" {summary[n]['mean']:>{w}.2f}" for n, w in COLUMNS))
        print(f"{'std':>8}" + "".join(f" {summary[n]['std']:>{w}.2f}" for n, w in COLUMNS))
    path, curve = folder / "summary.json", folder / "curve.png"
    if not (holds(path, summary) and curve.exists()):
        write_json(path, summary)
        _draw_curves(curve, results)
    print(f"  curve: {curve}", flush=True)
    return summary


def _draw_curves(path: Path, results: Sequence[dict]) -> None:
    """A picture of top-1 over the epochs, a line for each seed."""
    curves = {f"seed {result['seed']}": curve_of(result) for result in results}
    title = f"{results[0]['student']} on {results[0]['dataset']}, {results[0]['method']}, IPC {results[0]['ipc']}"
    accuracy_curves(path, curves, title)


def curve_of(result: dict) -> list[tuple[int, float]]:
    """Top-1 over the epochs that were tested."""
    return [(line["epoch"] + 1, line["top1"]) for line in result["metrics"] if "top1" in line]


def print_students(summaries: Mapping[tuple[str, int], dict]) -> None:
    """Print the top-1 of all students (rows) at all IPCs (columns), by (student, IPC)."""
    students, ipcs = (list(dict.fromkeys(names)) for names in zip(*summaries, strict=True))
    print(f"\n{'top-1 %':<28}" + "".join(f"{f'IPC {ipc}':>16}" for ipc in ipcs))
    for student in students:
        print(f"{student:<28}" + "".join(f"{shown(summaries[student, ipc]['top1']):>16}" for ipc in ipcs), flush=True)


def spread(results: Sequence[dict], key: str) -> dict[str, float | None]:
    """Mean and standard deviation over seeds and draws; no deviation for one result."""
    return spread_of([result[key] for result in results])


def mean_curve(results: Sequence[dict]) -> list[tuple[int, float]]:
    """Top-1 over the epochs that were tested, the mean of seeds and draws."""
    points = zip(*map(curve_of, results), strict=True)
    return [(repeats[0][0], statistics.fmean(top1 for _, top1 in repeats)) for repeats in points]


class Cell(NamedTuple):
    """One cell of the table, the folders of its rows' results, and where each of its steps left its reports."""

    validate: ValidateSettings
    rows: Mapping[str, Path]
    teachers: Sequence[str]
    pool: Path
    reports: Mapping[str, Sequence[Path]]


def stage_of_cell(stage: str, dataset_name: str, method: str, ipc: str, **others: str | int | None) -> Any:
    """The settings of a cell's stage as its recipe has them, in the folders of config.sh. UserError for an unknown
    name, and an IPC that is no number."""
    if not ipc.isdecimal():
        raise UserError(f"IPC {ipc!r} is no number")
    return recipes.in_places(stage, get_dataset(dataset_name), method, int(ipc), os.environ, **others)


def run_command(dataset: str, method: str, ipc: int | str, student: str, *flags: str) -> str:
    """What makes a cell."""
    return " ".join(["bash run.sh", dataset, method, str(ipc), student, *flags])


def cell_of(dataset_name: str, method: str, ipc: str, student: str | None = None) -> Cell:
    """The cell as its recipe has it, in the folders of config.sh. UserError for an unknown name."""
    stage = partial(stage_of_cell, dataset_name=dataset_name, method=method, ipc=ipc)
    validate, recover, patches = stage("validate", student=student), stage("recover"), stage("patches")
    reports = {"teachers": [recover.model_pool_dir]}
    if recover.uses_patches:
        reports["patches"] = [patches.patch_dir / patches.selector]
    rows = {}
    protocols = [name for name in PROTOCOLS if name != "own" or recipes.own_protocol_of(method)]
    for images, labels in itertools.product((None, *SELECTORS), protocols):
        its = stage("validate", student=student, images=images, labels=labels)
        folder = results_folder(its)
        draws = list(draws_of(folder))
        if not draws and (images not in (None, "random") or labels != "views"):
            continue
        under = "" if labels == "views" else f", {labels}"
        rows[(f"{images} real images" if images else method) + under] = folder
        made = [stage("relabel", draw=draw, images=images, labels=labels) for draw in draws or [0]]
        reports.setdefault(f"{images} images" if images else "recover", []).extend(its.syn_data_path for its in made)
        step = f"{images} images: relabel" if images else "relabel"
        step += ", fixed" if labels in OF_WHOLE_IMAGES else under  # as stores are called
        reports.setdefault(step, []).extend(store_folder(its.fkd_path, its.batch_size, int(ipc)) for its in made)
    reports = {step: [folder / "report.json" for folder in dict.fromkeys(its)] for step, its in reports.items()}
    return Cell(validate, rows, stage("relabel").teachers, recover.model_pool_dir, reports)


def report_cell(cell: Cell) -> Path:
    """Print and write the teachers' accuracy, the student's beside the random baseline's, and what each step cost.

    Returns the file that it wrote. UserError where there are no results.
    """
    settings = cell.validate
    results = {row: found for row, folder in cell.rows.items() if (found := read_repeats(folder))}
    if not results:
        raise UserError(f"{cell.rows[settings.recipe]} has no results: run validate first")
    name = recipes.file_name(f"{settings.dataset_name}_{settings.recipe}_ipc{settings.ipc}_{settings.model}")
    path, curve = (reports_folder(settings) / f"{name}.{ending}" for ending in ("json", "png"))
    records = {name: read_record(cell.pool, name) for name in cell.teachers}
    content = {
        "dataset": settings.dataset_name,
        "method": settings.recipe,
        "ipc": settings.ipc,
        "student": settings.model,
        "teachers": {teacher: record and record["top1"] for teacher, record in records.items()},
        "whole set": whole_set_of(cell.pool, settings.model),
        "accuracy": {row: {key: spread(found, key) for key in ("top1", "best_top1")} for row, found in results.items()},
        **{
            f"{kind}s": {row: [result[kind] for result in found] for row, found in results.items()}
            for kind in ("seed", "draw")
        },
        "steps": costs_of(cell, results),
    }
    print_cell(content)
    if not (holds(path, content) and curve.exists()):
        title = f"{settings.model} on {settings.dataset_name}, IPC {settings.ipc}"
        accuracy_curves(curve, {row: mean_curve(found) for row, found in results.items()}, title)
        write_json(path, content)
    print(f"accuracy over the epochs: {curve}\nthis report: {path}", flush=True)
    return path


def whole_set_of(pool: Path, student: str) -> dict[str, float]:
    """The top-1 of this network by the epochs that it learned from all training images, where it is among the teachers
    for so many (`models.pretrain --like-ipc`)."""
    names = [path.stem for path in sorted(pool.glob(f"{glob.escape(recipes.file_name(student))}@*.json"))]
    by_epochs = {epochs: name for name in names if (epochs := name.rpartition("@")[2]).isdecimal()}  # to their end
    return {epochs: record["top1"] for epochs, name in by_epochs.items() if (record := read_record(pool, name))}


def costs_of(cell: Cell, results: Mapping[str, Sequence[dict]]) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of every step that left them."""
    found = {}
    for step, paths in cell.reports.items():
        for path in filter(Path.exists, paths):
            report = read_json(path)
            check_shape(path, report, REPORT, "remove it; the step writes it again")
            found.setdefault(step, []).append(report)
    found |= {f"{row}: validate": its for row, its in results.items()}
    return {
        step: {
            "seconds": sum(report["seconds"] for report in reports),
            "peak_memory_gib": max(report["peak_memory_gib"] for report in reports),
        }
        for step, reports in found.items()
    }


def print_cell(content: Mapping) -> None:
    """Print what `report_cell` wrote."""
    dataset, method, ipc, student = (content[key] for key in ("dataset", "method", "ipc", "student"))
    print(f"\n{dataset}, {method}, {ipc} images per class, student {student}\n{'-' * WIDTH}")
    for teacher, top1 in content["teachers"].items():
        known = "no record" if top1 is None else f"{top1:.2f} % top-1"
        print(f"{'teacher ' + teacher:<50}{known:>28}")
    if dataset in WHOLE_DATA_TOP1:
        print(f"{'ResNet18 on the whole dataset (paper)':<50}{f'{WHOLE_DATA_TOP1[dataset]:.2f} % top-1':>28}")
    for epochs, top1 in content["whole set"].items():
        row = f"{student}, whole set, {epochs} epochs, hard"
        print(f"{row:<50}{f'{top1:.2f} % top-1':>28}")
    print(f"\n{'student, % top-1 (mean and spread of so many)':<50}{'last':>14}{'best':>14}")
    for row, values in content["accuracy"].items():
        name = f"{row} ({len(content['seeds'][row])})"
        print(f"{name:<50}" + "".join(f"{shown(value):>14}" for value in values.values()))
    print(f"\n{'step':<50}{'seconds':>14}{'peak memory':>14}")
    for step, used in content["steps"].items():
        print(f"{step:<50}{used['seconds']:>14.1f}{used['peak_memory_gib']:>10.2f} GiB")
    print(f"{'all steps':<50}{sum(used['seconds'] for used in content['steps'].values()):>14.1f}")
    print("-" * WIDTH)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--check"]:
        check_cell(arguments[1:])
        return
    if arguments and arguments[0] in TABLES:
        module, function, counts = TABLES[arguments[0]]
        if len(arguments) - 1 not in counts:
            raise UserError(USAGE)
        getattr(importlib.import_module(module), function)(*arguments[1:])
        return
    if len(arguments) not in (3, 4) or arguments[0].startswith("-"):
        raise UserError(USAGE)
    report_cell(cell_of(*arguments))


def check_cell(words: Sequence[str]) -> None:
    """UserError for what is wrong with a cell and can be told before anything is made. words: DATASET METHOD IPC, maybe
    STUDENT, then flags of validate."""
    named, flags = words_and_flags(words, USAGE)
    validate = stage_of_cell("validate", *named[:3], student=named[3] if len(named) == 4 else None)
    recipe = recipes.recipe_of(validate.dataset, validate.recipe, validate.ipc)
    for flag in ("--dataset-name", "--recipe", "--ipc", "--model"):
        if any(word == flag or word.startswith(f"{flag}=") for word in flags):
            raise UserError(f"{flag}: run.sh gives it; name DATASET METHOD IPC STUDENT in front, or call the stages")
    for stage in ("patches", "recover", "relabel"):  # what a variant gives them is known with this
        made = stage_of_cell(stage, *named[:3])
        check(made)
        made.resolved()
    for settings in recipes.parse_each("validate", [*flags_of_cell(*named), *flags], "--draw", "--labels --protocol"):
        require_labels_for(settings)
        amp_type(settings.amp, choose_device(settings.device), auto_on_cuda="off")
    for name in (validate.model, *recipe.recover.teachers, *recipe.relabel.teachers, recipe.patches.observer):
        check_network(name, validate.dataset)


def words_and_flags(words: Sequence[str], usage: str) -> tuple[Sequence[str], Sequence[str]]:
    """DATASET METHOD IPC, maybe STUDENT, and the flags behind them; UserError with the usage where they are others."""
    count = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if count not in (3, 4):
        raise UserError(usage)
    return words[:count], words[count:]


def flags_of_cell(dataset: str, method: str, ipc: str, student: str | None = None) -> list[str]:
    """The flags of validate that say the same as these words."""
    named = ["--dataset-name", dataset, "--recipe", method, "--ipc", ipc]
    return named if student is None else [*named, "--model", student]


def require_labels_for(settings: ValidateSettings) -> None:
    """UserError where a student asks for other labels than the relabel of its recipe makes."""
    made = recipes.stage_of("relabel", settings.dataset, settings.recipe, settings.ipc, labels=settings.labels)
    if settings.epochs_needed > made.epochs_kept:
        raise UserError(
            f"--epochs {settings.epochs}: this cell's labels have {made.epochs_kept}, and a student no more; name "
            f"fewer, or another --replay"
        )
    if not CODECS[made.codec].is_whole and loss_reads(settings.loss) == "logits":
        raise UserError(f"--loss {settings.loss} reads all logits: of this cell's labels {made.codec} leaves some out")
    for name in ("batch_size", "min_scale", "mix"):
        wanted, its = getattr(settings, name), getattr(made, name)
        if wanted not in (None, its):
            raise UserError(f"--{name.replace('_', '-')} {wanted}: this cell's labels are made with {its}")


if __name__ == "__main__":
    run_entry(main)
