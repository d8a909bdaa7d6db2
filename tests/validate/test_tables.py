"""Tables of many cells."""

import json
import re
from pathlib import Path

from tests.validate.test_report import config, folders_of, result, write_results  # noqa: F401 (a fixture)
from utils import recipes
from utils.data.table import DATASETS
from validate import report, tables
from validate.report import cell_of


def test_all_methods_stand_in_one_table_beside_real_images(capsys):
    cells = {method: cell_of("cifar100", method, "10") for method in ("fadrm", "edc")}
    write_results(folders_of(cells["fadrm"])[0], result(0, (40.0, 44.0)), result(4, (42.0, 41.0)))
    write_results(folders_of(cells["edc"])[0], result(0, (40.0, 50.0)))
    random = folders_of(cells["fadrm"])[1]
    write_results(random, result(0, (30.0, 31.0)))
    write_results(random.with_name(random.name.replace("random", "coverage")), result(0, (30.0, 35.0)))
    report.main(["--methods", "cifar100", "10"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("| ")][1:] == [
        "| edc | 50.00 | 50.00 | 1 |",
        "| fadrm | 42.50 ± 2.12 | 43.00 ± 1.41 | 2 |",
        "| coverage real images, labels of fadrm | 35.00 | 35.00 | 1 |",
        "| random real images, labels of fadrm | 31.00 | 31.00 | 1 |",
    ]
    assert "missing: bash run.sh cifar100 g-vbsm 10 ResNet18\n" in printed
    path = re.search("this table: (.*)", printed)[1]
    content = json.loads(Path(path).read_text())
    assert [row["row"] for row in content["rows"]][:2] == ["edc", "fadrm"] and len(content["missing"]) == 5
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
    assert content["rows"][0]["measured"] is None and content["missing"] == commands


def test_both_editions_of_imagenet1k_stand_there(capsys):
    report.main(["--table", "2", "imagenet1k"])
    printed = capsys.readouterr().out
    assert "| fadrm+ (camera-ready) | 10 | ResNet18 | 50.9 |" in printed
    assert "| fadrm+ (arXiv v1) | 10 | ResNet18 | " in printed


def test_a_dataset_that_the_table_has_not(refusal):
    assert "the paper's table 2 has no cifar10" in refusal(report.main, ["--table", "2", "cifar10"])


def test_what_is_published_has_names_that_exist():
    import csv

    with tables.PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["dataset"] for row in rows} <= DATASETS.keys()
    assert {row["method"] for row in rows} <= recipes.METHODS.keys()
    assert len(rows) == 225 and all(0 < float(row["top1"]) < 100 for row in rows)
