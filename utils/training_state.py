"""Checkpoints to go on from: the state of a training after a whole epoch."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import write_whole
from utils.records import differences, plain


def save_training(path: Path, settings: Mapping[str, object], state: Mapping[str, object]) -> None:
    """Write `state` (tensors and plain types, nested) and the settings that it belongs to; whole or not at all."""
    buffer = io.BytesIO()  # torch.save to a full disk raises RuntimeError; write_bytes an OSError that says so
    torch.save({"settings": plain(settings), "state": dict(state)}, buffer)
    write_whole(path, lambda part: part.write_bytes(buffer.getbuffer()))


def load_training(path: Path, settings: Mapping[str, object]) -> dict | None:
    """The state that `save_training` wrote, its tensors on the CPU; None where there is no such file.

    Read with weights only: nothing in it runs. Raises UserError if the file is damaged, or belongs to a training with
    other settings.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        recorded, state = content["settings"], content["state"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        raise UserError(f"{path} is damaged: remove it to train from the start") from None
    if found := differences(recorded, settings):
        raise UserError(
            f"{path} was begun with other settings: {found}; give the same ones, or remove it to train from the start"
        )
    return state
