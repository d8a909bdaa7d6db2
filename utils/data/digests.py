"""Digests of folders of real images: what a result depends on that lies outside of this project's own files."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from utils.data.images import images_by_class
from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.files import read_json, write_json

LISTING = "train_images_listing_sha256"  # what records call `listing_digest` of the training images
CACHE = ".digest.json"  # in the dataset's own folder: hidden, so that it is no class


def listing_digest(root: Path, by_class: Sequence[Sequence[Path]], times: bool = False) -> str:
    """sha256 of the names and sizes of the images of each class below `root`, in their order: quick where contents are
    many. times: and of when each was changed."""
    digest = hashlib.sha256()
    for label, paths in enumerate(by_class):
        for path in paths:
            status = path.stat()
            line = f"{label}\0{path.relative_to(root)}\0{status.st_size}" + f"\0{status.st_mtime_ns}" * times + "\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def digest_of_folder(root: Path, dataset: Dataset, keep: bool = True) -> str:
    """sha256 of the class folders below `root`: class order, names and contents of all images.

    Kept beside them, keyed by names, sizes and times, so that unchanged images are read once; where the folder cannot
    be written, and without `keep`, they are read each time. UserErrors of `images_by_class`.
    """
    by_class = images_by_class(root, dataset)
    cache, key = root / CACHE, listing_digest(root, by_class, times=True)
    with suppress(UserError, OSError, KeyError):
        if (known := read_json(cache))["listing"] == key:
            return known["sha256"]
    digest = hashlib.sha256()
    total = sum(map(len, by_class))
    with tqdm(total=total, desc=f"hashing {root.name}", unit="image", delay=2, leave=False) as bar:
        for label, paths in enumerate(by_class):
            for path in paths:
                name = json.dumps([label, path.parent.name, path.name])
                digest.update(
                    f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode(errors="surrogateescape")
                )
                bar.update()
    with suppress(OSError):
        if keep:
            write_json(cache, {"listing": key, "sha256": digest.hexdigest()})
    return digest.hexdigest()
