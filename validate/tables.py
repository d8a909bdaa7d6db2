"""Tables of many cells: all methods beside real images, and the paper's beside what was measured here.

    python -m validate.report --methods cifar100                  # everything that has results
    python -m validate.report --methods cifar100 10 ResNet18
    python -m validate.report --table 6 imagenet1k

The rows of the paper's tables are variants of methods (utils/recipes/variants.py); the commands of the cells that are
missing stand below a table, one a line, and in the file beside it, which a job array can take:

    sbatch --array 1-16 --wrap 'bash -c "$(sed -n ${SLURM_ARRAY_TASK_ID}p imagenet1k_table1.missing.txt)"'
"""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from utils import recipes
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import read_json, remove, write_json, write_whole
from utils.run.records import Shape, check_shape
from validate.report import cell_of, holds, read_repeats, reports_folder, results_folder, shown, spread

# The paper's tables: NeurIPS 2025, and arXiv v1 where table 2 differs (there patches are of 2 x 2 crops). seconds: of
# recover, an image, on an RTX 4090; gb: its peak.
PUBLISHED = Path(recipes.__file__).with_name("published.csv")
MEASURED = {"top1": "top-1 %", "seconds": "seconds an image", "gb": "peak GB"}
DIGITS = {"top1": 1, "seconds": 2, "gb": 1}  # behind the point, as published
OF_2X2 = "its rows equal those of 2 x 2 crops a patch in table 4, so factor is 2 here."
BY, NOT_ABOVE = ", labels of ", "~"
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


def report_methods(dataset_name: str, ipc: str | None = None, student: str | None = None) -> Path:
    """Print and write one table of all results of a dataset: methods, their variants, and real images under the labels
    of each; a column for each IPC, student and protocol. With an IPC, of that alone, and with the commands of methods
    that have no results there.

    Returns the file that it wrote. UserError where nothing has results; some that cannot be read are named and left
    out.
    """
    its = cell_of(dataset_name, next(iter(recipes.METHODS)), ipc or "10", student).validate
    rows: dict[str, dict[str, Entry]] = {}
    for entry in entries_of(results_folder(its).parent):
        if ipc is None or (entry.ipc, entry.student) == (its.ipc, its.model):
            rows.setdefault(entry.row, {})[entry.column] = entry
    commands = {name: f"bash run.sh {dataset_name} {name} {its.ipc} {its.model}" for name in recipes.METHODS}
    if not rows:
        where = f"{dataset_name} at IPC {ipc}" if ipc else dataset_name
        raise UserError(f"no method has results on {where}: {next(iter(commands.values()))} makes some")
    missing = [command for name, command in commands.items() if ipc and name not in rows]
    columns = in_order(entry for row in rows.values() for entry in row.values())
    names = sorted(rows, key=lambda row: rank_of(row, rows[row], columns))
    body = [[row, *(told(rows, row, column) for column in columns)] for row in names]
    lines = markdown([f"{dataset_name}, top-1 %", *columns], body)
    lines += ["", f"{NOT_ABOVE}: not above random images with the same labels by more than the larger of both spreads"]
    entries = [rows[row][column]._asdict() for row in names for column in columns if column in rows[row]]
    name = f"{dataset_name}_ipc{ipc}_{recipes.file_name(its.model)}" if ipc else f"{dataset_name}_all"
    content = {"dataset": dataset_name, "entries": entries}
    return write_table(reports_folder(its) / f"{name}.json", lines, content, missing)


class Entry(NamedTuple):
    """What one row has in one column: top-1 of the last epoch and of the best, in percent, over so many repeats. by:
    whose labels and protocol it has, as folders call the method."""

    row: str
    by: str
    ipc: int
    student: str
    labels: str
    top1: Mapping[str, float | None]
    best: Mapping[str, float | None]
    repeats: int

    @property
    def column(self) -> str:
        return f"IPC {self.ipc}, {self.student}" + ("" if self.labels == "views" else f", {self.labels}")


def entries_of(folder: Path) -> Iterator[Entry]:
    """All results of a dataset, draws and seeds together; says of those that cannot be read that they are left out."""
    names = sorted({re.sub(r"_draw\d+$", "", path.parent.parent.name) for path in folder.glob("*/seed*/result.json")})
    for name in names:
        try:
            results = read_repeats(folder / name)
        except UserError as error:
            print(f"left out: {error}", flush=True)
            continue
        first = results[0]
        row = method = str(first["method"])
        images, is_real, by = name.partition(f"_ipc{first['ipc']}_")[0].partition("_by_")
        if is_real:
            row = f"{images}{BY}{by}"
        else:
            by = recipes.name_in(method, ("relabel", "validate"))
        labels = first.get("settings", {}).get("labels", "views")
        spreads = (spread(results, key) for key in ("top1", "best_top1"))
        yield Entry(row, by, first["ipc"], first["student"], labels, *spreads, len(results))


def in_order(entries: Iterable[Entry]) -> list[str]:
    """The columns of a table, FADRM's protocol first, then by IPC and student."""
    ordered = sorted(entries, key=lambda entry: (entry.labels != "views", entry.labels, entry.ipc, entry.student))
    return list(dict.fromkeys(entry.column for entry in ordered))


def rank_of(row: str, entries: Mapping[str, Entry], columns: Sequence[str]) -> tuple:
    """What rows are sorted by: methods before real images, the best of the first column first."""
    return BY in row, [-entries[column].top1["mean"] if column in entries else 0.0 for column in columns]


def told(rows: Mapping[str, Mapping[str, Entry]], row: str, column: str) -> str:
    """A cell of the table of all results, marked where it is not above random images."""
    entry = rows[row].get(column)
    if entry is None:
        return ""
    random = rows.get(f"random{BY}{entry.by}", {}).get(column)
    text = f"{shown(entry.top1)} ({entry.repeats})"
    if random is None or random is entry:
        return text
    noise = max(entry.top1["std"] or 0.0, random.top1["std"] or 0.0)
    return text if entry.top1["mean"] - random.top1["mean"] > noise else f"{text} {NOT_ABOVE}"


def report_published(number: str, dataset_name: str) -> Path:
    """Print and write a table of the paper for a dataset: published beside measured, and the commands of what is
    missing. Returns the file that it wrote. UserError for a table that there is not, or that has not the dataset."""
    with PUBLISHED.open(newline="") as file:
        everything = list(csv.DictReader(file))
    published = [row for row in everything if row["table"] == number]
    if not published:
        tables = dict.fromkeys(row["table"] for row in everything)
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
    lines = markdown(heads, body)
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


def markdown(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table in Markdown."""
    first, *others = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    return [first, "|---" * len(heads) + "|", *others]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_table(path: Path, lines: Sequence[str], content: dict[str, object], missing: Sequence[str]) -> Path:
    """Print a Markdown table with the commands of what is missing; write it as JSON and Markdown where it changed."""
    content = {**content, "missing": list(missing)}
    if not holds(path, content):
        write_json(path, content)
        write_lines(path.with_suffix(".md"), lines)
        commands = path.with_suffix(".missing.txt")
        write_lines(commands, missing) if missing else remove(commands)
    print("\n".join(["", *lines, *(f"missing: {command}" for command in missing), f"this table: {path}"]), flush=True)
    return path
