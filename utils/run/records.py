"""Records: what a folder's content was made with, kept beside it; and the shape that a record that is read must
have."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.run.errors import UserError
from utils.run.files import read_json, write_json

# int, float, str, bool: a value of that type; a tuple: one of these values; a list of one shape: any number of them;
# a dict: these keys at least.
Shape = Any


def plain(settings: Mapping[str, object]) -> dict[str, object]:
    """`settings` as JSON gives them back: tuples as lists, paths as text."""
    return json.loads(json.dumps(dict(settings), default=str))


def differences(recorded: Mapping[str, object], settings: Mapping[str, object]) -> str:
    """The settings that differ, as `alpha (0.5 there, 0.7 here), ...`; empty if none does."""
    there, here = _flat(plain(recorded)), _flat(plain(settings))

    def shown(values: dict, key: str) -> str:
        return json.dumps(values[key]) if key in values else "none"

    return ", ".join(
        f"{key} ({shown(there, key)} there, {shown(here, key)} here)"
        for key in sorted(there.keys() | here.keys())
        if shown(there, key) != shown(here, key) and there.get(key, shown) != here.get(key)  # 1 is 1.0
    )


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings within settings by their full name: {"views": {"size": 32}} as {"views.size": 32}."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_record(
    path: Path,
    settings: Mapping[str, object],
    what: str,
    write: bool = False,
    ignore: Collection[str] = (),
    younger: Collection[str] = (),
) -> None:
    """Make sure that the folder of the record `path` takes only what was made with `settings`.

    path: a JSON file; `write`: create it where it is absent, which a stage does just before the folder's first
    artefact, so that a run that made nothing claims nothing. settings: whatever shapes the content (no workers, no
    device). what: what the folder holds, in the plural, for the error ("patches", "distilled images"). ignore: settings
    that may differ; younger: settings that records of earlier versions may lack. Raises UserError, naming each
    difference, if the record has other settings.
    """
    if write and write_json(path, plain(settings), only_new=True):
        return
    if not path.exists():
        return
    recorded = read_json(path)
    ignore = {*ignore, *(key for key in younger if key not in recorded)}
    recorded, settings = ({k: v for k, v in each.items() if k not in ignore} for each in (recorded, settings))
    found = differences(recorded, settings)
    if "record_version" in found:
        found = "they are of another version of this project"
    if found:
        raise UserError(
            f"{path.parent} holds {what} made with other settings: {found}; "
            "give the same settings, take another folder, or move that one away"
        )


def check_shape(path: Path, content: object, shape: Shape, remedy: str) -> None:
    """UserError, naming the first place, unless what was read from `path` has the shape."""
    if problem := _misfit(content, shape, ""):
        raise UserError(f"{path} is damaged ({problem}): {remedy}")


def _misfit(content: object, shape: Shape, place: str) -> str | None:
    """The first place where content has not its shape, in words."""
    where = place.lstrip(".") or "it"
    if isinstance(shape, dict):
        if not isinstance(content, dict):
            return f"{where} is no object"
        parts = [
            _misfit(content[key], its, f"{place}.{key}") if key in content else f"no {key}"
            for key, its in shape.items()
        ]
        return next((part for part in parts if part), None)
    if isinstance(shape, list):
        if not isinstance(content, list):
            return f"{where} is no list"
        return next((part for item in content if (part := _misfit(item, shape[0], f"{place}[]"))), None)
    if isinstance(shape, tuple):
        return None if any(content is option or content == option for option in shape) else f"{where} is unknown"
    if shape is float:
        is_number = isinstance(content, (int, float)) and not isinstance(content, bool)
        return None if is_number and math.isfinite(content) else f"{where} is no number"
    fits = isinstance(content, shape) and (shape is bool or not isinstance(content, bool))
    return None if fits else f"{where} is no {shape.__name__}"
