"""How a stage ends: a few lines on the terminal and a file beside what it made."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.run.device import describe_device, peak_memory_bytes, reset_peak_memory, versions
from utils.run.files import sweep, write_json


def start_run(device: torch.device) -> float:
    """The time at which a run starts; its peak of memory, on CUDA, is counted from here."""
    reset_peak_memory(device)
    return time.monotonic()


def report_run(
    stage: str,
    path: Path,
    device: torch.device,
    started: float,
    made: int,
    unit: str,
    files: Mapping[str, str],
    processes: int = 1,
    **notes: str,
) -> None:
    """Say what a stage made, how long it took and what it used, and write the same to `path`.

    started: as of `start_run`; made: how many of `unit` were made now (what was there is not counted);
    files: what else it left, by name; processes: how many made them; notes: what else the report has. A run that made
    nothing leaves an earlier report as it is.
    """
    seconds = time.monotonic() - started
    memory = peak_memory_bytes(device) / 2**30
    used = describe_device(device) if processes == 1 else f"{describe_device(device)}, in {processes} processes"
    if made == 0:
        print(f"{stage}: everything was there already, with the same settings", flush=True)
    else:
        each = f"{seconds:.1f} s ({seconds / made:.3g} s each)"
        print(f"{stage}: {made} {unit} in {each}, peak memory {memory:.2f} GiB, on {used}", flush=True)
    if made or not path.exists():
        content = {"stage": stage, "made": made, "unit": unit, "seconds": seconds, "peak_memory_gib": memory}
        content |= {"device": describe_device(device), "processes": processes, "versions": versions()}
        write_json(path, {**content, **notes, "files": dict(files)})
    sweep(path.parent)
    for name, file in files.items():
        print(f"  {name}: {file}", flush=True)
