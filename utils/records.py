"""Records: the settings that a folder's content was made with, kept beside it."""

import json
from collections.abc import Mapping
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, write_json


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


def check_record(path: Path, settings: Mapping[str, object], what: str, write: bool = True) -> None:
    """Make sure that the folder of the record `path` takes only what was made with `settings`.

    path: a JSON file, written if absent (and `write`). settings: whatever shapes the content (no workers, no device).
    what: what the folder holds, in the plural, for the error ("patches", "distilled images").
    Raises UserError, naming each difference, if the record tells of other settings.
    """
    if not path.exists():
        if write:
            write_json(path, plain(settings))
        return
    if found := differences(read_json(path), settings):
        raise UserError(
            f"{path.parent} holds {what} made with other settings: {found}; "
            "give the same settings, take another folder, or remove that one"
        )
