"""What came out of one cell: a table on the terminal, and the same as JSON and as a curve."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import read_json, write_json
from utils.pictures import accuracy_curves
from utils.recipes import WHOLE_DATA_TOP1, file_name, recipe_of

if TYPE_CHECKING:
    from utils.pipeline import Cell

WIDTH = 78


def report_cell(cell: "Cell", folders: Mapping[str, Path], steps: Sequence[tuple[str, dict]]) -> None:
    """Print and write the teachers' accuracy, the student's beside the random baseline's, and what each step cost."""
    distilled, random = (
        [read_json(folders[name] / f"seed{seed}" / "result.json") for seed in cell.seeds]
        for name in ("results", "random_results")
    )
    teachers = teacher_accuracies(cell, folders["teachers"])
    name = f"{cell.dataset}_{cell.method}_ipc{cell.ipc}_{file_name(cell.student)}"
    curves = {cell.method: mean_curve(distilled), "random real images": mean_curve(random)}
    title = f"{cell.student} on {cell.dataset}, IPC {cell.ipc}"
    if len(cell.seeds) > 1:
        title += f" (mean of {len(cell.seeds)} seeds)"
    curve = accuracy_curves(folders["reports"] / f"{name}.png", curves, title)
    rows = {cell.method: distilled, "random real images": random}
    report = folders["reports"] / f"{name}.json"
    accuracy = {row: {key: spread(results, key) for key in ("top1", "best_top1")} for row, results in rows.items()}
    content = {
        "cell": cell._asdict(),
        "teachers": teachers,
        "accuracy": accuracy,
        "steps": {step: {key: used[key] for key in ("seconds", "peak_memory_gib")} for step, used in steps},
    }
    write_json(report, content)

    print(f"\n{cell.dataset}, {cell.method}, {cell.ipc} images per class, student {cell.student}\n{'-' * WIDTH}")
    for teacher, top1 in teachers.items():
        known = "no record" if top1 is None else f"{top1:.2f} % top-1"
        print(f"{'teacher ' + teacher:<50}{known:>28}")
    if cell.dataset in WHOLE_DATA_TOP1:
        print(f"{'ResNet18 on the whole dataset (paper)':<50}{f'{WHOLE_DATA_TOP1[cell.dataset]:.2f} % top-1':>28}")
    seeds = f"mean and spread of {len(cell.seeds)} seeds" if len(cell.seeds) > 1 else f"seed {cell.seeds[0]}"
    print(f"\n{'student, % top-1 (' + seeds + ')':<50}{'last':>14}{'best':>14}")
    for row, values in accuracy.items():
        print(f"{row:<50}" + "".join(f"{shown(value):>14}" for value in values.values()))
    print(f"\n{'step':<50}{'seconds':>14}{'peak memory':>14}")
    for step, used in steps:
        print(f"{step:<50}{used['seconds']:>14.1f}{used['peak_memory_gib']:>10.2f} GiB")
    print(f"{'all steps':<50}{sum(used['seconds'] for _, used in steps):>14.1f}")
    print(f"{'-' * WIDTH}\ndistilled images beside their patches: {folders['distilled'] / 'contact_sheet.png'}")
    print(f"accuracy over the epochs: {curve}\nthis report: {report}", flush=True)


def teacher_accuracies(cell: "Cell", pool: Path) -> dict[str, float | None]:
    """Top-1 of each teacher on the validation images, as recorded beside its checkpoint."""
    recipe = recipe_of(cell.dataset, cell.method, cell.ipc)
    records = {teacher: pool / f"{teacher}.json" for teacher in recipe.teachers}
    return {teacher: read_json(path)["top1"] if path.exists() else None for teacher, path in records.items()}


def spread(results: Sequence[dict], key: str) -> dict[str, float | None]:
    """Mean and standard deviation over the seeds; no deviation for one."""
    values = [result[key] for result in results]
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def shown(value: Mapping[str, float | None]) -> str:
    return f"{value['mean']:.2f}" if value["std"] is None else f"{value['mean']:.2f} ± {value['std']:.2f}"


def mean_curve(results: Sequence[dict]) -> list[tuple[int, float]]:
    """Top-1 over the epochs that were tested, the mean of the seeds."""
    lines = zip(*([m for m in result["metrics"] if "top1" in m] for result in results), strict=True)
    return [(seeds[0]["epoch"] + 1, statistics.fmean(seed["top1"] for seed in seeds)) for seeds in lines]
