"""Measures of several methods beside each other."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.validate.test_report import config  # noqa: F401 (a fixture)
from validate import measures
from validate.measures import mean_of


def look(value):
    return {"information": value, "pixel_entropy": value + 1, "top1": 100 * value}


def write_measures(tmp_path, name, *batches, every=5, reference="ResNet18"):
    """Files of so many batches: images, and a value that all measures follow from."""
    folder = tmp_path / "all/generated_data/syn_data/cifar100" / f"{name}_measures"
    folder.mkdir(parents=True)
    for number, (images, value) in enumerate(batches):
        about = {"batch": str(number), "images": images, "reference": reference, "every": every, "made_with": "m"}
        lines = [
            about,
            {"iteration": 0, **look(value), "terms": {}},
            {"iteration": 5, **look(value), "terms": {"cross_entropy": value / 4, "r_bn": 10 * value}},
            {"iteration": 5, "merge": 1, "cosine": value / 2, "before": look(value), "after": look(value / 2)},
            {"iteration": 9, **look(value), "terms": {"cross_entropy": 0.25, "r_bn": 20.0}},
        ]
        if reference == "none":
            kept = ("iteration", "merge", "terms")
            lines[1:] = [{name: line[name] for name in kept if name in line} for line in lines[1:]]
        (folder / f"{number}_0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_of(printed, heading):
    """The cells of the rows below a heading."""
    (table,) = (part for part in printed.split("\n\n") if heading in part)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "| " in line][1:]


def test_methods_stand_beside_each_other(tmp_path, capsys):
    write_measures(tmp_path, "fadrm_ipc1", (100, 1.0))
    write_measures(tmp_path, "fadrm_alpha=1_ipc1", (30, 1.0), (10, 0.6))
    measures.main(["cifar100", "1", "fadrm", "fadrm:alpha=1"])
    printed = capsys.readouterr().out
    assert rows_of(printed, "information score, nats") == [
        ["fadrm", "ResNet18", "100", "0", "1.000", "2.000", "", ""],
        ["fadrm", "ResNet18", "100", "5", "1.000", "2.000", "0.250", "10.000"],
        ["fadrm", "ResNet18", "100", "9", "1.000", "2.000", "0.250", "20.000"],
        ["fadrm:alpha=1", "ResNet18", "40", "0", "0.900", "1.900", "", ""],
        ["fadrm:alpha=1", "ResNet18", "40", "5", "0.900", "1.900", "0.225", "9.000"],
        ["fadrm:alpha=1", "ResNet18", "40", "9", "0.900", "1.900", "0.250", "20.000"],
    ]
    assert rows_of(printed, "feature cosine") == [
        ["fadrm", "1", "5", "0.500", "100.0", "50.0", "1.000", "0.500"],
        ["fadrm:alpha=1", "1", "5", "0.450", "90.0", "45.0", "0.900", "0.450"],
    ]
    path = tmp_path / "all/generated_data/reports/cifar100_ipc1_measures_fadrm_fadrm_alpha=1.json"
    assert f"this table: {path}\n" in printed and f"picture: {path.with_suffix('.png')}\n" in printed
    content = json.loads(path.read_text())
    assert content["methods"]["fadrm:alpha=1"]["lines"][2]["after"]["top1"] == pytest.approx(45.0)
    with Image.open(path.with_suffix(".png")) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours


def test_losses_alone_stand_beside_others(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(measures, "draw_curves", lambda path, panels, *_, marks: drawn.append((panels, marks)))
    write_measures(tmp_path, "fadrm_ipc1", (100, 1.0))
    write_measures(tmp_path, "sre2l++_ipc1", (30, 1.0), (10, 0.6), reference="none")
    measures.main(["cifar100", "1", "fadrm", "sre2l++"])
    printed = capsys.readouterr().out
    assert rows_of(printed, "information score, nats")[3:] == [
        ["sre2l++", "none", "40", "0", "", "", "", ""],
        ["sre2l++", "none", "40", "5", "", "", "0.225", "9.000"],
        ["sre2l++", "none", "40", "9", "", "", "0.250", "20.000"],
    ]
    assert [row[0] for row in rows_of(printed, "feature cosine")] == ["fadrm"]
    measures.main(["cifar100", "1", "sre2l++"])
    (both, marks), (alone, _) = drawn
    looks = ["information score, nats", "pixel entropy, nats"]
    assert list(both) == [*looks, "cross-entropy", "R_bn"] and list(alone) == ["cross-entropy", "R_bn"]
    assert all(list(both[name]) == ["fadrm, seen by ResNet18"] for name in looks)
    assert list(both["R_bn"]) == ["fadrm, seen by ResNet18", "sre2l++"]
    assert alone["R_bn"] == {"sre2l++": [(5, 9.0), (9, 20.0)]} and marks["sre2l++"] == [5]


def test_what_is_there_is_not_drawn_again(tmp_path):
    write_measures(tmp_path, "fadrm_ipc1", (100, 1.0))
    times = []
    for _ in range(2):
        measures.main(["cifar100", "1", "fadrm"])
        made = (tmp_path / "all/generated_data/reports").iterdir()
        times.append({path.name: path.stat().st_mtime_ns for path in made})
    assert times[0] == times[1] and len(times[0]) == 3


def test_a_long_course_has_its_start_and_its_end_in_the_table():
    plain = [{"iteration": i, **look(0.5), "terms": {}} for i in range(0, 205, 5)]
    rows = measures.table_of({"m": measures.Course("ResNet18", 10, plain)}, [])[2:]
    iterations = [int(row.split("|")[4]) for row in rows]
    assert iterations[0] == 0 and iterations[-1] == 200 and len(set(iterations)) == len(rows) == 11


def test_means_weigh_images_and_leave_places_alone():
    lines = [{"iteration": 7, "a": {"b": 1.0}}, {"iteration": 7, "a": {"b": 4.0}}]
    assert mean_of(lines, [2, 1]) == {"iteration": 7, "a": {"b": 2.0}}
    assert math.isnan(mean_of([{"a": math.nan}, {"a": 1.0}], [1, 1])["a"])


def test_a_method_without_measures(refusal, tmp_path):
    write_measures(tmp_path, "fadrm_ipc1", (100, 1.0))
    line = refusal(measures.main, ["cifar100", "1", "fadrm", "sre2l++"])
    assert "sre2l++_ipc1_measures has no measures" in line
    assert "`bash recover/scripts/cifar100/recover.sh sre2l++ 1 --measure-every 50`" in line
    assert "no recipe for the method 'alone'" in refusal(measures.main, ["cifar100", "1", "alone"])


@pytest.mark.parametrize("other", [{"every": 7}, {"reference": "ResNet50"}])
def test_measures_of_several_kinds_are_refused(refusal, tmp_path, other):
    write_measures(tmp_path, "fadrm_ipc1", (100, 1.0))
    write_measures(tmp_path, "other_ipc1", (100, 1.0), **other)
    folder = tmp_path / "all/generated_data/syn_data/cifar100"
    (folder / "other_ipc1_measures/0_0.jsonl").rename(folder / "fadrm_ipc1_measures/1_0.jsonl")
    assert "has measures of different kinds" in refusal(measures.main, ["cifar100", "1", "fadrm"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cifar100 1", "the following arguments are required: METHOD"),
        ("cifar100 ten fadrm", "argument IPC: invalid int value: 'ten'"),
        ("cifar100 0 fadrm", "IPC 0: a recipe makes at least 1 image per class"),
        ("cifar1000 1 fadrm", "unknown dataset 'cifar1000'"),
    ],
)
def test_words_that_name_nothing(refusal, words, message):
    assert message in refusal(measures.main, words.split())


def test_the_command_in_the_error_is_there():
    assert (Path(__file__).parents[2] / "recover/scripts/cifar100/recover.sh").exists()
