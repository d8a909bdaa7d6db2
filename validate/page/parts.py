"""The parts of the page: HTML made of the templates beside this file."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from utils.recipes import METHODS
from utils.run.errors import UserError
from utils.run.files import read_json
from validate.page import charts
from validate.page.cells import Cell
from validate.page.gallery import PICTURES, Gallery, Sheet
from validate.page.lines import (
    COST_MEANS,
    COSTS,
    PLACE,
    RESULTS,
    by_dataset,
    costs_of,
    number,
    overview_of,
    place_of,
    results_of,
)
from validate.page.markup import Markup, element, fill, joined, table, template
from validate.report import shown
from validate.tables import NOT_ABOVE_MEANS


def page_of(
    cells: Sequence[Cell],
    galleries: Sequence[Gallery],
    missing: Sequence[str],
    untested: Sequence[str],
    left_out: Sequence[str],
) -> Markup:
    run = [cell for cell in cells if cell.found]
    first = max(galleries, key=lambda its: len(its.frames) * its.sheets[0].columns, default=None)
    overviews = {dataset: overview_of(dataset, its) for dataset, its in by_dataset(run).items()}
    results = (method_first(place_of(cell), results_of(cell)) for cell in cells)
    costs = (method_first(place_of(cell), map(number, costs_of(cell).values())) for cell in run)
    return fill(
        "page.html",
        style=Markup(template("page.css").template),
        script=Markup(template("page.js").template),
        datasets=", ".join(overviews),
        runs=sum(cell.found.entry.repeats for cell in run),
        cells=len(run),
        not_above=NOT_ABOVE_MEANS,
        overview=joined(table(f"{dataset}: all methods", *its) for dataset, its in overviews.items()),
        results=table("results beside the paper", method_first(PLACE, RESULTS), results),
        cost_means=COST_MEANS,
        costs=table("costs", method_first(PLACE, COSTS), costs),
        scatters=joined(scatters_of(run)),
        curves=joined(curves_of(run)),
        galleries=joined(gallery_of(gallery, is_open=gallery is first) for gallery in galleries),
        settings=joined(map(settings_of, run)),
        missing_count=len(missing),
        missing="\n".join(missing),
        untested=", ".join(untested) or "none",
        left_out_count=len(left_out),
        left_out=joined(element("li", message) for message in left_out),
    )


def method_first(place: Sequence[str], values: Iterable[str]) -> list[str]:
    """A line as a narrow screen needs it: the method, which stays in sight, then what it came to. place: as PLACE."""
    dataset, ipc, student, method, labels = place
    return [method, ipc, *values, student, labels, dataset]


def curves_of(cells: Iterable[Cell]) -> Iterable[Markup]:
    """A chart for each dataset, IPC, student and protocol: methods, random images in grey; and one of real images."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[f"{cell.dataset}, {cell.found.entry.column}"].append(cell)
    for title, group in groups.items():
        distilled, real = ([cell for cell in group if cell.is_distilled is kind] for kind in (True, False))
        if distilled:
            grey = [charts.Line("random images", None, cell.found.curve) for cell in real if cell.is_random]
            variants = [cell.method for cell in distilled if cell.method not in METHODS]
            numbers = {name: place for place, name in enumerate([*METHODS, *variants])}
            lines = [charts.Line(cell.method, numbers[cell.method], cell.found.curve) for cell in distilled]
            yield charts.curves(title, [*grey, *lines])
        if real:
            lines = [charts.Line(cell.method, place, cell.found.curve) for place, cell in enumerate(real)]
            yield charts.curves(f"{title}, real images", lines)


def scatters_of(cells: Sequence[Cell]) -> Iterable[Markup]:
    """For each dataset and student accuracy over megabytes, and over seconds."""
    methods = list(dict.fromkeys([*METHODS, *(cell.base for cell in cells if cell.is_distilled)]))
    kinds = {
        "MB of images and labels": lambda cell: cell.cost.megabytes,
        "device seconds": lambda cell: cell.cost.device_seconds,
    }
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.dataset, cell.student].append(cell)
    for (dataset, student), group in groups.items():
        for what, cost in kinds.items():
            if known := [cell for cell in group if cost(cell)]:
                points = [point_of(cell, cost(cell), what, methods) for cell in known]
                names = dict.fromkeys(cell.base for cell in known if cell.is_distilled)
                legend = [(methods.index(name), name) for name in names]
                legend += [] if all(cell.is_distilled for cell in known) else [(None, "real images")]
                yield charts.scatter(f"{dataset}, {student}", f"{what} (larger: more IPC)", points, legend)


def point_of(cell: Cell, cost: float, what: str, methods: Sequence[str]) -> charts.Point:
    top1 = cell.found.entry.top1
    title = f"{cell.method}, {cell.found.entry.column}: {shown(top1)} % at {number(float(cost))} {what}"
    colour = methods.index(cell.base) if cell.is_distilled else None
    return charts.Point(cost, top1["mean"], colour, 2 + 1.5 * len(str(cell.ipc)), title)


def gallery_of(gallery: Gallery, is_open: bool) -> Markup:
    cell, frames = gallery.cell, gallery.frames
    return fill(
        "gallery.html",
        title=f"{cell.method.partition(', ')[0]}, IPC {cell.ipc}, {cell.dataset}",
        classes=f"{len(gallery.sheets)} of {gallery.classes}",
        images=f"{gallery.sheets[0].columns} of {cell.ipc}",
        open=" open" if is_open else "",
        crisp=" crisp" if gallery.sheets[0].side <= 64 else "",
        hidden=" hidden" if len(frames) == 1 else "",
        frames=len(frames),
        last=len(frames) - 1,
        frame=frames[-1],
        names="|".join(frames),
        sheets=joined(sheet_of(sheet) for sheet in gallery.sheets),
    )


def sheet_of(sheet: Sheet) -> Markup:
    return fill(
        "sheet.html",
        title=sheet.title,
        file=f"{PICTURES}/{quote(sheet.name)}",
        columns=sheet.columns,
        width=sheet.columns * sheet.side,
        height=len(sheet.frames) * sheet.side,
        patch="" if sheet.frames[0] == "patch" else " hidden",
    )


def settings_of(cell: Cell) -> Markup:
    """The runs of a cell, and what they were made with, to unfold."""
    first, heads = cell.found.runs[0], ("seed", "draw", "top-1 %", "best", "s", "device", "versions")
    records = {
        "student": {**first.get("settings", {}), **{key: first[key] for key in ("epochs", "teachers") if key in first}},
        "images": record_at(cell.images, "settings.json"),
        "labels": record_at(cell.labels, "manifest.json"),
    }
    return fill(
        "settings.html",
        title=f"{cell.method}, {cell.dataset}, {cell.found.entry.column}",
        runs=table(f"runs of {cell.method}", heads, map(line_of_run, cell.found.runs)),
        records=joined(fill("record.html", what=what, record=text_of(record)) for what, record in records.items()),
    )


def line_of_run(run: Mapping[str, Any]) -> list[object]:
    versions = " ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    numbers = (f"{run['top1']:.2f}", f"{run['best_top1']:.2f}", f"{run['seconds']:.1f}")
    return [run["seed"], run["draw"], *numbers, run.get("device", ""), versions]


def record_at(folder: Path | None, name: str) -> Mapping[str, Any]:
    """The record of that name in a folder; nothing where it is not there, or cannot be read."""
    try:
        return read_json(folder / name) if folder else {}
    except UserError:
        return {}


def text_of(record: Mapping[str, Any]) -> str:
    """A record as text, a line for each setting, without the checksums of its epochs."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in record.items() if key != "epoch_sha256"]
    return "\n".join(lines or ["not there"])
