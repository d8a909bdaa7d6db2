"""run.sh: what it asks for, what it starts and what it skips, its report; and a whole run of it in miniature."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from models import pretrain
from models.registry import network_names
from recover import flags as recover_flags
from recover import make_patches, random_images
from relabel import flags as relabel_flags
from relabel.relabel import store_folder
from utils import launch, pipeline, recipes, results
from utils.errors import UserError
from utils.pipeline import Cell, Step
from validate import flags as validate_flags

ROOT = Path(__file__).parents[1]
CONFIG = ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")
CELLS = [
    Cell("fashion_mnist", "fadrm+", 10, "ConvNetBN_W32", (0, 1)),
    Cell("imagenet1k", "fadrm+", 1, "ResNet18", (0,)),
    Cell("cifar100", "fadrm", 50, "timm:resnet18", (3,)),
]


# What is asked for


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("imagenet1k fadrm 50 ResNet101", Cell("imagenet1k", "fadrm", 50, "ResNet101", (0,))),
        ("cifar100 fadrm+ 10 --seed 3 1 3", Cell("cifar100", "fadrm+", 10, "ResNet18", (3, 1))),
        ("cifar100 fadrm 7 MobileNetV2 --seed 0", Cell("cifar100", "fadrm", 7, "MobileNetV2", (0,))),
        ("tiny_imagenet --seed 1", Cell("tiny_imagenet", "fadrm+", 10, "ResNet18", (1,))),
    ],
)
def test_words_are_a_cell(words, expected):
    assert pipeline.parse(words.split()) == expected


def test_nothing_asks_for_the_embedded_dataset():
    recipe = recipes.recipe_of("fashion_mnist", "fadrm+", 10)
    assert pipeline.parse([]) == Cell("fashion_mnist", "fadrm+", 10, recipe.student, recipe.seeds)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mnist", "no recipe for the dataset 'mnist'; there are: "),
        ("cifar100 dm", "no recipe for the method 'dm'; there are: fadrm fadrm+"),
        ("cifar100 fadrm ten", "IPC 'ten' is no number; usage: bash run.sh"),
        ("cifar100 fadrm 0", "IPC 0: a recipe makes at least 1"),
        ("cifar100 fadrm 1 ResNet18 more", "is not understood; usage: bash run.sh"),
        ("cifar100 fadrm --alpha 0.5", "'cifar100 fadrm --alpha 0.5' is not understood"),
        ("cifar100 --seed one", "is not understood"),
    ],
)
def test_words_that_are_no_cell(refusal, words, message):
    assert message in refusal(pipeline.main, words.split())


@pytest.mark.parametrize("name", CONFIG)
def test_unset_folders(monkeypatch, refusal, tmp_path, name):
    for folder in CONFIG:
        monkeypatch.setenv(folder, str(tmp_path))
    monkeypatch.setenv(name, "")
    assert refusal(pipeline.main, []) == f"error: {name} is not set: give it in config.sh, or in the environment"
    assert not list(tmp_path.iterdir())


# The steps


def steps_of(cell):
    environment = {name: f"/{name}" for name in CONFIG}
    folders = pipeline.folders_of(cell, environment)
    return folders, {step.name: step for step in pipeline.steps_of(cell, folders)}


def parsed_entry_words(step):
    """What the stage that a step launches makes of its arguments."""
    request, extra = launch.parse(step.words[1:])
    words = [*launch.entry_words(request, {name: f"/{name}" for name in CONFIG}), *extra]
    parse = {
        "recover": recover_flags.parse,
        "relabel": relabel_flags.parse,
        "validate": lambda words: validate_flags.parse_cells(words)[0],
        "patches": lambda words: make_patches.make_parser().parse_with_recipe("patches", words),
        "pretrain": pretrain.parse,
    }[request.stage]
    return parse(words)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.dataset)
def test_every_step_leaves_its_files_where_its_stage_puts_them(cell):
    _, steps = steps_of(cell)
    assert list(steps) == [
        *("data", "teachers", "patches", "recover", "relabel", "validate"),
        *("random images", "random: relabel", "random: validate"),
    ]
    assert steps["data"].words == ("utils.prepare_data", cell.dataset)
    assert steps["data"].outputs == (Path("/train_dir", cell.dataset), Path("/val_dir", cell.dataset))
    patches = parsed_entry_words(steps["patches"])
    recover = parsed_entry_words(steps["recover"])
    assert steps["patches"].outputs == (patches.patch_dir / patches.patch_diff,)
    assert patches.patch_dir / patches.patch_diff == recover.patch_dir / recover.patch_diff
    assert patches.patches_per_class >= recover.ipc_end
    assert steps["recover"].outputs == (recover.syn_data_path / recover.exp_name,)
    random = random_images.make_parser().parse_args(steps["random images"].words[1:])
    assert (random.dataset_name, random.ipc, random.train_dir) == (cell.dataset, cell.ipc, patches.train_dir)
    assert steps["random images"].outputs == (random.syn_data_path / random.exp_name,)
    for prefix, images in (("", steps["recover"].outputs), ("random: ", steps["random images"].outputs)):
        relabel = parsed_entry_words(steps[f"{prefix}relabel"])
        assert (relabel.syn_data_path,) == images
        labels = store_folder(relabel.fkd_path, relabel.batch_size, cell.ipc)
        assert steps[f"{prefix}relabel"].outputs == (labels,)
        validate = parsed_entry_words(steps[f"{prefix}validate"])
        assert (validate.original_data_path, validate.fkd_path) == (*images, labels)
        assert (validate.model, validate.seed) == (cell.student, list(cell.seeds))
        assert validate.method == (cell.method if prefix == "" else "random")
        places = [validate.output_dir / cell.dataset / validate.exp_name / f"seed{seed}" for seed in cell.seeds]
        assert steps[f"{prefix}validate"].outputs == tuple(place / "result.json" for place in places)
    assert len({output for step in steps.values() for output in step.outputs}) == sum(
        len(step.outputs) for step in steps.values()
    )


def test_the_random_baseline_is_treated_as_the_distilled_images():
    """Same teachers, views and training; only the images, their labels and the results have other places."""
    _, steps = steps_of(CELLS[0])
    for stage in ("relabel", "validate"):
        ours, random = (vars(parsed_entry_words(steps[f"{prefix}{stage}"])) for prefix in ("", "random: "))
        differing = {name for name in ours if ours[name] != random[name]}
        places = {"relabel": {"syn_data_path", "fkd_path"}, "validate": {"original_data_path", "fkd_path", "exp_name"}}
        assert differing == places[stage] | ({"method"} if stage == "validate" else set())


def test_the_teachers_that_are_waited_for_are_those_that_are_trained():
    _, steps = steps_of(CELLS[0])
    recipe = recipes.recipe_of("fashion_mnist", "fadrm+", 10)
    trained = parsed_entry_words(steps["teachers"])
    assert set(trained.model) == {*recipe.teachers, recipe.observer} <= set(network_names(32))
    assert set(steps["teachers"].outputs) == {trained.model_pool_dir / f"{name}.json" for name in trained.model}
    assert steps_of(CELLS[1])[1]["teachers"].outputs == ()  # torchvision's


# Starting and skipping them


@pytest.fixture
def step(tmp_path, monkeypatch):
    """A step that appends a line to `runs` and writes `made/class/image`, or fails as its last argument says."""
    (tmp_path / "stand_in_step.py").write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "folder, end = Path(sys.argv[1]), sys.argv[2]\n"
        "with open(folder / 'runs', 'a') as runs: runs.write('run\\n')\n"
        "if end.startswith('-'): os.kill(os.getpid(), -int(end))\n"
        "if end != '0': sys.exit(int(end))\n"
        "(folder / 'made' / 'class').mkdir(parents=True, exist_ok=True)\n"
        "(folder / 'made' / 'class' / 'image').write_text('pixels')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda end="0", recipe="as it was": Step(
        "stand-in", ("stand_in_step", str(tmp_path), end), (tmp_path / "made",), recipe
    )


def runs_below(folder):
    return (folder / "runs").read_text().count("run\n") if (folder / "runs").exists() else 0


def test_a_step_is_run_once_and_its_journal_survives(step, tmp_path, capsys):
    journal, path = {}, tmp_path / "reports" / "steps.json"
    pipeline.run_step(step(), journal, path)
    assert capsys.readouterr().out == "\n=== stand-in\n"
    written = json.loads(path.read_text())
    assert written == journal
    (entry,) = written.values()
    assert 0 < entry["seconds"] < 60 and 0.001 < entry["peak_memory_gib"] < 64
    assert {Path(file).name for file in entry["files"]} == {"made", "class", "image"}
    pipeline.run_step(step(), written, path)
    assert capsys.readouterr().out == "stand-in: done before\n"
    assert runs_below(tmp_path) == 1
    assert written == journal


def lose(made):
    (made / "class" / "image").unlink()


def touch(made):
    os.utime(made / "class" / "image", ns=(1, 1))


def lengthen(made):
    image = made / "class" / "image"
    status = image.stat()
    image.write_text("more pixels")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


def add(made):
    (made / "class" / "another").touch()


@pytest.mark.parametrize("change", [lose, touch, lengthen, add])
def test_a_step_whose_files_changed_is_started_again(step, tmp_path, change):
    journal, path = {}, tmp_path / "steps.json"
    pipeline.run_step(step(), journal, path)
    change(tmp_path / "made")
    first = next(iter(journal.values()))["seconds"]
    pipeline.run_step(step(), journal, path)
    assert runs_below(tmp_path) == 2
    assert next(iter(journal.values()))["seconds"] > first  # what both took
    pipeline.run_step(step(), journal, path)
    assert runs_below(tmp_path) == 2


def test_a_step_of_another_recipe_is_another_step(step, tmp_path):
    journal, path = {}, tmp_path / "steps.json"
    for recipe, runs in (("as it was", 1), ("changed", 2), ("changed", 2)):
        pipeline.run_step(step(recipe=recipe), journal, path)
        assert runs_below(tmp_path) == runs


def test_whatever_the_table_says_of_a_cell_is_part_of_its_steps(monkeypatch):
    cell = Cell("cifar100", "fadrm", 10, "ResNet18", (0,))
    digests = [pipeline.recipe_digest(cell)]
    assert {step.recipe for step in steps_of(cell)[1].values()} == set(digests)
    monkeypatch.setattr(recipes, "LINES", (*recipes.LINES, recipes.line("imagewoof", lr=9.0)))
    assert pipeline.recipe_digest(cell) == digests[0]
    monkeypatch.setattr(recipes, "LINES", (*recipes.LINES, recipes.line("cifar100", lr=9.0)))
    digests.append(pipeline.recipe_digest(cell))
    training = replace(recipes.TEACHER_TRAINING["cifar100"], epochs=1)
    monkeypatch.setitem(recipes.TEACHER_TRAINING, "cifar100", training)
    digests.append(pipeline.recipe_digest(cell))
    monkeypatch.setitem(recipes.STUDENT_RATES, ("cifar100", "ResNet18"), {10: (9.0, 1)})
    digests.append(pipeline.recipe_digest(cell))
    assert len(set(digests)) == 4


def test_hidden_files_do_not_count(step, tmp_path):
    journal, path = {}, tmp_path / "steps.json"
    pipeline.run_step(step(), journal, path)
    (tmp_path / "made" / "class" / ".cache").touch()
    os.utime(tmp_path / "made" / "class", ns=(1, 1))  # a folder's time tells of it
    pipeline.run_step(step(), journal, path)
    (tmp_path / "made" / "class" / ".cache").write_text("more")
    pipeline.run_step(step(), journal, path)
    assert runs_below(tmp_path) == 2


@pytest.mark.parametrize(("end", "status"), [("2", 2), ("1", 1), (f"{-signal.SIGKILL}", 128 + signal.SIGKILL)])
def test_a_step_that_fails_ends_the_run_with_its_status(step, tmp_path, end, status):
    journal, path = {}, tmp_path / "steps.json"
    for attempt in (1, 2):  # it is not taken for done
        with pytest.raises(SystemExit) as stopped:
            pipeline.run_step(step(end), journal, path)
        assert stopped.value.code == status
        assert runs_below(tmp_path) == attempt
    (entry,) = json.loads(path.read_text()).values()
    assert entry["files"] is None and entry["seconds"] > 0


def test_later_steps_are_not_started_after_one_that_failed(step, tmp_path, monkeypatch):
    for name in CONFIG:
        monkeypatch.setenv(name, str(tmp_path / "data"))
    monkeypatch.setattr(pipeline, "steps_of", lambda cell, folders: [step(), step("3"), step()])
    monkeypatch.setattr(results, "report_cell", None)
    with pytest.raises(SystemExit) as stopped:
        pipeline.main([])
    assert stopped.value.code == 3
    assert runs_below(tmp_path) == 2
    assert len(json.loads((tmp_path / "data/generated_data/steps.json").read_text())) == 2


def test_a_damaged_journal_is_named(tmp_path, monkeypatch, refusal):
    for name in CONFIG:
        monkeypatch.setenv(name, str(tmp_path))
    journal = tmp_path / "generated_data" / "steps.json"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"half": ')
    assert f"{journal} is damaged: remove it" in refusal(pipeline.main, [])


def test_ctrl_c_while_a_step_ends_well_still_ends_the_run(step, tmp_path, monkeypatch):
    waits, wait4 = [], os.wait4

    def interrupted_once(*arguments):
        waits.append(arguments)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return wait4(*arguments)

    monkeypatch.setattr(os, "wait4", interrupted_once)
    journal, path = {}, tmp_path / "steps.json"
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_step(step(), journal, path)
    pipeline.run_step(step(), json.loads(path.read_text()), path)  # what it made counts
    assert runs_below(tmp_path) == 1


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from utils import pipeline
from utils.errors import run_entry
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
sleeper = "import signal, time; from utils.errors import run_entry;"
sleeper += "signal.signal(signal.SIGINT, signal.default_int_handler);"
sleeper += f"open({str(folder / 'ready')!r}, 'w').close(); run_entry(lambda: time.sleep(60))"
(folder / "sleeper.py").write_text(sleeper)
step = pipeline.Step("sleeper", ("sleeper",), (folder / "ready",), "")
os.environ["PYTHONPATH"] += os.pathsep + str(folder)
run_entry(lambda: pipeline.run_step(step, {}, folder / "steps.json"))
"""


def test_ctrl_c_ends_step_and_run_with_one_line(processes, tmp_path):
    process = processes.start("-c", INTERRUPTED, str(tmp_path), before=("setsid",))
    patience = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    ended = processes.wait(process)
    assert (ended.status, ended.errors) == (130, "error: interrupted; the same command goes on from here\n")
    (entry,) = json.loads((tmp_path / "steps.json").read_text()).values()
    assert entry["files"] is None and entry["seconds"] > 0.2  # the time that it took counts


# The report


def result(seed, top1, epochs=(4, 9)):
    lines = [{"epoch": epoch, "loss": 1.0} for epoch in range(max(epochs) + 1)]
    for epoch, value in zip(epochs, top1, strict=True):
        lines[epoch]["top1"] = value
    return {"seed": seed, "top1": top1[-1], "best_top1": max(top1), "metrics": lines}


def write_results(cell, folders, distilled, random):
    for name, values in (("results", distilled), ("random_results", random)):
        for seed, top1 in zip(cell.seeds, values, strict=True):
            path = folders[name] / f"seed{seed}" / "result.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(result(seed, top1)))


STEPS = [("data", {"seconds": 1.25, "peak_memory_gib": 0.5, "files": {}}), ("recover", {"seconds": 100.0,
         "peak_memory_gib": 1.5, "files": None})]  # fmt: skip


def test_the_report_of_a_cell(tmp_path, capsys):
    cell = Cell("cifar100", "fadrm", 10, "timm:resnet18", (0, 4))
    folders = pipeline.folders_of(cell, {name: str(tmp_path) for name in CONFIG})
    write_results(cell, folders, [(40.0, 44.0), (42.0, 41.0)], [(30.0, 31.0), (30.0, 30.0)])
    folders["teachers"].mkdir(parents=True)
    (folders["teachers"] / "ResNet18.json").write_text('{"top1": 78.25}')
    results.report_cell(cell, folders, STEPS)
    printed = capsys.readouterr().out
    for line in (
        r"cifar100, fadrm, 10 images per class, student timm:resnet18",
        r"teacher ResNet18 +78\.25 % top-1",
        r"ResNet18 on the whole dataset \(paper\) +78\.90 % top-1",
        r"student, % top-1 \(mean and spread of 2 seeds\) +last +best",
        r"fadrm +42\.50 ± 2\.12 +43\.00 ± 1\.41",
        r"random real images +30\.50 ± 0\.71 +30\.50 ± 0\.71",
        r"data +1\.2 +0\.50 GiB",
        r"recover +100\.0 +1\.50 GiB",
        r"all steps +101\.2",
    ):
        assert re.search(f"^{line}$", printed, re.MULTILINE), line
    assert max(map(len, printed.splitlines()[:-3])) <= results.WIDTH
    report = json.loads((folders["reports"] / "cifar100_fadrm_ipc10_timm_resnet18.json").read_text())
    assert report["cell"] == {**cell._asdict(), "seeds": [0, 4]}
    assert report["teachers"] == {"ResNet18": 78.25}
    assert report["accuracy"]["fadrm"] == {
        "top1": {"mean": 42.5, "std": pytest.approx(2.1213, abs=1e-4)},
        "best_top1": {"mean": 43.0, "std": pytest.approx(1.4142, abs=1e-4)},
    }
    assert report["accuracy"]["random real images"]["top1"]["mean"] == 30.5
    assert report["steps"]["recover"] == {"seconds": 100.0, "peak_memory_gib": 1.5}
    with Image.open(folders["reports"] / "cifar100_fadrm_ipc10_timm_resnet18.png") as curve:
        assert curve.format == "PNG"


def test_the_report_of_one_seed_has_no_spread_and_a_teacher_without_record_says_so(tmp_path, capsys):
    cell = Cell("fashion_mnist", "fadrm", 1, "ConvNetBN_W32", (2,))
    folders = pipeline.folders_of(cell, {name: str(tmp_path) for name in CONFIG})
    write_results(cell, folders, [(50.0, 61.5)], [(52.0, 50.25)])
    results.report_cell(cell, folders, STEPS)
    printed = capsys.readouterr().out
    assert re.search(r"^fadrm +61\.50 +61\.50$", printed, re.MULTILINE)
    assert re.search(r"^random real images +50\.25 +52\.00$", printed, re.MULTILINE)
    assert re.search(r"^student, % top-1 \(seed 2\)", printed, re.MULTILINE)
    for teacher in recipes.recipe_of("fashion_mnist", "fadrm", 1).teachers:
        assert re.search(rf"^teacher {teacher} +no record$", printed, re.MULTILINE)
    assert "±" not in printed and "(paper)" not in printed
    report = json.loads((folders["reports"] / "fashion_mnist_fadrm_ipc1_ConvNetBN_W32.json").read_text())
    assert report["accuracy"]["fadrm"]["top1"] == {"mean": 61.5, "std": None}


def test_a_missing_result_is_named(tmp_path):
    cell = Cell("fashion_mnist", "fadrm", 1, "ConvNetBN_W32", (0,))
    folders = pipeline.folders_of(cell, {name: str(tmp_path) for name in CONFIG})
    with pytest.raises(UserError, match=r"seed0/result\.json is missing: run the stage"):
        results.report_cell(cell, folders, STEPS)


def test_curves_are_the_mean_of_the_seeds_where_they_were_tested():
    assert results.mean_curve([result(0, (10.0, 20.0)), result(1, (20.0, 50.0))]) == [(5, 15.0), (10, 35.0)]


# All of it in miniature

# Python imports this on its start: the recipe of the embedded dataset with the least of everything.
MINIATURE = """
from dataclasses import replace
from utils import recipes
tiny = dict(teachers=("ConvNetBN_W32",), observer="ConvNetBN_W32", student="ConvNetBN_W32", sizes=(24, 32))
tiny |= dict(budgets=(2, 2), images_a_class=12, crops_an_image=2, patches_a_class=1, epochs=2, batch=10, seeds=(0,))
recipes.LINES += (recipes.line("fashion_mnist", **tiny),)
training = recipes.TEACHER_TRAINING["fashion_mnist"]
recipes.TEACHER_TRAINING["fashion_mnist"] = replace(training, epochs=1, batch_size=100)
"""


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A folder for all that is made, and a way to call a script in the world of the miniature recipe."""
    folder = tmp_path_factory.mktemp("miniature")
    (folder / "sitecustomize.py").write_text(MINIATURE)
    environment = {name: value for name, value in os.environ.items() if name not in CONFIG}
    environment |= {"Main_Data_Path": str(folder / "data"), "FADRM_PYTHON": sys.executable}
    environment["PYTHONPATH"] = str(folder)

    def call(script, *arguments):
        done = subprocess.run(
            ["bash", str(ROOT / script), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "error" not in done.stderr
        return done.stdout

    return folder / "data", call


def test_the_scripts_of_the_stages_make_a_tested_student(miniature):
    data, call = miniature
    assert "top-1" in call("models/scripts/fashion_mnist/pretrain.sh", "ConvNetBN_W32")
    assert "10 patches" in call("recover/scripts/fashion_mnist/make_patches.sh", "--patches-per-class", "1")
    assert "10 images" in call("recover/scripts/fashion_mnist/recover_fadrm_ipc1.sh")
    assert "2 epochs" in call("relabel/scripts/fashion_mnist/relabel_fadrm_ipc1.sh")
    printed = call("validate/scripts/fashion_mnist/validate_fadrm.sh", "1", "ConvNetBN_W32", "--seed", "0")
    generated = data / "generated_data"
    folder = generated / "validate_output" / "fashion_mnist" / "fadrm_ipc1_ConvNetBN_W32"
    result = json.loads((folder / "seed0" / "result.json").read_text())
    assert (result["dataset"], result["method"], result["ipc"], result["seed"]) == ("fashion_mnist", "fadrm", 1, 0)
    assert (result["student"], result["epochs"]) == ("ConvNetBN_W32", 2)
    assert 0 <= result["top1"] <= result["top5"] <= 100
    assert f"{result['top1']:.2f}" in printed
    teacher = json.loads((data / "pretrained_models/fashion_mnist_pretrained_models/ConvNetBN_W32.json").read_text())
    assert teacher["top1"] > 12  # chance is 10 %
    assert result["teachers"] == [{"name": "ConvNetBN_W32", "sha256": teacher["sha256"], "weight": 1.0}]
    images = generated / "syn_data" / "fashion_mnist" / "fadrm_ipc1"
    with Image.open(images / "new009" / "class009_id000.png") as image:
        assert image.size == (32, 32)
    assert (images / "contact_sheet.png").exists() and (folder / "curve.png").exists()
    logs = sorted(path.name for path in (data / "logs").iterdir())
    assert logs == [
        "patches_fashion_mnist_fadrm+_ipc50.log",
        "pretrain_fashion_mnist.log",
        "recover_fashion_mnist_fadrm_ipc1.log",
        "relabel_fashion_mnist_fadrm_ipc1.log",
        "validate_fashion_mnist_fadrm_ipc1_ConvNetBN_W32.log",
    ]


def test_run_sh_makes_the_rest_and_then_skips_all(miniature):
    """It finds what the scripts made, adds the random baseline, and reports; called again it starts nothing."""
    data, call = miniature
    result = data / "generated_data/validate_output/fashion_mnist/fadrm_ipc1_ConvNetBN_W32/seed0/result.json"
    made_before = result.read_bytes() if result.exists() else None
    printed = call("run.sh", "fashion_mnist", "fadrm", "1")
    assert printed.count("\n=== ") == 9
    if made_before is not None:
        assert result.read_bytes() == made_before
        assert printed.count("everything was there already") >= 3
    report = json.loads((data / "generated_data/reports/fashion_mnist_fadrm_ipc1_ConvNetBN_W32.json").read_text())
    assert report["teachers"]["ConvNetBN_W32"] > 12
    top1 = {row: values["top1"]["mean"] for row, values in report["accuracy"].items()}
    assert top1["fadrm"] == json.loads(result.read_text())["top1"]
    assert top1.keys() == {"fadrm", "random real images"}
    assert len(report["steps"]) == 9
    for line in (r"teacher ConvNetBN_W32 +\d", r"fadrm +\d", r"random real images +\d", r"all steps +\d"):
        assert re.search(line, printed)
    again = call("run.sh", "fashion_mnist", "fadrm", "1")
    assert again.count(": done before\n") == 9 and "===" not in again
    assert printed.endswith(again[again.index("-" * results.WIDTH) :])
