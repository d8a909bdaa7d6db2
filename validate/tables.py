"""Tables of many cells: all methods beside real images, and the paper's beside what was measured here.

    python -m validate.report --methods cifar100 10 ResNet18
    python -m validate.report --table 6 imagenet1k

The rows of the paper's tables are variants of methods (utils/recipes/variants.py); the commands of the cells that are
missing stand below a table, one a line, and in the file beside it, which a job array can take:

    sbatch --array 1-16 --wrap 'bash -c "$(sed -n ${SLURM_ARRAY_TASK_ID}p imagenet1k_table1.missing.txt)"'
"""

import csv
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from utils import recipes
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import read_json, write_json, write_whole
from utils.run.records import Shape, check_shape
from validate.report import cell_of, holds, read_repeats, reports_folder, results_folder, shown, spread

# The paper's tables: NeurIPS 2025, and arXiv v1 where table 2 differs (there patches are of 2 x 2 crops). seconds: of
# recover, an image, on an RTX 4090; gb: its peak.
PUBLISHED = Path(recipes.__file__).with_name("published.csv")
MEASURED = {"top1": "top-1 %", "seconds": "seconds an image", "gb": "peak GB"}
DIGITS = {"top1": 1, "seconds": 2, "gb": 1}  # behind the point, as published
OF_2X2 = "its rows equal those of 2 x 2 crops a patch in table 4, so factor is 2 here."
OUR_READING = {
    "1": OF_2X2,
    "5": f"{OF_2X2} SRe2L++ and G-VBSM are as in their own files.",
    "6": OF_2X2,
    "7": f"on imagenet1k, {OF_2X2} On cifar100 IPC and epochs are not printed: IPC 10, and the epochs of table 2.",
    "9": f"{OF_2X2} How total variation gives a size: recover/optimise.py.",
    "10": "IPC and epochs are not printed: IPC 10, and the epochs of table 2.",
    "11": "IPC and epochs are not printed: IPC 10, and the epochs of table 2.",
}
ELSEWHERE = {
    "8": "; it is `python -m validate.rademacher imagenet1k fadrm 10 ResNet18 MobileNetV2 ShuffleNetV2`",
    "12": "; it is `python -m validate.measures cifar100 10 fadrm`",
}
COST: Shape = {"seconds": float, "peak_memory_gib": float, "made": int, "processes": int, "device": str}


def report_methods(dataset_name: str, ipc: str, student: str | None = None) -> Path:
    """Print and write one table: every method of a dataset and IPC, and each variant that has results, beside real
    images, and the commands of what is missing. Real images stand there once for each method whose labels they have.

    Returns the file that it wrote. UserError where nothing has results.
    """
    rows, missing, seen = [], [], set()
    for method in [*recipes.METHODS, *variants_with_results(dataset_name, ipc, student)]:
        cell = cell_of(dataset_name, method, ipc, student)
        for row, folder in cell.rows.items():
            if folder in seen:
                continue
            seen.add(folder)
            results = read_repeats(folder)
            is_real = " real images" in row
            if results:
                values = {key: spread(results, key) for key in ("top1", "best_top1")}
                name = f"{row}, labels of {method}" if is_real else row
                rows.append({"row": name, "real": is_real, "repeats": len(results), **values})
            elif row == method:
                missing.append(f"bash run.sh {dataset_name} {method} {ipc} {cell.validate.model}")
    if not rows:
        raise UserError(f"no method has results on {dataset_name} at IPC {ipc}: {missing[0]} makes some")
    rows.sort(key=lambda row: (row["real"], -row["top1"]["mean"]))
    model = cell.validate.model
    lines = [f"| {dataset_name}, IPC {ipc}, {model}: top-1 % | last | best | repeats |", "|---|---|---|---|"]
    lines += [f"| {r['row']} | {shown(r['top1'])} | {shown(r['best_top1'])} | {r['repeats']} |" for r in rows]
    path = reports_folder(cell.validate) / f"{dataset_name}_ipc{ipc}_{recipes.file_name(model)}.json"
    return write_table(path, lines, {"dataset": dataset_name, "ipc": int(ipc), "student": model, "rows": rows}, missing)


def variants_with_results(dataset_name: str, ipc: str, student: str | None) -> list[str]:
    """The variants of methods that have results of a dataset, IPC and student, by name."""
    settings = cell_of(dataset_name, next(iter(recipes.METHODS)), ipc, student).validate
    found = results_folder(settings).parent.glob(f"*_ipc{ipc}_{recipes.file_name(settings.model)}*/seed*/settings.json")
    return sorted({method for path in found if ":" in (method := str(read_json(path).get("method")))})


def report_published(number: str, dataset_name: str) -> Path:
    """Print and write a table of the paper for a dataset: published beside measured, and the commands of what is
    missing. Returns the file that it wrote. UserError for a table that there is not, or that has not the dataset."""
    with PUBLISHED.open(newline="") as file:
        published = [row for row in csv.DictReader(file) if row["table"] == number]
    if not published:
        tables = sorted({row["table"] for row in csv.DictReader(PUBLISHED.open(newline=""))}, key=int)
        raise UserError(f"table {number} is none of {' '.join(tables)}{ELSEWHERE.get(number, '')}")
    datasets = dict.fromkeys(row["dataset"] for row in published)
    if dataset_name not in datasets:
        raise UserError(f"the paper's table {number} has no {dataset_name}: it has {' '.join(datasets)}")
    rows, missing = [], []
    for row in published:
        if row["dataset"] != dataset_name:
            continue
        rows.append({**row, **{key: float(row[key]) if row[key] else None for key in MEASURED}, **measured_of(row)})
        if any(rows[-1][key] is not None and rows[-1][f"measured_{key}"] is None for key in MEASURED):
            missing.append("bash run.sh {dataset} {method} {ipc} {student} --seed 0 1 2".format(**row))
    keys = [key for key in MEASURED if any(row[key] is not None for row in rows)]
    heads = [f"table {number}, {dataset_name}", "IPC", "student"]
    heads += [head for key in keys for head in (MEASURED[key], "measured", "difference")]
    body = [[name_of(row), row["ipc"], row["student"], *chain(*(beside(row, key) for key in keys))] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *body)]
    if reading := OUR_READING.get(number):
        lines += ["", f"Our reading: {reading}"]
    path = reports_folder(row_settings("validate", row)) / f"{dataset_name}_table{number}.json"
    content = {"dataset": dataset_name, "table": int(number), "rows": rows}
    return write_table(path, lines, content, list(dict.fromkeys(missing)))


def row_settings(stage: str, row: Mapping[str, str]) -> Any:
    """The settings of a stage for a row of the published tables."""
    dataset, ipc = get_dataset(row["dataset"]), int(row["ipc"])
    return recipes.in_places(stage, dataset, row["method"], ipc, os.environ, student=row["student"])


def measured_of(row: Mapping[str, str]) -> dict[str, object]:
    """What was measured of a row: the students' accuracy, seconds and memory of recover; None for what was not."""
    results, recover = read_repeats(results_folder(row_settings("validate", row))), row_settings("recover", row)
    path, cost = recover.syn_data_path / recover.exp_name / "report.json", {}
    if path.exists():
        cost = read_json(path)
        check_shape(path, cost, COST, "remove it; recover writes it again")
    return {
        "measured_top1": spread(results, "top1") if results else None,
        "repeats": len(results),
        "measured_seconds": cost["seconds"] * cost["processes"] / cost["made"] if cost.get("made") else None,
        "measured_gb": cost["peak_memory_gib"] * 2**30 / 1e9 if cost.get("made") else None,
        "device": cost.get("device"),
    }


def name_of(row: Mapping[str, Any]) -> str:
    return f"{row['method']} ({row['edition']})" if row["edition"] else row["method"]


def beside(row: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    """Published, measured and their difference, as the cells of a line."""
    published, measured = row[key], row[f"measured_{key}"]
    if key == "top1" and measured is not None:
        told, mean = f"{shown(measured)} ({row['repeats']})", measured["mean"]
    else:
        told, mean = "" if measured is None else f"{measured:.2f}", measured
    difference = "" if published is None or mean is None else f"{mean - published:+.2f}"
    return "" if published is None else f"{published:.{DIGITS[key]}f}", told, difference


def write_table(path: Path, lines: Sequence[str], content: dict[str, object], missing: Sequence[str]) -> Path:
    """Print a Markdown table with the commands of what is missing; write it as JSON and Markdown where it changed."""
    content = {**content, "missing": list(missing)}
    if not holds(path, content):
        write_json(path, content)
        for ending, text in ((".md", lines), (".missing.txt", missing)):
            whole = "".join(f"{line}\n" for line in text)
            write_whole(path.with_suffix(ending), lambda part, whole=whole: part.write_text(whole, encoding="utf-8"))
    print("\n".join(["", *lines, *(f"missing: {command}" for command in missing), f"this table: {path}"]), flush=True)
    return path
