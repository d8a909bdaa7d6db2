"""The tables of the page, as numbers and as what people read."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.run.files import write_whole
from validate.page.cells import MEGABYTE, Cell
from validate.report import shown
from validate.tables import NOT_ABOVE, NOT_ABOVE_MEANS, markdown, table_of

PLACE = ("dataset", "IPC", "student", "method", "labels")
RESULTS = ("top-1 %", "runs", "published", "difference")
COSTS = (
    *("s an image", "peak GiB", "images MB", "labels MB", "teachers MB", "device s", "top-1 % a MB"),
    *("top-1 % a device s", "device"),
)
COST_MEANS = (
    "s an image, peak GiB: of recover (of choosing, where images are real), on one device; MB: of the files of one "
    "draw, teachers: the checkpoints that gave the labels; device s: recover, relabel and one student together; "
    "top-1 % a MB: of images and labels."
)


def place_of(cell: Cell) -> list[str]:
    """The cells of a line under PLACE."""
    return [cell.dataset, str(cell.ipc), cell.student, cell.method, cell.regime]


def results_of(cell: Cell) -> list[str]:
    """The cells of a line under RESULTS; empty where nothing was run or published."""
    entry = cell.found and cell.found.entry
    published = "" if cell.published is None else f"{cell.published:.1f}"
    return [
        f"{shown(entry.top1)}{f' {NOT_ABOVE}' if cell.above_random is False else ''}" if entry else "",
        str(entry.repeats) if entry else "",
        f"{published} ({cell.edition})" if cell.edition else published,
        "" if cell.difference is None else f"{cell.difference:+.2f}",
    ]


def costs_of(cell: Cell) -> dict[str, float | str | None]:
    """What a cell cost, by the names of COSTS; None for what is not known."""
    its, top1 = cell.cost, cell.found.entry.top1["mean"] if cell.found else None
    megabytes = (size and size / MEGABYTE for size in (its.image_bytes, its.label_bytes, its.teacher_bytes))
    gains = (ratio(top1, cost) for cost in (its.megabytes, its.device_seconds))
    values = (its.seconds, its.gib, *megabytes, its.device_seconds, *gains, its.device)
    return dict(zip(COSTS, values, strict=True))


def ratio(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


def number(value: float | str | None) -> str:
    """A cost as people read it: three digits, or all before the point."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def by_dataset(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    found = defaultdict(list)
    for cell in cells:
        found[cell.dataset].append(cell)
    return found


def overview_of(dataset: str, cells: Iterable[Cell]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of all methods of a dataset."""
    rows: dict[str, dict] = {}
    for cell in cells:
        rows.setdefault(cell.method, {})[cell.found.entry.column] = cell.found.entry
    return table_of(dataset, rows)


def lines_of(cells: Sequence[Cell], untested: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """The report in Markdown."""
    run, lines = [cell for cell in cells if cell.found], []
    for dataset, its in by_dataset(run).items():
        lines += [*markdown(*overview_of(dataset, its)), ""]
    lines += markdown([*PLACE, *RESULTS], ([*place_of(cell), *results_of(cell)] for cell in cells))
    lines += ["", f"{NOT_ABOVE_MEANS}. Published: table 2 of the paper. Empty: not run.", ""]
    costs = ([*place_of(cell), *map(number, costs_of(cell).values())] for cell in run)
    lines += [*markdown([*PLACE, *COSTS], costs), "", COST_MEANS]
    for what, its in (("Images without results", untested), ("Left out", left_out)):
        lines += ["", f"{what}:", "", *(f"- {message}" for message in its)] if its else []
    return lines


def record_of(cell: Cell) -> dict[str, Any]:
    """A cell as the JSON and CSV files have it: numbers as they are, None for what is not there."""
    entry = cell.found and cell.found.entry
    place = (cell.dataset, cell.ipc, cell.student, cell.method, cell.regime)
    return {
        **dict(zip(PLACE, place, strict=True)),
        "top-1 %": entry and entry.top1["mean"],
        "spread": entry and entry.top1["std"],
        "runs": entry.repeats if entry else 0,
        "best top-1 %": entry and entry.best["mean"],
        "above random": cell.above_random,
        "published": cell.published,
        "edition": cell.edition,
        "difference": cell.difference,
        **costs_of(cell),
    }


def write_csv(path: Path, cells: Sequence[Cell]) -> None:
    """One line a cell, what it cost behind its accuracy."""
    text = io.StringIO()
    writer = csv.DictWriter(text, record_of(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(record_of, cells))
    write_whole(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
