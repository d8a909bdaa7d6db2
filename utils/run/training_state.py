"""The state of a training after a whole epoch, to go on from: tensors and plain values, with a checksum of all of
it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.run.errors import UserError
from utils.run.files import read_bytes, safetensors_header, write_safetensors
from utils.run.records import differences, plain

SUFFIX = ".safetensors"


def save_training(path: Path, settings: Mapping[str, object], state: Mapping[str, object]) -> None:
    """Write `state` (tensors and plain values, nested) and the settings that it belongs to; whole or not at all."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"settings": plain(settings), "state": _packed(state, tensors)})
    write_safetensors(path, tensors, {"content": text, "sha256": _digest(text, tensors)})


def load_training(path: Path, settings: Mapping[str, object] | None = None) -> dict | None:
    """The state that `save_training` wrote, its tensors on the CPU; None where there is no such file.

    Raises UserError if the file is damaged, or belongs to a training with other settings (where some are given).
    """
    if not path.exists():
        if (old := path.with_suffix(".pt")).exists():
            raise UserError(f"{old} is of an earlier version of this project: remove it to train from the start")
        return None
    try:
        tensors = safetensors.torch.load(read_bytes(path))
        _, metadata = safetensors_header(path)
        is_right = metadata["sha256"] == _digest(metadata["content"], tensors)
        told = json.loads(metadata["content"]) if is_right else None
    except (safetensors.SafetensorError, KeyError, ValueError):
        told = None
    if told is None:
        raise UserError(f"{path} is damaged: remove it to train from the start")
    if settings is not None and (found := differences(told["settings"], settings)):
        raise UserError(
            f"{path} was begun with other settings: {found}; give the same ones, or remove it to train from the start"
        )
    return _unpacked(told["state"], tensors)


def _packed(value: object, tensors: dict[str, Tensor]) -> object:
    """`value` as JSON takes it: tensors go into `tensors`, dicts become pairs, since their keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[name := str(len(tensors))] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": name, "strides": value.stride()}  # an optimiser's moments lie as their parameters do
    if isinstance(value, Mapping):
        return {"pairs": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_packed(item, tensors) for item in value]
    return value


def _unpacked(value: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, dict):
        if "tensor" in value:
            tensor = tensors[value["tensor"]]
            return torch.empty_strided(tensor.shape, value["strides"], dtype=tensor.dtype).copy_(tensor)
        return {key: _unpacked(item, tensors) for key, item in value["pairs"]}
    return [_unpacked(item, tensors) for item in value] if isinstance(value, list) else value


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
