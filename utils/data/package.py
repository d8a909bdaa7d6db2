"""A distilled set as one folder that travels: packed, checked, unpacked byte for byte, sent to and fetched from the
Hugging Face Hub.

    images/<class>/<image>.png         class folders and nothing else, as torchvision's ImageFolder reads them
    metadata.jsonl                     columns for Hugging Face's "imagefolder": label, class_id, class_name
    settings.json, report.json         what the images were made with, and what that cost
    labels/                            the label store, see relabel/README.md
    README.md                          the card
    manifest.json                      what the set is, and the sha256 of every file but the card, which people edit
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils import recipes
from utils.data.distilled import read_distilled, record_path
from utils.data.embedded import ensure_embedded
from utils.data.images import folder_names, images_digest, list_images
from utils.data.layout import is_absent, slug, whole_folder
from utils.data.prepare import folders_of
from utils.data.table import Dataset, get_dataset
from utils.fkd.store import MANIFEST, LabelStore, epoch_path, open_store
from utils.run.errors import UserError
from utils.run.files import read_json, sha256_of, write_json, write_json_lines
from utils.run.records import Shape, check_shape
from utils.run.space import Output, require_space

CARD, METADATA, REPORT = "README.md", "metadata.jsonl", "report.json"
OF_IMAGES = ("settings.json", REPORT)  # what lies beside the class folders of images, and here beside images/
FORMAT = 1
PART: Shape = {"name": str, "sha256": str}
SHAPE: Shape = {"format_version": int, "dataset": str, "method": str, "ipc": int, "images": PART, "files": dict}


class DistilledSet(NamedTuple):
    """What is packed: class folders of images with their digest, and the label store, if it goes along."""

    dataset: Dataset
    method: str
    ipc: int
    images: Path
    images_sha256: str
    store: LabelStore | None

    @property
    def identity(self) -> dict[str, Any]:
        """What a manifest says of the set."""
        found = {"dataset": self.dataset.name, "method": self.method, "ipc": self.ipc}
        found["images"] = {"name": self.images.name, "sha256": self.images_sha256}
        return found | {"labels": self.store and {"name": self.store.folder.name, "sha256": self.store.sha256}}


def own_class_names(dataset: Dataset) -> list[str] | None:
    """The names of a dataset's class folders, of real images, by label; None where it is not laid out here."""
    folders = folders_of(dataset.name)
    ensure_embedded(dataset, val=folders.val)
    return next((folder_names(root) for root in (folders.val, folders.train) if not is_absent(root)), None)


def bare(name: str) -> str:
    """A class folder's name without case, blanks and a number in front."""
    return slug(re.sub(r"^\d+_", "", name))


def labels_by_name(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """The label of each class folder, by its name; None where the names are not those of the known class folders.

    Names that differ in case, blanks and a number in front (`0_t-shirt`, `T-shirt`) are the same.
    """
    for form in (str, bare):
        label_of = {form(name): label for label, name in enumerate(known)}
        if len(label_of) == len(names) and {form(name) for name in names} == label_of.keys():
            return [label_of[form(name)] for name in names]
    return None


def pack(distilled: DistilledSet, card: str, destination: Path) -> None:
    """Write the folder, whole or not at all. UserError where there is no space."""
    paths, labels = list_images(distilled.images, distilled.dataset)
    names = own_class_names(distilled.dataset)
    sources = {f"images/{path.relative_to(distilled.images).as_posix()}": path for path in paths}
    rows = [
        {"file_name": name, "label": label, "class_id": label, **({"class_name": names[label]} if names else {})}
        for name, label in zip(sources, labels.tolist(), strict=True)
    ]
    reports = {REPORT: distilled.images / REPORT}
    sources["settings.json"] = record_path(distilled.images)
    if distilled.store:
        folder, epochs = distilled.store.folder, range(len(distilled.store.checksums))
        for path in (folder / MANIFEST, record_path(folder), *(epoch_path(folder, epoch) for epoch in epochs)):
            sources[f"labels/{path.name}"] = path
        reports[f"labels/{REPORT}"] = folder / REPORT
    sources = {name: path for name, path in sources.items() if path.exists()}
    require_space(destination, Output(len(sources) + 6, sum(path.stat().st_size for path in sources.values())))
    with whole_folder(destination) as part:
        copy(sources, part, f"packing {destination}")
        for name, path in reports.items():
            if path.exists():  # without the names of this machine's folders
                write_json(part / name, {**read_json(path), "files": {}})
        write_json_lines(part / METADATA, rows)
        digests = {name: sha256_of(part / name) for name in sorted(files_in(part))}
        write_json(
            part / MANIFEST, {"format_version": FORMAT, **distilled.identity, "classes": names, "files": digests}
        )
        (part / CARD).write_text(card, encoding="utf-8")


def copy(sources: Mapping[str, Path], destination: Path, progress: str) -> None:
    """Copy files to their names below a folder."""
    for name, path in tqdm(sources.items(), desc=progress, unit="file", delay=1):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination / name)


def files_in(folder: Path) -> set[str]:
    """The files of a package but card and manifest; hidden ones, as Git and the Hub leave, do not count."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in names if not any(p.startswith(".") for p in name.parts)} - {CARD, MANIFEST}


def read_package(folder: Path) -> dict[str, Any]:
    """The manifest of a package; UserError naming the first file that is missing, too many or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}: it is no set that utils.data.export wrote; for one that others share name "
            "DATASET and NAME in front of it"
        )
    manifest, remedy = read_json(path), "remove the folder, and export or fetch the set again"
    check_shape(path, manifest, SHAPE, remedy)
    if manifest["format_version"] != FORMAT:
        raise UserError(f"{path} has format {manifest['format_version']}, this version reads {FORMAT}")
    for name, shape in (("labels", PART), ("classes", [str])):
        if manifest.get(name) is not None:
            check_shape(path, manifest, {name: shape}, remedy)
    told, found = manifest["files"], files_in(folder)
    for problem, names in (("is missing", told.keys() - found), ("does not belong there", found - told.keys())):
        if names:
            raise UserError(f"{folder / min(names)} {problem}: {remedy}")
    for name in tqdm(sorted(told), desc=f"checking {folder}", unit="file", delay=1):
        if sha256_of(folder / name) != told[name]:
            raise UserError(f"{folder / name} is damaged (its sha256 is not that of {path}): {remedy}")
    return manifest


def unpack(folder: Path, environment: Mapping[str, str]) -> None:
    """Put the images and labels of a package where the stages look for them, in the folders of config.sh.

    UserError for a package that is damaged, for classes in another order than here, and where something else lies
    there; what is there already stays.
    """
    manifest = read_package(folder)
    dataset, ipc = get_dataset(manifest["dataset"]), manifest["ipc"]
    theirs, ours = manifest.get("classes"), own_class_names(dataset)
    if theirs and ours and labels_by_name(theirs, ours) != list(range(len(ours))):
        raise UserError(first_difference(theirs, ours, folder, dataset))
    places = recipes.in_places("relabel", dataset, next(iter(recipes.METHODS)), ipc, environment)
    identities = {
        "images": lambda place: digest_of_images(place, dataset, ipc),
        "labels": lambda place: open_store(place).sha256,
    }
    todo = {}
    for kind, parent in {"images": places.syn_data_path.parent, "labels": places.fkd_path.parent}.items():
        if (told := manifest.get(kind)) is None:
            continue
        name, sha256 = told["name"], told["sha256"]
        if "/" in name or name.startswith(".") or identities[kind](folder / kind) != sha256:
            raise UserError(f"{folder / MANIFEST} does not fit the {kind} beside it: export or fetch the set again")
        place = parent / name
        if is_absent(place):
            todo[place] = {
                path.removeprefix(f"{kind}/"): folder / path
                for path in manifest["files"]
                if path.startswith(f"{kind}/") or (kind == "images" and path in OF_IMAGES)
            }
        elif identities[kind](place) != sha256:
            raise UserError(f"{place} holds other {kind} than {folder}: move one of the two away")
        print(f"{kind}: {place}, sha256 {sha256}{', there already' * (place not in todo)}", flush=True)
    for place, sources in todo.items():
        require_space(place, Output(len(sources), sum(path.stat().st_size for path in sources.values())))
    for place, sources in todo.items():
        with whole_folder(place) as part:
            copy(sources, part, f"unpacking {place}")


def digest_of_images(folder: Path, dataset: Dataset, ipc: int) -> str:
    """The digest of distilled images; UserError where they are not so many a class."""
    images, labels, found = read_distilled(folder, dataset)
    if found != ipc:
        raise UserError(f"{folder} has {found} images a class, not {ipc}")
    return images_digest(images, labels)


def first_difference(theirs: Sequence[str], ours: Sequence[str], source: Path, dataset: Dataset) -> str:
    """Says which class folder is the first that is another here."""
    pairs = list(enumerate(zip_longest(theirs, ours, fillvalue="missing")))
    label, (their, our) = next((n, pair) for form in (bare, str) for n, pair in pairs if len(set(map(form, pair))) == 2)
    return (
        f"class {label} is {their!r} in {source} and {our!r} in {dataset.name}'s own class folders: give the folders "
        "the dataset's names, or numbers in the order of its labels"
    )


def push(folder: Path, repository: str) -> None:
    """Upload a package to a dataset repository of the Hub; a new one is private. UserError where that fails."""
    with hub(f"{folder} could not be uploaded to {repository}"):
        from huggingface_hub import create_repo, upload_folder

        create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)


def pull(repository: str, downloads: Path) -> Path:
    """Fetch a dataset repository of the Hub into a folder of its own in `downloads`; UserError where that fails."""
    folder = downloads / repository.replace("/", "--")
    with hub(f"{repository} could not be fetched"):
        from huggingface_hub import snapshot_download

        snapshot_download(repository, repo_type="dataset", local_dir=folder)
    return folder


@contextmanager
def hub(failure: str) -> Iterator[None]:
    """Turn whatever the Hub's library raises into one line; what the disk raises stays what it is."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in (28, 122):  # no space
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{failure} ({type(error).__name__}: {reason}): check the network, the name (OWNER/NAME), and that "
            "`hf auth login` was done where it asks for that"
        ) from None
