"""What the page tells of each cell: accuracy beside random images and the paper, and what it cost."""

import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from models.checkpoints import checkpoint_path
from utils import recipes
from utils.data.table import Dataset, get_dataset
from utils.fkd.store import MANIFEST
from utils.run.errors import UserError
from utils.run.files import read_json, sha256_of
from validate.report import results_folder, run_command
from validate.tables import BY, SEEDS, Found, found_in, is_above_random, published_rows, report_in, seconds_each

MEGABYTE = 1e6


class Places(NamedTuple):
    """Where the stages leave what belongs to a dataset."""

    results: Path
    images: Path
    labels: Path
    pool: Path


class Cost(NamedTuple):
    """What a cell cost; None for what is not known.

    seconds: of recover (of choosing, where images are real), an image and a device; gib: its peak; the bytes of all
    images, labels and teachers' checkpoints of one draw; device_seconds: recover, relabel and one student together.
    """

    device: str | None = None
    seconds: float | None = None
    gib: float | None = None
    image_bytes: int | None = None
    label_bytes: int | None = None
    teacher_bytes: int | None = None
    device_seconds: float | None = None

    @property
    def megabytes(self) -> float | None:
        """What a student learns from: images and labels."""
        if self.image_bytes is None or self.label_bytes is None:
            return None
        return (self.image_bytes + self.label_bytes) / MEGABYTE


class Cell(NamedTuple):
    """A line of the table: a cell that was run, or one of the paper's that was not.

    found: its results; above_random: None where random images have none with its labels; published: the paper's top-1,
    of table 2; images, labels: the folders of its first draw, where they are there.
    """

    dataset: str
    ipc: int
    student: str
    method: str
    regime: str
    found: Found | None = None
    above_random: bool | None = None
    published: float | None = None
    edition: str = ""
    images: Path | None = None
    labels: Path | None = None
    cost: Cost = Cost()

    @property
    def difference(self) -> float | None:
        if self.found is None or self.published is None:
            return None
        return self.found.entry.top1["mean"] - self.published

    @property
    def base(self) -> str:
        """The method without the changes of a variant."""
        return self.method.partition(":")[0]

    @property
    def is_distilled(self) -> bool:
        return BY not in self.method

    @property
    def is_random(self) -> bool:
        return self.method.startswith(f"random{BY}")

    @property
    def command(self) -> str:
        """What makes the cell, with a spread."""
        labels = () if self.regime == "views" else (f"--labels {self.regime}",)
        return run_command(self.dataset, self.method, self.ipc, self.student, *labels, SEEDS)


def places_of(dataset: Dataset) -> Places:
    first = next(iter(recipes.METHODS))
    validate, relabel = (recipes.in_places(its, dataset, first, 1, os.environ) for its in ("validate", "relabel"))
    return Places(
        results_folder(validate).parent,
        validate.original_data_path.parent,
        validate.fkd_path.parent,
        relabel.model_pool_dir,
    )


def cells_of(dataset_name: str, left_out: list[str]) -> list[Cell]:
    """All cells of a dataset: what has results, and what the paper's table 2 has, in the order of the table.

    Why something is not among them goes to `left_out`.
    """
    size_of.cache_clear()
    places = places_of(get_dataset(dataset_name))
    published = {
        (row["method"], int(row["ipc"]), row["student"]): row
        for row in published_rows()
        if (row["table"], row["dataset"]) == ("2", dataset_name)
    }
    rows: dict[str, dict[str, Any]] = {}
    found = found_in(places.results, left_out, progress=True)
    for its in found:
        rows.setdefault(its.entry.row, {})[its.entry.column] = its.entry
    stores = {sha256_of(path): path.parent for path in places.labels.glob(f"*/{MANIFEST}")}
    cells = []
    for its in found:
        entry = its.entry
        name = entry.row, entry.ipc, entry.student
        row = published.pop(name, None) if entry.labels == "views" else None
        images, labels = images_of(its, places), stores.get(its.runs[0].get("labels_sha256"))
        cells.append(
            Cell(
                *(dataset_name, entry.ipc, entry.student, entry.row, entry.labels, its),
                is_above_random(rows, entry.row, entry.column),
                *told_by_the_paper(row),
                *(images, labels, cost_of(its, images, labels, places.pool, left_out)),
            )
        )
    for (method, ipc, student), row in published.items():
        cells.append(Cell(dataset_name, ipc, student, method, "views", None, None, *told_by_the_paper(row)))
    return sorted(cells, key=order_of)


def told_by_the_paper(row: Mapping[str, str] | None) -> tuple[float | None, str]:
    return (None, "") if row is None else (float(row["top1"]), row["edition"])


def order_of(cell: Cell) -> tuple:
    """Dataset, IPC, student, then methods as the recipes have them, their variants, and real images."""
    methods = list(recipes.METHODS)
    place = methods.index(cell.base) if cell.base in methods else len(methods)
    return (
        cell.dataset,
        cell.ipc,
        cell.student,
        not cell.is_distilled,
        place,
        cell.method,
        cell.regime != "views",
        cell.regime,
    )


def images_of(found: Found, places: Places) -> Path | None:
    """The folder of a cell's images, in its first draw, if it is there."""
    row, ipc = found.entry.row, found.entry.ipc
    try:
        name = row.partition(BY)[0] if BY in row else recipes.name_in(row, ("patches", "recover"))
    except UserError:  # a name of the user's own
        return None
    folder = places.images / f"{name}_ipc{ipc}{recipes.draw_suffix(found.runs[0]['draw'])}"
    return folder if folder.is_dir() else None


def cost_of(found: Found, images: Path | None, labels: Path | None, pool: Path, left_out: list[str]) -> Cost:
    """What the first draw of a cell cost."""
    try:
        recover, relabel = (report_in(folder) for folder in (images, labels))
        manifest = read_json(labels / MANIFEST) if labels else {}
    except UserError as error:
        left_out.append(f"cost of {found.entry.row}, {found.entry.column}: {error}")
        return Cost()
    device = "; ".join(dict.fromkeys(its["device"] for its in (recover, relabel, *found.runs) if its.get("device")))
    (count, image_bytes), each = size_of(images), seconds_each(recover)
    parts = [
        times(each, count),
        times(seconds_each(relabel), len(manifest.get("epoch_sha256", []))),
        statistics.fmean(run["seconds"] for run in found.runs),
    ]
    teachers = [checkpoint_path(pool, its["name"]) for its in found.runs[0].get("teachers", [])]
    return Cost(
        device or None,
        each,
        recover.get("peak_memory_gib"),
        image_bytes,
        size_of(labels)[1],
        sum(path.stat().st_size for path in teachers) if teachers and all(teachers) else None,
        None if None in parts else sum(parts),
    )


def times(value: float | None, count: int | None) -> float | None:
    return None if value is None or count is None else value * count


@cache
def size_of(folder: Path | None) -> tuple[int | None, int | None]:
    """How many images or label files a folder holds, and their bytes."""
    if folder is None:
        return None, None
    sizes = [size for name, size in files_in(folder) if name.endswith((".png", ".safetensors"))]
    return len(sizes), sum(sizes)


def files_in(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of the files of a folder's own that shape what it is: in class folders, or right there."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from files_in(Path(entry.path))
            elif entry.name != "contact_sheet.png":
                yield entry.name, entry.stat().st_size


def untested_of(cells: Sequence[Cell]) -> list[str]:
    """The folders of images, `<dataset>/<name>`, that nothing was trained on; draws, stages and measures aside."""
    tested = {cell.images for cell in cells}
    found = []
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        for folder in sorted(places_of(get_dataset(dataset)).images.glob("*")):
            kept = re.search(r"_(initialised|stage\d+|measures|draw\d+)$", folder.name)
            if folder.is_dir() and not kept and folder not in tested:
                found.append(f"{dataset}/{folder.name}")
    return found


def missing_of(cells: Sequence[Cell]) -> list[str]:
    """The commands of what was not run: the paper's cells, other methods beside those that were, and a spread for what
    has one run."""
    run = {(cell.dataset, cell.ipc, cell.student, cell.method) for cell in cells if cell.found}
    wanted = [cell for cell in cells if cell.found is None or cell.found.entry.repeats == 1]
    wanted = [cell for cell in wanted if cell.base in recipes.METHODS]
    beside = dict.fromkeys(
        (cell.dataset, cell.ipc, cell.student) for cell in cells if cell.found and cell.regime == "views"
    )
    wanted += [
        Cell(*place, method, "views") for place in beside for method in recipes.METHODS if (*place, method) not in run
    ]
    return list(dict.fromkeys(cell.command for cell in sorted(wanted, key=order_of)))
