"""The pictures of the page: one sheet a class and folder of images, so that a page opens few files.

A sheet has a column an image and a row a frame: the patch that it came from, what it started as and the stages on the
way, where recover kept them (`<images>_initialised`, `<images>_stage<k>`), and the image itself.
"""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from recover.extras import start_folder
from utils import recipes
from utils.data.images import class_names, decode, folder_names
from utils.data.table import get_dataset
from utils.patches.patches import find_patch, jpeg_of
from utils.run.errors import UserError
from utils.run.files import remove, write_whole
from validate.page.cells import Cell

PICTURES = "pictures"  # the folder of sheets beside the page
CLASSES, IMAGES = 10, 10  # of a folder, at most
MOST_FILES = 12_000  # that a page decodes: with more folders there are fewer images of each class
MOST_PIXELS = 128  # a side of an image on a sheet
ABSENT = (128, 128, 128)


class Sheet(NamedTuple):
    """The picture of a class. frames: what each row is; files: of each row, by image; None where there is none."""

    name: str
    title: str
    frames: Sequence[str]
    files: Sequence[Sequence[Path | None]]
    side: int

    @property
    def columns(self) -> int:
        return len(self.files[0])


class Gallery(NamedTuple):
    """The sheets of a folder of images. cell: one that it belongs to; classes: how many there are in all."""

    cell: Cell
    sheets: Sequence[Sheet]
    classes: int

    @property
    def frames(self) -> Sequence[str]:
        return self.sheets[0].frames


def galleries_of(cells: Iterable[Cell]) -> list[Gallery]:
    """The galleries of all folders of images that cells were trained on, each once."""
    folders = {cell.images: cell for cell in reversed(list(cells)) if cell.images}
    share = MOST_FILES // max(1, len(folders))
    found = (gallery_of(cell, share) for cell in reversed(folders.values()))
    return [gallery for gallery in found if gallery.sheets]


def gallery_of(cell: Cell, most_files: int) -> Gallery:
    """The first images of the first classes of a cell."""
    dataset, folder, patches = get_dataset(cell.dataset), cell.images, patches_of(cell)
    names = [name for name in folder_names(folder) if re.fullmatch(r"new\d+", name)]
    frames = frames_of(folder)
    rows = len(frames) + (patches is not None)
    classes = min(CLASSES, len(names), max(1, most_files // rows))
    images = max(1, min(IMAGES, cell.ipc, most_files // rows // max(1, classes)))
    titles = class_names(dataset)
    sheets = []
    for name in names[:classes]:
        index = int(name.removeprefix("new"))
        files = sorted(path.name for path in (folder / name).glob("class*_id*.png"))[:images]
        if not files:
            continue
        ids = [int(re.search(r"_id(\d+)", file)[1]) for file in files]
        its = {frame: [place / name / file for file in files] for frame, place in frames.items()}
        if patches is not None:
            its = {"patch": [find_patch(patches, index, ipc_id) for ipc_id in ids], **its}
        side = min(dataset.size, MOST_PIXELS)
        sheets.append(
            Sheet(f"{cell.dataset}_{folder.name}_{name}.jpg", titles[index], list(its), list(its.values()), side)
        )
    return Gallery(cell, sheets, len(names))


def patches_of(cell: Cell) -> Path | None:
    """Where the patches lie that a cell's images came from, if they came from any."""
    if not cell.is_distilled:
        return None
    recover = recipes.in_places("recover", get_dataset(cell.dataset), cell.method, cell.ipc, os.environ)
    folder = recover.patch_dir and recover.patch_dir / recover.selector
    return folder if recover.uses_patches and folder and folder.is_dir() else None


def frames_of(folder: Path) -> dict[str, Path]:
    """The folders of what was kept of images on their way, in that order, and their own."""
    start = start_folder(folder)
    stages = {
        int(match[1]): path
        for path in folder.parent.glob(f"{escape(folder.name)}_stage*")
        if (match := re.fullmatch(r"_stage(\d+)", path.name.removeprefix(folder.name)))
    }
    found = {"start": start} if start.is_dir() else {}
    return {**found, **{f"stage {k}": stages[k] for k in sorted(stages)}, "image": folder}


def draw_sheets(folder: Path, sheets: Sequence[Sheet]) -> list[str]:
    """Write the picture of each sheet into a folder, and remove those of others; returns what could not be read."""
    problems: list[str] = []

    def draw(sheet: Sheet) -> None:
        content = jpeg_of(picture_of(sheet, problems))
        write_whole(folder / sheet.name, lambda part: part.write_bytes(content))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        list(tqdm(threads.map(draw, sheets), total=len(sheets), desc="pictures", unit="class"))
    names = {sheet.name for sheet in sheets}
    for path in folder.glob("*.jpg"):
        if path.name not in names:
            remove(path)
    return sorted(problems)


def picture_of(sheet: Sheet, problems: list[str]) -> np.ndarray:
    """The pixels of a sheet, uint8; a file that is not there, or does not decode, is a grey square."""
    side = sheet.side
    pixels = np.full((len(sheet.files) * side, sheet.columns * side, 3), ABSENT, np.uint8)
    for row, files in enumerate(sheet.files):
        for column, path in enumerate(files):
            if path is None or not path.exists():
                continue
            try:
                image = decode(path)
            except UserError as error:
                problems.append(str(error))
                continue
            if image.size != (side, side):
                larger = min(image.size) > side
                image = image.resize((side, side), Image.Resampling.BOX if larger else Image.Resampling.NEAREST)
            pixels[row * side :, column * side :][:side, :side] = np.asarray(image)
    return pixels
