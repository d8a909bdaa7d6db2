"""The page of everything that was run: its numbers worked out by hand, its pictures, and what it leaves out."""

import csv
import json
import math
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from tests.validate.test_report import config, folders_of, result, write_results, write_teacher  # noqa: F401 (a fixture)
from validate import report
from validate.page import charts, gallery, report_page
from validate.page.cells import cells_of, missing_of
from validate.page.lines import number
from validate.page.markup import element, fill
from validate.report import cell_of

SIDE = 32


def write_images(folder, color, classes=2, ipc=2):
    """Images of one colour in class folders; returns their bytes."""
    paths = [folder / f"new{c:03d}/class{c:03d}_id{i:03d}.png" for c in range(classes) for i in range(ipc)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), color).save(path)
    return sum(path.stat().st_size for path in paths)


def write_cost(folder, seconds, made, processes=1):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"seconds": seconds, "made": made, "processes": processes, "peak_memory_gib": 1.5, "device": "a GPU"}
    (folder / "report.json").write_text(json.dumps(content))


def write_store(folder, epochs=3, size=1000):
    """A label store of so many epochs; returns the sha256 of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(epochs):
        (folder / f"epoch_{epoch:05d}.safetensors").write_bytes(bytes(size))
    manifest = json.dumps({"epoch_sha256": ["0"] * epochs, "labels of": folder.name})
    (folder / "manifest.json").write_text(manifest)
    return sha256(manifest.encode()).hexdigest()


def of(cell, *results, row=0, **others):
    """Write results of a cell, of ResNet18 as its recipe has it."""
    write_results(folders_of(cell)[row], *({**its, "student": "ResNet18", **others} for its in results))


def make_world():
    """cifar100 at IPC 2: fadrm with images, labels, reports and a stage on the way, random images, and one run of edc.

    Returns the bytes of fadrm's images.
    """
    cell = cell_of("cifar100", "fadrm", "2")
    its = cell.validate
    images, store = its.original_data_path, its.fkd_path
    size = write_images(images, (200, 0, 0))
    write_images(images.with_name(f"{images.name}_initialised"), (0, 100, 0))
    for stage in (10, 2):
        write_images(images.with_name(f"{images.name}_stage{stage}"), (0, 0, 10 * stage))
    (images / "settings.json").write_text(json.dumps({"alpha": 0.5}))
    (images / "contact_sheet.png").write_bytes(bytes(10_000))  # is none of the images
    write_cost(images, seconds=6.0, made=2, processes=2)  # a run that went on: 6 s an image
    labels = write_store(store)
    write_cost(store, seconds=4.0, made=2)
    write_teacher(cell.pool, "ResNet18", 78.0)
    about = {
        "ipc": 2,
        "labels_sha256": labels,
        "teachers": [{"name": "ResNet18"}],
        "versions": {"torch": "9.9"},
        "settings": {"loss": "kl"},
    }
    of(cell, result(0, (40.0, 44.0)), result(4, (42.0, 41.0)), **about)
    of(cell, result(0, (30.0, 31.0)), result(1, (30.0, 29.0)), row=1, method="random", ipc=2)
    of(cell_of("cifar100", "edc", "2"), result(0, (20.0, 25.0)), method="edc", ipc=2)
    return size


@pytest.fixture
def page(tmp_path, capsys):
    make_world()
    return report_page()


def line_of(page, **wanted):
    with (page.parent / "results.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if all(line[key] == value for key, value in wanted.items())]
    (line,) = lines
    return line


def test_numbers_are_those_worked_out_by_hand(capsys):
    size = make_world()
    page = report_page("cifar100")
    line = line_of(page, method="fadrm", IPC="2")
    assert float(line["top-1 %"]) == 42.5 and float(line["spread"]) == pytest.approx(math.sqrt(4.5))
    assert (line["runs"], line["above random"], line["published"]) == ("2", "True", "")
    megabytes = (size + 3 * 1000) / 1e6
    seconds = 6.0 * 4 + 2.0 * 3 + 20.5
    expected = {
        "s an image": 6.0,
        "peak GiB": 1.5,
        "images MB": size / 1e6,
        "labels MB": 0.003,
        "teachers MB": len(b"weights") / 1e6,
        "device s": seconds,
        "top-1 % a MB": 42.5 / megabytes,
        "top-1 % a device s": 42.5 / seconds,
    }
    assert {key: float(line[key]) for key in expected} == pytest.approx(expected)
    assert line["device"] == "a GPU"
    text = (page.parent / "results.md").read_text()
    assert "| cifar100 | 2 | ResNet18 | fadrm | views | 42.50 ± 2.12 | 2 |  |  |\n" in text
    assert "| cifar100 | 2 | ResNet18 | random, labels of fadrm | views | 30.00 ± 1.41 | 2 |  |  |\n" in text
    assert "| fadrm | 42.50 ± 2.12 (2) |\n" in text
    assert "| cifar100 | 2 | ResNet18 | fadrm | views | 6 | 1.5 |" in text
    assert f"page: {page}" in capsys.readouterr().out


def test_the_paper_stands_beside_what_was_run_and_what_was_not():
    of(cell_of("cifar100", "fadrm", "10"), result(0, (40.0, 66.0)), result(1, (40.0, 68.0)))
    of(cell_of("cifar100", "fadrm", "10"), result(0, (60.0, 66.4)), result(1, (60.0, 66.6)), row=1, method="random")
    page = report_page()
    line = line_of(page, method="fadrm", IPC="10", student="ResNet18")
    assert (line["published"], float(line["difference"])) == ("67.4", pytest.approx(-0.4))
    assert line["above random"] == "False"  # 0.5 above, and a spread of 1.41
    text = (page.parent / "results.md").read_text()
    assert "| cifar100 | 10 | ResNet18 | fadrm | views | 67.00 ± 1.41 ~ | 2 | 67.4 | -0.40 |\n" in text
    assert "| cifar100 | 1 | ResNet18 | rded | views |  |  | 17.1 |  |\n" in text
    commands = (page.parent / "results.missing.txt").read_text().splitlines()
    assert "bash run.sh cifar100 rded 1 ResNet18 --seed 0 1 2" in commands
    assert "bash run.sh cifar100 sre2l++ 10 ResNet18 --seed 0 1 2" in commands  # not in the paper's table
    assert not any(" fadrm 10 ResNet18 " in command for command in commands)


def test_both_editions_have_lines():
    of(cell_of("imagenet1k", "fadrm", "10"), result(0, (40.0, 48.0)), dataset="imagenet1k")
    of(cell_of("imagenet1k", "fadrm:factor=2", "10"), result(0, (40.0, 48.0)), dataset="imagenet1k",
       method="fadrm:factor=2")  # fmt: skip
    page = report_page()
    found = [line_of(page, method=name, IPC="10", student="ResNet18") for name in ("fadrm", "fadrm:factor=2")]
    assert [(its["edition"], its["published"]) for its in found] == [("camera-ready", "48.4"), ("arXiv v1", "47.7")]
    assert "48.4 (camera-ready)" in page.read_text() and "47.7 (arXiv v1)" in page.read_text()


def test_images_without_results_are_named():
    make_world()
    images = cell_of("cifar100", "fadrm", "2").validate.original_data_path
    write_images(images.with_name("fadrm+_ipc2"), (1, 2, 3))
    page = report_page()
    assert "Images without results: cifar100/fadrm+_ipc2.</p>" in page.read_text()
    assert "- cifar100/fadrm+_ipc2\n" in (page.parent / "results.md").read_text()


def test_other_labels_have_lines_of_their_own():
    cell = cell_of("cifar100", "fadrm", "10")
    of(cell, result(0, (40.0, 66.0)))
    hard = folders_of(cell)[0].with_name("fadrm_ipc10_ResNet18_hard")
    write_results(hard, result(0, (10.0, 20.0), student="ResNet18", settings={"labels": "hard"}))
    page = report_page()
    assert line_of(page, method="fadrm", labels="hard")["published"] == ""
    assert "bash run.sh cifar100 fadrm 10 ResNet18 --labels hard --seed 0 1 2" in missing_of(cells_of("cifar100", []))


def test_a_cost_that_is_not_known_is_empty(page):
    line = line_of(page, method="edc", IPC="2")
    assert float(line["top-1 %"]) == 25.0
    assert [line[key] for key in ("s an image", "images MB", "labels MB", "device s", "top-1 % a MB")] == [""] * 5


# What is left out


def test_what_cannot_be_read_is_named_and_the_rest_reported(tmp_path, capsys):
    of(cell_of("cifar100", "fadrm", "10"), result(0, (40.0, 66.0)))
    edc, rded, sre, gvbsm, cv = (
        folders_of(cell_of("cifar100", method, "10"))[0] for method in ("edc", "rded", "sre2l++", "g-vbsm", "cv-dd")
    )
    own = {"student": "ResNet18"}
    write_results(edc, result(0, (40.0, 50.0), method="edc", **own))
    (edc / "seed0/result.json").write_text((edc / "seed0/result.json").read_text()[:80])
    write_results(rded, result(0, (40.0, 50.0), method="rded", record_version=1, **own))
    for seed in (0, 1):
        write_results(sre, result(seed, (40.0, 50.0), method="sre2l++", images_sha256=str(seed), **own))
    write_results(gvbsm, result(0, (40.0, 50.0), method="g-vbsm", dataset="cifar10", **own))
    write_results(cv, *(result(k, (40.0, 50.0), (4 + k, 9), method="cv-dd", **own) for k in (0, 1)))
    twin = folders_of(cell_of("cifar100", "fadrm", "10"))[0].with_name("again")
    write_results(twin, result(0, (40.0, 99.0), **own))
    page = report_page()
    printed, text = capsys.readouterr().out, page.read_text()
    reasons = (
        "edc_ipc10_ResNet18/seed0/result.json is damaged (JSONDecodeError",
        "rded_ipc10_ResNet18/seed0/result.json is of another version of this project",
        "sre2l++_ipc10_ResNet18/seed1 has results of other images or labels than the other seeds there",
        "g-vbsm_ipc10_ResNet18 has results of cifar10",
        "cv-dd_ipc10_ResNet18_draw0 has results of other settings",
        "again has results of fadrm, IPC 10, ResNet18, as fadrm_ipc10_ResNet18 has",
    )
    lines = [line for line in printed.splitlines() if line.startswith("left out: ")]
    assert len(lines) == len(reasons)
    for reason in reasons:
        assert any(reason in line for line in lines), reason
        assert reason in text and reason in (page.parent / "results.md").read_text()
    assert str(tmp_path) not in text  # a page that is passed on
    assert float(line_of(page, method="fadrm", IPC="10", student="ResNet18")["top-1 %"]) == 66.0
    assert line_of(page, method="edc", IPC="10", student="ResNet18")["top-1 %"] == ""


def test_damaged_costs_and_images_are_named(capsys):
    make_world()
    images = cell_of("cifar100", "fadrm", "2").validate.original_data_path
    (images / "report.json").write_text("{}")
    (images / "new001/class001_id000.png").write_bytes(b"no image")
    page = report_page()
    text = page.read_text()
    assert "cost of fadrm, IPC 2, ResNet18:" in text and "class001_id000.png" in text
    assert float(line_of(page, method="fadrm", IPC="2")["top-1 %"]) == 42.5


def test_no_results_at_all(refusal, tmp_path):
    assert "has no results of any dataset" in refusal(lambda words: report_page(*words), [])
    assert "has no results of cifar100" in refusal(lambda words: report_page(*words), ["cifar100"])
    assert "unknown dataset 'cifar1000'" in refusal(lambda words: report_page(*words), ["cifar1000"])


def test_the_report_leads_to_the_page(capsys):
    make_world()
    report.main(["--page", "cifar100"])
    assert "reports/page/index.html" in capsys.readouterr().out


def test_the_same_results_leave_the_same_files(page, contents):
    before = contents(page.parent)
    report_page()
    assert contents(page.parent) == before


# Pictures


def test_a_sheet_has_a_row_a_frame(tmp_path):
    make_world()
    (cell,) = (its for its in cells_of("cifar100", []) if its.method == "fadrm" and its.found)
    patches = tmp_path / "patch_dir/cifar100/medium"
    for index in range(2):
        path = patches / f"{index:05d}/class{index:05d}_id{index:05d}.png"  # one of two, at each class
        path.parent.mkdir(parents=True)
        Image.new("RGB", (SIDE, SIDE), (50, 50, 50)).save(path)
    (found,) = gallery.galleries_of([cell])
    assert found.frames == ["patch", "start", "stage 2", "stage 10", "image"]
    assert [sheet.title for sheet in found.sheets] == ["class 0", "class 1"]
    pixels = gallery.picture_of(found.sheets[1], [])
    assert pixels.shape == (5 * SIDE, 2 * SIDE, 3)
    colours = [[tuple(int(v) for v in pixels[row * SIDE, column * SIDE]) for column in (0, 1)] for row in range(5)]
    absent = gallery.ABSENT
    assert colours == [
        [absent, (50, 50, 50)],
        [(0, 100, 0)] * 2,
        [(0, 0, 20)] * 2,
        [(0, 0, 100)] * 2,
        [(200, 0, 0)] * 2,
    ]


def test_sheets_that_no_cell_has_any_more_go(page):
    pictures = page.parent / "pictures"
    names = {path.name for path in pictures.iterdir()}
    assert names == {"cifar100_fadrm_ipc2_new000.jpg", "cifar100_fadrm_ipc2_new001.jpg"}
    (pictures / "old.jpg").write_bytes(b"")
    report_page()
    assert {path.name for path in pictures.iterdir()} == names
    with Image.open(pictures / "cifar100_fadrm_ipc2_new000.jpg") as sheet:
        assert sheet.size == (2 * SIDE, 4 * SIDE)


def test_many_folders_have_fewer_images_each():
    make_world()
    (cell,) = (its for its in cells_of("cifar100", []) if its.method == "fadrm" and its.found)
    found = gallery.gallery_of(cell, most_files=8)  # of 4 frames, 2 classes
    assert [sheet.columns for sheet in found.sheets] == [1, 1]


def test_larger_images_become_smaller_on_a_sheet(tmp_path):
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[112:] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sheet = gallery.Sheet("a.jpg", "a", ["image"], [[tmp_path / "a.png"]], 128)
    drawn = gallery.picture_of(sheet, [])
    assert drawn.shape == (128, 128, 3) and drawn[:60].max() == 0 and drawn[70:].min() == 200


def test_axes_have_round_ticks_at_their_places():
    axis = charts.linear([0.0, 58.0], 100, 0)
    assert [text for _, text in axis.ticks] == ["0", "20", "40", "60"]
    assert [axis.place(value) for value, _ in axis.ticks] == pytest.approx([100, 200 / 3, 100 / 3, 0])
    assert [text for _, text in charts.linear([70.1, 70.6], 0, 1).ticks] == ["70.0", "70.2", "70.4", "70.6"]
    assert len(charts.linear([3.0], 0, 1).ticks) > 1
    axis = charts.logarithmic([1.0, 1000.0], 0, 330)
    assert [text for _, text in axis.ticks] == ["1", "10", "100", "1,000"]
    assert [axis.place(10.0**k) for k in range(4)] == pytest.approx([15, 115, 215, 315])
    assert charts.logarithmic([5.0], 0, 10).place(5.0) == pytest.approx(5)


def test_a_long_curve_is_thinned_and_keeps_its_last_point():
    points = [(epoch, float(epoch)) for epoch in range(1, 1001)]
    thin = charts.thinned(points)
    assert len(thin) == charts.MOST_POINTS and thin[-1] == points[-1]
    assert charts.thinned(points[:7]) == points[:7]


# Markup


def test_what_is_no_markup_is_escaped(page):
    assert element("td", "<b> & ±", class_="c0") == '<td class="c0">&lt;b&gt; &amp; ±</td>'
    assert fill("record.html", what="<i>", record="a") == "<dt>&lt;i&gt;</dt><dd>a</dd>\n"
    of(cell_of("cifar100", "rded", "2"), result(0, (20.0, 25.0)), method="<script>alert(1)</script>", ipc=2)
    text = report_page().read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


def test_settings_and_versions_of_every_run_stand_there(page):
    text = page.read_text()
    assert "torch 9.9" in text and "loss: &quot;kl&quot;" in text and "alpha: 0.5" in text
    assert "epoch_sha256" not in text


def test_numbers_have_three_digits():
    shown = {0.012345: "0.0123", 12.3456: "12.3", 1234.5: "1234", 3: "3", None: "", "a": "a"}
    assert {value: number(value) for value in shown} == shown
