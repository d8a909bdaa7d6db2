"""What came out: the table of all seeds, and one cell of the paper's table beside the random baseline."""

import json
import re
from hashlib import sha256

import pytest
from PIL import Image

from utils import recipes
from utils.data.table import get_dataset
from utils.run.errors import UserError
from validate import report
from validate.report import accuracies, cell_of, curve_of, mean_curve, read_results, report_cell, shown, spread


def result(seed, top1, epochs=(4, 9), **others):
    """A seed's result with these top-1 in the epochs that were tested."""
    lines = [{"epoch": epoch, "loss": 1.0} for epoch in range(max(epochs) + 1)]
    for epoch, value in zip(epochs, top1, strict=True):
        lines[epoch] |= {"top1": value, "top5": 90.0}
    about = {"dataset": "cifar100", "student": "timm:resnet18", "method": "fadrm", "ipc": 10, "seed": seed}
    used = {"seconds": 20.5, "peak_memory_gib": 0.25 * (seed + 1)}
    return {**about, **accuracies(lines), **used, "metrics": lines, **others}


def write_results(folder, *results):
    for its in results:
        path = folder / f"seed{its['seed']}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(its))


# One student, and all its seeds


def test_accuracies_are_those_of_the_last_epoch_and_the_best_one():
    lines = [{"epoch": 0, "top1": 10.0, "top5": 50.0}, {"epoch": 1, "top1": 30.0, "top5": 80.0}, {"epoch": 2}]
    expected = {"top1": 30.0, "top5": 80.0, "best_top1": 30.0, "best_epoch": 1}
    assert accuracies(lines) == expected
    lines.append({"epoch": 3, "top1": 20.0, "top5": 85.0})
    assert accuracies(lines) == {**expected, "top1": 20.0, "top5": 85.0}


def test_results_are_read_by_seed(tmp_path):
    write_results(tmp_path, *(result(seed, (1.0, 2.0)) for seed in (10, 9, 1)))
    (tmp_path / "seed3").mkdir()  # one that is not done
    assert [its["seed"] for its in read_results(tmp_path)] == [1, 9, 10]
    assert read_results(tmp_path / "nowhere") == []


NEEDED = ["dataset", "student", "method", "ipc", "seed", "top1", "top5", "best_top1", "best_epoch", "metrics"]


@pytest.mark.parametrize("name", [*NEEDED, "seconds", "peak_memory_gib"])
def test_a_result_without_what_is_read_of_it_is_damaged(tmp_path, name):
    its = result(0, (1.0, 2.0))
    write_results(tmp_path, its)
    path = tmp_path / "seed0/result.json"
    path.write_text(json.dumps({key: value for key, value in its.items() if key != name}))
    with pytest.raises(UserError) as refused:
        read_results(tmp_path)
    assert str(refused.value) == f"{path} is damaged (no {name}): remove it and run validate again"


@pytest.mark.parametrize(
    "change",
    [
        {"top1": "high"},
        {"seed": 0.5},
        {"metrics": {}},
        {"metrics": [{"loss": 1.0}]},
        {"metrics": [{"epoch": 0, "top1": "x", "top5": 1.0}]},
    ],
    ids=str,
)
def test_a_result_with_a_value_of_another_kind_is_damaged(tmp_path, change):
    write_results(tmp_path, result(0, (1.0, 2.0)))
    (tmp_path / "seed0/result.json").write_text(json.dumps({**result(0, (1.0, 2.0)), **change}))
    with pytest.raises(UserError, match=r"result\.json is damaged \(.*\): remove it and run validate again"):
        read_results(tmp_path)


def test_the_table_of_all_seeds(tmp_path, capsys):
    write_results(tmp_path, result(0, (40.0, 44.0)), result(2, (42.0, 41.0)))
    summary = report.summarise(tmp_path)
    assert summary["seeds"] == [0, 2]
    assert summary["top1"] == {"mean": 42.5, "std": pytest.approx(2.1213, abs=1e-4)}
    assert summary["best_top1"] == {"mean": 43.0, "std": pytest.approx(1.4142, abs=1e-4)}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:7] == [
        ["seed", "top-1", "top-5", "best", "top-1", "at", "epoch"],
        ["0", "44.00", "90.00", "44.00", "9"],
        ["2", "41.00", "90.00", "42.00", "4"],
        ["mean", "42.50", "90.00", "43.00"],
        ["std", "2.12", "0.00", "1.41"],
    ]
    assert lines[7] == ["curve:", str(tmp_path / "curve.png")]
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.format == "PNG"


def test_one_seed_has_no_spread(tmp_path, capsys):
    write_results(tmp_path, result(3, (40.0, 44.0)))
    assert report.summarise(tmp_path)["top1"] == {"mean": 44.0, "std": None}
    printed = capsys.readouterr().out
    assert "mean" not in printed and "std" not in printed


def test_a_spread_and_how_it_is_shown():
    one, two = [{"a": 2.0}], [{"a": 2.0}, {"a": 4.0}]
    assert spread(one, "a") == {"mean": 2.0, "std": None}
    assert spread(two, "a") == {"mean": 3.0, "std": pytest.approx(2**0.5)}
    assert (shown(spread(one, "a")), shown(spread(two, "a"))) == ("2.00", "3.00 ± 1.41")


def test_curves_are_of_the_epochs_that_were_tested():
    assert curve_of(result(0, (10.0, 20.0))) == [(5, 10.0), (10, 20.0)]
    assert mean_curve([result(0, (10.0, 20.0)), result(1, (20.0, 50.0))]) == [(5, 15.0), (10, 35.0)]


def test_students_are_rows_and_ipcs_columns(capsys):
    def top1(mean, std=None):
        return {"top1": {"mean": mean, "std": std}}

    report.print_students(
        {("A", 1): top1(10.0), ("B", 1): top1(20.0, 0.5), ("A", 10): top1(30.0, 1.25), ("B", 10): top1(40.0)}
    )
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [re.split(r"  +", line.strip()) for line in lines] == [
        ["top-1 %", "IPC 1", "IPC 10"],
        ["A", "10.00", "30.00 ± 1.25"],
        ["B", "20.00 ± 0.50", "40.00"],
    ]
    assert {len(line) for line in lines} == {28 + 2 * 16}


# One cell


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """The folders of config.sh."""
    monkeypatch.setenv("Main_Data_Path", str(tmp_path / "all"))
    for name in ("train_dir", "val_dir", "patch_dir"):
        monkeypatch.setenv(name, str(tmp_path / name))


def folders_of(cell):
    """Where the results of the cell and of its baseline are."""
    return list(cell.rows.values())


def reports_of(cell):
    """The reports of a cell of one draw."""
    assert all(len(paths) == 1 for paths in cell.reports.values())
    return {step: path for step, (path,) in cell.reports.items()}


def write_teacher(pool, name, top1):
    pool.mkdir(parents=True, exist_ok=True)
    (pool / f"{name}.safetensors").write_bytes(b"weights")
    record = {"sha256": sha256(b"weights").hexdigest(), "source": "trained", "checkpoint": f"{name}.safetensors"}
    (pool / f"{name}.json").write_text(json.dumps({**record, "top1": top1, "top5": 95.0}))


def write_report(path, seconds, memory):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"stage": "s", "seconds": seconds, "peak_memory_gib": memory}))


def test_a_cell_has_its_steps_where_the_stages_leave_them(tmp_path):
    cell = cell_of("cifar100", "fadrm", "10", "timm:resnet18")
    root = tmp_path / "all"
    data, labels = root / "generated_data", root / "generated_data/new_labels/cifar100"
    assert cell.pool == root / "pretrained_models/cifar100_pretrained_models"
    assert cell.teachers == ("ResNet18",)
    assert reports_of(cell) == {
        "teachers": cell.pool / "report.json",
        "patches": tmp_path / "patch_dir/cifar100/medium/report.json",
        "recover": data / "syn_data/cifar100/fadrm_ipc10/report.json",
        "relabel": labels / "fadrm_bs16_ipc10/report.json",
        "random images": data / "syn_data/cifar100/random_ipc10/report.json",
        "random images: relabel": labels / "random_by_fadrm_bs16_ipc10/report.json",
    }
    assert folders_of(cell) == [
        data / "validate_output/cifar100/fadrm_ipc10_timm_resnet18",
        data / "validate_output/cifar100/random_by_fadrm_ipc10_timm_resnet18",
    ]
    assert list(cell.rows) == ["fadrm", "random real images"]
    settings = cell.validate
    assert (settings.model, settings.ipc, settings.dataset_name) == ("timm:resnet18", 10, "cifar100")
    assert settings.original_data_path == reports_of(cell)["recover"].parent
    assert settings.fkd_path == reports_of(cell)["relabel"].parent
    assert cell_of("cifar100", "fadrm", "10").validate.model == "ResNet18"  # the recipe's


@pytest.mark.parametrize("method", sorted(recipes.METHODS))
def test_every_method_has_cells(method):
    cell = cell_of("fashion_mnist", method, "10")
    assert cell.validate.model == "ConvNetBN_W32"
    assert len(set(reports_of(cell).values())) == (5 if method == "g-vbsm" else 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cifar100", "fadrm", "ten"), "IPC 'ten' is no number"),
        (("cifar100", "fadrm", "0"), "IPC 0: a recipe makes at least 1 image per class"),
        (("cifar1000", "fadrm", "10"), "unknown dataset 'cifar1000'"),
        (("cifar100", "none", "10"), "no recipe for the method 'none'; there are: "),
    ],
)
def test_words_that_are_no_cell(words, message):
    with pytest.raises(UserError) as refused:
        cell_of(*words)
    assert message in str(refused.value)


def test_folders_without_config_are_refused(monkeypatch):
    monkeypatch.delenv("Main_Data_Path")
    with pytest.raises(UserError, match=r"Main_Data_Path is not set: give it in config\.sh"):
        cell_of("cifar100", "fadrm", "10")


def test_the_report_of_a_cell(capsys):
    cell = cell_of("cifar100", "fadrm", "10", "timm:resnet18")
    distilled, random = folders_of(cell)
    write_results(distilled, result(0, (40.0, 44.0)), result(4, (42.0, 41.0)))
    write_results(random, result(0, (30.0, 31.0)), result(4, (30.0, 30.0)))
    write_teacher(cell.pool, "ResNet18", 78.25)
    write_teacher(cell.pool, "timm_resnet18@3", 70.5)
    write_teacher(cell.pool, "ResNet18@3", 60.5)  # another network's
    write_teacher(cell.pool, "timm_resnet18@2of3", 50.5)  # a teacher on its way
    write_report(reports_of(cell)["teachers"], 1.25, 0.5)
    write_report(reports_of(cell)["recover"], 100.0, 1.5)
    path = report_cell(cell)
    printed = capsys.readouterr().out
    for line in (
        r"cifar100, fadrm, 10 images per class, student timm:resnet18",
        r"teacher ResNet18 +78\.25 % top-1",
        r"ResNet18 on the whole dataset \(paper\) +78\.90 % top-1",
        r"timm:resnet18, whole set, 3 epochs, hard +70\.50 % top-1",
        r"student, % top-1 \(mean and spread of so many\) +last +best",
        r"fadrm \(2\) +42\.50 ± 2\.12 +43\.00 ± 1\.41",
        r"random real images \(2\) +30\.50 ± 0\.71 +30\.50 ± 0\.71",
        r"step +seconds +peak memory",
        r"teachers +1\.2 +0\.50 GiB",
        r"recover +100\.0 +1\.50 GiB",
        r"fadrm: validate +41\.0 +1\.25 GiB",
        r"random real images: validate +41\.0 +1\.25 GiB",
        rf"this report: {path}",
    ):
        assert re.search(f"^{line}$", printed, re.MULTILINE), line
    assert max(map(len, printed.splitlines()[:-2])) <= report.WIDTH
    assert path == distilled.parents[2] / "reports/cifar100_fadrm_ipc10_timm_resnet18.json"
    content = json.loads(path.read_text())
    about = {"dataset": "cifar100", "method": "fadrm", "ipc": 10, "student": "timm:resnet18"}
    assert about.items() <= content.items()
    assert content["teachers"] == {"ResNet18": 78.25} and content["whole set"] == {"3": 70.5}
    assert content["accuracy"]["fadrm"] == {
        "top1": {"mean": 42.5, "std": pytest.approx(2.1213, abs=1e-4)},
        "best_top1": {"mean": 43.0, "std": pytest.approx(1.4142, abs=1e-4)},
    }
    assert content["accuracy"]["random real images"]["top1"]["mean"] == 30.5
    assert content["seeds"] == {"fadrm": [0, 4], "random real images": [0, 4]}
    assert content["steps"]["recover"] == {"seconds": 100.0, "peak_memory_gib": 1.5}
    assert content["steps"]["fadrm: validate"] == {"seconds": 41.0, "peak_memory_gib": 1.25}
    assert list(content["steps"]) == ["teachers", "recover", "fadrm: validate", "random real images: validate"]
    with Image.open(path.with_suffix(".png")) as curve:
        assert curve.format == "PNG"


def test_the_report_of_one_seed_has_no_spread_and_a_teacher_without_record_says_so(capsys):
    cell = cell_of("fashion_mnist", "fadrm", "1")
    distilled, random = folders_of(cell)
    write_results(distilled, result(2, (50.0, 61.5)))
    write_results(random, result(2, (52.0, 50.25)))
    path = report_cell(cell)
    printed = capsys.readouterr().out
    assert re.search(r"^fadrm \(1\) +61\.50 +61\.50$", printed, re.MULTILINE)
    assert re.search(r"^random real images \(1\) +50\.25 +52\.00$", printed, re.MULTILINE)
    for teacher in recipes.recipe_of(get_dataset("fashion_mnist"), "fadrm", 1).relabel.teachers:
        assert re.search(rf"^teacher {teacher} +no record$", printed, re.MULTILINE)
    assert "±" not in printed and "(paper)" not in printed
    content = json.loads(path.read_text())
    assert content["accuracy"]["fadrm"]["top1"] == {"mean": 61.5, "std": None}
    assert content["teachers"] == dict.fromkeys(cell.teachers)


def test_a_record_of_another_checkpoint_is_none():
    cell = cell_of("cifar100", "fadrm", "10")
    write_results(folders_of(cell)[0], result(0, (40.0, 44.0)))
    write_teacher(cell.pool, "ResNet18", 78.25)
    (cell.pool / "ResNet18.safetensors").write_bytes(b"other weights")
    assert json.loads(report_cell(cell).read_text())["teachers"] == {"ResNet18": None}


def test_a_cell_without_its_baseline_has_one_row(capsys):
    cell = cell_of("cifar100", "fadrm", "10")
    write_results(folders_of(cell)[0], result(0, (40.0, 44.0)))
    content = json.loads(report_cell(cell).read_text())
    assert list(content["accuracy"]) == ["fadrm"]
    assert "random" not in capsys.readouterr().out


def test_a_cell_without_results_is_refused():
    cell = cell_of("cifar100", "fadrm", "10")
    with pytest.raises(UserError) as refused:
        report_cell(cell)
    assert str(refused.value) == f"{folders_of(cell)[0]} has no results: run validate first"
    assert not folders_of(cell)[0].parents[2].exists()


@pytest.mark.parametrize("content", ["{", "{}", '{"seconds": "long", "peak_memory_gib": 1.0}'])
def test_a_damaged_report_of_a_step_is_named(content):
    cell = cell_of("cifar100", "fadrm", "10")
    write_results(folders_of(cell)[0], result(0, (40.0, 44.0)))
    path = reports_of(cell)["recover"]
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} is damaged"):
        report_cell(cell)


def test_costs_are_the_sum_of_seconds_and_the_most_of_memory():
    cell = cell_of("cifar100", "fadrm", "10")
    write_report(reports_of(cell)["patches"], 7.5, 0.125)
    found = report.costs_of(cell, {"fadrm": [result(0, (1.0, 2.0)), result(3, (1.0, 2.0))]})
    assert found == {
        "patches": {"seconds": 7.5, "peak_memory_gib": 0.125},
        "fadrm: validate": {"seconds": 41.0, "peak_memory_gib": 1.0},
    }


# Draws


def write_draws(cell, *draws):
    """Results of seed 0 of the random images of these draws, by the top-1 of its last epoch."""
    folder = folders_of(cell)[1]
    for draw, top1 in draws:
        write_results(folder.with_name(folder.name + recipes.draw_suffix(draw)), result(0, (30.0, top1), settings={}))


def test_draws_of_random_images_are_repeats_and_cost_what_all_do(capsys):
    write_draws(cell_of("cifar100", "fadrm", "10"), (0, 30.0), (2, 33.0), (10, 36.0))
    cell = cell_of("cifar100", "fadrm", "10")
    for path, seconds in zip(cell.reports["random images: relabel"], (1.0, 2.0, 4.0), strict=True):
        write_report(path, seconds, seconds)
    content = json.loads(report_cell(cell).read_text())
    assert content["accuracy"]["random real images"]["top1"] == {"mean": 33.0, "std": 3.0}
    assert content["draws"] == {"random real images": [0, 2, 10]}
    assert content["seeds"] == {"random real images": [0, 0, 0]}
    assert content["steps"]["random images: relabel"] == {"seconds": 7.0, "peak_memory_gib": 4.0}
    assert content["steps"]["random real images: validate"]["seconds"] == 3 * 20.5
    assert re.search(r"^random real images \(3\) +33\.00 ± 3\.00", capsys.readouterr().out, re.MULTILINE)
    names = [path.parent.name for path in cell.reports["random images: relabel"]]
    assert names == [
        "random_by_fadrm_bs16_ipc10",
        "random_by_fadrm_draw2_bs16_ipc10",
        "random_by_fadrm_draw10_bs16_ipc10",
    ]


def test_draws_of_other_settings_are_no_repeats():
    cell = cell_of("cifar100", "fadrm", "10")
    folder = folders_of(cell)[1]
    write_draws(cell, (0, 30.0))
    write_results(folder.with_name(f"{folder.name}_draw1"), result(0, (30.0, 31.0), settings={"temperature": 2.0}))
    with pytest.raises(UserError) as refused:
        report_cell(cell)
    assert str(refused.value) == (
        f"{folder}_draw1 has results of other settings than draw 0 (settings.temperature (none there, 2.0 here)): "
        "they are not repeats of one run; remove one of the two"
    )


def test_a_folder_that_is_no_draw_is_left_out():
    cell = cell_of("cifar100", "fadrm", "10")
    write_draws(cell, (0, 30.0))
    folder = folders_of(cell)[1]
    write_results(folder.with_name(f"{folder.name}_drawing"), result(0, (30.0, 99.0)))
    assert [its["top1"] for its in report.read_repeats(folder)] == [30.0]


# The command


def test_the_command_reports_a_cell(capsys):
    write_results(folders_of(cell_of("cifar100", "fadrm", "10"))[0], result(0, (40.0, 44.0)))
    report.main(["cifar100", "fadrm", "10"])
    assert "cifar100, fadrm, 10 images per class, student ResNet18" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["cifar100", "fadrm"], ["cifar100", "fadrm", "10", "ResNet18", "x"]])
def test_words_that_are_too_few_or_too_many(refusal, words):
    assert refusal(report.main, words).startswith("error: usage: python -m validate.report DATASET METHOD")


@pytest.mark.parametrize(
    "words",
    ["cifar100 fadrm 10", "cifar100 fadrm+ 10 timm:resnet18 --seed 0 1 2", "fashion_mnist rded 1 --temperature 4"],
)
def test_a_cell_that_can_be_passes_its_check(words, tmp_path):
    report.main(["--check", *words.split()])
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cifar100 fadrm", "usage: "),
        ("", "usage: "),
        ("cifar100 fadrm ten", "IPC 'ten' is no number"),
        ("cifar100 none 10", "no recipe for the method 'none'"),
        ("cifar100 fadrm:alpha=7 10", "--alpha 7.0: it must be from 0 to 1"),
        ("cifar100 fadrm:sizes=32,32 10", "--input-size-lis has 2 stages, --optimization-budgets 4"),
        ("cifar100 fadrm:relabel.weighting=norm 10", "--weighting norm is of teachers with running statistics"),
        ("cifar100 fadrm:factor=3 10", "--factor 3 does not divide the 32 pixels"),
        ("cifar100 fadrm 10 ResNet999", "unknown network 'ResNet999'"),
        ("cifar100 fadrm 10 ResNet18 --seed 1 1", "--seed 1 1: each seed once"),
        ("cifar100 fadrm 10 ResNet18 --sed 1", "unrecognized arguments: --sed 1"),
        ("cifar100 fadrm 10 ResNet18 --test-every 0", "--test-every 0: it must be from 1 to 99,999"),
        ("cifar100 fadrm 10 ResNet18 more --seed 1", "usage: "),
        ("cifar100 fadrm 10 --ipc 50", "--ipc: run.sh gives it"),
        ("cifar100 fadrm 10 --epochs 1001", "--epochs 1001: this cell's labels have 1000"),
        ("cifar100 fadrm:stored_epochs=9 10", "--epochs 1000: this cell's labels have 9, and a student no more"),
        ("cifar100 fadrm:stored_epochs=9:replay=zip 10", "--replay zip: there are in_order pool"),
        (
            "cifar100 fadrm:codec=top_k:top_k=9:loss=mse_ce 10",
            "--loss mse_ce reads all logits: of this cell's labels",
        ),
        ("cifar100 fadrm 10 --batch-size 32", "--batch-size 32: this cell's labels are made with 16"),
        ("cifar100 fadrm 10 --mix-type mixup", "--mix mixup: this cell's labels are made with cutmix"),
        ("cifar100 fadrm 10 --device cuda:77", "--device"),
        ("cifar100 fadrm 10 --device cpu --amp fp16", "--amp fp16 needs a GPU"),
        ("cifar100 fadrm 10 --protocol own", "fadrm has no protocol of its own here"),
    ],
)
def test_a_cell_that_cannot_be_fails_its_check(refusal, words, message):
    """In one line, before anything is made."""
    assert message in refusal(report.main, ["--check", *words.split()])
