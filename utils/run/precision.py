"""Number types and compilation: --amp and --compile."""

import functools
import importlib
import inspect
import math
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.run.errors import UserError

AMP_TYPES = {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# So much work wins back the time that it takes to compile a network. On a CPU that is 25 to 90 s, after which it is 1
# to 36 % faster (two cores, 32 pixels, the networks of tests/benchmark.py); what gains least, a MobileNetV2 as student,
# would need six times as many pixels. On an H200 it is 25 to 100 s a size, after which a call takes some 5 ms less.
WORTH_PIXELS, WORTH_CALLS = 2**29, 10_000
MOST_GRAPHS = 64  # of all networks and shapes of a run: beyond its own limit, 8, PyTorch goes on without compiling
# How far rounding alone can take outputs, and gradients, of a network, as a share of their norm. Where a ReLU's input
# is nearly 0 its derivative is a matter of chance, which a student with random weights makes much of.
ROUNDING = {
    torch.float64: (1e-6, 1e-3),
    torch.float32: (1e-3, 0.1),
    torch.float16: (0.03, 0.5),
    torch.bfloat16: (0.2, 1.5),
}


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


class Work(NamedTuple):
    """What goes forward through a network by the settings of a run, however much of it is left to do: pixels, of which
    a backward pass counts as two more; and how many calls.

    Parts of a run and the whole of it are so compiled alike.
    """

    pixels: int
    calls: int

    def is_worth_compiling(self, device: torch.device) -> bool:
        if device.type == "cpu":
            return self.pixels >= WORTH_PIXELS and has_compiler()
        return device.type == "cuda" and self.calls >= WORTH_CALLS


NO_WORK = Work(0, 0)


def compiled(
    network: nn.Module, choice: str, device: torch.device, work: Work = NO_WORK, small_batches: bool = False
) -> nn.Module:
    """The network, compiled if `choice` (of --compile) says so: one graph for each shape of its input, each trusted
    after it agreed with the network itself.

    `auto` compiles what has enough to do. small_batches: on CUDA the graphs are replayed as CUDA graphs, since a batch
    of 16 small images is bound by its launches. Raises UserError for `on` where a CPU has no C++ compiler.
    """
    if choice == "off" or (choice == "auto" and not work.is_worth_compiling(device)):
        return network
    if device.type == "cpu" and not has_compiler():
        raise UserError(
            "--compile on needs a C++ compiler on a CPU: install g++, name one in CXX, or use --compile off"
        )
    warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)  # products keep their digits: choose_device
    replayed = small_batches and device.type == "cuda"
    fast = torch.compile(network, mode="reduce-overhead" if replayed else "default", dynamic=False, **graph_limits())
    return Trusted(network, fast, replayed)


def graph_limits() -> dict[str, object]:
    """Let each network have MOST_GRAPHS graphs of its own; PyTorch 2.11 has no such options, but one limit for all."""
    limits = {"recompile_limit": MOST_GRAPHS, "isolate_recompiles": True}
    if limits.keys() <= inspect.signature(torch.compile).parameters.keys():
        return limits
    importlib.import_module("torch._dynamo").config.recompile_limit = MOST_GRAPHS
    return {}


class Trusted(nn.Module):
    """A compiled network whose first batch of each shape is compared with the network itself: outputs and gradients.

    Where they differ by more than rounding, where the compiler raises something, or where there are more shapes than
    graphs, it goes on with the network itself and says so. replayed: the outputs lie in memory that the next call
    takes.
    """

    def __init__(self, network: nn.Module, fast: nn.Module, replayed: bool) -> None:
        super().__init__()
        self.network = network
        self.fast = [fast]  # not a submodule: it is the same network
        self.replayed = replayed
        self.agreed: set[object] = set()
        self.differences: list[float] = []  # of outputs and of gradients, when they were last compared
        self.distrust: str | None = None

    def forward(self, images: Tensor, *others: object) -> Tensor | tuple[Tensor, ...]:
        if self.distrust is not None:
            return self.network(images, *others)
        key = (tuple(images.shape), images.requires_grad, torch.is_grad_enabled(), self.network.training, others)
        if key not in self.agreed:
            if len(self.agreed) >= MOST_GRAPHS:
                return self._go_on_without(f"there are more than {MOST_GRAPHS} shapes of its input", images, others)
            try:
                difference = self._difference(images, others)
            except UserError:
                raise
            except Exception as error:
                if type(error).__name__ == "OutOfMemoryError":
                    raise
                return self._go_on_without(f"{type(error).__name__}: {error}", images, others)
            if difference:
                return self._go_on_without(difference, images, others)
            self.agreed.add(key)
        outputs = self.fast[0](images, *others)
        if not self.replayed:
            return outputs
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(output.clone() for output in outputs)

    def _go_on_without(self, reason: str, images: Tensor, others: tuple) -> Tensor | tuple[Tensor, ...]:
        self.distrust = " ".join(reason.split())[:200]
        print(f"note: going on without compiling, since {self.distrust}", flush=True)
        return self.network(images, *others)

    def _difference(self, images: Tensor, others: tuple) -> str | None:
        """How the compiled network differs from the network itself, in words; None where it is rounding."""
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        answers: list[tuple[list[Tensor], list[Tensor]]] = []
        for network in (self.network, self.fast[0]):
            try:
                with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
                    answers.append(answer_of(network, self.network, images, others))
            finally:
                for name, buffer in self.network.named_buffers():  # all begin with the same running statistics
                    buffer.data.copy_(buffers[name])
        self.differences = [farthest(*pair) for pair in zip(*answers, strict=True)]
        for what, difference, most in zip(("outputs", "gradients"), self.differences, rounding(images), strict=True):
            if difference > most:
                return f"its {what} differ from the network's own by {difference:.2g} of these"
        return None


def rounding(images: Tensor) -> tuple[float, float]:
    """The entry of ROUNDING for the type that is computed in."""
    kind = images.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
    if kind == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        dtype = torch.float16  # has as many digits
    return ROUNDING[dtype]


def farthest(plain: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest |a - b| / |a| of two lists of tensors (Euclidean norms); infinite where they hold other numbers than
    finite ones. A tensor that is little beside the largest, as the gradient of a bias before BatchNorm, is measured by
    a tenth of that.
    """
    norms = [tensor.double().norm().item() for tensor in plain]
    floor = 0.1 * max(norms, default=0) + 1e-30
    found = [
        (a.double() - b.double()).norm().item() / max(norm, floor)
        for a, b, norm in zip(plain, others, norms, strict=True)
    ]
    return max((math.inf if math.isnan(difference) else difference for difference in found), default=0.0)


def answer_of(network: nn.Module, owner: nn.Module, images: Tensor, others: tuple) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of a network, and the gradients of a fixed combination of them to images and weights that want
    some."""
    leaf = images.detach().clone(memory_format=torch.preserve_format).requires_grad_(images.requires_grad)
    outputs = network(leaf, *others)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    wanting = [p for p in (leaf, *owner.parameters()) if p.requires_grad]
    found, gradients = [output.detach().clone() for output in outputs], []
    if wanting and torch.is_grad_enabled():
        total = sum((output.float() * cotangent_of(output)).sum() for output in outputs)
        gradients = [
            g.detach().clone() for g in torch.autograd.grad(total, wanting, allow_unused=True) if g is not None
        ]
    return found, gradients


def cotangent_of(output: Tensor) -> Tensor:
    """A fixed combination of an output's values, between -1 and 1."""
    return torch.arange(output.numel(), device=output.device, dtype=torch.float32).square().sin().view_as(output)


def is_compiled(networks: Sequence[nn.Module]) -> str:
    """Whether networks of `compiled` are so, for records: off, on, or off and why."""
    trusted = [network for network in networks if isinstance(network, Trusted)]
    if distrust := next((network.distrust for network in trusted if network.distrust), None):
        return f"off: {distrust}"
    return "on" if trusted else "off"


@functools.cache
def fused(kind: type[torch.optim.Optimizer], device: torch.device) -> bool:
    """Whether to take an optimiser's one kernel for its whole step: on CUDA where three steps of it agree with the
    plain ones."""
    if device.type != "cuda":
        return device.type == "cpu"
    ended = []
    for is_fused in (False, True):
        weights = torch.linspace(-1, 1, 64, device=device).requires_grad_(True)
        optimiser = kind([weights], lr=0.1, fused=is_fused)
        for step in range(3):
            weights.grad = torch.linspace(1, step - 1, 64, device=device)
            optimiser.step()
        ended.append(weights.detach())
    agree = torch.allclose(*ended, atol=1e-5)
    if not agree:
        print(
            f"note: {kind.__name__}'s fused kernel differs from its plain steps on this GPU: taking these", flush=True
        )
    return agree


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile calls on a CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
