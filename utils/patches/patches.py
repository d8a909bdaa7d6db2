"""Patches on disk: `<patch_dir>/<selector>/<class:05d>/class<class:05d>_id<ipc_id:05d>.jpg` (or .png), S x S.
 `patch_dir` is the dataset's own folder, the selector in the published ones easy, medium or hard. Downloaded patches of
that layout work as they are.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from utils.data.images import load_images
from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.files import write_whole
from utils.run.space import Output

EXTENSIONS = ("jpg", "png", "JPG", "PNG", "jpeg", "JPEG")
RECORD = "patches.json"  # beside the class folders; patches without it come from elsewhere
# Patches are merged in again after every stage, so what JPEG does to them stays: on natural photographs its error (root
# mean square) is 10 of 255 levels with PIL's own settings, 75 and halved colour, and 3 with these.
JPEG_SETTINGS = {"quality": 95, "subsampling": "4:4:4"}


def patch_path(folder: Path, class_index: int, ipc_id: int, extension: str = "jpg") -> Path:
    """The file of one patch; folder: `<patch_dir>/<selector>`."""
    return folder / f"{class_index:05d}" / f"class{class_index:05d}_id{ipc_id:05d}.{extension}"


def find_patch(folder: Path, class_index: int, ipc_id: int) -> Path | None:
    """The patch's file, as .jpg or as .png, or None."""
    paths = (patch_path(folder, class_index, ipc_id, extension) for extension in EXTENSIONS)
    return next((path for path in paths if path.exists()), None)


def missing_patch(folder: Path, class_index: int, count: int) -> Path | None:
    """The first of a class's `count` patches that is not there, or None."""
    absent = (ipc_id for ipc_id in range(count) if find_patch(folder, class_index, ipc_id) is None)
    return next((patch_path(folder, class_index, ipc_id) for ipc_id in absent), None)


def downloaded_patches_complete(folder: Path, classes: Sequence[int], count: int) -> bool:
    """Whether `folder` holds patches that this program did not make, and all `count` of each of the classes.

    Raises UserError if it holds some of them only: this program does not mix its own among others'.
    """
    if (folder / RECORD).exists() or not any(folder.glob("[0-9]*")):
        return False
    for class_index in classes:
        if lacking := missing_patch(folder, class_index, count):
            raise UserError(
                f"{folder} holds patches that this program did not make, but not {lacking.relative_to(folder)}: "
                "complete them, ask for fewer (--patches-per-class), or move them away"
            )
    return True


def write_class_patches(folder: Path, class_index: int, patches: Tensor) -> None:
    """Write the patches of one class (uint8, N x 3 x S x S) that are not there, each whole."""
    for ipc_id, patch in enumerate(patches.permute(0, 2, 3, 1).numpy()):
        if find_patch(folder, class_index, ipc_id) is None:
            # Pillow overlooks a disk that fills up while it writes a JPEG; write_bytes does not.
            content = jpeg_of(patch)
            write_whole(
                patch_path(folder, class_index, ipc_id), lambda part, content=content: part.write_bytes(content)
            )


def jpeg_of(patch: np.ndarray) -> bytes:
    """The JPEG file of a patch (uint8, S x S x 3)."""
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, format="JPEG", **JPEG_SETTINGS)
    return buffer.getvalue()


def patches_output(patches: int, dataset: Dataset) -> Output:
    """What writing so many patches takes: JPEG, at most a quarter more than its pixels."""
    return Output(patches, patches * (3 * dataset.size**2 * 5 // 4 + 1024))


def require_patches(patch_dir: Path, selector: str, members: Iterable[tuple[int, int]], dataset: Dataset) -> None:
    """Make sure, before anything is computed, that every patch is there that a run will read.

    patch_dir: the dataset's own folder of patches; members: class and image index of each.
    Raises UserError for a missing folder and for the first patch that is missing.
    """
    folder = patch_dir / selector
    making = f"`python -m recover.make_patches --dataset-name {dataset.name} --recipe METHOD --ipc N`"
    if not folder.is_dir():
        raise UserError(f"no patches in {folder}: make them with {making}, or put downloaded ones there")
    for class_index, ipc_id in members:
        if find_patch(folder, class_index, ipc_id) is None:
            raise UserError(
                f"the patch {patch_path(folder, class_index, ipc_id)} is missing: make more with {making} and "
                f"--patches-per-class, or put it there"
            )


def load_patches(patch_dir: Path, selector: str, members: Sequence[tuple[int, int]], dataset: Dataset) -> Tensor:
    """The patches of these classes and image indices: uint8, B x 3 x S x S.

    Raises what `require_patches` raises, and UserError for a file that does not decode or is not S x S.
    """
    require_patches(patch_dir, selector, members, dataset)
    return load_images([find_patch(patch_dir / selector, *member) for member in members], dataset, progress=None)
