"""Variants: a method with settings changed, named by what is changed, as ablations need them.

    bash run.sh cifar100 fadrm:alpha=0.6 10
    bash run.sh imagenet1k fadrm:sizes=224,200,224:budgets=666,667,667:recover.amp=off 10

A setting is named as in utils/recipes/settings.py and holds in every stage that has it, with a stage in front in that
stage alone; a list is parted by commas, a switch is on or off. Everything that a variant makes lies in folders of its
own, but what it has in common with the method: names of folders have only what shapes what lies there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import NamedTuple

from utils.recipes.base import Recipe
from utils.recipes.settings import PATCHES, PatchSettings, RecoverSettings, RelabelSettings, ValidateSettings
from utils.run.errors import UserError
from utils.run.settings import NEVER, StageSettings, shape_of

SETTINGS: Mapping[str, type[StageSettings]] = {
    "patches": PatchSettings,
    "recover": RecoverSettings,
    "relabel": RelabelSettings,
    "validate": ValidateSettings,
}
NAMED_ELSEWHERE = ("seed", "dataset_name", "device", "dry_run", "recipe", "ipc", "draw", "model", "labels", "images")
SWITCH = {"on": True, "off": False}


class Change(NamedTuple):
    """A setting with its new value, and the stages where it holds. word: as it was given."""

    word: str
    name: str
    value: object
    stages: Sequence[str]


def changes_of(method: str) -> tuple[str, list[Change]]:
    """A method's own name, and what its variant changes. UserError for a setting that is not there."""
    name, *words = re.split(r":(?=[\w.]*=)", method)
    return name, [change_of(word) for word in words]


def change_of(word: str) -> Change:
    left, _, right = word.partition("=")
    stage, _, name = left.rpartition(".")
    stages = [its for its in SETTINGS if stage in ("", its) and name in settings_of_stage(its)]
    if not stages:
        raise UserError(f"{word}: no stage has such a setting for variants; {_those_of(stage)}")
    owner = SETTINGS[stages[0]]
    return Change(word, name, _read(word, right, owner, settings_of_stage(stages[0])[name]), stages)


def settings_of_stage(stage: str) -> dict[str, Field]:
    """The settings of a stage that a variant may change, by name; of patches those alone that shape them."""
    found = {f.name: f for f in fields(SETTINGS[stage]) if not f.metadata["place"] and f.name not in NAMED_ELSEWHERE}
    return {name: f for name, f in found.items() if stage != "patches" or f.metadata["identity"] != NEVER}


def _those_of(stage: str) -> str:
    if stage and stage not in SETTINGS:
        return f"stages: {' '.join(SETTINGS)}"
    names = [name for its in SETTINGS if stage in ("", its) for name in settings_of_stage(its)]
    return f"there are {' '.join(dict.fromkeys(names))}"


def _read(word: str, text: str, owner: type[StageSettings], field: Field) -> object:
    kind, several = shape_of(owner, field)
    read = SWITCH.__getitem__ if kind is bool else kind
    try:
        return tuple(map(read, filter(None, text.split(",")))) if several else read(text)
    except (KeyError, ValueError):
        wanted = "on or off" if kind is bool else {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UserError(f"{word}: {text!r} is not {wanted}{', or some of these' if several else ''}") from None


def varied(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    """A recipe with these changes."""
    for change in changes:
        for stage in change.stages:
            recipe = recipe.set_in(stage, **{change.name: change.value})
    return recipe


def with_own_patches(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    """Patches that are made in another way have a folder of their own; a selector has one anyway."""
    made_so = "_".join(c.word for c in changes if "patches" in c.stages and c.name != "selector")
    if not made_so:
        return recipe
    own = recipe.patches.patch_dir
    return recipe.set(patch_dir=Path(f"{own}_{made_so}" if own else f"{PATCHES}/{made_so}"))


def file_name(name: str) -> str:
    """A name of a network or method as names of files and folders have it: without colons."""
    return name.replace(":", "_")


def name_in(method: str, stages: Sequence[str]) -> str:
    """What folders call a method where these stages shape what lies there: its name with the changes of these."""
    name, changes = changes_of(method)
    return file_name(":".join([name, *(c.word for c in changes if set(stages) & set(c.stages))]))
