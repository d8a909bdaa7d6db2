"""What labels weigh: the stores of a cell beside the results of each, and the arithmetic of those not there."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.utils.fkd.test_store import write_store
from tests.validate.test_report import config, result, write_results  # noqa: F401 (a fixture)
from tests.views import VIEWS
from utils.fkd.codec import PLAIN, Packing
from utils.run.files import sha256_of
from validate import report
from validate.report import results_folder, stage_of_cell

FEW = "fadrm:stored_epochs=2:store_draws=off:replay="


def of(method):
    return stage_of_cell("validate", "fashion_mnist", method, "10")


def make_store(method, epochs, packing=PLAIN, draw=""):
    folder = of(method).fkd_path
    folder = folder.with_name(folder.name.replace("_bs", f"{draw}_bs"))
    write_store(folder, replace(VIEWS, epochs=epochs), packing)
    return folder


def make_result(method, store, *top1):
    told = {"dataset": "fashion_mnist", "method": method, "student": "ConvNetBN_W32", "images_sha256": "0" * 64}
    told["labels_sha256"] = sha256_of(store / "manifest.json")
    write_results(results_folder(of(method)), *(result(s, (1.0, v), **told) for s, v in enumerate(top1)))


def table(capsys, *words):
    report.main(["--bytes", "fashion_mnist", *words])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:2] == "| "]
    return rows, json.loads(Path(re.search("this table: (.*)", printed)[1]).read_text())


def test_every_store_stands_beside_what_students_made_of_it(capsys):
    plain, few = make_store("fadrm", 150), make_store(f"{FEW}pool", 2, Packing(store_draws=False))
    make_store("fadrm", 150, draw="_draw1")  # the same row
    make_store("rded", 150).joinpath("manifest.json").write_text(
        (plain / "manifest.json").read_text().replace("0" * 64, "2" * 64)  # of other images
    )
    make_result("fadrm", plain, 70.0)
    make_result(f"{FEW}pool", few, 60.0, 64.0)
    make_result(f"{FEW}mixed", few, 50.0)
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in (plain, few)]
    rows, content = table(capsys, "fadrm", "10")
    times = f"{sizes[0] / sizes[1]:.1f}"
    of_few = [few.name, "2", f"{sizes[1]:,}", f"{sizes[1] / 74:.1f}", times]
    assert rows[1:4] == [
        [plain.name, "150", f"{sizes[0]:,}", f"{sizes[0] / 5550:.1f}", "1.0", "fadrm", "70.00 (1)"],
        [*of_few, f"{FEW}mixed", "50.00 (1)"],
        [*of_few, f"{FEW}pool", "62.00 ± 2.83 (2)"],
    ]
    assert [line["bytes"] for line in content["stores"]] == [sizes[0], sizes[1], sizes[1]]


def test_without_the_whole_store_it_is_compared_by_arithmetic(capsys):
    """37 views of 20 bytes of logits and 17 of draws, 5 batches of 12: 1,429 bytes an epoch, 150 of them."""
    few = make_store(f"{FEW}pool", 2, Packing(store_draws=False))
    make_result(f"{FEW}pool", few, 60.0)
    size = sum(path.stat().st_size for path in few.iterdir())
    rows, _ = table(capsys, "fadrm", "10")
    assert rows[1][:5] == [few.name, "2", f"{size:,}", f"{size / 74:.1f}", f"{150 * 1429 / size:.1f}"]


def test_the_arithmetic_of_stores_that_are_not_there(capsys):
    """cifar100, IPC 10: 1000 epochs of 1000 views in 63 batches; imagenet1k: 300 of 10,000 in 625. A view has a class
    of one or two bytes for each logit of two, and 17 bytes of draws; of four bits, two logits in a byte, their range in
    four."""
    make_store("fadrm", 150)
    rows, content = table(capsys, "fadrm", "10")
    planned = {(its["dataset"], its["ipc"]): [*its["bytes"].values()] for its in content["planned"]}
    assert planned["cifar100", 10] == [
        1000 * (1000 * (200 + 17) + 63 * 12), 1000 * 1000 * 200, 1000 * 1000 * 54, 1000 * 1000 * 150, 1000 * 1000 * 30
    ]  # fmt: skip
    assert planned["imagenet1k", 10] == [
        300 * (10000 * 2017 + 625 * 12), 6 * 10**9, 3 * 10**6 * 504, 6 * 10**8, 12 * 10**7
    ]  # fmt: skip
    assert ["imagenet1k", "50", "300", "30,266.2", "30,000.0", "7,560.0", "3,000.0", "600.0"] in rows


def test_a_damaged_store_is_named_and_left_out(capsys):
    make_store("fadrm", 150)
    make_store("rded", 2).joinpath("manifest.json").write_text('{"format_version": 3}')
    report.main(["--bytes", "fashion_mnist", "fadrm", "10"])
    assert re.search(r"left out: .*manifest\.json is damaged \(no dataset\)", capsys.readouterr().out)


def test_a_cell_without_labels(refusal):
    line = refusal(report.main, ["--bytes", "fashion_mnist", "fadrm", "10"])
    assert "has no labels of fadrm's images at IPC 10: bash run.sh fashion_mnist fadrm 10 ConvNetBN_W32 makes" in line


@pytest.mark.parametrize("words", [[], ["fashion_mnist", "fadrm"]])
def test_what_it_wants(refusal, words):
    assert "--bytes DATASET METHOD IPC [STUDENT]" in refusal(report.main, ["--bytes", *words])
