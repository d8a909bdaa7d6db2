"""`python -m utils.recipes [DATASET METHOD IPC [STUDENT]]`: the methods, or the commands of one recipe to copy and
change."""

import importlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

from utils.data.table import DATASETS, get_dataset
from utils.recipes import METHODS, STAGES, in_places, student_rate
from utils.recipes.teachers import WHOLE_DATA_TOP1
from utils.run.errors import UserError, run_entry
from utils.run.settings import StageSettings, spell

CONFIG = {"Main_Data_Path": "$Main_Data_Path", **{name: f"${name}" for name in ("train_dir", "val_dir", "patch_dir")}}
USAGE = "usage: python -m utils.recipes [DATASET METHOD IPC [STUDENT]]"


def commands(dataset_name: str, method: str, ipc: int, student: str | None = None) -> str:
    """The three stages of a recipe as shell commands with every flag spelled out."""
    dataset = get_dataset(dataset_name)
    stages = {
        stage: in_places(stage, dataset, method, ipc, CONFIG, student=student)
        for stage in ("recover", "relabel", "validate")
    }
    student = stages["validate"].model
    stages["validate"] = replace(stages["validate"], method=method)  # what --recipe would have said
    lines = [f"# {dataset_name}, {method}, {ipc} images per class, student {student}"]
    if dataset_name in WHOLE_DATA_TOP1:
        lines.append(f"# (in the paper a ResNet18 has {WHOLE_DATA_TOP1[dataset_name]} % on the whole dataset)")
    if student_rate(dataset, method, student, ipc)[2]:
        lines.append(f"# No rate is published for {student} here: --adamw-lr and --eta are this project's default.")
    blocks = ["\n".join(lines), "source config.sh"]
    for stage, settings in stages.items():
        flags = [" ".join(map(_quoted, flag)) for flag in spelled_out(replace(settings, recipe=None))]
        blocks.append(" \\\n    ".join([f"python -m {STAGES[stage].module}", *flags]))
    return "\n\n".join(blocks)


def spelled_out(settings: StageSettings) -> list[list[str]]:
    """Every setting as words of a command line, but for those that are nothing and are so unless told."""
    values = [(field, getattr(settings, field.name)) for field in fields(settings)]
    nothing = (None, False, ())
    return [
        spell(field, value)
        for field, value in values
        if value != field.default or not any(value is empty or value == empty == () for empty in nothing)
    ]


def _quoted(word: str) -> str:
    return f'"{word}"' if "$" in word else shlex.quote(word)  # the variables of config.sh, for the shell to fill in


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments:
        for name, recipe in METHODS.items():
            print(f"{name:<12}{importlib.import_module(recipe.__module__).__doc__.splitlines()[0]}")
        print(f"\ndatasets: {' '.join(DATASETS)}\n{USAGE}")
        return
    if len(arguments) not in (3, 4) or not arguments[2].isdecimal():
        raise UserError(f"{USAGE}; datasets: {' '.join(DATASETS)}; methods: {' '.join(METHODS)}; IPC: 1 or more")
    dataset_name, method, ipc, *student = arguments
    print(commands(dataset_name, method, int(ipc), *student))


if __name__ == "__main__":
    run_entry(main)
