"""DD-Ranking's scores (Li et al. 2025) from runs of this suite: what of an accuracy is the images', not the labels'.

    HLR = accuracy of the student on the whole real set - on the set, both with hard labels
    IOR = on the set under this suite's own protocol (views) - on as many random real images under the same
    LRS = rescaled(0.5 IOR - 0.5 HLR)
    ARS = rescaled(0.5 (set - random images, views) + 0.5 (set - random images, plain))
    rescaled(x) = (exp(x) - exp(-1)) / (exp(1) - exp(-1))

with accuracies from 0 to 1. IOR, and what ARS is made of, is 0 for random images: their ARS is 0.269.

A score is that of one seed: of the student with that seed on the set and on random images, the mean of their draws. A
row has mean and deviation over the seeds that all its runs share, so that the deviation is that of students alone:
draws are averaged out, and the whole set is trained on once.

DD-Ranking's package differs: it takes the best test accuracy of a run, here it is that of the last epoch; it searches
learning rates on the test set, here they are the recipe's; it draws random images once for each of five runs, here
there are three draws for each seed; it augments no batch of hard labels unless told to, here these have DSA; and it has
a recipe of its own for the whole set, here that is trained on as a teacher of the student's name, by models.pretrain.
"""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.teachers import read_record
from utils import recipes
from utils.recipes.settings import ValidateSettings
from utils.run.errors import UserError
from utils.run.records import differences
from utils.seams import SELECTORS
from validate.report import read_repeats, reports_folder, results_folder, run_command, shown, spread, stage_of_cell
from validate.tables import SEEDS, markdown, write_table

PROTOCOLS = ("views", "hard", "plain")
SCORES = ("hlr", "ior", "lrs", "ars")
ONE_TRAINING = ("settings", "epochs", "test_images_sha256")  # what a set and random images have in common

Runs = Mapping[str, Sequence[dict]]  # the results of all draws and seeds, by protocol


def rescaled(value: float) -> float:
    """From -1 .. 1 to 0 .. 1, as DD-Ranking does it."""
    return (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def scores_of(own: Mapping[str, float], random: Mapping[str, float], whole: float | None) -> dict[str, float]:
    """The scores of a set by name, without those that lack an accuracy.

    own, random: the student's accuracy on the set and on random images, by protocol; whole: on the real set; all from
    0 to 1.
    """
    gains = {protocol: own[protocol] - random[protocol] for protocol in own.keys() & random.keys()}
    found = {}
    if whole is not None and "hard" in own:
        found["hlr"] = whole - own["hard"]
    if "views" in gains:
        found["ior"] = gains["views"]
    if len(found) == 2:
        found["lrs"] = rescaled(0.5 * found["ior"] - 0.5 * found["hlr"])
    if gains.keys() >= {"views", "plain"}:
        found["ars"] = rescaled(0.5 * gains["views"] + 0.5 * gains["plain"])
    return found


def scores_by_seed(own: Runs, random: Runs, whole: float | None) -> dict[int, dict[str, float]]:
    """`scores_of` in percent for each seed that all runs there are have, the mean of its draws."""
    runs = [results for results in (*own.values(), *random.values()) if results]
    seeds = set.intersection(*({result["seed"] for result in results} for results in runs))

    def accuracies(of: Runs, seed: int) -> dict[str, float]:
        found = {protocol: [its["top1"] for its in results if its["seed"] == seed] for protocol, results in of.items()}
        return {protocol: statistics.fmean(values) / 100 for protocol, values in found.items() if values}

    scores = {seed: scores_of(accuracies(own, seed), accuracies(random, seed), whole) for seed in sorted(seeds)}
    return {seed: {name: 100 * value for name, value in its.items()} for seed, its in scores.items()}


def report_ranking(dataset_name: str, ipc: str, student: str | None = None) -> Path:
    """Print and write one table: the scores of every method, and of real images with each method's labels, in percent;
    a cell whose runs are missing is empty, and the commands that make them stand below.

    Returns the file that it wrote. UserError where nothing has results, or a set and random images were trained on
    differently.
    """
    rows, missing = [], []
    for method in recipes.METHODS:
        its = stage_of_cell("validate", dataset_name, method, ipc, student=student)
        record = read_record(stage_of_cell("relabel", dataset_name, method, ipc).model_pool_dir, its.model)
        whole = record and record["top1"]
        random = runs_of(its, "random")
        for images in (None, *SELECTORS):
            own = runs_of(its, images)
            scores = {}
            if any(own.values()):
                check_same_training(method, images, own, random)
                scores = scores_by_seed(own, random, whole and whole / 100)
                rows.append(row_of(method if images is None else f"{images} real images, labels of {method}", scores))
            elif images:
                continue
            if not scores or not all((*own.values(), *random.values())):
                missing.append(command_of(its, images))
    if not rows:
        raise UserError(f"no method has results on {dataset_name} at IPC {ipc}: {missing[0]} makes some")
    model = its.model
    if whole is None:
        missing.insert(0, f"python -m models.pretrain --dataset-name {dataset_name} --model {model}")
    rows.sort(key=lambda row: (" real images" in row["row"], -row["lrs"]["mean"] if row["lrs"] else 0.0))
    body = [[row["row"], *(shown(row[s]) if row[s] else "" for s in SCORES), len(row["seeds"])] for row in rows]
    lines = markdown([f"{dataset_name}, IPC {ipc}, {model}: %", *map(str.upper, SCORES), "seeds"], body)
    path = reports_folder(its) / f"{dataset_name}_ipc{ipc}_{recipes.file_name(model)}_ranking.json"
    content = {"dataset": dataset_name, "ipc": int(ipc), "student": model, "whole_set_top1": whole, "rows": rows}
    return write_table(path, lines, content, list(dict.fromkeys(missing)))


def row_of(name: str, scores: Mapping[int, Mapping[str, float]]) -> dict[str, object]:
    """A row of the table: mean and deviation of each score over the seeds, None of one that is not there."""
    found = list(scores.values())
    means = {score: spread(found, score) if found and score in found[0] else None for score in SCORES}
    return {"row": name, "seeds": list(scores), **means}


def runs_of(its: ValidateSettings, images: str | None) -> dict[str, list[dict]]:
    """The results of a cell's own images, or of others with its labels, by protocol."""
    found = {}
    for labels in PROTOCOLS:
        chosen = {"student": its.model, "images": images, "labels": labels}
        settings = recipes.in_places("validate", its.dataset, its.recipe, its.ipc, os.environ, **chosen)
        found[labels] = read_repeats(results_folder(settings))
    return found


def check_same_training(method: str, images: str | None, own: Runs, random: Runs) -> None:
    """UserError where a score would compare two trainings that differ in more than images and labels."""
    for labels in PROTOCOLS:
        if own[labels] and random[labels]:
            one, other = ({key: runs[labels][0].get(key) for key in ONE_TRAINING} for runs in (own, random))
            if one != other:
                raise UserError(
                    f"{images or method} and random images by {method} have results of other settings under {labels}: "
                    f"{differences(one, other)}; remove one of the two"
                )


def command_of(its: ValidateSettings, images: str | None) -> str:
    """What makes the runs that a row needs."""
    flags = f"--labels {' '.join(PROTOCOLS)}"
    if images in (None, "random"):
        return run_command(its.dataset_name, its.recipe, its.ipc, its.model, flags, SEEDS)
    words = f"--dataset-name {its.dataset_name} --recipe {its.recipe} --ipc {its.ipc} --images {images} {flags}"
    return f"python -m relabel.relabel {words} && python -m validate.validate {words} --model {its.model} {SEEDS}"
