"""What labels weigh: the stores of a cell, their bytes, and the accuracy of the students that learned from each.

    python -m validate.report --bytes fashion_mnist fadrm+ 10

A cell's stores are all that have labels of its images, of every draw: those of variants, too, and of other protocols.
Below them stands what each way to store labels takes for datasets of 100 and 1,000 classes, by arithmetic.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from relabel.relabel import view_settings
from utils import recipes
from utils.data.table import get_dataset
from utils.fkd.codec import PLAIN, Packing
from utils.fkd.store import BYTES, MANIFEST, expected_tensors, packing_of, read_manifest
from utils.fkd.views import ViewSettings
from utils.recipes.settings import RelabelSettings, ValidateSettings
from utils.recipes.variants import changes_of
from utils.run.errors import UserError
from utils.run.files import sha256_of
from validate.report import reports_folder, results_folder, run_command, shown, stage_of_cell
from validate.tables import Found, found_in, markdown, write_table

PLANNED = (("cifar100", 10), ("cifar100", 50), ("imagenet1k", 10), ("imagenet1k", 50))
PACKINGS = {
    "dense": Packing(),
    "dense, no draws": Packing(store_draws=False),
    "four_bits, no draws": Packing("four_bits", store_draws=False),
    "top_k=50, no draws": Packing("top_k", 50, store_draws=False),
    "top_k=10, no draws": Packing("top_k", 10, store_draws=False),
}


class Stored(NamedTuple):
    """A label store: its folder, the sha256 of its manifest, what that says, and the bytes of all its files."""

    folder: Path
    sha256: str
    manifest: dict
    size: int

    @property
    def name(self) -> str:
        """The folder's, without the draw."""
        return re.sub(r"_draw\d+(?=_bs)", "", self.folder.name)

    def is_dense(self, settings: RelabelSettings) -> bool:
        """Whether it has all logits and draws of as many epochs as the training has."""
        return packing_of(self.manifest) == PLAIN and self.manifest["views"]["epochs"] >= settings.epochs


def report_bytes(dataset_name: str, method: str, ipc: str, student: str | None = None) -> Path:
    """Print and write both tables for a cell; returns the file. UserError where the cell has no labels."""
    cell = stage_of_cell("validate", dataset_name, method, ipc, student=student)
    made: RelabelSettings = stage_of_cell("relabel", dataset_name, method, ipc)
    left_out: list[str] = []
    found = [its for its in found_in(results_folder(cell).parent, left_out) if its.entry.student == cell.model]
    stores = stores_of(cell, found, left_out)
    if not stores:
        raise UserError(
            f"{cell.fkd_path.parent} has no labels of {cell.recipe}'s images at IPC {cell.ipc}: "
            f"{run_command(dataset_name, method, ipc, cell.model)} makes some"
        )
    all_of_it = next((store for store in stores if store.name == cell.fkd_path.name and store.is_dense(made)), None)
    if all_of_it:
        dense, whose = all_of_it.size, f"those of {all_of_it.name}"
    else:
        views = ViewSettings(**stores[0].manifest["views"])
        dense = made.epochs * epoch_bytes(views, cell.dataset.num_classes, PLAIN)
        whose = f"by arithmetic those of the tensors of {made.epochs} epochs with all logits and draws"
    lines = [line for store in stores for line in lines_of(store, found, dense)]
    heads = ["labels", "stored epochs", "bytes", "a view", "times smaller", "trained as", f"top-1 %, {cell.model}"]
    body = [
        [its["store"], its["epochs"], f"{its['bytes']:,}", f"{its['a_view']:.1f}", f"{its['times_smaller']:.1f}",
         its["method"] or "", f"{shown(its['top1'])} ({its['repeats']})" if its["method"] else ""]
        for its in lines
    ]  # fmt: skip
    planned = [{"dataset": name, "ipc": ipc, **planned_bytes(name, method, ipc)} for name, ipc in PLANNED]
    text = [
        *markdown(heads, body),
        "",
        f"times smaller: than {dense:,} bytes, {whose}",
        "",
        *markdown(["by arithmetic, MB", "IPC", "epochs", *PACKINGS], map(planned_line, planned)),
    ]
    for message in left_out:
        print(f"left out: {message}", flush=True)
    name = recipes.file_name(f"{dataset_name}_{method}_ipc{ipc}_{cell.model}_bytes")
    content = {"dataset": dataset_name, "method": method, "ipc": int(ipc), "stores": lines, "planned": planned}
    return write_table(reports_folder(cell) / f"{name}.json", text, content, [])


def stores_of(cell: ValidateSettings, found: Sequence[Found], left_out: list[str]) -> list[Stored]:
    """The finished stores that have labels of a cell's images: of those that the cell's own store names, or results of
    students that learned from such images. The largest first, a draw of each. Why others cannot be read goes to
    `left_out`."""
    stores = []
    for path in sorted(cell.fkd_path.parent.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(path)
        except UserError as error:
            left_out.append(str(error))
            continue
        size = sum(its.stat().st_size for its in path.parent.iterdir())
        stores.append(Stored(path.parent, sha256_of(path), manifest, size))
    images = {store.manifest["images_sha256"] for store in stores if store.name == cell.fkd_path.name}
    images |= {run["images_sha256"] for its in found for run in its.runs if images_of(its) == cell.original_data_path}
    first = {store.name: store for store in reversed(stores) if store.manifest["images_sha256"] in images}
    return sorted(first.values(), key=lambda store: (-store.size, store.name))


def images_of(found: Found) -> Path | None:
    """Where the images lie that a cell's students learned from, by its method; None where that is none."""
    run = found.runs[0]
    try:
        return stage_of_cell("validate", run["dataset"], run["method"], str(run["ipc"])).original_data_path
    except UserError:
        return None


def lines_of(store: Stored, found: Sequence[Found], dense: int) -> Iterator[dict[str, object]]:
    """A line for each way that students were trained on a store, or one without accuracy. dense: bytes to compare."""
    views = store.manifest["views"]
    of_store = {"store": store.name, "epochs": views["epochs"], "bytes": store.size}
    of_store |= {"a_view": store.size / (views["epochs"] * views["images"]), "times_smaller": dense / store.size}
    trained = [its for its in found if any(run.get("labels_sha256") == store.sha256 for run in its.runs)]
    for its in trained:
        yield {**of_store, "method": its.entry.row, "top1": its.entry.top1, "repeats": its.entry.repeats}
    if not trained:
        yield {**of_store, "method": None, "top1": None, "repeats": 0}


def epoch_bytes(views: ViewSettings, num_classes: int, packing: Packing) -> int:
    """The bytes of the tensors of an epoch, logits being float16."""
    tensors = expected_tensors(views, num_classes, "float16", packing).values()
    return sum(BYTES[kind] * math.prod(shape) for kind, shape in tensors)


def planned_bytes(dataset_name: str, method: str, ipc: int) -> dict[str, object]:
    """The epochs of a published cell, and the bytes of all of them, by how they are stored."""
    dataset = get_dataset(dataset_name)
    settings = recipes.stage_of("relabel", dataset, changes_of(method)[0], ipc)
    views = view_settings(replace(settings, seed=settings.fkd_seed), ipc * dataset.num_classes, dataset)
    of_each = {name: views.epochs * epoch_bytes(views, dataset.num_classes, its) for name, its in PACKINGS.items()}
    return {"epochs": views.epochs, "bytes": of_each}


def planned_line(its: dict) -> list[object]:
    return [its["dataset"], its["ipc"], its["epochs"], *(f"{size / 1e6:,.1f}" for size in its["bytes"].values())]
