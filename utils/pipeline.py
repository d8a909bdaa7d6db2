"""From real images to a student's accuracy: every stage of one cell of the table, each skipped when it is complete.

    bash run.sh                                  # the embedded dataset, FADRM+
    bash run.sh imagenet1k fadrm+ 10 ResNet18    # one cell of the paper's table

Each step is a command that stands on its own (see utils/launch.py) and that skips by itself what it has made. A step
whose command ended well, and whose files are as it left them, is not even started: so a second call costs seconds.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils import recipes
from utils.errors import UserError, run_entry
from utils.files import read_json, write_json

USAGE = "usage: bash run.sh [DATASET] [METHOD] [IPC] [STUDENT] [--seed N ...]"


class Cell(NamedTuple):
    """One cell of the table: what is asked for."""

    dataset: str
    method: str
    ipc: int
    student: str
    seeds: tuple[int, ...]


class Step(NamedTuple):
    """One command: its name in the report, its arguments behind `python -m`, and the files and folders it leaves.

    recipe: what those arguments stand for; with another recipe it is another step.
    """

    name: str
    words: tuple[str, ...]
    outputs: tuple[Path, ...]
    recipe: str


def main(argv: Sequence[str] | None = None) -> None:
    cell = parse(sys.argv[1:] if argv is None else argv)
    folders = folders_of(cell, os.environ)
    steps = steps_of(cell, folders)
    journal_path = folders["reports"].with_name("steps.json")
    journal = read_json(journal_path) if journal_path.exists() else {}
    for step in steps:
        run_step(step, journal, journal_path)
    from utils.results import report_cell  # only now: it draws, and what is not needed should not cost its import

    report_cell(cell, folders, [(step.name, journal[key_of(step)]) for step in steps])


def parse(words: Sequence[str]) -> Cell:
    """The cell that a command line asks for; UserError for what has no recipe."""
    if {"-h", "--help"} & set(words):
        print(f"{__doc__}\n{USAGE}")
        sys.exit(0)
    cut = words.index("--seed") if "--seed" in words else len(words)
    names, seeds = list(words[:cut]), list(words[cut + 1 :])
    if len(names) > 4 or any(name.startswith("-") for name in names) or not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"{' '.join(words)!r} is not understood; {USAGE}")
    dataset, method, ipc, student = names + ["fashion_mnist", "fadrm+", None, None][len(names) :]
    recipes.check_name("dataset", dataset, recipes.DATASETS)
    if ipc is None:
        ipc = "10"
    if not ipc.isdecimal():
        raise UserError(f"IPC {ipc!r} is no number; {USAGE}")
    recipe = recipes.recipe_of(dataset, method, int(ipc))
    chosen = tuple(dict.fromkeys(map(int, seeds))) or recipe.seeds
    return Cell(dataset, method, int(ipc), student or recipe.student, chosen)


def folders_of(cell: Cell, environment: Mapping[str, str]) -> dict[str, Path]:
    """Where the parts of a cell lie, the random baseline's beside the distilled images'."""
    names = ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")
    for name in names:
        if not environment.get(name):
            raise UserError(f"{name} is not set: give it in config.sh, or in the environment")
    root, train, val, patch = (environment[name] for name in names)
    places = {}
    for stage in recipes.ENTRIES:
        places |= recipes.locations(stage, cell.dataset, cell.method, cell.ipc, cell.student, root, train, val, patch)
    recipe = recipes.recipe_of(cell.dataset, cell.method, cell.ipc)
    distilled, labels = Path(places["original_data_path"]), Path(places["fkd_path"])
    results = Path(places["output_dir"]) / cell.dataset
    return {
        "train": Path(places["train_dir"]),
        "val": Path(places["val_dir"]),
        "teachers": Path(places["model_pool_dir"]),
        "patches": Path(places["patch_dir"]) / recipe.difficulty,
        "distilled": distilled,
        "labels": labels,
        "results": results / places["exp_name"],
        "random": distilled.with_name(f"random_ipc{cell.ipc}"),
        "random_labels": labels.with_name(f"random_by_{labels.name}"),
        "random_results": results / f"random_by_{places['exp_name']}",
        "reports": Path(root) / "generated_data" / "reports",
    }


def steps_of(cell: Cell, folders: Mapping[str, Path]) -> list[Step]:
    """The steps of a cell in their order."""
    dataset, method, ipc, student, seeds = cell
    recipe = recipes.recipe_of(dataset, method, ipc)
    named = (dataset, method, str(ipc))
    seed_flags = ("--seed", *map(str, seeds))
    seed_files = tuple(f"seed{seed}/result.json" for seed in seeds)
    teachers = tuple(dict.fromkeys((*recipe.teachers, recipe.observer)))
    trained = () if recipe.source == "online" else tuple(folders["teachers"] / f"{name}.json" for name in teachers)
    random_words = ("--dataset-name", dataset, "--train-dir", str(folders["train"]), "--ipc", str(ipc))
    random_words += ("--syn-data-path", str(folders["random"].parent), "--exp-name", folders["random"].name)
    prefix = str(folders["random_labels"]).removesuffix(f"_bs{recipe.batch}_ipc{ipc}")
    random_labels = ("--syn-data-path", str(folders["random"]), "--fkd-path", prefix)
    random_results = ("--original-data-path", str(folders["random"]), "--fkd-path", str(folders["random_labels"]))
    random_results += ("--exp-name", folders["random_results"].name, "--method", "random")

    def stage(name: str, *words: str) -> tuple[str, ...]:
        return ("utils.launch", name, *words)

    steps = [
        ("data", ("utils.prepare_data", dataset), (folders["train"], folders["val"])),
        ("teachers", stage("pretrain", dataset, *teachers), trained),
        ("patches", stage("patches", *named), (folders["patches"],)),
        ("recover", stage("recover", *named), (folders["distilled"],)),
        ("relabel", stage("relabel", *named), (folders["labels"],)),
        (
            "validate",
            stage("validate", *named, student, "--", *seed_flags),
            tuple(folders["results"] / file for file in seed_files),
        ),
        ("random images", ("recover.random_images", *random_words), (folders["random"],)),
        ("random: relabel", stage("relabel", *named, "--", *random_labels), (folders["random_labels"],)),
        (
            "random: validate",
            stage("validate", *named, student, "--", *random_results, *seed_flags),
            tuple(folders["random_results"] / file for file in seed_files),
        ),
    ]
    return [Step(*step, recipe=recipe_digest(cell)) for step in steps]


def recipe_digest(cell: Cell) -> str:
    """Identity of everything that the table of recipes says of a cell."""
    dataset, method, ipc, student, _ = cell
    recipe = recipes.recipe_of(dataset, method, ipc)
    said = (recipe, recipes.TEACHER_TRAINING.get(dataset), recipes.student_rate(dataset, student, ipc))
    return hashlib.sha256(repr(said).encode()).hexdigest()


def run_step(step: Step, journal: dict[str, dict], journal_path: Path) -> None:
    """Run a step unless it is done and its files are as it left them; exit with its status if it fails."""
    known = journal.get(key_of(step), {})
    if known.get("files") is not None and known["files"] == files_of(step):
        print(f"{step.name}: done before", flush=True)
        return
    print(f"\n=== {step.name}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *step.words])
    interrupted = False
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:  # the step got it too, and says what becomes of its work
        interrupted = True
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    failed = os.waitstatus_to_exitcode(status)
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    journal[key_of(step)] = {
        # what was spent on a step that was interrupted counts; a look at files that were there does not replace it
        "seconds": known.get("seconds", 0.0) + seconds,
        "peak_memory_gib": max(known.get("peak_memory_gib", 0.0), kilobytes / 2**20),
        "files": None if failed else files_of(step),
    }
    write_json(journal_path, journal)
    if failed:
        sys.exit(failed if failed > 0 else 128 - failed)
    if interrupted:
        raise KeyboardInterrupt


def key_of(step: Step) -> str:
    return json.dumps([*step.words, step.recipe])


def files_of(step: Step) -> dict[str, list[int]] | None:
    """Size and time of what a step leaves: of files, and of the entries of folders two levels down.

    A class folder's own time tells of images that come or go, so that a million real ones need no look at each.
    None if something is missing.
    """
    found: dict[str, list[int]] = {}
    for output in step.outputs:
        if not output.exists():
            return None
        for path in (output, *output.glob("*"), *(() if step.name == "data" else output.glob("*/*"))):
            if not path.name.startswith("."):
                status = path.stat()
                found[str(path)] = [status.st_size, status.st_mtime_ns]
    return found


if __name__ == "__main__":
    run_entry(main)
