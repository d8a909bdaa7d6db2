"""Multi-scale patch initialisation, after RDED (Sun et al. 2024): the crops of real images that a teacher knows best.

Each real image gives random square crops; an observer, a teacher in eval mode, scores every crop by its cross-entropy
against the image's class; the best crop of each image enters a ranking, and the difficulty says from which end of the
ranking the patches are taken. FADRM starts from them and mixes them in again after every stage.

On disk a patch is `<patch_dir>/<difficulty>/<class:05d>/class<class:05d>_id<ipc_id:05d>.jpg` (or .png), S x S, with
`patch_dir` the dataset's own folder. Downloaded patches of that layout work as they are.
"""

import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from utils.datasets import Dataset, load_images, normalise
from utils.errors import UserError
from utils.layout import whole_folder
from utils.real_images import sample_boxes_of

DIFFICULTIES = ("easy", "medium", "hard")
EXTENSIONS = ("jpg", "png")
RECORD = "patches.json"  # beside the class folders; patches without it come from elsewhere
# Patches are merged in again after every stage, so what JPEG does to them stays: on natural photographs its error (root
# mean square) is 10 of 255 levels with PIL's own settings, 75 and halved colour, and 3 with these.
JPEG_SETTINGS = {"quality": 95, "subsampling": "4:4:4"}


def sample_square_crops(
    height: int, width: int, count: int, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """`count` random square crops of an image: int64, count x 4: top, left, height, width in pixels.

    area: least and largest share of the image's area, drawn uniformly. A square that does not fit into an oblong image
    is drawn again, ten times at most, then it is the largest one about the centre (RandomResizedCrop with ratio 1).
    """
    return sample_boxes_of(height, width, count, area, (1.0, 1.0), generator)


def pad_centred(images: Tensor, size: int) -> Tensor:
    """Normalised images (N x 3 x s x s) in the middle of zeros, the mean colour: N x 3 x size x size."""
    before = (size - images.shape[-1]) // 2
    after = size - images.shape[-1] - before
    return F.pad(images, (before, after, before, after))


@torch.inference_mode()
def crop_losses(observer: nn.Module, crops: Tensor, class_index: int, dataset: Dataset, batch_size: int) -> Tensor:
    """Cross-entropy of the observer (in eval mode) for crops of one class: float32, N, on the CPU.

    crops: uint8, N x 3 x s x s, anywhere; they go through the observer, on its own device, batch_size at a time. A crop
    smaller than S is padded after normalisation, not resized, as RDED does.
    """
    device = next(observer.parameters()).device
    losses = []
    for batch in crops.split(batch_size):
        views = pad_centred(normalise(batch.to(device), dataset), dataset.size)
        labels = torch.full((len(batch),), class_index, device=device)
        losses.append(F.cross_entropy(observer(views).float(), labels, reduction="none"))
    return torch.cat(losses).cpu()


def select(ranking: Tensor, difficulty: str) -> Tensor:
    """A ranking (M, lowest loss first) in the order in which a difficulty takes from it.

    easy: from the front; hard: from the back; medium: outward from the middle, the lower loss first of two that are
    as far from it.
    """
    if difficulty == "easy":
        return ranking
    if difficulty == "hard":
        return ranking.flip(0)
    if difficulty == "medium":
        places = torch.arange(len(ranking), device=ranking.device)
        return ranking[(2 * places - (len(ranking) - 1)).abs().argsort(stable=True)]
    raise ValueError(f"difficulty {difficulty!r} is none of {DIFFICULTIES}")


def choose_crops(losses: Tensor, difficulty: str, count: int) -> Tensor:
    """Which crops of a class become patches, in order: int64, count x 2: image, crop.

    losses: M x m, of m crops from each of M images. The images are ranked by their best crop's loss and taken as
    `select` says. Where M images are fewer than `count`, each one's second best crop follows after all the best ones,
    ranked and selected among themselves in the same way, then the third best, and so on.
    Ties go to the earlier image, and within an image to the earlier crop.
    """
    if count > losses.numel():
        raise ValueError(f"{count} crops asked for, {losses.numel()} there")
    ordered, crops = losses.sort(dim=1, stable=True)
    rounds = []
    for place in range(losses.shape[1]):
        images = select(ordered[:, place].argsort(stable=True), difficulty)
        rounds.append(torch.stack((images, crops[images, place]), dim=1))
    return torch.cat(rounds)[:count]


def tile(crops: Tensor, factor: int) -> Tensor:
    """Join each factor * factor consecutive crops, row by row, into one image.

    crops: (N * factor * factor) x 3 x s x s. Returns N x 3 x (factor * s) x (factor * s). (RDED strides through the
    ranking instead, by the number of images made. Taken consecutively, the first n tiles hold the best n * factor^2
    crops for every n, so every IPC shares its first patches with the larger ones.)
    """
    count, channels, side, _ = crops.shape
    cells = crops.view(count // factor**2, factor, factor, channels, side, side)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, factor * side, factor * side)


def patch_path(folder: Path, class_index: int, ipc_id: int, extension: str = "jpg") -> Path:
    """The file of one patch; folder: `<patch_dir>/<difficulty>`."""
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
    """Write all patches of one class (uint8, N x 3 x S x S), or none: the class folder appears whole.

    A class folder that is there already, with fewer, is replaced.
    """
    target = patch_path(folder, class_index, 0).parent
    shutil.rmtree(target, ignore_errors=True)
    with whole_folder(target) as part:
        for ipc_id, patch in enumerate(patches.permute(0, 2, 3, 1).numpy()):
            # PIL overlooks a disk that fills up while it writes a JPEG; write_bytes does not.
            (part / patch_path(folder, class_index, ipc_id).name).write_bytes(jpeg_of(patch))


def jpeg_of(patch: np.ndarray) -> bytes:
    """The JPEG file of a patch (uint8, S x S x 3)."""
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, format="JPEG", **JPEG_SETTINGS)
    return buffer.getvalue()


def require_patches(
    patch_dir: Path, difficulty: str, work: Iterable[tuple[int, Iterable[int]]], dataset: Dataset
) -> None:
    """Make sure, before anything is computed, that every patch is there that a run will read.

    patch_dir: the dataset's own folder of patches; work: pairs of an image index and the classes that need it.
    Raises UserError for a missing folder and for the first patch that is missing.
    """
    folder = patch_dir / difficulty
    if not folder.is_dir():
        raise UserError(
            f"no patches in {folder}: make them with recover/scripts/{dataset.name}/make_patches.sh, "
            "or put downloaded ones there"
        )
    for ipc_id, classes in work:
        for class_index in classes:
            if find_patch(folder, class_index, ipc_id) is None:
                raise UserError(
                    f"the patch {patch_path(folder, class_index, ipc_id)} is missing: make more with "
                    f"recover/scripts/{dataset.name}/make_patches.sh --patches-per-class N, or put it there"
                )


def load_patches(patch_dir: Path, difficulty: str, classes: Sequence[int], ipc_id: int, dataset: Dataset) -> Tensor:
    """The patch of index `ipc_id` of each of the classes: uint8, B x 3 x S x S.

    Raises what `require_patches` raises, and UserError for a file that does not decode or is not S x S.
    """
    require_patches(patch_dir, difficulty, [(ipc_id, classes)], dataset)
    paths = [find_patch(patch_dir / difficulty, class_index, ipc_id) for class_index in classes]
    return load_images(paths, dataset, progress=None)
