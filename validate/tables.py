"""Tables of many cells: all methods beside real images, and the paper's beside what was measured here.

    python -m validate.report --methods cifar100                  # everything that has results
    python -m validate.report --methods cifar100 10 ResNet18
    python -m validate.report --table 6 imagenet1k

The rows of the paper's tables are variants of methods (utils/recipes/variants.py); the commands of the cells that are
missing stand below a table, one a line, and in the file beside it, which a job array can take:

    sbatch --array 1-16 --wrap 'bash -c "$(sed -n ${SLURM_ARRAY_TASK_ID}p imagenet1k_table1.missing.txt)"'
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils import recipes
from utils.run.errors import UserError
from utils.run.files import read_json, remove, write_json, write_whole
from utils.run.records import Shape, check_shape
from validate.report import (
    holds,
    mean_curve,
    read_repeats,
    reports_folder,
    results_folder,
    run_command,
    shown,
    spread,
    stage_of_cell,
)

# The paper's tables: NeurIPS 2025, and arXiv v1 where table 2 differs (there patches are of 2 x 2 crops). seconds: of
# recover, an image, on an RTX 4090; gb: its peak.
PUBLISHED = Path(recipes.__file__).with_name("published.csv")
MEASURED = {"top1": "top-1 %", "seconds": "seconds an image", "gb": "peak GB"}
DIGITS = {"top1": 1, "seconds": 2, "gb": 1}  # behind the point, as published
OF_2X2 = "its rows equal those of 2 x 2 crops a patch in table 4, so factor is 2 here."
BY, NOT_ABOVE = ", labels of ", "~"
NOT_ABOVE_MEANS = f"{NOT_ABOVE}: not above random images with the same labels by more than the larger of both spreads"
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
PLACE, SEEDS = ("dataset", "method", "ipc", "student"), "--seed 0 1 2"
COST: Shape = {"seconds": float, "peak_memory_gib": float, "made": int, "processes": int, "device": str}


def report_methods(dataset_name: str, ipc: str | None = None, student: str | None = None) -> Path:
    """Print and write one table of all results of a dataset: methods, their variants, and real images under the labels
    of each; a column for each IPC, student and protocol. With an IPC, of that alone, and with the commands of methods
    that have no results there.

    Returns the file that it wrote. UserError where nothing has results; some that cannot be read are named and left
    out.
    """
    its = stage_of_cell("validate", dataset_name, next(iter(recipes.METHODS)), ipc or "10", student=student)
    rows: dict[str, dict[str, Entry]] = {}
    for entry in entries_of(results_folder(its).parent):
        if ipc is None or (entry.ipc, entry.student) == (its.ipc, its.model):
            rows.setdefault(entry.row, {})[entry.column] = entry
    commands = {name: run_command(dataset_name, name, its.ipc, its.model) for name in recipes.METHODS}
    if not rows:
        where = f"{dataset_name} at IPC {ipc}" if ipc else dataset_name
        raise UserError(f"no method has results on {where}: {next(iter(commands.values()))} makes some")
    missing = [command for name, command in commands.items() if ipc and name not in rows]
    heads, body = table_of(dataset_name, rows)
    lines = [*markdown(heads, body), "", NOT_ABOVE_MEANS]
    entries = [rows[row][column]._asdict() for row, *_ in body for column in heads[1:] if column in rows[row]]
    name = f"{dataset_name}_ipc{ipc}_{recipes.file_name(its.model)}" if ipc else f"{dataset_name}_all"
    content = {"dataset": dataset_name, "entries": entries}
    return write_table(reports_folder(its) / f"{name}.json", lines, content, missing)


class Entry(NamedTuple):
    """What one row has in one column: top-1 of the last epoch and of the best, in percent, over so many repeats."""

    row: str
    ipc: int
    student: str
    labels: str
    top1: Mapping[str, float | None]
    best: Mapping[str, float | None]
    repeats: int

    @property
    def column(self) -> str:
        return f"IPC {self.ipc}, {self.student}" + ("" if self.labels == "views" else f", {self.labels}")


class Found(NamedTuple):
    """A cell that has results: its entry, the folder of its first draw, its runs without their epochs, and the mean of
    top-1 over these."""

    entry: Entry
    folder: Path
    runs: Sequence[dict]
    curve: Sequence[tuple[int, float]]


def entries_of(folder: Path) -> Iterator[Entry]:
    """All results of a dataset, draws and seeds together; says of those that cannot be read that they are left out."""
    left_out: list[str] = []
    yield from (found.entry for found in found_in(folder, left_out))
    for message in left_out:
        print(f"left out: {message}", flush=True)


def found_in(folder: Path, left_out: list[str], progress: bool = False) -> list[Found]:
    """All cells of a dataset that have results; why others cannot be read goes to `left_out`, and so does a folder that
    has the results of a cell that another has, too: that of the cell's own name counts."""
    names = sorted({re.sub(r"_draw\d+$", "", path.parent.parent.name) for path in folder.glob("*/seed*/result.json")})
    cells: dict[tuple[str, str], Found] = {}
    for name in tqdm(names, desc=f"results of {folder.name}", unit="cell", disable=not progress):
        try:
            its = found_at(folder / name)
        except UserError as error:
            left_out.append(str(error))
            continue
        place = its.entry.row, its.entry.column
        first, *others = sorted(
            filter(None, (cells.get(place), its)), key=lambda found: found.folder.name != own_name(found.entry)
        )
        cells[place] = first
        left_out += [
            f"{other.folder} has results of {', '.join(place)}, as {first.folder.name} has: remove one of the two"
            for other in others
        ]
    return list(cells.values())


def found_at(folder: Path) -> Found:
    """The results of a cell, which has some. UserError where they cannot be read, or are not of one run."""
    results = read_repeats(folder)
    first, name = results[0], folder.name
    if first["dataset"] != folder.parent.name:
        raise UserError(f"{folder} has results of {first['dataset']}: move it to that dataset's folder, or remove it")
    images, by, _ = name.partition(f"_ipc{first['ipc']}_")[0].partition("_by_")
    whose = name.partition("_by_")[2].partition("_ipc")[0]
    row = f"{images}{BY}{whose}" if by else str(first["method"])
    labels = first.get("settings", {}).get("labels", "views")
    spreads = (spread(results, key) for key in ("top1", "best_top1"))
    entry = Entry(row, first["ipc"], first["student"], labels, *spreads, len(results))
    runs = [{key: value for key, value in result.items() if key != "metrics"} for result in results]
    return Found(entry, folder, runs, mean_curve(results))


def own_name(entry: Entry) -> str:
    """What the folder of a cell's results is called where nothing else was asked for."""
    row = recipes.file_name(entry.row.replace(BY, "_by_"))
    student = recipes.file_name(entry.student)
    return f"{row}_ipc{entry.ipc}_{student}{recipes.protocol_suffix(entry.labels)}"


def table_of(dataset_name: str, rows: Mapping[str, Mapping[str, Entry]]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of all results: a row for each method, a column for each IPC, student and protocol.

    rows: the entries by row and column.
    """
    columns = in_order(entry for row in rows.values() for entry in row.values())
    names = sorted(rows, key=lambda row: rank_of(row, rows[row], columns))
    return [f"{dataset_name}, top-1 %", *columns], [[row, *(told(rows, row, c) for c in columns)] for row in names]


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
    text = f"{shown(entry.top1)} ({entry.repeats})"
    return f"{text} {NOT_ABOVE}" if is_above_random(rows, row, column) is False else text


def is_above_random(rows: Mapping[str, Mapping[str, Entry]], row: str, column: str) -> bool | None:
    """Whether a cell is above random images with the same labels by more than the larger of both spreads; None where
    there are none, and for these themselves."""
    entry = rows[row][column]
    random = rows.get(f"random{BY}{whose_labels(row)}", {}).get(column)
    if random is None or random is entry:
        return None
    return entry.top1["mean"] - random.top1["mean"] > max(entry.top1["std"] or 0.0, random.top1["std"] or 0.0)


def whose_labels(row: str) -> str:
    """Whose labels and training a row has, as folders call it; a variant has its method's where it changes neither."""
    try:
        return row.partition(BY)[2] or recipes.name_in(row, ("relabel", "validate"))
    except UserError:  # a name of the user's own
        return recipes.file_name(row)


def report_published(number: str, dataset_name: str) -> Path:
    """Print and write a table of the paper for a dataset: published beside measured, and the commands of what is
    missing. Returns the file that it wrote. UserError for a table that there is not, or that has not the dataset."""
    everything = published_rows()
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
            missing.append(run_command(*(row[key] for key in PLACE), SEEDS))
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


def published_rows() -> list[dict[str, str]]:
    """All cells of the paper's tables."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def row_settings(stage: str, row: Mapping[str, str]) -> Any:
    """The settings of a stage for a row of the published tables."""
    return stage_of_cell(stage, row["dataset"], row["method"], row["ipc"], student=row["student"])


def measured_of(row: Mapping[str, str]) -> dict[str, object]:
    """What was measured of a row: the students' accuracy, seconds and memory of recover; None for what was not."""
    results, recover = read_repeats(results_folder(row_settings("validate", row))), row_settings("recover", row)
    cost = report_in(recover.syn_data_path / recover.exp_name)
    return {
        "measured_top1": spread(results, "top1") if results else None,
        "repeats": len(results),
        "measured_seconds": seconds_each(cost),
        "measured_gb": cost["peak_memory_gib"] * 2**30 / 1e9 if cost.get("made") else None,
        "device": cost.get("device"),
    }


def report_in(folder: Path | None) -> Mapping[str, Any]:
    """What a stage left beside what it made; nothing where that is not there. UserError where it is damaged."""
    path = folder and folder / "report.json"
    if path is None or not path.exists():
        return {}
    report = read_json(path)
    check_shape(path, report, COST, "remove it; the stage writes it again")
    return report


def seconds_each(report: Mapping[str, Any]) -> float | None:
    """The seconds of one device for each thing that was made, None where nothing was. report: of `report_in`."""
    return report["seconds"] * report["processes"] / report["made"] if report.get("made") else None


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
