"""--dry-run: what a run would make, write, need and take, from a few calibrating calls of its own loop."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from utils.datasets import PIXELS_WORTH_WORKERS, Dataset, load_test_images
from utils.device import describe_device, peak_memory_bytes
from utils.distributed import Team
from utils.forecast import Held, Output, free_bytes, in_bytes

ENOUGH_SECONDS, MOST_CALLS = 5.0, 20  # of calibrating, for one thing to be timed

R = TypeVar("R")


class Timing(NamedTuple):
    """Seconds of a call: what the first takes more than the others (compiling, warming up), and one of the others."""

    setup: float
    each: float


def measure(call: Callable[[], R], device: torch.device, most: int = MOST_CALLS) -> tuple[R, Timing]:
    """Time a call: once for the first, then as often as some seconds allow, twice at least, of which the median counts.

    most: calls that are not exceeded, but for three. Returns what the last call gave, and the times.
    """
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < most and sum(seconds) < ENOUGH_SECONDS):
        started = time.perf_counter()
        result = call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - started)
    each = statistics.median(seconds[1:])
    return result, Timing(max(0.0, seconds[0] - each), each)


def decode_some(paths: Sequence[Path], some: int, dataset: Dataset, workers: int) -> tuple[Tensor, float]:
    """The first images of `paths` as load_test_images has them, and the seconds that decoding all will take."""
    started = time.perf_counter()
    images = load_test_images(paths[:some], dataset, progress=None)
    seconds = (time.perf_counter() - started) * len(paths) / len(images)
    if len(paths) * dataset.size**2 >= PIXELS_WORTH_WORKERS:
        seconds /= max(1, min(workers, os.cpu_count() or 1))
    return images, seconds


@dataclass(frozen=True)
class DryRun:
    """What a dry run found out.

    work: amounts by name; folder, output: what would be written, and where; held: what a process holds beyond what
    calibrating did; seconds: until the slowest process is done; typical: bytes of what is made if it is like what
    calibrating made, where the output tells a bound.
    """

    stage: str
    work: Mapping[str, int]
    folder: Path
    output: Output
    held: Held
    seconds: float
    typical: int | None = None


def tell(run: DryRun, device: torch.device, team: Team) -> None:
    """Print it, with the peak memory that this process has had so far and what a run holds beyond that."""
    host = peak_memory_bytes(torch.device("cpu")) + run.held.host
    memory = f"{in_bytes(host + run.held.device)}"
    if device.type == "cuda":
        memory = f"{in_bytes(peak_memory_bytes(device) + run.held.device)} on the GPU, {in_bytes(host)} on the host"
    size = in_bytes(run.output.size)
    if run.typical is not None:
        size = f"{in_bytes(run.typical)} by the calibrating images, at most {size}"
    many = team.count > 1
    lines = {
        **{name: f"{amount:,}" for name, amount in run.work.items()},
        "files": f"{run.output.files:,}, {size}, in {run.folder}",
        "disk": f"{in_bytes(run.output.disk)} needed at most, {in_bytes(free_bytes(run.folder))} free",
        "memory": f"{memory} at the peak{' of each process' * many}",
        "time": f"{in_time(run.seconds)} {f'in {team.count} processes' if many else 'in one process'} "
        f"on {describe_device(device)}",
    }
    print(f"{run.stage}, dry run: nothing is written. Still to be made:")
    for name, text in lines.items():
        print(f"  {name:<14}{text}")
    print(end="", flush=True)


def in_time(seconds: float) -> str:
    """Seconds in the largest unit of which there are two: `95.0 s`, `27.5 min`, `40.0 h`, `12.0 days`."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
