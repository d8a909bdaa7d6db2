"""Checkpoints: plain state dicts in a pool (a folder for each dataset), loaded with weights only, never unpickled.

`<pool>/<Name>.safetensors` is what this project writes, and what it takes first; `<pool>/<Name>.pth` is what people
download. `timm:<name>` is `timm_<name>` in file names.
"""

import hashlib
import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from models import timm as timm_networks
from models import torchvision as imagenet
from models.registry import TIMM_PREFIX, build_network, check_network, epochs_of
from utils.data.table import Dataset
from utils.recipes import file_name
from utils.run.errors import UserError
from utils.run.files import read_bytes, read_json, reading, sha256_of, write_safetensors

ENDINGS = (".safetensors", ".pth")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
OF_THOP = ("total_ops", "total_params")
MOST_SHARED = 32  # tuples that a pickle names again: a state dict names none


class Teacher(NamedTuple):
    """A trained network, in eval mode and frozen, with the sha256 of the checkpoint that it came from."""

    name: str
    module: nn.Module
    sha256: str


def checkpoint_path(pool: Path, name: str) -> Path | None:
    """The checkpoint of a network in a pool, the safetensors file where both are there; None where neither is."""
    return next((path for path in _places(pool, name) if path.is_file()), None)


def _places(pool: Path, name: str) -> list[Path]:
    return [pool / f"{file_name(name)}{ending}" for ending in ENDINGS]


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU: anything but .safetensors is read by torch's safe loader.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`) and counters of thop are taken off. Raises UserError for a
    file that is missing, damaged, or anything but a plain state dict. A pickle that asks for code to run is one of the
    last: it is refused before it does.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: train it, or put a downloaded checkpoint there")
    refuse_other_files(path)
    try:
        with warnings.catch_warnings(action="ignore"), reading(path, "remove it, then train or download it again"):
            if path.suffix == ".safetensors":
                state = safetensors.torch.load(read_bytes(path))
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a plain state dict, or is damaged; nothing in it was run: save the network's state_dict() "
            f"alone, or put another file there"
        ) from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} is not a plain state dict: save the network's state_dict() alone")
    for key, value in state.items():
        name = key[:60] if isinstance(key, str) else f"a key of type {type(key).__name__}"
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} is not a plain state dict (it holds {name!r}): save the network's state_dict() alone"
            )
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise UserError(f"{path} holds {name!r} as a meta, sparse, quantised or complex tensor: save plain ones")
    return without_prefix({key: value for key, value in state.items() if not key.endswith(OF_THOP)})


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the prefix of a wrapper taken off that all names have."""
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return without_prefix({key.removeprefix(prefix): value for key, value in state.items()})
    return dict(state)  # without OrderedDict's version notes: BatchNorm then fills in a missing num_batches_tracked


def refuse_other_files(path: Path) -> None:
    """UserError for what is saved under a checkpoint's name by mistake, and for archives that swell."""
    with path.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path} is a web page, not a checkpoint: download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a pointer of Git LFS, not a checkpoint: run `git lfs pull`, or download the file itself"
        )
    pickles = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("constants.pkl") for entry in entries):
                raise UserError(f"{path} is a TorchScript archive: save the network's state_dict() instead")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:  # torch.save compresses nothing
                raise UserError(f"{path} is a compressed archive: save the network's state_dict() with torch.save")
            pickles = [archive.read(entry) for entry in entries if entry.filename.endswith("data.pkl")]
    elif path.suffix != ".safetensors":
        pickles = [path.read_bytes()]  # begins with some
    if any(shared_tuples(content) > MOST_SHARED for content in pickles):
        raise UserError(
            f"{path} is not a plain state dict (tuples within tuples): save the network's state_dict() alone"
        )


def shared_tuples(content: bytes) -> int:
    """How often pickles take a tuple that they have named before: where tuples hold the same tuple twice, and so on,
    their hash takes time without end."""
    stream, named, taken, is_tuple = io.BytesIO(content), set(), 0, False
    with suppress(ValueError, IndexError, UnicodeDecodeError):  # what is no pickle is the loader's to refuse
        while stream.tell() < len(content):
            count = 0
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                    place = count if argument is None else argument
                    count += 1
                    if is_tuple:
                        named.add(place)
                elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                    taken += argument in named
                is_tuple = opcode.name.startswith("TUPLE")
    return taken


def load_network(name: str, dataset: Dataset, path: Path) -> nn.Module:
    """The network with the weights of a checkpoint, strictly, in eval mode and frozen.

    Raises what `build_network` and `load_state` raise, and UserError where the checkpoint is of another class count
    (with both) or of another network (with how they differ).
    """
    return _frozen(_filled(name, dataset, imagenet.modern_names(load_state(path)), path))


def load_teacher(name: str, dataset: Dataset, pool: Path, source: Literal["offline", "online"] = "offline") -> Teacher:
    """A teacher from the pool (offline), or with torchvision's IMAGENET1K_V1 or timm's own weights (online).

    sha256 is that of the checkpoint file, for timm's weights that of their names and bytes. Raises what `load_network`
    raises, and UserError where the pool has no such checkpoint, where online is asked for other classes than
    ImageNet-1k's, or where a download fails.
    """
    check_network(name, dataset)
    if source == "offline":
        path = checkpoint_path(pool, name)
        if path is None:
            safetensors_file, pth_file = _places(pool, name)
            raise UserError(
                f"no checkpoint of {name} for {dataset.name}: looked for {safetensors_file} and {pth_file.name} beside "
                f"it; `python -m models.pretrain --dataset-name {dataset.name} --model {name}` trains it, or put a "
                f"downloaded file there"
            )
        if len(places := [place.name for place in _places(pool, name) if place.is_file()]) > 1:
            print(f"note: {pool} has {' and '.join(places)}: taking {path.name}", flush=True)
        teacher, record = Teacher(name, load_network(name, dataset, path), sha256_of(path)), path.with_suffix(".json")
        if record.exists() and read_json(record).get("sha256") != teacher.sha256:
            print(
                f"note: {path} is not the file that {record.name} speaks of; models.pretrain tests it anew", flush=True
            )
        return teacher
    if epochs_of(name):
        raise UserError(f"{name}: weights that are online were trained already; leave @{name.partition('@')[2]} out")
    if dataset.name != "imagenet1k":
        raise UserError(
            f"online weights are of ImageNet-1k's classes, not of {dataset.name}'s: use "
            f"--pretrained-model-type offline and train {name} with `python -m models.pretrain`"
        )
    if name.startswith(TIMM_PREFIX):
        module = _frozen(timm_networks.build_pretrained(name.removeprefix(TIMM_PREFIX), dataset))
        return Teacher(name, module, _sha256_of_state(module))
    state, path = imagenet.pretrained_state(name)
    return Teacher(name, _frozen(_filled(name, dataset, state, path)), sha256_of(path))


def save_state(path: Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state dict of a module to a safetensors file, whole or not at all; metadata goes into its header."""
    # Copies: safetensors refuses tensors that share memory or are not laid out in the order of their dimensions.
    state = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    write_safetensors(path, state, metadata)


def _filled(name: str, dataset: Dataset, state: dict[str, Tensor], path: Path) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the weights it starts with are thrown away: they cost no random numbers
        network = build_network(name, dataset)
    expected = network.state_dict()
    # Files older than PyTorch 0.4.1 have no batch counters; nothing reads them in eval mode.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in expected]
    reshaped = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if reshaped and not missing and not foreign:
        _refuse_other_class_count(dataset, path, [(expected[key].shape, state[key].shape) for key in reshaped])
    if missing or foreign or reshaped:
        differences = [
            f"{len(keys)} of its tensors {what} (first {keys[0]})"
            for keys, what in (
                (missing, "are missing"),
                (foreign, "are unknown to it"),
                (reshaped, "have another shape"),
            )
            if keys
        ]
        raise UserError(
            f"{path} is not a checkpoint of {name} for {dataset.size}-pixel images: {', '.join(differences)}; "
            f"put the right file there or name the network it belongs to"
        )
    network.load_state_dict(state)
    return network


def _refuse_other_class_count(dataset: Dataset, path: Path, shapes: list[tuple[torch.Size, torch.Size]]) -> None:
    counts = {found[:1] for _, found in shapes}
    only_classes = all(
        wanted[:1] == (dataset.num_classes,) and wanted[1:] == found[1:] and found for wanted, found in shapes
    )
    if only_classes and len(counts) == 1:
        raise UserError(
            f"{path} was trained for {counts.pop()[0]} classes, but {dataset.name} has {dataset.num_classes}: "
            f"put a checkpoint for {dataset.name} there"
        )


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _sha256_of_state(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
