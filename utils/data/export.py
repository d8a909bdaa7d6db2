"""Export a distilled set as one folder that travels: images, labels, what they were made with, a card.

    source config.sh
    python -m utils.data.export cifar100 fadrm 10 --to my_set                     # back: recover.bring_images my_set
    python -m utils.data.export cifar100 fadrm 10 --to my_set --push me/my_set    # and to the Hugging Face Hub
    python -m utils.data.export cifar100 fadrm 10 --to for_dd --as ddranking      # what DD-Ranking takes

What is in the folder: utils/data/package.py. A folder that is there already, with the same set, is checked and taken.
"""

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from utils import recipes
from utils.data.distilled import read_distilled, record_path
from utils.data.images import images_digest, list_images, normalise
from utils.data.layout import is_absent, whole_folder
from utils.data.package import METADATA, REPORT, DistilledSet, copy, pack, push, read_package
from utils.data.shared import as_in_ddranking
from utils.data.table import Dataset, get_dataset
from utils.fkd.store import MANIFEST, LabelStore, check_store, open_store, read_epoch
from utils.recipes.settings import PROTOCOLS, ValidateSettings
from utils.run.errors import UserError, run_entry
from utils.run.files import read_json
from utils.run.records import check_shape
from utils.run.settings import Parser
from utils.run.space import Output, require_space
from utils.run.spread import shown, spread_of

RESULT = {"student": str, "epochs": int, "seed": int, "top1": float, "settings": dict}  # what the card reads of one
# Of the real images that a set was made from: the Hub's name of the licence, and a sentence.
IMAGENET_TERMS = ("other", "ImageNet's terms of access: for non-commercial research and education.")
LICENCES = {
    "fashion_mnist": ("mit", "Fashion-MNIST: MIT, copyright Zalando SE."),
    **dict.fromkeys(("cifar10", "cifar100"), ("unknown", "CIFAR: its page names no licence and asks for a citation.")),
    **dict.fromkeys(("tiny_imagenet", "imagenet-nette", "imagewoof", "imagenet1k"), IMAGENET_TERMS),
}
NO_LICENCE = ("unknown", "Not known here: say it before you share this.")

TEMPLATE = """---
{header}---

# {title}

{count} distilled images of {size} x {size} pixels in {classes} classes. `label` and `class_id` are the place of the
class in the dataset's own order. {made}

images sha256 `{images_sha256}`, labels sha256 `{labels_sha256}`

## Recipe

```json
{recipe}
```

## Teachers

| name | weight | sha256 |
|---|---|---|
{teachers}

## Accuracy

Of students on the real validation images, after the last epoch:

| student | labels | epochs | seeds | top-1 % |
|---|---|---|---|---|
{results}

## Load

```python
from datasets import load_dataset
images = load_dataset("imagefolder", data_dir="FOLDER")["train"]  # image, label, class_id
```

`images/` alone is what torchvision's ImageFolder reads; `labels/epoch_*.safetensors` are plain tensors, the views of an
epoch and the teachers' logits for them. `manifest.json` has the sha256 of every file.

## Train on it

With the suite that wrote this and the real validation images in `$val_dir/{dataset}`:

```bash
source config.sh
python -m recover.bring_images FOLDER    # or --pull OWNER/NAME
{commands}
```

## Licence

The real images: {licence} Use and share what was made from them accordingly.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("utils.data.export", "Export a distilled set, with its labels, as one folder.")
    add = parser.add_argument
    add("dataset", metavar="DATASET")
    add("method", metavar="METHOD")
    add("ipc", metavar="IPC", type=int)
    add("student", metavar="STUDENT", nargs="?", help="of the command on the card (default: the recipe's)")
    add("--to", type=Path, required=True, help="the folder to make")
    add("--as", dest="form", choices=("package", "ddranking"), default="package", help="for whom")
    add("--labels", choices=(*PROTOCOLS, "none"), default="views", help="the protocol whose labels go along")
    add("--images", help="the images' name where they are not the method's (random, ...)")
    add("--draw", type=int, default=0, help="which draw of them")
    add("--push", metavar="OWNER/NAME", help="upload the folder to this dataset repository of the Hugging Face Hub")
    export(parser.parse_args(argv))


def export(given: Namespace) -> None:
    dataset = get_dataset(given.dataset)
    settings = settings_of(given, dataset, "views" if given.labels == "none" else given.labels)
    images, classes, ipc = read_distilled(settings.original_data_path, dataset)
    if ipc != given.ipc:
        raise UserError(f"IPC {given.ipc}: {settings.original_data_path} has {ipc} images a class")
    digest = images_digest(images, classes)
    if given.form == "ddranking":
        if given.push:
            raise UserError("--push uploads a package: leave --as ddranking out")
        export_for_ddranking(given, dataset, (images, classes), digest)
        return
    store = None if given.labels == "none" else store_of(settings.fkd_path, dataset, digest)
    distilled = DistilledSet(dataset, given.images or given.method, ipc, settings.original_data_path, digest, store)
    if is_absent(given.to):
        pack(distilled, card_of(distilled, given, settings), given.to)
    elif any(read_package(given.to).get(name) != value for name, value in distilled.identity.items()):
        raise UserError(f"{given.to} holds another set: move it away, or name another folder in --to")
    labels = f"labels sha256 {store.sha256}" if store else "no labels"
    print(f"{given.to}: {len(images)} images, sha256 {digest}; {labels}", flush=True)
    if given.push:
        push(given.to, given.push)
        print(f"uploaded to https://huggingface.co/datasets/{given.push}", flush=True)


def settings_of(given: Namespace, dataset: Dataset, labels: str) -> ValidateSettings:
    """The settings of validate for the set, with the places of its images, labels and results."""
    words = {"student": given.student, "images": given.images, "draw": given.draw, "labels": labels}
    return recipes.in_places("validate", dataset, given.method, given.ipc, os.environ, **words)


def store_of(folder: Path, dataset: Dataset, images_sha256: str) -> LabelStore:
    """The labels of images; UserError where they are not there, or of other images."""
    store = open_store(folder, verify=True)
    check_store(store, {"dataset": dataset.name, "images_sha256": images_sha256})
    return store


def export_for_ddranking(given: Namespace, dataset: Dataset, distilled: tuple[Tensor, Tensor], digest: str) -> None:
    """images/<class:05d>/*.png; images.pt (float32, N x 3 x S x S, normalised, class-major), hard_labels.pt (int64, N),
    and, where there are fixed labels, labels.pt (float32, N x classes, logits)."""
    if not is_absent(given.to):
        raise UserError(f"{given.to} is there: move it away, or name another folder in --to")
    places, (images, classes) = settings_of(given, dataset, "fixed"), distilled
    paths, labels = list_images(places.original_data_path, dataset)
    sources = {f"images/{n:05d}/{path.name}": path for n, path in zip(labels.tolist(), paths, strict=True)}
    tensors = {
        "images": normalise(images, as_in_ddranking(dataset)),
        "hard_labels": classes,
    }
    if (places.fkd_path / MANIFEST).is_file():
        tensors["labels"] = fixed_labels(store_of(places.fkd_path, dataset, digest))
    else:
        print(f"note: no labels.pt: there are no fixed labels in {places.fkd_path} (relabel --labels fixed makes them)")
    size = sum(path.stat().st_size for path in paths) + sum(tensor.nbytes for tensor in tensors.values())
    require_space(given.to, Output(len(paths) + len(tensors), size))
    with whole_folder(given.to) as part:
        copy(sources, part, f"exporting {given.to}")
        for name, tensor in tensors.items():
            torch.save(tensor, part / f"{name}.pt")
    shapes = ", ".join(f"{name}.pt {list(tensor.shape)}" for name, tensor in tensors.items())
    print(f"{given.to}: images/ in {dataset.num_classes} folders, {shapes}", flush=True)


def fixed_labels(store: LabelStore) -> Tensor:
    """The soft labels of whole images, in the order of the images: float32, N x C."""
    check_store(store, {"labels": "fixed"})
    epoch, logits = read_epoch(store, 0)
    return torch.empty(logits.shape).index_copy_(0, epoch.order.long(), logits.float())


def results_of(settings: ValidateSettings, distilled: DistilledSet) -> list[str]:
    """A row of the card's table for each student and way to train it with results of just these images and labels."""
    runs: dict[tuple, dict[int, float]] = {}  # top-1 by seed
    for path in sorted((settings.output_dir / distilled.dataset.name).glob("*/seed*/result.json")):
        result = read_json(path)
        check_shape(path, result, RESULT, "remove it and run validate again")
        store, trained = distilled.store, result["settings"]
        if result.get("images_sha256") == distilled.images_sha256 and (
            store is None or result.get("labels_sha256") == store.sha256
        ):
            row = (result["student"], trained.get("labels", "views"), result["epochs"], json.dumps(trained))
            runs.setdefault(row, {})[result["seed"]] = result["top1"]
    rows = []
    for (student, labels, epochs, _), by_seed in sorted(runs.items()):
        top1 = shown(spread_of([*by_seed.values()]))
        rows.append(f"| {student} | {labels} | {epochs} | {len(by_seed)} | {top1} |")
    return rows


def card_of(distilled: DistilledSet, given: Namespace, settings: ValidateSettings) -> str:
    """The card: a header for the Hub, then what the set is, how good, how it is loaded and trained on."""
    dataset, store, ipc = distilled.dataset, distilled.store, distilled.ipc
    images = ipc * dataset.num_classes
    licence, sentence = LICENCES.get(dataset.name, NO_LICENCE)
    title = f"{dataset.name}, {distilled.method}, {ipc} images per class"
    header = {
        "pretty_name": title,
        "license": licence,
        "task_categories": ["image-classification"],
        "size_categories": ["n<1K" if images < 1000 else "1K<n<10K" if images < 10_000 else "10K<n<100K"],
        "tags": ["dataset-distillation", "dataset-compression", f"ipc-{ipc}"],
        "configs": [{"config_name": "default", "data_files": [METADATA, "images/**"]}],
    }
    recipe, report = (
        read_json(path) if path.exists() else {} for path in (record_path(distilled.images), distilled.images / REPORT)
    )
    made = [f"{name} {version}" for name, version in report.get("versions", {}).items()]
    if report.get("made"):
        made = [f"{report['seconds']:.0f} s on {report['device']}", *made]
    told = {"images": recipe}
    if store:
        told["labels"] = {name: value for name, value in store.manifest.items() if name != "epoch_sha256"}
    teachers = store.manifest["teachers"] if store else recipe.get("teachers", [])
    rows = [f"| {its['name']} | {its.get('weight', '')} | `{its['sha256']}` |" for its in teachers]
    words = f"--dataset-name {dataset.name} --recipe {given.method} --ipc {ipc}"
    words += f" --images {given.images}" * bool(given.images) + f" --draw {given.draw}" * bool(given.draw)
    words += f" --labels {given.labels}" * (given.labels not in ("views", "none"))
    commands = [] if store else [f"python -m relabel.relabel {words}"]
    return TEMPLATE.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        title=title,
        count=images,
        size=dataset.size,
        classes=dataset.num_classes,
        made=f"Made with: {', '.join(made)}." if made else "",
        images_sha256=distilled.images_sha256,
        labels_sha256=store.sha256 if store else "none",
        recipe=json.dumps(told, indent=1),
        teachers="\n".join(rows) or "| none recorded | | |",
        results="\n".join(results_of(settings, distilled)) or "| none here | | | | |",
        dataset=dataset.name,
        commands="\n".join([*commands, f"python -m validate.validate {words} --model {settings.model}"]),
        licence=sentence,
    )


if __name__ == "__main__":
    run_entry(main)
