"""Tables of many cells: all methods beside real images, and the paper's beside what was measured here."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from utils import recipes
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import write_json, write_whole
from validate.report import cell_of, holds, read_repeats, reports_folder, results_folder, shown, spread

# Table 2 of the paper: NeurIPS 2025, and arXiv v1 where it differs (there patches are of 2 x 2 crops).
PUBLISHED = Path(recipes.__file__).with_name("published.csv")


def report_methods(dataset_name: str, ipc: str, student: str | None = None) -> Path:
    """Print and write one table: every method of a dataset and IPC beside real images, and the commands of what is
    missing. Real images stand there once for each method whose labels they have.

    Returns the file that it wrote. UserError where nothing has results.
    """
    rows, missing = [], []
    for method in recipes.METHODS:
        cell = cell_of(dataset_name, method, ipc, student)
        for row, folder in cell.rows.items():
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


def report_published(dataset_name: str) -> Path:
    """Print and write the paper's table 2 for a dataset: published beside measured, and the commands of what is
    missing. Returns the file that it wrote. UserError for a dataset that the table has not."""
    with PUBLISHED.open(newline="") as file:
        published = [row for row in csv.DictReader(file) if row["dataset"] == dataset_name]
    if not published:
        raise UserError(f"the paper's table 2 has no {dataset_name}")
    rows, missing, dataset = [], [], get_dataset(dataset_name)
    for row in published:
        its = recipes.in_places("validate", dataset, row["method"], int(row["ipc"]), os.environ, student=row["student"])
        results = read_repeats(results_folder(its))
        command = f"bash run.sh {dataset_name} {row['method']} {row['ipc']} {row['student']} --seed 0 1 2"
        if not results and command not in missing:
            missing.append(command)
        values = {"measured": spread(results, "top1") if results else None, "repeats": len(results)}
        rows.append({**row, "top1": float(row["top1"]), **values})
    lines = [
        f"| {dataset_name}: top-1 % | IPC | student | published | measured | difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row['method']} ({row['edition']})" if row["edition"] else row["method"]
        measured, difference = "", ""
        if row["measured"]:
            measured = f"{shown(row['measured'])} ({row['repeats']})"
            difference = f"{row['measured']['mean'] - row['top1']:+.2f}"
        lines.append(f"| {name} | {row['ipc']} | {row['student']} | {row['top1']:.1f} | {measured} | {difference} |")
    path = reports_folder(its) / f"{dataset_name}_table2.json"
    return write_table(path, lines, {"dataset": dataset_name, "table": 2, "rows": rows}, missing)


def write_table(path: Path, lines: Sequence[str], content: dict[str, object], missing: Sequence[str]) -> Path:
    """Print a Markdown table with the commands of what is missing; write it as JSON and Markdown where it changed."""
    content = {**content, "missing": list(missing)}
    if not holds(path, content):
        write_json(path, content)
        text = "\n".join(lines) + "\n"
        write_whole(path.with_suffix(".md"), lambda part: part.write_text(text, encoding="utf-8"))
    print("\n".join(["", *lines, *(f"missing: {command}" for command in missing), f"this table: {path}"]), flush=True)
    return path
