"""The device of a run: choosing it, and what was used of it."""

import contextlib
import ctypes
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path

import torch

from utils.run.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda` or `mps` as a device; UserError where the machine has none of that kind.

    local_rank: of this process among those on its machine; on CUDA each has a GPU of its own.
    """
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there())
    if not available[name]():
        raise UserError(f"--device {name}: this machine has none that PyTorch can use; take --device auto or cpu")
    if name == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"process {local_rank + 1} on {torch.cuda.device_count()} GPUs: lower --nproc-per-node")
        torch.cuda.set_device(local_rank)
        # Convolutions may round to TF32, as in the published runs; products do not, and kernels are not chosen by
        # timing.
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
        torch.set_float32_matmul_precision("highest")
        return torch.device("cuda", local_rank)
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors free, for the next ones of the same run.

    By default glibc gives every large block back and asks for it anew, and the system then clears it page by page. A
    training step spends more time on that than on arithmetic (a product of two 59 MB tensors: 80 ms, 4 ms with this).
    GPUs have an allocator that keeps its blocks; this is the same for a CPU. Where there is no glibc it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap...
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # ...which is never shortened


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout that convolutions are fastest in: channels last on CPUs and on CUDA, the default elsewhere."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes so far: of the CUDA allocator on a GPU, of this process's resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss may be that of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory_bytes` from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def describe_device(device: torch.device) -> str:
    """The device in words, for result files."""
    if device.type == "cuda":
        tf32, timed = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
        return f"{torch.cuda.get_device_name(device)}, TF32 in convolutions {tf32}, cudnn.benchmark {timed}"
    return f"{device.type}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """The versions that a result depends on, for result files."""
    # torchvision is not imported for it: that takes a second, which every run would wait
    torchvision = metadata.version("torchvision")
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision}
