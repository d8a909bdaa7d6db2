"""How a stage ends."""

import json
import time

import torch

from utils.run.report import report_run

CPU = torch.device("cpu")


def test_what_was_made_is_told_and_kept(tmp_path, capsys):
    path = tmp_path / "new" / "report.json"
    report_run("recover", path, CPU, time.monotonic() - 20, 40, "images", {"contact sheet": "a.png", "images": "b"})
    first, *files = capsys.readouterr().out.splitlines()
    assert first.startswith("recover: 40 images in 20.0 s (0.5 s each), peak memory ")
    assert " GiB, on cpu, " in first
    assert files == ["  contact sheet: a.png", "  images: b"]
    report = json.loads(path.read_text())
    assert (report["stage"], report["made"], report["unit"]) == ("recover", 40, "images")
    assert 20 <= report["seconds"] < 25 and 0.01 < report["peak_memory_gib"] < 100
    assert report["files"] == {"contact sheet": "a.png", "images": "b"}
    assert {"python", "torch", "torchvision"} <= report["versions"].keys()


def test_a_run_that_made_nothing_keeps_the_report_of_the_one_that_did(tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text("of the run that made it")
    report_run("relabel", path, CPU, time.monotonic(), 0, "epochs", {"label store": "c"})
    assert capsys.readouterr().out.splitlines() == [
        "relabel: everything was there already, with the same settings",
        "  label store: c",
    ]
    assert path.read_text() == "of the run that made it"


def test_a_run_that_made_nothing_reports_where_no_report_is(tmp_path, capsys):
    path = tmp_path / "report.json"
    report_run("relabel", path, CPU, time.monotonic(), 0, "epochs", {})
    assert capsys.readouterr().out == "relabel: everything was there already, with the same settings\n"
    report = json.loads(path.read_text())
    assert (report["made"], report["unit"], report["processes"]) == (0, "epochs", 1)


def test_several_processes_say_so(tmp_path, capsys):
    path = tmp_path / "report.json"
    report_run("relabel", path, CPU, time.monotonic(), 3, "epochs", {}, processes=4)
    assert capsys.readouterr().out.endswith(" threads, in 4 processes\n")
    assert json.loads(path.read_text())["processes"] == 4
