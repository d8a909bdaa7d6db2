"""Run a stage with the recipe of a dataset, method and IPC in the folders of config.sh: what every script does.

    python -m utils.launch recover cifar100 fadrm+ 10 -- --seed 1
    python -m utils.launch relabel cifar100 fadrm+ 10
    python -m utils.launch validate cifar100 fadrm+ 10 ResNet50 -- --seed 0 1 2
    python -m utils.launch validate cifar100 fadrm+ 1 10 50 ResNet18 ResNet50
    python -m utils.launch patches cifar100 fadrm+ 10
    python -m utils.launch pretrain cifar100

What follows `--` goes to the stage's entry behind the recipe and the folders, so that it wins. In validate it may begin
with other IPCs and students, in pretrain with the teachers to train. Output goes to the terminal and to a log file.

Where there are several GPUs, a process for each of them shares the stage (utils/distributed.py); FADRM_PROCESSES gives
another number of processes, also without GPUs.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from string import Template
from typing import NamedTuple

from utils import recipes
from utils.cli import StageParser
from utils.errors import UserError, run_entry
from utils.logs import copy_output_to


class Request(NamedTuple):
    """What a script asks for. pretrain has neither method nor IPC, validate one IPC or several; models: the teachers of
    pretrain, or validate's students."""

    stage: str
    dataset_name: str
    method: str | None = None
    ipcs: tuple[int, ...] = ()
    models: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    request, extra = parse(arguments)
    if request.stage == "pretrain" and request.dataset_name not in recipes.TEACHER_TRAINING:
        print(f"{request.dataset_name}: torchvision's IMAGENET1K_V1 weights are used online; nothing to train")
        return
    entry, words = recipes.ENTRIES[request.stage], [*entry_words(request, os.environ), *extra]
    processes = how_many_processes(extra, os.environ)
    tells = processes == 1 and os.environ.get("RANK", "0") == "0"  # of many processes, the first of them begins the log
    writes = "--dry-run" not in extra
    if writes:
        copy_output_to(log_path(request, os.environ), f"python -m {entry} {shlex.join(words)}" if tells else None)
    try:
        module = importlib.import_module(entry if processes == 1 else "utils.distributed")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no {error.name}: activate the environment that has it, "
            "or let `bash utils/setup.sh` make one"
        ) from error
    if writes:
        lay_out_embedded(request.dataset_name, os.environ)
    if processes == 1:
        module.main(words)
    else:
        module.run_processes(processes, "utils.launch", arguments)


def how_many_processes(flags: Sequence[str], environment: Mapping[str, str]) -> int:
    """How many processes a stage with these flags runs in: FADRM_PROCESSES, else one for each GPU it may see.

    One, this one, where torchrun has started several already. Raises UserError for a FADRM_PROCESSES that is no number.
    """
    if "RANK" in environment:
        return 1
    if given := environment.get("FADRM_PROCESSES"):
        if not given.isdecimal() or int(given) < 1:
            raise UserError(f"FADRM_PROCESSES={given}: it is a number of processes, 1 or more")
        return int(given)
    finder = StageParser("utils.launch", "", add_help=False)
    finder.add_argument("--device", default="auto")
    device = finder.parse_known_args(flags)[0].device
    if device not in ("auto", "cuda") or not any(Path("/dev").glob("nvidia[0-9]*")):
        return 1
    import torch  # it takes seconds, which nobody waits without a GPU

    return max(1, torch.cuda.device_count())


def lay_out_embedded(dataset_name: str, environment: Mapping[str, str]) -> None:
    """Bring the images that ship with the project to their class folders, if it is they that are asked for."""
    from utils.prepare_data import EMBEDDED_DATASET, ensure_embedded  # PyTorch is needed by now anyway

    if dataset_name == EMBEDDED_DATASET:
        ensure_embedded(*(Path(_filled(f"${name}", environment)) for name in ("train_dir", "val_dir")))


def parse(arguments: Sequence[str]) -> tuple[Request, list[str]]:
    """The request, and the flags for the entry; UserError for words that are none, or of an unknown dataset."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, extra = list(arguments[:cut]), list(arguments[cut + 1 :])
    stage, dataset_name = names[:2] if len(names) > 1 else (None, None)
    if stage not in recipes.ENTRIES:
        raise UserError(f"usage: python -m utils.launch STAGE DATASET ...; stages: {' '.join(recipes.ENTRIES)}")
    recipes.check_name("dataset", dataset_name, recipes.DATASETS)
    leading = list(takewhile(lambda word: not word.startswith("-"), extra))
    if stage == "pretrain":
        teachers = leading or names[2:] or recipes.all_teachers(dataset_name)
        return Request(stage, dataset_name, models=tuple(teachers)), extra[len(leading) :]
    method, *choice = names[2:] or [""]
    ipcs, models = numbers_and_names(choice)
    if stage == "validate":  # other IPCs and other students may follow
        other_ipcs, other_models = numbers_and_names(leading)
        ipcs, models, extra = other_ipcs or ipcs, other_models or models, extra[len(leading) :]
    if not ipcs or (stage != "validate" and (len(ipcs) > 1 or models)):
        raise UserError(f"{stage} needs a method and its IPC, a number, behind the dataset; not {' '.join(choice)!r}")
    chosen = [recipes.recipe_of(dataset_name, method, ipc) for ipc in ipcs]
    if stage == "validate" and not models:
        models = [chosen[0].student]
    return Request(stage, dataset_name, method, tuple(ipcs), tuple(models)), extra


def numbers_and_names(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """The numbers among the words, and the rest. A word in quotes may be several, as in a script's ipc="1 10"."""
    parts = [part for word in words for part in word.split()]
    return [int(part) for part in parts if part.isdecimal()], [part for part in parts if not part.isdecimal()]


def entry_words(request: Request, environment: Mapping[str, str]) -> list[str]:
    """The arguments of the entry: the recipe, by name, and the folders that `environment` gives.

    Raises UserError where a variable of config.sh is missing that the stage needs.
    """
    stage, dataset_name, method, ipcs, models = request
    values = {"dataset_name": dataset_name, "recipe": method, "ipc": ipcs or None, "model": models or None}
    folders = recipes.locations(stage, dataset_name, method, None if stage == "validate" else next(iter(ipcs), None))
    values |= {name: _filled(folder, environment) for name, folder in folders.items()}
    return [word for words in recipes.flags(values) for word in words]


def log_path(request: Request, environment: Mapping[str, str]) -> Path:
    """`<Main_Data_Path>/logs/<stage>_<dataset>_<method>_ipc<N>_<student>.log`, of what there is of these."""
    parts = [request.stage, request.dataset_name]
    if request.stage != "pretrain":
        parts += [request.method, *(f"ipc{ipc}" for ipc in request.ipcs), *map(recipes.file_name, request.models)]
    return Path(_filled("$Main_Data_Path", environment)) / "logs" / f"{'_'.join(parts)}.log"


def _filled(folder: str, environment: Mapping[str, str]) -> str:
    """`folder` with the variables of config.sh filled in."""
    try:
        return Template(folder).substitute({name: value for name, value in environment.items() if value})
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set: give it in config.sh, or in the environment") from None


if __name__ == "__main__":
    run_entry(main)
