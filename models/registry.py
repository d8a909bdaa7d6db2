"""The registry: a name and a dataset give a network.

A network file decorates its class or function with `register`, once for every name; `models/__init__.py` lists the
files. The same name may stand for different networks at different image sizes: at 32 and 64 pixels the networks with
a 3x3 stride-1 stem, at 224 torchvision's. A teacher may be named <Name>@<epochs>: that network, trained for so many
epochs instead of the dataset's; or <Name>@<k>of<epochs>: as it was after epoch k of that training.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from models import timm as timm_networks
from utils.data.table import Dataset
from utils.recipes.settings import EPOCHS
from utils.run.errors import UserError

SMALL_SIZES = (32, 64)
IMAGENET_SIZES = (224,)
TIMM_PREFIX = "timm:"

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_networks: dict[tuple[str, int], Callable[..., nn.Module]] = {}  # (name, image size): what builds it


def register(name: str, sizes: tuple[int, ...] = SMALL_SIZES, **settings: object) -> Callable[[Builder], Builder]:
    """Decorator: at these image sizes (pixels a side), `name` is `decorated(num_classes=..., **settings)`.

    The decorated class or function stays what it is, so that decorators of several names can stand on one another.
    """

    def remember(builder: Builder) -> Builder:
        for size in sizes:
            if (name, size) in _networks:
                raise ValueError(f"the network {name} is registered twice for {size} pixels")
            _networks[name, size] = partial(builder, **settings)
        return builder

    return remember


def network_names(size: int | None = None) -> tuple[str, ...]:
    """The registered names, sorted: those for images of `size` pixels a side, or all of them."""
    return tuple(sorted({name for name, its_size in _networks if size in (None, its_size)}))


def architecture_of(name: str) -> str:
    """A teacher's network: its name without what stands behind @."""
    return name.partition("@")[0]


def epochs_of(name: str) -> int | None:
    """The epochs of the training that a teacher's name asks for; None where it asks for none. UserError where what
    stands behind @ cannot be."""
    return _training_of(name)[1]


def kept_after(name: str) -> int | None:
    """After which of these epochs the teacher is kept, counted from 1; None: at the end. UserError likewise."""
    return _training_of(name)[0]


def _training_of(name: str) -> tuple[int | None, int | None]:
    _, at, asked = name.partition("@")
    if not at:
        return None, None
    found = re.fullmatch(r"(?:([0-9]+)of)?([0-9]+)", asked)
    kept, epochs = (number and int(number) for number in found.groups()) if found else (None, 0)
    if not 1 <= epochs <= EPOCHS[1]:
        raise UserError(
            f"{name}: behind @ stands a number of epochs, from 1 to {EPOCHS[1]:,}, or one of them, as 2of10"
        )
    if kept is not None and not 1 <= kept < epochs:
        raise UserError(
            f"{name}: of {epochs} epochs, 1 to {epochs - 1} may stand there; after the last it is @{epochs}"
        )
    return kept, epochs


def check_network(name: str, dataset: Dataset) -> None:
    """UserError with the names there are, unless `build_network` knows this name at the dataset's image size."""
    epochs_of(name)
    name = architecture_of(name)
    if name.startswith(TIMM_PREFIX):
        timm_networks.check(name.removeprefix(TIMM_PREFIX))
    elif (name, dataset.size) not in _networks:
        raise UserError(
            f"unknown network {name!r} for the {dataset.size}-pixel images of {dataset.name}; "
            f"there are: {' '.join(network_names(dataset.size))} and {TIMM_PREFIX}<any name of timm>"
        )


def build_network(name: str, dataset: Dataset) -> nn.Module:
    """A fresh network for the dataset's image size and classes, in training mode, on the CPU.

    It maps normalised images (N x 3 x S x S) to logits (N x classes). Weights are random, drawn from torch's global
    generator: PyTorch's layer defaults at 32 and 64 pixels, torchvision's or timm's own initialisation for theirs.
    Raises UserError for a name that is not registered at this size, for one that timm does not know, and for a timm
    network that does not take images of this size.
    """
    check_network(name, dataset)
    name = architecture_of(name)
    if name.startswith(TIMM_PREFIX):
        return timm_networks.build(name.removeprefix(TIMM_PREFIX), dataset)
    return _networks[name, dataset.size](num_classes=dataset.num_classes)


def training_bytes(name: str, dataset: Dataset) -> int:
    """The bytes that the training of a network keeps: its weights, and two moments of each at most."""
    with torch.random.fork_rng(devices=[]):  # the weights are thrown away: they cost no random numbers
        state = build_network(name, dataset).state_dict()
    return 3 * sum(tensor.nbytes for tensor in state.values()) + 2**16
