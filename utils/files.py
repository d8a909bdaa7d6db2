"""Files that appear whole: written beside their place, then renamed into it."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from utils.errors import UserError


def part_beside(path: Path) -> Path:
    """The name under which this process makes what is to become `path`. Its folder is there, it is not.

    Removes what processes of this machine that were killed left of their own attempts at the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{os.uname().nodename}."
    for part in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        owner = int(part.name.removeprefix(prefix).removesuffix(".part"))
        if owner == os.getpid() or not _is_alive(owner):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}.part")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and is somebody else's
    return True


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Whatever happens meanwhile, `path` is either absent, as it was, or complete.
    """
    part = part_beside(path)
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # the user knows this name, not the temporary one
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n"))


def read_json(path: Path) -> dict:
    """The object in a JSON file; UserError if it is missing, damaged, or no object."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path} is damaged: remove it and run the stage that writes it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: remove it and run the stage that writes it again")
    return content


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    def write(part: Path) -> None:
        # save() and write_bytes, not save_file(): a full disk then raises OSError instead of safetensors' own error.
        part.write_bytes(safetensors.torch.save(dict(tensors), dict(metadata or {})))

    write_whole(path, write)


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str] | None = None) -> None:
    """Write a PNG; `texts` become its tEXt chunks."""
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    write_whole(path, lambda part: image.save(part, format="PNG", pnginfo=info))


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
