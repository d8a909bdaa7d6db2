"""Bring distilled images that others made to where relabel and validate look for them.

    source config.sh
    python -m recover.bring_images my_set                       # a set of utils.data.export: images and labels
    python -m recover.bring_images --pull me/my_set             # the same from the Hugging Face Hub
    python -m recover.bring_images imagenet1k rded-drive downloads/rded_ipc10        # what else people share
    python -m recover.bring_images imagenet1k rded --pull he-yang/2025-rethinkdc-imagenet-rded-ipc-10

What else people share: class folders, named as the dataset's own or numbered in the order of its labels; images.pt as
DD-Ranking takes it; Hugging Face's sets, as parquet files or with metadata.jsonl. It becomes PNG files in
`<Main_Data_Path>/generated_data/syn_data/<DATASET>/<NAME>_ipc<N>`; relabel and validate take it with `--images NAME`.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import load_teacher
from models.teachers import is_poor, read_record
from models.testing import LabelledImages, accuracy
from utils import recipes
from utils.data.distilled import distilled_path, images_output, record_path, write_distilled
from utils.data.images import images_digest
from utils.data.layout import is_absent, whole_folder
from utils.data.package import pull, unpack
from utils.data.prepare import folders_of
from utils.data.shared import read_shared
from utils.data.table import Dataset, get_dataset
from utils.run.device import choose_device
from utils.run.errors import UserError, run_entry
from utils.run.files import read_json, write_json
from utils.run.settings import Parser
from utils.run.space import require_space
from utils.seams import SELECTORS

LOOKED_AT = 2000  # images that a teacher is asked about, at most


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("recover.bring_images", "Bring distilled images that others made, or an exported set.")
    add = parser.add_argument
    add("words", metavar="[DATASET NAME] FOLDER", nargs="*", help="without DATASET NAME: what utils.data.export wrote")
    add("--pull", metavar="OWNER/NAME", help="in place of FOLDER: a dataset repository of the Hugging Face Hub")
    add("--workers", "-j", type=int, default=os.cpu_count(), help="processes that decode")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where a teacher looks at the images")
    given = parser.parse_args(argv)
    if len(given.words) + bool(given.pull) not in (1, 3):
        parser.error("give FOLDER, or DATASET NAME FOLDER; --pull OWNER/NAME stands in place of FOLDER")
    named = given.words[: len(given.words) - (not given.pull)]
    dataset = get_dataset(named[0]) if named else None
    source = pull(given.pull, folders_of("").downloads) if given.pull else Path(given.words[-1])
    if dataset is None:
        unpack(source, os.environ)
    else:
        bring(dataset, named[1], source, given.workers, given.device)


def bring(dataset: Dataset, name: str, source: Path, workers: int, device: str) -> None:
    """Lay the images of a set out like distilled ones, whole or not at all."""
    if name in recipes.METHODS or name in SELECTORS or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise UserError(f"{name!r}: a name of letters, digits, _ . + - that is none of a method or selector")
    images, labels = read_shared(source, dataset, workers)
    ipc = len(images) // dataset.num_classes
    settings = recipes.in_places("relabel", dataset, next(iter(recipes.METHODS)), ipc, os.environ, images=name)
    folder, digest = settings.syn_data_path, images_digest(images, labels)
    if not is_absent(folder):
        raise UserError(f"{folder} is there: move it away, or take another name than {name}")
    warn_of_order(images, labels, dataset, settings.model_pool_dir, device)
    require_space(folder, images_output(len(images), dataset))
    with whole_folder(folder) as part:
        for place, image in enumerate(tqdm(images, desc=f"writing {folder}", unit="image", delay=1)):
            write_distilled([distilled_path(part, dataset.num_classes, *divmod(place, ipc))], image[None], digest)
        record = {"method": name, "dataset_name": dataset.name, "ipc": ipc, "source": source.name}
        write_json(record_path(part), {**record, "images_sha256": digest})
    print(f"{folder}: {len(images)} images, {ipc} a class, sha256 {digest}", flush=True)


def warn_of_order(images: Tensor, labels: Tensor, dataset: Dataset, pool: Path, device: str) -> None:
    """Let the best teacher of the pool look at the images, and warn where it knows them as poorly as it would in a
    shuffled order of classes."""
    records = [read_json(path) for path in pool.glob("*.json") if path.name != "report.json"]
    known = {record["top1"]: record["model"] for record in records if "top1" in record and "model" in record}
    if not known or read_record(pool, known[max(known)]) is None:
        print(f"note: no tested teacher in {pool}: the order of the classes was not checked by one", flush=True)
        return
    best = max(known)
    teacher = load_teacher(known[best], dataset, pool).module.to(choose_device(device))
    some = torch.arange(0, len(images), -(-len(images) // LOOKED_AT))
    top1, _ = accuracy(teacher, LabelledImages(images[some], labels[some]), dataset)
    print(f"{known[best]} ({best:.2f} % on real images) knows {top1:.2f} % of these", flush=True)
    if is_poor(top1, best, dataset):
        print(
            f"WARNING: that is poor: the order of the classes may not be that of {dataset.name}, or the images were "
            "never meant for such a network",
            flush=True,
        )


if __name__ == "__main__":
    run_entry(main)
