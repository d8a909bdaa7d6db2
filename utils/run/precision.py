"""Number types and compilation: --amp and --compile."""

import os
import shutil
import sys

import torch
from torch import nn

from utils.run.errors import UserError

AMP_TYPES = {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# So many pixels forward through a network win back the time that a CPU takes to compile it: 25 to 90 s, after which
# it is 1 to 36 % faster (two cores, 32 pixels, the networks of tests/benchmark.py). What gains least, a MobileNetV2 as
# student, would need six times as many.
WORTH_COMPILING = 2**29
MOST_GRAPHS = 64  # of all networks and shapes of a run: beyond its own limit, 8, PyTorch goes on without compiling


def amp_type(choice: str, device: torch.device, auto_on_cuda: str) -> torch.dtype | None:
    """The type that autocast takes, or None for float32. auto_on_cuda: what `auto` means there; elsewhere it is off."""
    if choice == "auto":
        choice = auto_on_cuda if device.type == "cuda" else "off"
    if choice == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU: a CPU has bf16, or take --amp off")
    return AMP_TYPES[choice]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on the device; a context that changes nothing for None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def gradient_scaler(device: torch.device, dtype: torch.dtype | None) -> torch.amp.GradScaler:
    """A fresh scaler for float16; for other types one that changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)


def compiled(network: nn.Module, choice: str, device: torch.device, pixels: int = 0) -> nn.Module:
    """The network, compiled if `choice` (of --compile) says so: one graph for each shape of its input.

    On CUDA the graphs are replayed as CUDA graphs: a batch of 16 small images is bound by its launches. On a CPU `auto`
    compiles what has enough to do. pixels: how many go forward through the network by the settings of the run, a
    backward pass counted as two more; not what is left to do, so that parts of a run and the whole give the same.
    Raises UserError for `on` where a CPU has no C++ compiler.
    """
    if choice == "auto":
        wins = device.type == "cuda" or (device.type == "cpu" and pixels >= WORTH_COMPILING and has_compiler())
        choice = "on" if wins else "off"
    if choice == "off":
        return network
    if device.type == "cpu" and not has_compiler():
        raise UserError(
            "--compile on needs a C++ compiler on a CPU: install g++, name one in CXX, or use --compile off"
        )
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(network, mode=mode, dynamic=False, recompile_limit=MOST_GRAPHS)


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile calls on a CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
