"""Folders of images that appear whole: filled beside their place, then renamed into it."""

import errno
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.run.files import part_beside


def is_absent(root: Path) -> bool:
    """Whether there is nothing at `root`, or an empty folder."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


@contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `destination` at the end; at an error it goes and nothing remains.

    `destination` is absent or empty. Where another process has put it there meanwhile, that one stays.
    """
    part = part_beside(destination)
    part.mkdir()
    try:
        yield part
        try:
            part.rename(destination)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        if str(error.filename or part).startswith(str(part)):
            error.filename = str(destination)  # the user knows this name, not the temporary one
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def lay_out(images: Iterable[np.ndarray], labels: Sequence[int], class_names: Sequence[str], destination: Path) -> None:
    """Write images as PNG files into class folders whose names sort in the order of the labels, whole or not at all.

    images: each uint8, H x W (grey) or H x W x 3; labels: the class of each; class_names: of every class. The folder
    of a class is its number and its name; a file's name is the image's place in `images`.
    """
    digits = len(str(len(class_names) - 1))
    with whole_folder(destination) as part:
        folders = [part / f"{label:0{digits}d}_{slug(name)}" for label, name in enumerate(class_names)]
        for folder in folders:
            folder.mkdir()
        labelled = zip(images, labels, strict=True)
        bar = tqdm(labelled, desc=f"laying out {destination}", total=len(labels), unit="image", delay=1)
        for place, (image, label) in enumerate(bar):
            Image.fromarray(image).save(folders[label] / f"{place:05d}.png")


def slug(name: str) -> str:
    """A class's name as folders have it: `T-shirt or top` as `t-shirt-or-top`."""
    return "-".join(name.lower().replace("_", " ").replace("/", " ").split())


def link_out(by_class: Mapping[str, Iterable[Path]], destination: Path) -> None:
    """Put images into class folders, whole or not at all: hard links, or copies where the file system has none."""
    with whole_folder(destination) as part:
        for name, paths in tqdm(by_class.items(), desc=f"laying out {destination}", unit="class", delay=1):
            (part / name).mkdir()
            for path in paths:
                try:
                    (part / name / path.name).hardlink_to(path)
                except FileNotFoundError:
                    raise
                except OSError:
                    shutil.copyfile(path, part / name / path.name)
