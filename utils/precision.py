"""Number types and compilation: --amp and --compile."""

import torch
from torch import nn

from utils.cli import StageParser
from utils.errors import UserError

AMP_TYPES = {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_speed_flags(parser: StageParser, amp: str) -> None:
    """--amp and --compile. amp: what `auto` stands for, in words."""
    parser.add_argument(
        "--amp",
        choices=("auto", *AMP_TYPES),
        default="auto",
        help=f"number type of the networks' forward and backward; auto: {amp}",
    )
    parser.add_argument(
        "--compile",
        choices=("auto", "off", "on"),
        default="auto",
        help="torch.compile, with CUDA graphs on CUDA; auto: on CUDA",
    )


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


def compiled(network: nn.Module, choice: str, device: torch.device) -> nn.Module:
    """The network, compiled if `choice` (of --compile) says so: one graph for each shape of its input.

    On CUDA the graphs are replayed as CUDA graphs: a batch of 16 small images is bound by its launches.
    """
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return network
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(network, mode=mode, dynamic=False)
