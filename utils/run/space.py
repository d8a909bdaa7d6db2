"""What a run will write: told by --dry-run, and refused before it starts where it does not fit on the disk."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from utils.run.errors import UserError

BLOCK = 4096  # bytes: a file takes whole ones
BESIDE = 2**21  # bytes, at most, of the records, reports and pictures that a run leaves beside what it makes


class Output(NamedTuple):
    """So many files, of so many bytes together at most."""

    files: int
    size: int

    @property
    def disk(self) -> int:
        """The bytes that they take on a disk, in whole blocks, and the few files beside them."""
        return self.size + self.files * BLOCK + (BESIDE if self.files else 0)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` lies on, or will lie on."""
    place = folder.absolute()
    return shutil.disk_usage(next(place for place in (place, *place.parents) if place.exists())).free


def require_space(folder: Path, output: Output) -> None:
    """UserError, with needed and free bytes, if what a run may write into `folder` does not fit on its disk."""
    if output.disk > (free := free_bytes(folder)):
        raise UserError(
            f"no space for {folder}: it needs up to {output.disk:,} bytes, its disk has {free:,} free; "
            "free some, or name a folder on another disk"
        )


def print_dry_run(stage: str, work: Mapping[str, int], folder: Path, output: Output) -> None:
    """Print what is left to do. work: amounts by name; output: what it leaves in `folder`."""
    lines = {
        **{name: f"{amount:,}" for name, amount in work.items()},
        "files": f"{output.files:,}, at most {in_bytes(output.size)}, in {folder}",
        "disk": f"{in_bytes(output.disk)} needed at most, {in_bytes(free_bytes(folder))} free",
    }
    print(f"{stage}, dry run: nothing is written. Still to be made:")
    for name, text in lines.items():
        print(f"  {name:<14}{text}", flush=True)


def in_bytes(size: float) -> str:
    """1234567 as `1.23 MB`, in decimal units."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} TB"
