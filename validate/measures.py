"""What became of the images on the way: the measures of recover (--measure-every), method beside method.

python -m validate.measures cifar100 10 fadrm fadrm:alpha=1 sre2l++

Figure 3 and table 12 of the paper are of this kind.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recover.measures import measures_folder, read_measures
from utils import recipes
from utils.data.table import Dataset, get_dataset
from utils.recipes.settings import NO_REFERENCE
from utils.run.errors import UserError, run_entry
from utils.run.pictures import draw_curves
from utils.run.settings import Parser
from validate.report import holds, reports_folder
from validate.tables import markdown, write_table

ROWS = 10  # of a method in the table; the picture and the JSON file have all
LOOKS = {"information": "information score, nats", "pixel_entropy": "pixel entropy, nats"}
TERMS = {"cross_entropy": "cross-entropy", "r_bn": "R_bn"}


class Course(NamedTuple):
    """How a method's images came about, the mean over all that were measured: the lines of `recover.measures`."""

    reference: str
    images: int
    lines: Sequence[dict]

    @property
    def looks(self) -> list[tuple[int, dict]]:
        """The iteration of every look at the images with what was seen; at a merge two, before and after it. None where
        the loss alone was measured."""
        if self.reference == NO_REFERENCE:
            return []
        pairs = [(line["iteration"], [line[k] for k in ("before", "after")] if "merge" in line else [line])
                 for line in self.lines]  # fmt: skip
        return [(iteration, look) for iteration, looks in pairs for look in looks]

    @property
    def plain(self) -> list[dict]:
        return [line for line in self.lines if "merge" not in line]

    @property
    def merges(self) -> list[dict]:
        return [line for line in self.lines if "merge" in line]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("validate.measures", "Show the measures that recover --measure-every took, method beside method.")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("ipc", metavar="IPC", type=int)
    parser.add_argument("methods", metavar="METHOD", nargs="+")
    given = parser.parse_args(argv)
    report_measures(get_dataset(given.dataset), given.ipc, list(dict.fromkeys(given.methods)))


def report_measures(dataset: Dataset, ipc: int, methods: Sequence[str]) -> Path:
    """Print and write the measures of some methods: a table, a table of merges, a picture. Returns the JSON file.

    UserError for a method without measures, with the command that makes them.
    """
    courses = {method: read_course(dataset, ipc, method) for method in methods}
    terms = list(dict.fromkeys(name for course in courses.values() for line in course.plain for name in line["terms"]))
    lines = [*table_of(courses, terms), "", *merges_of(courses)]
    content = {"dataset": dataset.name, "ipc": ipc, "methods": {m: course._asdict() for m, course in courses.items()}}
    place = reports_folder(recipes.in_places("validate", dataset, methods[0], ipc, os.environ))
    name = recipes.file_name(f"{dataset.name}_ipc{ipc}_measures_{'_'.join(methods)}")
    path, picture = (place / f"{name}.{ending}" for ending in ("json", "png"))
    if not (path.exists() and picture.exists() and holds(path, {**content, "missing": []})):
        draw(picture, courses, terms, f"{dataset.name}, IPC {ipc}")
    write_table(path, lines, content, missing=[])
    print(f"picture: {picture}", flush=True)
    return path


def read_course(dataset: Dataset, ipc: int, method: str) -> Course:
    """The measures of a method's images; UserError where there are none, or not of one kind."""
    recover = recipes.in_places("recover", dataset, method, ipc, os.environ)
    folder = recover.syn_data_path / recover.exp_name
    place = measures_folder(folder)
    files = [read_measures(path) for path in sorted(place.glob("*.jsonl"))]
    command = f"bash recover/scripts/{dataset.name}/recover.sh {method} {ipc} --measure-every 50"
    again = f"move {folder} away if it is there, then run `{command}`"
    if not files:
        raise UserError(f"{place} has no measures: {again}")
    abouts = [file[0] for file in files]
    kinds = {(about["reference"], about["every"], len(file)) for about, file in zip(abouts, files, strict=True)}
    if len(kinds) > 1:
        raise UserError(f"{place} has measures of different kinds: move it away too; {again}")
    counts = [about["images"] for about in abouts]
    lines = [mean_of(same, counts) for same in zip(*(file[1:] for file in files), strict=True)]
    return Course(abouts[0]["reference"], sum(counts), lines)


def mean_of(lines: Sequence[Mapping], counts: Sequence[int]) -> dict:
    """The mean of lines of the same names, each of so many images; places in the run stay what they are."""
    found = {}
    for name, first in lines[0].items():
        values = [line[name] for line in lines]
        if isinstance(first, dict):
            found[name] = mean_of(values, counts)
        elif name in ("iteration", "merge"):
            found[name] = first
        else:
            found[name] = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    return found


def table_of(courses: Mapping[str, Course], terms: Sequence[str]) -> list[str]:
    """The table of looks in Markdown: the start, then evenly spaced ones up to the last."""
    heads = ["method", "reference", "images", "iteration", *LOOKS.values(), *(TERMS.get(term, term) for term in terms)]
    rows = []
    for method, course in courses.items():
        start, *others = course.plain
        for line in [start, *others[::-1][:: max(1, -(-len(others) // ROWS))][::-1]]:
            values = [f"{line[name]:.3f}" if name in line else "" for name in LOOKS]
            values += [f"{line['terms'][term]:.3f}" if term in line["terms"] else "" for term in terms]
            rows.append([method, course.reference, course.images, line["iteration"], *values])
    return markdown(heads, rows)


def merges_of(courses: Mapping[str, Course]) -> list[str]:
    """The table of merges in Markdown, as table 12 of the paper."""
    heads = ["method", "merge", "iteration", "feature cosine", "top-1 % before", "after", "information before", "after"]
    rows = []
    for method, course in courses.items():
        for line in course.merges if course.looks else ():
            values = [f"{line[side]['top1']:.1f}" for side in ("before", "after")]
            values += [f"{line[side]['information']:.3f}" for side in ("before", "after")]
            rows.append([method, line["merge"], line["iteration"], f"{line['cosine']:.3f}", *values])
    return markdown(heads, rows)


def draw(path: Path, courses: Mapping[str, Course], terms: Sequence[str], title: str) -> None:
    """A panel for each measure, a line for each method, its merges dotted."""
    names = {m: f"{m}, seen by {course.reference}" if course.looks else m for m, course in courses.items()}
    seen = {method: course.looks for method, course in courses.items() if course.looks}
    panels = {
        what: {names[m]: [(at, look[key]) for at, look in looks] for m, looks in seen.items()}
        for key, what in (LOOKS.items() if seen else ())
    }
    for term in terms:
        points = {m: [(ln["iteration"], ln["terms"][term]) for ln in course.plain if term in ln["terms"]]
                  for m, course in courses.items()}  # fmt: skip
        panels[TERMS.get(term, term)] = {names[m]: its for m, its in points.items() if its}
    marks = {names[m]: [line["iteration"] for line in course.merges] for m, course in courses.items()}
    draw_curves(path, panels, "iteration", title, marks=marks)


if __name__ == "__main__":
    run_entry(main)
