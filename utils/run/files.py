"""Files that appear whole: written under a name of their own beside their place, then renamed into it."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import pickle
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.run.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FORGOTTEN = 24 * 3600  # seconds without a change, after which an unfinished file is one that a killed process left
MOST_JSON = 2**28  # bytes


def part_beside(path: Path) -> Path:
    """A new name beside `path`, under which this process makes what is to become `path`.

    Creates the parent folder; the file itself does not exist yet. Removes what killed processes left at the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        _remove_forgotten(part)
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def write_whole(path: Path, write: Callable[[Path], None], lasting: bool = False, only_new: bool = False) -> bool:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Whatever happens meanwhile, `path` is either absent, as it was, or complete; `lasting`: also after a power failure.
    only_new: leave a file alone that is there already. Returns whether the file was written.
    """
    part = part_beside(path)
    try:
        write(part)
        if lasting:
            _to_disk(part)
        if only_new:
            try:
                os.link(part, path)  # fails where there is one, at once for all processes
            except OSError as error:
                if path.exists():
                    return False
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                part.replace(path)  # this disk knows no links
        else:
            part.replace(path)
        if lasting:
            _to_disk(path.parent)
        return True
    except OSError as error:
        error.filename = str(path)  # the user knows this name, not the temporary one
        raise
    finally:
        remove(part)


def remove(path: Path) -> None:
    """Remove a file if it is there: where it is not, also a disk that cannot be written is as asked for."""
    if path.exists():
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the unfinished files below a folder that killed processes left long ago."""
    for part in folder.rglob(".*.part"):
        _remove_forgotten(part)


def _remove_forgotten(part: Path) -> None:
    with suppress(OSError):
        if time.time() - part.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def _to_disk(path: Path) -> None:
    """Make the system write what it holds of a file, or of a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: object, only_new: bool = False) -> bool:
    """Write a record that lasts; see `write_whole`."""
    text = json.dumps(content, indent=1) + "\n"
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"), lasting=True, only_new=only_new)


def write_json_lines(path: Path, lines: Iterable[object]) -> None:
    """Write values, each in a line of its own; see `write_whole`."""
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises over the content of a file into a UserError that names it.

    What the system raises stays what it is, and so does a refused pickle.
    """
    try:
        yield
    except (UserError, MemoryError, pickle.UnpicklingError):
        raise
    except Exception as error:
        if is_the_systems(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({type(error).__name__}: {reason}): {remedy}") from error


def is_the_systems(error: Exception) -> bool:
    """Whether an error over a file is the system's own (no right to read it, too many open files, a stale handle) and
    tells nothing of its content; an invalid argument does, such as a place before the start of a file cut short."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def read_bytes(path: Path) -> bytes:
    """The content of a file; UserError if it is missing or no regular file."""
    if not path.exists():
        raise UserError(f"{path} is missing: run the stage that writes it")
    if not path.is_file():
        raise UserError(f"{path} is no file: put the right file there, or remove it")
    return path.read_bytes()


def read_json(path: Path) -> dict:
    """The object in a JSON file; UserError if it is missing, damaged, or no object."""
    if path.is_file() and path.stat().st_size > MOST_JSON:
        raise UserError(f"{path} is too large for a record: remove it and run the stage that writes it again")
    with reading(path, "remove it and run the stage that writes it again"):
        content = json.loads(read_bytes(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: remove it and run the stage that writes it again")
    return content


def write_safetensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file that lasts."""
    import safetensors.torch

    # save() and write_bytes, not save_file(): a full disk then raises OSError instead of safetensors' own error.
    content = safetensors.torch.save(dict(tensors), dict(metadata or {}))
    write_whole(path, lambda part: part.write_bytes(content), lasting=True)


def safetensors_header(path: Path) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]] | None:
    """Type and shape of each tensor in a safetensors file, by name, and its metadata; None where the file is not whole.

    Read here, since the library takes no path that is not UTF-8 and calls every error of the system a missing file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, MOST_JSON):
            return None
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return (found, metadata) if 8 + length + end == size else None


def write_png(path: Path, image: "Image", texts: Mapping[str, str] | None = None) -> None:
    """Write a PNG; `texts` become its tEXt chunks."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    write_whole(path, lambda part: image.save(part, format="PNG", pnginfo=info))


@contextmanager
def only_one(folder: Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Keep other processes from doing the same in `folder`; UserError where one does it already. what: a sentence;
    name: of the lock's file. The lock ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{what} by another process, in {folder}: wait for it, or stop it") from None
        yield


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
