"""Everything that was run, in one report: tables as Markdown and CSV, and a page to look at and to pass on.

    python -m validate.page                     # all datasets that have results
    python -m validate.page cifar100 fashion_mnist

`generated_data/reports/page/` gets `results.md`, `results.csv`, `results.json`, the commands of what is missing in
`results.missing.txt`, and `index.html` with a folder of pictures beside it. The page needs no server, asks nothing of
any other place, and can be copied with its pictures.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from utils import recipes
from utils.data.table import DATASETS, get_dataset
from utils.run.errors import UserError
from utils.run.files import write_whole
from utils.run.settings import Parser
from validate.page.cells import cells_of, missing_of, untested_of
from validate.page.gallery import PICTURES, draw_sheets, galleries_of
from validate.page.lines import lines_of, record_of, write_csv
from validate.page.parts import page_of
from validate.report import reports_folder
from validate.tables import write_table


def report_page(*words: str) -> Path:
    """Write the report of these datasets, or of all that have results. Returns the page.

    UserError where nothing has results; some that cannot be read are named, also on the page, and left out.
    """
    parser = Parser("validate.page", "Everything that was run: tables, and a page to look at and to pass on.")
    parser.add_argument("datasets", metavar="DATASET", nargs="*", help="default: all that have results")
    home, datasets = datasets_with_results(parser.parse_args(words).datasets)
    left_out: list[str] = []
    cells = [cell for name in datasets for cell in cells_of(name, left_out)]
    if not any(cell.found for cell in cells):
        named = f": {left_out[0]}" if left_out else ""
        raise UserError(f"{home.parent} has no results of {' '.join(datasets) or 'any dataset'}{named}")
    galleries = galleries_of(cells)
    left_out += draw_sheets(home / PICTURES, [sheet for gallery in galleries for sheet in gallery.sheets])
    left_out = [message.replace(f"{home.parents[2]}/", "") for message in left_out]
    missing, untested = missing_of(cells), untested_of(cells)
    write_csv(home / "results.csv", cells)
    content = {"left_out": left_out, "untested": untested, "cells": [record_of(cell) for cell in cells]}
    write_table(home / "results.json", lines_of(cells, untested, left_out), content, missing)
    page = home / "index.html"
    text = page_of(cells, galleries, missing, untested, left_out)
    write_whole(page, lambda part: part.write_text(text, encoding="utf-8"))
    for message in left_out:
        print(f"left out: {message}")
    print(f"page: {page} (copy it with {PICTURES}/ beside it)", flush=True)
    return page


def datasets_with_results(names: Sequence[str]) -> tuple[Path, list[str]]:
    """Where the report goes, and the datasets that it is of: these, or all there are. UserError for unknown ones."""
    first = recipes.in_places("validate", next(iter(DATASETS.values())), next(iter(recipes.METHODS)), 1, os.environ)
    there = sorted(path.name for path in first.output_dir.glob("*") if path.is_dir())
    for name in names or there:
        get_dataset(name)
    return reports_folder(first) / "page", list(dict.fromkeys(names)) or there
