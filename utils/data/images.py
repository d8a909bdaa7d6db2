"""Class folders of images, and decoding them into uint8 tensors, normalised tensors and back."""

import errno
import hashlib
import math
import os
import re
import signal
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.files import is_the_systems
from utils.run.team import Team

IMAGE_SUFFIXES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"))
NO_CLASSES = ("__MACOSX", "lost+found", "@eaDir", "System Volume Information", "$RECYCLE.BIN")  # what systems leave
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's names of these
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")  # which Pillow would clip at 255
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of its header
DECODED_TOGETHER = 256  # images that a worker process hands back at a time
# Decoding this many pixels takes one process some five seconds; starting workers takes about as long.
PIXELS_WORTH_WORKERS = 2**25


def channel_tensors(dataset: Dataset, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Mean and std, each 3 x 1 x 1 float32."""
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (dataset.mean, dataset.std))


def normalise(pixels: Tensor, dataset: Dataset) -> Tensor:
    """uint8 pixels (N x 3 x S x S) to float32, normalised per channel."""
    mean, std = channel_tensors(dataset, pixels.device)
    return pixels.float().div_(255).sub_(mean).div_(std)


def to_pixels(images: Tensor, dataset: Dataset) -> Tensor:
    """Normalised images (N x 3 x S x S) to uint8 pixels, clamped to [0, 1] and rounded to the nearest of 256."""
    mean, std = channel_tensors(dataset, images.device)
    return images.float().mul(std).add_(mean).clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def class_folders(root: Path, dataset: Dataset) -> list[Path]:
    """The folder of each class below `root`, the dataset's own folder, in the order of their labels.

    The order is that of the names; by the number they end in where all names are the same but for it (7, new007,
    n01440764). Hidden entries do not count. UserError: `root` is missing, or has not one folder a class.
    """
    if not root.is_dir():
        raise UserError(
            f"{root} is missing: for real images set train_dir and val_dir in config.sh and run "
            f"`python -m utils.data.prepare {dataset.name}`; distilled ones are where recover put them"
        )
    names = folder_names(root)
    if len(names) != dataset.num_classes:
        odd = f", {_odd_name(names)!r} among them" if len(names) == dataset.num_classes + 1 else ""
        raise UserError(
            f"{root} has {len(names)} class folders{odd}, {dataset.name} has {dataset.num_classes} classes: put the "
            f"folders of its classes there and no others"
        )
    return [root / name for name in names]


def class_names(dataset: Dataset) -> list[str]:
    """What pictures call the classes: by their folders in train_dir or val_dir of config.sh, a number before the name
    left out; `class 7` where there are no folders, or these have numbers alone."""
    for place in filter(None, map(os.environ.get, ("train_dir", "val_dir"))):
        with suppress(UserError, OSError):
            names = [folder.name for folder in class_folders(Path(place) / dataset.name, dataset)]
            if not all(name.isdecimal() for name in names):
                parts = [re.fullmatch(r"[0-9]+[-_. ]+(.+)", name) for name in names]
                return [part[1] for part in parts] if all(parts) else names
    return [f"class {index}" for index in range(dataset.num_classes)]


def folder_names(root: Path) -> list[str]:
    """The names of the folders in `root` but hidden ones, in the order of class labels."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=_name_order(names))


def _name_order(names: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    numbered = [re.fullmatch(r"(.*?)([0-9]+)", name) for name in names]
    if all(numbered) and len({match[1] for match in numbered}) == 1:
        number = {match[0]: int(match[2]) for match in numbered}
        return lambda name: (number[name], name)
    return lambda name: (0, name)


def _odd_name(names: Sequence[str]) -> str:
    """The name that is known to be no class, else the one least like the others: in how it begins, then its length."""
    if known := next((name for name in NO_CLASSES if name in names), None):
        return known
    starts, lengths = [name[:1] for name in names], [len(name) for name in names]
    return min(names, key=lambda name: (starts.count(name[:1]), lengths.count(len(name))))


def images_in(folder: Path) -> list[Path]:
    """The images of one class in the order of their names: those in `folder`, else those in `folder`/images.

    The latter is how Tiny-ImageNet is published. Files that are hidden or no images by their suffix do not count.
    UserError if there are none.
    """
    for place in (folder, folder / "images"):
        names = sorted(_image_names(place)) if place.is_dir() else []
        if names:
            return [place / name for name in names]
    deeper = next((path for path in folder.glob("*/*") if path.suffix[1:].lower() in IMAGE_SUFFIXES), None)
    hint = f" ({deeper} lies deeper: move such images up)" if deeper else ""
    raise UserError(f"class folder {folder} has no images{hint}: put its images there, or remove what does not belong")


def _image_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                yield entry.name


def images_by_class(root: Path, dataset: Dataset) -> list[list[Path]]:
    """The images of each class below `root`, the dataset's own folder; UserErrors of `class_folders` and
    `images_in`."""
    folders = tqdm(class_folders(root, dataset), desc="listing", unit="class", delay=2, leave=False)
    return [images_in(folder) for folder in folders]


def list_images(root: Path, dataset: Dataset) -> tuple[list[Path], Tensor]:
    """All images of the class folders below `root`: paths, by class and then by file name, and labels (N, int64)."""
    by_class = images_by_class(root, dataset)
    counts = torch.tensor([len(paths) for paths in by_class])
    return [path for paths in by_class for path in paths], torch.arange(dataset.num_classes).repeat_interleave(counts)


def open_image(path: Path) -> Image.Image:
    """A file as Pillow opens it: only as what it may be, and only a regular file. The caller closes it."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file: put an image there, or remove it")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def decode(path: Path) -> Image.Image:
    """The image in a file, in RGB: grey is repeated, palettes are looked up. UserError if it does not decode."""
    try:
        with open_image(path) as image:
            if image.format == "PNG":
                require_all_rows(path)
            if image.mode in DEEP_MODES:
                image = _eight_bits(image)
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put it back, or run the command that made it") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{path} swells to more pixels than any dataset's image has: remove it") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise almost anything at a damaged file
        if is_the_systems(error):
            raise
        raise UserError(f"{path} does not decode ({error}): replace the file or remove it") from None


def require_all_rows(path: Path) -> None:
    """ValueError for a PNG whose pixels end early, which Pillow would leave black."""
    with path.open("rb") as file:
        width, height, depth, colour = struct.unpack(">IIBB", file.read(26)[16:])
        needed = height * (width * depth * PNG_CHANNELS[colour] // 8)
        file.seek(33)  # behind the first chunk
        inflate, found = zlib.decompressobj(), 0
        while not inflate.eof and (head := file.read(8)):
            size, kind = struct.unpack(">I4s", head)
            content = file.read(size + 4)[:-4]
            if kind == b"IDAT" and found < needed:
                found += len(inflate.decompress(content, needed - found))
    if found < needed:
        raise ValueError("its pixels end early")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as one of 8: its upper bits; values between 0 and 1 times 255."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"grey values from {values.min():g} to {values.max():g}, not from 0 to 1")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError(f"grey values from {values.min()} to {values.max()}, more than 16 bits")
    if 0 < values.max() < 2**12:
        raise ValueError(
            f"grey values up to {values.max()} of 16 bits, nearly black: save them in all 16 bits, or in 8"
        )
    return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))  # Pillow brings a PGM's 12 bits to 16


def load_images(paths: Sequence[Path], dataset: Dataset, workers: int = 0, progress: str | None = "decoding") -> Tensor:
    """Decode images that have the dataset's size already: uint8, N x 3 x S x S, in the order of `paths`.

    workers: processes that decode where there is enough to do, 0 for this one alone; progress: what the bar is called,
    None for no bar. UserError naming the file: it does not decode, or has another size.
    """
    return _load(paths, _as_it_is, dataset.size, workers, progress)


def load_test_images(
    paths: Sequence[Path], dataset: Dataset, workers: int = 0, progress: str | None = "decoding"
) -> Tensor:
    """Decode real images as a network is tested on them: uint8, N x 3 x S x S, in the order of `paths`.

    At 32 and 64 pixels they are taken as they are. At 224 the shorter side is brought to 256 (PIL's bilinear,
    antialiased) and the middle 224 x 224 cut out, with torchvision's rounding in both. Arguments and errors as
    `load_images`.
    """
    return _load(paths, _test_view_of(dataset), dataset.size, workers, progress)


def load_test_images_once(paths: Sequence[Path], dataset: Dataset, workers: int, team: Team) -> Tensor:
    """`load_test_images` for all processes of a run, which hold them once on each machine: every process calls this.

    They lie in a file of the system's folder for temporary files (TMPDIR), which has no name any more once all have
    mapped it. UserError where there is no room for it.
    """
    if team.count == 1:
        return load_test_images(paths, dataset, workers, "test images")
    name = None
    try:
        if team.local_rank == 0:
            with tempfile.NamedTemporaryFile(prefix="test_images_", delete=False) as file:
                name = file.name
                for chunk in _decoded(paths, _test_view_of(dataset), dataset.size, workers, "test images"):
                    file.write(chunk)
        shape = (len(paths), 3, dataset.size, dataset.size)
        theirs = team.gather(name)[team.rank - team.local_rank]
        images = torch.from_file(theirs, shared=True, size=math.prod(shape), dtype=torch.uint8).view(shape)
        team.wait()  # until all have mapped it
        return images
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"{name}: no room for the test images: name a folder with more in TMPDIR") from None
    finally:
        if name is not None:
            Path(name).unlink()


def check_images(paths: Sequence[Path], dataset: Dataset, workers: int = 0, progress: str | None = "checking") -> None:
    """Decode as `load_test_images` does and keep nothing: UserError naming the first file that it would refuse."""
    for _ in _decoded(paths, _test_view_of(dataset), dataset.size, workers, progress):
        pass


def _test_view_of(dataset: Dataset) -> Callable[[Path, int], Image.Image]:
    """How a file of the dataset becomes the S x S image that a network is tested on."""
    return _as_it_is if dataset.size <= 64 else _middle


def _as_it_is(path: Path, size: int) -> Image.Image:
    image = decode(path)
    if image.size != (size, size):
        raise UserError(
            f"{path} is {image.width} x {image.height} pixels, not {size} x {size}: replace it, or resize it to that"
        )
    return image


def _middle(path: Path, size: int) -> Image.Image:
    image = decode(path)
    shorter_side = size * 8 // 7  # 256 for 224
    width, height = (shorter_side * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _load(
    paths: Sequence[Path],
    view: Callable[[Path, int], Image.Image],
    size: int,
    workers: int,
    progress: str | None,
) -> Tensor:
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    start = 0
    for chunk in _decoded(paths, view, size, workers, progress):
        images[start : start + len(chunk)] = torch.from_numpy(chunk)
        start += len(chunk)
    return images


def _decoded(
    paths: Sequence[Path],
    view: Callable[[Path, int], Image.Image],
    size: int,
    workers: int,
    progress: str | None,
) -> Iterator[np.ndarray]:
    """The images chunk by chunk: uint8, n x 3 x size x size."""
    chunks = [paths[start : start + DECODED_TOGETHER] for start in range(0, len(paths), DECODED_TOGETHER)]
    decode_chunk = partial(_decode_chunk, view=view, size=size)
    with tqdm(total=len(paths), desc=progress, unit="image", delay=1, disable=progress is None) as bar:
        if workers > 0 and len(paths) * size**2 >= PIXELS_WORTH_WORKERS:
            decoded = _in_workers(decode_chunk, chunks, workers)
        else:
            decoded = map(decode_chunk, chunks)
        for chunk in decoded:
            bar.update(len(chunk))
            yield chunk


def _in_workers(
    decode_chunk: Callable[[Sequence[Path]], np.ndarray], chunks: Sequence[Sequence[Path]], workers: int
) -> Iterator[np.ndarray]:
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)),
        mp_context=get_context("spawn"),  # forking a process that runs torch's threads or CUDA can hang
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for the parent, which then ends them
    )
    try:
        with pool, closing(pool.map(decode_chunk, chunks)) as decoded:  # closing drops what has not begun
            yield from decoded
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} decoding processes died, most likely for memory: use fewer --workers"
        ) from None


def _decode_chunk(paths: Sequence[Path], view: Callable[[Path, int], Image.Image], size: int) -> np.ndarray:
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    for row, path in zip(pixels, paths, strict=True):
        row[:] = np.asarray(view(path, size)).transpose(2, 0, 1)
    return pixels


def images_digest(images: Tensor, labels: Tensor) -> str:
    """sha256 of images (uint8, N x 3 x S x S) and their labels (N), in their order, as hexadecimal."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for values in (images, labels.to(torch.int64)):
        digest.update(values.contiguous().cpu().numpy())
    return digest.hexdigest()
