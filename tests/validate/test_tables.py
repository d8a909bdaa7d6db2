"""Tables of many cells."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

from models.registry import check_network
from tests.validate.test_report import config, folders_of, result, write_results  # noqa: F401 (a fixture)
from utils import recipes
from utils.data.table import DATASETS, get_dataset
from validate import report, tables
from validate.report import cell_of

CIFAR = get_dataset("cifar100")


def ours(seed, top1, **others):
    """A result of fadrm's with the recipe's student."""
    return result(seed, top1, **{"student": "ResNet18", **others})


def test_all_methods_stand_in_one_table_beside_real_images(capsys):
    cells = {method: cell_of("cifar100", method, "10") for method in ("fadrm", "edc")}
    write_results(folders_of(cells["fadrm"])[0], ours(0, (40.0, 44.0)), ours(4, (42.0, 41.0)))
    write_results(folders_of(cells["edc"])[0], ours(0, (40.0, 50.0), method="edc"))
    random = folders_of(cells["fadrm"])[1]
    write_results(random, ours(0, (30.0, 31.0), method="random"))
    write_results(random.with_name(random.name.replace("random", "coverage")), ours(0, (30.0, 35.0), method="coverage"))
    report.main(["--methods", "cifar100", "10"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("| ")][1:] == [
        "| edc | 50.00 (1) |",
        "| fadrm | 42.50 ± 2.12 (2) |",
        "| coverage, labels of fadrm | 35.00 (1) |",
        "| random, labels of fadrm | 31.00 (1) |",
    ]
    assert "missing: bash run.sh cifar100 g-vbsm 10 ResNet18\n" in printed
    path = re.search("this table: (.*)", printed)[1]
    content = json.loads(Path(path).read_text())
    assert [entry["row"] for entry in content["entries"]][:2] == ["edc", "fadrm"] and len(content["missing"]) == 6
    assert path.endswith("reports/cifar100_ipc10_ResNet18.json")


def test_no_results_of_any_method(refusal):
    message = "no method has results on cifar100 at IPC 10: bash run.sh cifar100 "
    assert message in refusal(report.main, ["--methods", "cifar100", "10"])


def test_the_papers_table_beside_what_is_measured(capsys):
    fadrm = cell_of("cifar100", "fadrm", "10", "ResNet18")
    write_results(folders_of(fadrm)[0], result(0, (40.0, 66.0)), result(1, (40.0, 68.0)))
    report.main(["--table", "2", "cifar100"])
    printed = capsys.readouterr().out
    assert "| fadrm | 10 | ResNet18 | 67.4 | 67.00 ± 1.41 (2) | -0.40 |\n" in printed
    assert "| rded | 1 | ResNet18 | 17.1 |  |  |\n" in printed
    commands = re.findall("missing: (.*)", printed)
    assert "bash run.sh cifar100 edc 50 ResNet101 --seed 0 1 2" in commands
    assert not any(" fadrm 10 ResNet18 " in command for command in commands) and len(commands) == 5 * 9 - 1
    content = json.loads(Path(re.search("this table: (.*)", printed)[1]).read_text())
    assert content["rows"][0]["measured_top1"] is None and content["missing"] == commands


def test_both_editions_of_imagenet1k_stand_there(capsys):
    report.main(["--table", "2", "imagenet1k"])
    printed = capsys.readouterr().out
    assert "| fadrm+ (camera-ready) | 10 | ResNet18 | 50.9 |" in printed
    assert "| fadrm+:factor=2 (arXiv v1) | 10 | ResNet18 | 50.0 |" in printed


def test_a_dataset_that_the_table_has_not(refusal):
    message = "the paper's table 2 has no cifar10: it has cifar100 tiny_imagenet imagenet-nette imagewoof imagenet1k"
    assert message in refusal(report.main, ["--table", "2", "cifar10"])


@pytest.mark.parametrize(
    ("number", "said"), [("8", "validate.rademacher"), ("12", "validate.measures"), ("99", "13\n")]
)
def test_a_table_that_is_not_of_accuracies(refusal, number, said):
    message = refusal(report.main, ["--table", number, "cifar100"])
    assert f"table {number} is none of 1 2 3 4 5 6 7 9 10 11 13" in message and said in f"{message}\n"


def test_an_ablation_beside_what_is_measured(capsys):
    variant = cell_of("cifar100", "fadrm:alpha=0.6", "10", "ResNet18")
    write_results(folders_of(variant)[0], result(0, (40.0, 60.0)), result(1, (40.0, 60.4)))
    report.main(["--table", "11", "cifar100"])
    printed = capsys.readouterr().out
    assert "| fadrm:alpha=0.6 | 10 | ResNet18 | 59.6 | 60.20 ± 0.28 (2) | +0.60 |\n" in printed
    assert (
        "| fadrm:alpha=0.9 | 10 | ResNet18 | 58.0 |  |  |\n" in printed and "\nOur reading: IPC and epochs" in printed
    )
    path = Path(re.search("this table: (.*)", printed)[1])
    commands = path.with_suffix(".missing.txt").read_text().splitlines()
    assert commands == re.findall("missing: (.*)", printed) and len(commands) == 6
    assert commands[-1] == "bash run.sh cifar100 fadrm:alpha=0.3 10 ResNet18 --seed 0 1 2"


def test_costs_beside_what_is_measured(capsys):
    recover = tables.row_settings(
        "recover", {"dataset": "imagenet1k", "method": "fadrm", "ipc": "10", "student": "ResNet18"}
    )
    folder = recover.syn_data_path / recover.exp_name
    folder.mkdir(parents=True)
    cost = {"seconds": 100.0, "processes": 2, "made": 400, "peak_memory_gib": 2.0, "device": "a GPU"}
    (folder / "report.json").write_text(json.dumps(cost))
    report.main(["--table", "13", "imagenet1k"])
    printed = capsys.readouterr().out
    assert "| fadrm | 10 | ResNet18 | 0.47 | 0.50 | +0.03 | 2.9 | 2.15 | -0.75 |\n" in printed
    assert len(re.findall("missing: ", printed)) == 3


def test_variants_stand_in_the_table_of_methods_and_share_their_random_images(capsys):
    for method, top1 in (("fadrm", 50.0), ("fadrm:alpha=0.6", 51.0)):
        cell = cell_of("cifar100", method, "10")
        write_results(folders_of(cell)[0], ours(0, (40.0, top1), method=method))
    write_results(folders_of(cell)[1], ours(0, (40.0, 50.0)))
    report.main(["--methods", "cifar100", "10"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:] == [
        "| fadrm:alpha=0.6 | 51.00 (1) |",
        "| fadrm | 50.00 (1) ~ |",
        "| random, labels of fadrm | 50.00 (1) |",
    ]


def test_a_variant_is_held_against_random_images_with_its_methods_labels(capsys):
    cell = cell_of("cifar100", "fadrm:alpha=0.6", "10")
    write_results(
        folders_of(cell)[0],
        *(ours(seed, (40.0, top1), method="fadrm:alpha=0.6") for seed, top1 in ((0, 30.0), (1, 34.0))),
    )
    write_results(folders_of(cell)[1], ours(0, (40.0, 30.0)))
    report.main(["--methods", "cifar100", "10"])
    assert "| fadrm:alpha=0.6 | 32.00 ± 2.83 (2) ~ |\n" in capsys.readouterr().out
    assert tables.whose_labels("fadrm:alpha=0.6") == "fadrm"  # it shapes neither labels nor students
    assert tables.whose_labels("fadrm:relabel.eval_mode=T") == "fadrm_relabel.eval_mode=T"
    assert tables.whose_labels("random, labels of edc") == "edc" and tables.whose_labels("my:own=1") == "my_own=1"


def test_everything_that_has_results_stands_in_one_table(capsys):
    def of(method, ipc, student=None, **others):
        settings = recipes.in_places("validate", CIFAR, method, ipc, os.environ, student=student, **others)
        write_results(report.results_folder(settings), *(
            result(seed, (40.0, top1), method=others.get("images", method), ipc=ipc, student=settings.model,
                   settings={"labels": settings.labels})
            for seed, top1 in enumerate(values[method, ipc, student, *others.values()])
        ))  # fmt: skip

    values = {
        ("fadrm", 10, None): (50.0, 52.0),
        ("edc", 10, None): (60.0,),
        ("fadrm", 10, None, "random"): (48.0, 50.0),
        ("fadrm", 1, None): (20.0,),
        ("fadrm", 10, "ResNet50"): (55.0,),
        ("fadrm", 10, None, "hard"): (30.0,),
    }
    names = {"random": "images", "hard": "labels"}
    for method, ipc, student, *others in values:
        of(method, ipc, student, **{names[word]: word for word in others})
    report.main(["--methods", "cifar100"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines == [
        "| cifar100, top-1 % | IPC 1, ResNet18 | IPC 10, ResNet18 | IPC 10, ResNet50 | IPC 10, ResNet18, hard |",
        "| fadrm | 20.00 (1) | 51.00 ± 1.41 (2) | 55.00 (1) | 30.00 (1) |",
        "| edc |  | 60.00 (1) |  |  |",
        "| random, labels of fadrm |  | 49.00 ± 1.41 (2) |  |  |",
    ]
    write_results(
        report.results_folder(cell_of("cifar100", "fadrm", "10").validate),
        ours(2, (40.0, 49.0), settings={"labels": "views"}),
    )
    report.main(["--methods", "cifar100", "10", "ResNet18"])
    printed = capsys.readouterr().out
    assert "| fadrm | 50.33 ± 1.53 (3) ~ | 30.00 (1) |\n" in printed  # within the spread of random images
    path = Path(re.search("this table: (.*)", printed)[1])
    entries = json.loads(path.read_text())["entries"]
    assert {"row": "edc", "ipc": 10, "student": "ResNet18", "labels": "views", "repeats": 1}.items() <= entries[
        0
    ].items()


def test_results_that_cannot_be_read_are_named_and_left_out(capsys):
    write_results(folders_of(cell_of("cifar100", "fadrm", "10"))[0], result(0, (40.0, 50.0)))
    broken = folders_of(cell_of("cifar100", "edc", "10"))[0]
    write_results(broken, result(0, (40.0, 50.0)))
    (broken / "seed0/result.json").write_text("{")
    report.main(["--methods", "cifar100"])
    printed = capsys.readouterr().out
    assert f"left out: {broken / 'seed0/result.json'}" in printed and "| fadrm | 50.00 (1) |" in printed
    assert "| edc" not in printed


def test_what_is_published_has_names_that_exist():
    with tables.PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["dataset"] in DATASETS
        check_network(row["student"], tables.row_settings("validate", row).dataset)
        tables.row_settings("recover", row).resolved()
        assert any(row[key] for key in tables.MEASURED) and all(
            0 < float(row[key] or 1) < 100 for key in tables.MEASURED
        )
    assert len([row for row in rows if row["table"] == "2"]) == 225
    budgets = [tables.row_settings("recover", row).budgets for row in rows if row["table"] == "7"]
    assert all(sum(its) == 2000 for its in budgets) and {len(its) - 1 for its in budgets} == {1, 2, 3, 4, 5, 6}
