"""Distilled images on disk: one folder a class, each PNG saying what it was made with, beside the run's record, and
weights of the images where recover.weigh_images left some."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from utils.data.images import list_images, load_images, open_image, require_all_rows
from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.files import is_the_systems, read_json, sha256_of, write_png
from utils.run.records import Shape, check_shape
from utils.run.space import Output

WEIGHTS: Shape = {"images_sha256": str, "observer": str, "observer_sha256": str, "weights": [float]}
MADE_WITH = "made with"  # the PNG text chunk that holds the digest of settings and patches


def distilled_path(folder: Path, num_classes: int, class_index: int, ipc_id: int) -> Path:
    """`<folder>/new<class>/class<class>_id<ipc_id>.png`; three digits each, five where there are above 1000 classes."""
    digits = 5 if num_classes > 1000 else 3
    name = f"class{class_index:0{digits}d}_id{ipc_id:0{digits}d}.png"
    return folder / f"new{class_index:0{digits}d}" / name


def record_path(folder: Path) -> Path:
    """The record of the settings that the images of `folder` were made with."""
    return folder / "settings.json"


def weights_path(folder: Path) -> Path:
    """Weights of the images of `folder` (see `recover.weigh_images`)."""
    return folder / "weights.json"


def images_output(images: int, dataset: Dataset) -> Output:
    """What writing so many images takes: PNG, at most its pixels and what a compressor adds to those."""
    raw = dataset.size * (3 * dataset.size + 1)
    return Output(images, images * (raw + raw // 500 + 400))


def write_distilled(paths: Sequence[Path], pixels: Tensor, digest: str) -> None:
    """Write one PNG an image. pixels: uint8, B x 3 x S x S, on any device; digest: what they were made with."""
    for path, image in zip(paths, pixels.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        write_png(path, Image.fromarray(image), {MADE_WITH: digest})


def is_made_with(path: Path, digest: str, size: int | None = None) -> bool:
    """Whether `path` holds a whole image that was made with `digest`, of `size` pixels a side (None: of any).

    A damaged file is as good as none; UserError for an image that was made with something else.
    """
    if not path.exists():
        return False
    try:
        with open_image(path) as image:
            found, side = image.info.get(MADE_WITH), image.size
            image.verify()  # checksums
        with open_image(path) as image:
            image.load()
        require_all_rows(path)
    except OSError as error:
        if is_the_systems(error):
            raise
        return False
    except (
        SyntaxError,
        ValueError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ):  # how Pillow reports a damaged PNG
        return False
    if found is None:
        raise UserError(f"{path} does not say what it was made with, as images of recover do: move it away")
    if found != digest:
        raise UserError(f"{path} was made from other patches: move it away, or take another --exp-name")
    return size is None or side == (size, size)


def on_device_if_fits(images: Tensor, device: torch.device) -> Tensor:
    """Images on the device if they take a quarter of its memory at most, else as they are, in the host's.

    Views are the same either way.
    """
    if device.type == "cuda" and images.nbytes > torch.cuda.get_device_properties(device).total_memory // 4:
        return images
    return images.to(device)


def read_distilled(folder: Path, dataset: Dataset, workers: int = 0) -> tuple[Tensor, Tensor, int]:
    """All distilled images of a folder, in sorted path order, decoded once.

    Returns pixels (uint8, N x 3 x S x S), labels (int64, N) and IPC. UserError if they are not as many in each class.
    """
    paths, labels = list_images(folder, dataset)
    counts = torch.bincount(labels, minlength=dataset.num_classes)
    ipc, least = int(counts.max()), int(counts.argmin())
    if counts[least] != ipc:
        raise UserError(
            f"{folder} has {ipc} images in some classes, {int(counts[least])} in class {least}: "
            f"every class needs as many; let recover run to its end"
        )
    return load_images(paths, dataset, workers=workers, progress="distilled images"), labels, ipc


def read_weights(folder: Path, images_sha256: str, images: int) -> tuple[Tensor, str]:
    """The weights of the images of a folder (float32, N, in the order of `read_distilled`) and the sha256 of their
    file. images_sha256: `images_digest` of these images; images: how many. UserError where there are no weights, or
    those of others."""
    path = weights_path(folder)
    remedy = "`python -m recover.weigh_images` with the dataset, recipe and IPC of these images makes them"
    if not path.exists():
        raise UserError(f"{path} is missing: {remedy}")
    content = read_json(path)
    check_shape(path, content, WEIGHTS, f"remove it; {remedy}")
    if content["images_sha256"] != images_sha256 or len(content["weights"]) != images:
        raise UserError(f"{path} has weights of other images than those that are there: remove it; {remedy}")
    return torch.tensor(content["weights"]), sha256_of(path)
