"""DD-Ranking's scores, from accuracies and from files of results."""

import json
import re
import statistics
from math import e
from pathlib import Path

import pytest

from tests.validate.test_report import config, result, write_results, write_teacher  # noqa: F401 (a fixture)
from utils import recipes
from validate import report
from validate.ranking import PROTOCOLS, rescaled, runs_of, scores_of
from validate.report import cell_of
from validate.validate import parse_cells

SCRIPT = "bash run.sh cifar100 fadrm 10 ResNet18 --labels views hard plain --seed 0 1 2"


def test_what_is_equal_and_what_is_worse_is_rescaled_as_published():
    assert [round(rescaled(value), 3) for value in (-1, -0.15, 0, 1)] == [0, 0.21, 0.269, 1]


def test_scores_by_hand():
    own, random = {"views": 0.7, "hard": 0.5, "plain": 0.6}, {"views": 0.6, "hard": 0.4, "plain": 0.55}
    scores = scores_of(own, random, 0.8)
    alpha, beta = (0.1 - 0.3) / 2, (0.1 + 0.05) / 2
    expected = {"hlr": 0.3, "ior": 0.1, "lrs": (e**alpha - 1 / e) / (e - 1 / e), "ars": (e**beta - 1 / e) / (e - 1 / e)}
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize(
    ("own", "random", "whole", "there"),
    [
        ("views hard plain", "views plain", 0.8, "hlr ior lrs ars"),
        ("views hard plain", "views plain", None, "ior ars"),
        ("views hard", "views plain", 0.8, "hlr ior lrs"),
        ("hard plain", "views hard plain", 0.8, "hlr"),
        ("views plain", "hard", 0.8, ""),
    ],
)
def test_a_score_that_lacks_an_accuracy_is_left_out(own, random, whole, there):
    own, random = (dict.fromkeys(protocols.split(), 0.5) for protocols in (own, random))
    assert list(scores_of(own, random, whole)) == there.split()


# From files


def folder_of(images, labels, draw=0):
    """Where the results of fadrm's images, or of others with its labels, are."""
    name = "fadrm" if images is None else f"{images}_by_fadrm"
    protocol = "" if labels == "views" else f"_{labels}"
    root = cell_of("cifar100", "fadrm", "10").validate.output_dir / "cifar100"
    return root / f"{name}_ipc10_ResNet18{protocol}{recipes.draw_suffix(draw)}"


def write(images, labels, *top1, draw=0, **others):
    """Results of seeds 0, 1, ... with this top-1 after the last epoch, and a better one before."""
    results = [result(seed, (value + 1, value), **others) for seed, value in enumerate(top1)]
    write_results(folder_of(images, labels, draw), *results)


def write_all():
    write(None, "views", 70.0, 72.0)
    write(None, "hard", 50.0, 54.0)
    write(None, "plain", 60.0, 63.0)
    for draw, shift in enumerate((-3.0, 0.0, 3.0)):
        write("random", "views", 60.0 + shift, 61.0 + shift, draw=draw)
        write("random", "hard", 40.0 + shift, 41.0 + shift, draw=draw)
        write("random", "plain", 55.0 + shift, 56.0 + shift, draw=draw)
    write_teacher(cell_of("cifar100", "fadrm", "10").pool, "ResNet18", 80.0)


def ranked(capsys):
    """The table's rows as cells, the commands below it, and the file's content."""
    report.main(["--ranking", "cifar100", "10"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    path = Path(re.search("this table: (.*)", printed)[1])
    assert path.name == "cifar100_ipc10_ResNet18_ranking.json" and path.with_suffix(".md").exists()
    return rows, re.findall("missing: (.*)", printed), json.loads(path.read_text())


def of_pairs(*alphas):
    """Mean and deviation, as shown, of what alpha or beta of each seed is rescaled to."""
    values = [100 * (e**alpha - 1 / e) / (e - 1 / e) for alpha in alphas]
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def test_seeds_are_paired_and_draws_averaged(capsys):
    write_all()
    rows, missing, content = ranked(capsys)
    assert rows[0] == ["cifar100, IPC 10, ResNet18: %", "HLR", "IOR", "LRS", "ARS", "seeds"]
    lrs, ars = of_pairs((0.1 - 0.3) / 2, (0.11 - 0.26) / 2), of_pairs((0.1 + 0.05) / 2, (0.11 + 0.07) / 2)
    assert rows[1:] == [
        ["fadrm", "28.00 ± 2.83", "10.50 ± 0.71", lrs, ars, "2"],
        [
            "random real images, labels of fadrm",
            "39.50 ± 0.71",
            "0.00 ± 0.00",
            of_pairs(-0.2, -0.195),
            "26.89 ± 0.00",
            "2",
        ],
    ]
    assert len(missing) == len(recipes.METHODS) - 1 and not any(" fadrm " in command for command in missing)
    assert content["whole_set_top1"] == 80.0 and content["rows"][0]["seeds"] == [0, 1]


def test_what_is_missing_is_empty_and_its_command_stands_below(capsys):
    write(None, "views", 70.0)
    write("coverage", "hard", 50.0)
    rows, missing, _ = ranked(capsys)
    assert rows[1:] == [["fadrm", "", "", "", "", "1"], ["coverage real images, labels of fadrm", "", "", "", "", "1"]]
    assert missing[0] == "python -m models.pretrain --dataset-name cifar100 --model ResNet18"
    assert SCRIPT in missing
    words = "--dataset-name cifar100 --recipe fadrm --ipc 10 --images coverage --labels views hard plain"
    command = f"python -m relabel.relabel {words} && python -m validate.validate {words} --model ResNet18 --seed 0 1 2"
    assert command in missing and len(missing) == len(set(missing)) == 2 + len(recipes.METHODS)


@pytest.mark.parametrize(("images", "words", "draws"), [(None, [], 1), ("random", ["--images", "random"], 3)])
def test_results_are_read_from_where_the_command_leaves_them(images, words, draws):
    """run.sh gives validate the same flags, and random images in three draws."""
    words = [*words, "--draw", *map(str, range(draws)), "--labels", "views", "hard", "plain", "--model", "ResNet18"]
    for cell in parse_cells(["--dataset-name", "cifar100", "--recipe", "fadrm", "--ipc", "10", *words]):
        write_results(report.results_folder(cell), result(0, (50.0, 50.0)))
    found = runs_of(cell_of("cifar100", "fadrm", "10").validate, images)
    assert {labels: len(results) for labels, results in found.items()} == dict.fromkeys(PROTOCOLS, draws)


def test_without_a_shared_seed_there_is_no_score(capsys):
    write_all()
    path = folder_of(None, "plain") / "seed0"
    write_results(folder_of(None, "plain"), result(5, (60.0, 60.0)))
    for seed in (0, 1):
        (path.with_name(f"seed{seed}") / "result.json").unlink()
    rows, missing, content = ranked(capsys)
    assert rows[1] == ["fadrm", "", "", "", "", "0"] and SCRIPT in missing
    assert content["rows"][0]["lrs"] is None


def test_trainings_that_differ_are_not_compared(refusal):
    write_all()
    write("coverage", "hard", 50.0, settings={"augment": "dsa"})
    message = "coverage and random images by fadrm have results of other settings under hard: settings"
    assert message in refusal(report.main, ["--ranking", "cifar100", "10"])


def test_no_results_of_any_method(refusal):
    message = "no method has results on cifar100 at IPC 10: bash run.sh cifar100 "
    assert message in refusal(report.main, ["--ranking", "cifar100", "10"])
