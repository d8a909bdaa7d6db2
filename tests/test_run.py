"""run.sh: what it starts and in which order, how it ends; and a whole run of it in miniature."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recover import recover  # its batches, committees and terms enter the tables
from relabel.relabel import store_folder
from utils import recipes
from utils.data.table import DATASETS
from validate.validate import parse_cells, results_folder

assert recover
ROOT = Path(__file__).parents[1]
CONFIG = ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")
STEPS = ["data", "teachers", "patches", "recover", "relabel", "validate", "random images"]
STEPS += ["random images: relabel", "random images: validate"]
# Python as run.sh uses it. It notes its arguments, one call a line; `end` is a script that it runs beside that.
STUB = r"""#!/usr/bin/env bash
[ "$1" = -c ] && exit
here=$(dirname "$0")
(IFS=$'\t'; echo "$*") >>"$here/calls"
. "$here/end"
"""


class Stand:
    """run.sh with a stand-in for Python."""

    def __init__(self, folder):
        self.folder, self.python = folder, folder / "python"
        self.python.write_text(STUB)
        self.python.chmod(0o755)
        self.end_in("")

    def end_in(self, script):
        (self.folder / "end").write_text(script)

    def start(self, *words, shell="bash"):
        known = {"FADRM_PYTHON": str(self.python), "Main_Data_Path": str(self.folder / "data")}
        clean = {name: value for name, value in os.environ.items() if name not in (*CONFIG, "RANK")}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [shell, str(ROOT / "run.sh"), *words]
        return subprocess.Popen(command, env=clean | known, cwd=self.folder, start_new_session=True, **pipes)

    def run(self, *words, **options):
        """Its exit status, stdout and stderr."""
        process = self.start(*words, **options)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    @property
    def calls(self):
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [line.split("\t") for line in lines]


@pytest.fixture
def stand(tmp_path):
    return Stand(tmp_path)


def expected_calls(dataset, method, ipc, student, flags):
    """What Python is given, one call after another."""
    chosen = ["--model", *student] if student else []
    draws = ["--draw", "0", "1", "2"]

    def stage(module, *words, named=True):
        recipe = ["--recipe", method] if named else []
        return ["-m", module, "--dataset-name", dataset, *recipe, *words]

    return [
        ["-m", "validate.report", "--check", dataset, method, ipc, *student, *flags],
        ["-m", "utils.data.prepare", dataset],
        stage("models.pretrain"),
        stage("recover.make_patches", "--ipc", ipc),
        stage("recover.recover", "--ipc", ipc),
        stage("relabel.relabel", "--ipc", ipc),
        stage("validate.validate", "--ipc", ipc, *chosen, *flags),
        stage("recover.choose_images", "--ipc", ipc, *draws, named=False),
        stage("relabel.relabel", "--ipc", ipc, "--images", "random", *draws),
        stage("validate.validate", "--ipc", ipc, *chosen, "--images", "random", *draws, *flags),
        ["-m", "validate.report", dataset, method, ipc, *student],
    ]


@pytest.mark.parametrize(
    ("words", "cell"),
    [
        ("", ("fashion_mnist", "fadrm+", "10", [], [])),
        ("tiny_imagenet --seed 1", ("tiny_imagenet", "fadrm+", "10", [], ["--seed", "1"])),
        ("cifar100 fadrm", ("cifar100", "fadrm", "10", [], [])),
        ("cifar100 rded 7 ResNet101 --seed 3 1", ("cifar100", "rded", "7", ["ResNet101"], ["--seed", "3", "1"])),
    ],
)
def test_the_steps_in_their_order(stand, words, cell):
    status, output, errors = stand.run(*words.split())
    assert (status, errors) == (0, "")
    assert stand.calls == expected_calls(*cell)
    assert output == "".join(f"\n=== {step}\n" for step in STEPS)


def test_draws_that_are_given_are_of_everything(stand, monkeypatch):
    stand.run(*["cifar100", "fadrm", "7", "--draw", "1", "3"])
    steps = {
        name: [its.draw for its in runs]
        for name, runs in parsed(stand, monkeypatch).items()
        if hasattr(runs[0], "draw")
    }
    assert steps.keys() == {"recover", "relabel", "validate", *(name for name in STEPS if name.startswith("random"))}
    assert all(draws == [1, 3] for draws in steps.values())


@pytest.mark.parametrize(("labels", "is_there"), [("views", False), ("fixed hard", True), ("hard", True)])
def test_hard_labels_stand_beside_the_whole_set_at_equal_compute(stand, labels, is_there):
    stand.run(*f"cifar100 fadrm 7 ResNet18 --labels {labels}".split())
    whole = ["-m", "models.pretrain", "--dataset-name", "cifar100", "--model", "ResNet18", "--recipe", "fadrm"]
    assert ([*whole, "--like-ipc", "7"] in stand.calls) is is_there


def test_protocols_are_those_of_labels_and_students(stand):
    """Also of random images."""
    stand.run("cifar100", "fadrm", "10", "ResNet18", "--labels", "views", "hard", "plain", "--seed", "3")
    asked = {(call[1], "random" in call): " ".join(call).partition(" --labels ")[2] for call in stand.calls}
    for is_random in (False, True):
        assert asked["relabel.relabel", is_random] == "views hard plain"
        assert asked["validate.validate", is_random] == "views hard plain --seed 3"


# What the steps make of their words

CELLS = ["fashion_mnist fadrm+ 10", "imagenet1k fadrm+ 1 ResNet18", "cifar100 fadrm 50 timm:resnet18 --seed 3"]


def parsed(stand, monkeypatch):
    """The settings of each run of each step by its name, as the stage that it starts resolves its words."""
    for name in CONFIG:
        monkeypatch.setenv(name, f"/{name}")
    stages = {stage.module: name for name, stage in recipes.STAGES.items()}
    names = {"pretrain": "teachers", "choose": "random images"}
    settings = {}
    for _, module, *words in stand.calls[1:-1]:
        if module in stages:
            stage = stages[module]
            name = f"random images: {stage}" if stage in settings else names.get(stage, stage)
            settings[name] = parse_cells(words) if stage == "validate" else recipes.parse_each(stage, words, "--draw")
    return settings


@pytest.mark.parametrize("words", CELLS)
def test_every_step_finds_the_files_of_the_one_before(stand, monkeypatch, words):
    stand.run(*words.split())
    steps = parsed(stand, monkeypatch)
    draws = {name: runs for name, runs in steps.items() if name.startswith("random images")}
    assert {name: [its.draw for its in runs] for name, runs in draws.items()} == {name: [0, 1, 2] for name in draws}
    for draw in range(3):
        check_files({name: runs[draw if name in draws else 0] for name, runs in steps.items()}, words)
    places = [its.fkd_path for its in draws["random images: relabel"]]
    assert [str(path).removeprefix(str(places[0])) for path in places] == ["", "_draw1", "_draw2"]


def check_files(steps, words):
    """Settings of one run of each step, each of which reads what the one before wrote."""
    dataset, _, ipc = words.split()[:3]
    train, val = Path("/train_dir", dataset), Path("/val_dir", dataset)
    patches, recover, chosen = (steps[name] for name in ("patches", "recover", "random images"))
    if recover.source == "offline" or "teachers" in steps:
        assert (steps["teachers"].train_dir, steps["teachers"].val_dir) == (train, val)
        assert steps["teachers"].model_pool_dir == patches.model_pool_dir == recover.model_pool_dir
    assert patches.train_dir == chosen.train_dir == train
    assert patches.patch_dir / patches.selector == recover.patch_dir / recover.selector
    assert patches.patches_per_class >= recover.ipc_end
    assert recover.ipc_end - recover.ipc_start == chosen.ipc == int(ipc)
    made = {"": recover.syn_data_path / recover.exp_name, "random images: ": chosen.syn_data_path / chosen.exp_name}
    for prefix, images in made.items():
        relabel, validate = steps[f"{prefix}relabel"], steps[f"{prefix}validate"]
        assert relabel.syn_data_path == validate.original_data_path == images
        assert relabel.model_pool_dir == recover.model_pool_dir
        assert store_folder(relabel.fkd_path, relabel.batch_size, int(ipc)) == validate.fkd_path
        assert validate.val_dir == val
    folders = {made[""], made["random images: "]}
    for step in ("relabel", "validate"):
        ours, random = steps[step], steps[f"random images: {step}"]
        folders |= {ours.fkd_path, random.fkd_path}
        differing = {name for name, value in vars(ours).items() if value != getattr(random, name)}
        places = {"relabel": {"syn_data_path", "fkd_path"}, "validate": {"original_data_path", "fkd_path", "exp_name"}}
        assert differing == places[step] | {"images"} | ({"method"} if step == "validate" else set()) | (
            {"draw"} if random.draw else set()
        )
    folders |= {results_folder(steps["validate"]), results_folder(steps["random images: validate"])}
    assert len(folders) == 8


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_teachers_that_are_trained_are_those_that_are_asked(stand, monkeypatch, dataset):
    """Those of imagenet1k are torchvision's."""
    stand.run(dataset)
    steps = {name: runs[0] for name, runs in parsed(stand, monkeypatch).items()}
    asked = {*steps["recover"].teachers, *steps["relabel"].teachers, steps["patches"].observer}
    if steps["recover"].source == "offline":
        trained = recipes.teachers_of(DATASETS[dataset], steps["teachers"].recipe)
        assert asked <= set(steps["teachers"].model or trained)


# Every method


def compare(stand, *words):
    """What compare.sh ends with, says and calls."""
    environment = {name: value for name, value in os.environ.items() if name not in CONFIG}
    environment |= {"FADRM_PYTHON": str(stand.python), "Main_Data_Path": str(stand.folder / "data")}
    command = ["bash", str(ROOT / "compare.sh"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr, [" ".join(call) for call in stand.calls]


def test_all_methods_and_all_ways_to_choose_end_in_one_table(stand):
    status, errors, calls = compare(stand, "cifar100", "10", "ResNet50", "--seed", "3")
    assert (status, errors) == (0, "")
    checked = [call.split()[4] for call in calls if " --check " in call]
    assert sorted(checked) == sorted(recipes.METHODS)
    assert all(call.endswith("10 ResNet50 --seed 3 --draw 0 1 2") for call in calls if " --check " in call)
    chosen = [call.split("--selector ")[1].split()[0] for call in calls if "--selector" in call]
    assert chosen == ["easy", "medium", "herding", "k-centre", "coverage", "balanced"]
    for selector in chosen:
        assert (
            f"-m relabel.relabel --dataset-name cifar100 --recipe fadrm+ --ipc 10 --images {selector} --draw 0 1 2"
            in calls
        )
    trained = "-m validate.validate --dataset-name cifar100 --recipe fadrm+ --ipc 10 --model ResNet50 --images coverage"
    assert f"{trained} --seed 3 --draw 0 1 2" in calls
    assert calls[-1] == "-m validate.report --methods cifar100"


def test_some_rows_alone_with_other_draws_and_labels(stand):
    words = ["--rows", "rded coverage", "--labels", "fixed", "hard", "--draw", "4"]
    status, errors, calls = compare(stand, "cifar100", "1", *words)
    assert (status, errors) == (0, "")
    assert [call.split()[4] for call in calls if " --check " in call] == ["rded"]
    assert next(call for call in calls if "--selector" in call).endswith("--selector coverage --draw 4")
    labelled = "--recipe fadrm+ --ipc 1 --images coverage --draw 4 --labels fixed hard"
    assert f"-m relabel.relabel --dataset-name cifar100 {labelled}" in calls
    assert "-m recover.recover --dataset-name cifar100 --recipe rded --ipc 1 --draw 4" in calls
    status, errors, _ = compare(stand, "--rows")
    assert status == 2 and errors.startswith("error: --rows: name methods and selectors behind it")


def test_a_method_that_fails_ends_the_comparison(stand):
    stand.end_in('[ "$4 $5" != "fashion_mnist fadrm" ] || exit 2')
    assert compare(stand)[0] == 2
    assert stand.calls[-1][3:5] == ["fashion_mnist", "fadrm"]


# How it ends


@pytest.mark.parametrize("end", ["exit 2", "exit 1", "kill -KILL $$"])
@pytest.mark.parametrize("step", ["data", "recover", "random images: validate"])
def test_a_step_that_fails_ends_the_run_with_its_status(stand, step, end):
    at = STEPS.index(step) + 1
    stand.end_in(f'[ "$(wc -l <"$here/calls")" -gt {at} ] || return 0\necho "error: broken" >&2\n{end}\n')
    status, output, errors = stand.run()
    assert status == (137 if "KILL" in end else int(end[-1]))
    assert stand.calls == expected_calls("fashion_mnist", "fadrm+", "10", [], [])[: at + 1]
    assert output.endswith(f"\n=== {step}\n")
    lines = errors.splitlines()
    lines.remove("error: broken")  # which passes through the log's tee, and may come behind what bash says
    assert lines == [] or ("KILL" in end and len(lines) == 1 and " Killed " in lines[0])


def test_what_cannot_be_is_told_before_the_first_step(stand):
    stand.end_in('[ "$3" != --check ] || exit 2')
    assert stand.run("mnist")[:2] == (2, "")
    assert len(stand.calls) == 1


def test_a_report_that_fails(stand):
    stand.end_in('[ "$2 $3" != "validate.report fashion_mnist" ] || exit 2')
    assert stand.run()[0] == 2


# A step that notes a signal, takes some time to end, and says so.
SLEEPER = """
import os, signal, sys, time
folder, number, status = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def note(*_):
    open(f"{folder}/got", "w").close()
    time.sleep(0.3)
    print("error: got it", file=sys.stderr, flush=True)
    os._exit(status)

signal.signal(number, note)
with open(f"{folder}/pid", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{folder}/pid", f"{folder}/ready")
time.sleep(20)
"""


def signalled(stand, number, status, send=os.kill):
    """run.sh, sent a signal while recover runs, which notes it and ends with a status: what became of it."""
    (stand.folder / "sleeper.py").write_text(SLEEPER)
    words = f'"{sys.executable}" "$here/sleeper.py" "$here" {int(number)} {status}'
    stand.end_in(f'[ "$2" != recover.recover ] || exec {words}')
    process = stand.start()
    ready, patience = stand.folder / "ready", time.monotonic() + 30
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.01)
    send(process.pid, number)
    try:
        output, errors = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        pytest.fail(f"recover goes on after {number.name} to run.sh, which ended with {process.poll()}")
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(ready.read_text()), signal.SIGKILL)
    assert (stand.folder / "got").exists()
    return process.returncode, output, errors.splitlines()


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to_it", "from_a_terminal"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_reaches_the_step_and_ends_the_run_with_its_status(stand, number, send):
    status, output, errors = signalled(stand, number, 128 + number, send)
    assert (status, errors) == (128 + number, ["error: got it"])
    assert output.endswith("\n=== recover\n")
    assert stand.calls[-1][1] == "recover.recover"


def test_ctrl_c_while_a_step_ends_well_still_ends_the_run(stand):
    status, output, _ = signalled(stand, signal.SIGINT, 0)
    assert output.endswith("\n=== recover\n")
    assert status == 130


# What is asked of it


@pytest.mark.parametrize("words", ["--help", "-h", "cifar100 --help"])
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_help(stand, words, shell):
    status, output, errors = stand.run(*words.split(), shell=shell)
    assert (status, errors, stand.calls) == (0, "", [])
    assert output.startswith("From real images to a student's accuracy")
    assert (
        "\n    bash run.sh DATASET METHOD IPC STUDENT --seed 0 1 2 --draw 0 1 2 --labels views fixed hard\n" in output
    )
    assert "#" not in output.replace(" # ", "") and "launch" not in output


def test_too_many_words(stand):
    line = "error: 'cifar100 fadrm 1 ResNet18 more': there are DATASET METHOD IPC STUDENT, then flags\n"
    assert stand.run("cifar100", "fadrm", "1", "ResNet18", "more") == (2, "", line)
    assert stand.calls == []


def test_sh_and_a_link(stand, tmp_path):
    (tmp_path / "link.sh").symlink_to(ROOT / "run.sh")
    stand.end_in("exit 7")
    known = {"FADRM_PYTHON": str(stand.python), "Main_Data_Path": str(tmp_path / "data")}
    done = subprocess.run(["sh", str(tmp_path / "link.sh")], env=os.environ | known, capture_output=True, timeout=60)
    assert done.returncode == 7
    assert stand.calls == expected_calls("fashion_mnist", "fadrm+", "10", [], [])[:1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mnist", "unknown dataset 'mnist'; there are: "),
        ("cifar100 dm", "no recipe for the method 'dm'; there are: "),
        ("cifar100 fadrm ten", "IPC 'ten' is no number"),
        ("cifar100 fadrm 0", "IPC 0: a recipe makes at least 1"),
        ("cifar100 fadrm 1 ResNet999", "unknown network 'ResNet999'"),
        ("cifar100 fadrm --alpha 0.5", "unrecognized arguments: --alpha 0.5"),
        ("cifar100 --seed one", "argument --seed: invalid int value: 'one'"),
        ("--dry-run", "--dry-run"),  # it would be of the students alone, behind steps that write
    ],
)
def test_words_that_are_no_cell(processes, tmp_path, words, message):
    folders = {name: str(tmp_path / name) for name in CONFIG}
    stub = tmp_path / "python"  # which starts nothing but the check
    stub.write_text(f'#!/usr/bin/env bash\n[ "$3" = --check ] && exec "{sys.executable}" "$@"\nexit 99\n')
    stub.chmod(0o755)
    known = os.environ | folders | {"FADRM_PYTHON": str(stub)}
    command = ["bash", str(ROOT / "run.sh"), *words.split()]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


# All of it in miniature, on a dataset of one's own, by the README's own words

# Python imports this on its start: recipes with the least of everything.
MINIATURE = """
from utils import recipes
from utils.recipes.teachers import TEACHER_TRAINING
real = recipes.METHODS["fadrm"]
def miniature(dataset, ipc):
    tiny = dict(teachers=("ConvNetBN_W32",), observer="ConvNetBN_W32", sizes=(24, 32), budgets=(2, 2))
    tiny |= dict(max_images=12, num_crops=2, patches_per_class=1, epochs=2)
    return real(dataset, ipc).set(**tiny)
recipes.METHODS["fadrm"] = miniature
TEACHER_TRAINING["cifar100"] |= {"epochs": 2, "batch_size": 30}
"""
CLASSES, IMAGES = ("circle", "cross", "stripes"), 40


def draw_classes(folder, count):
    """Class folders of pictures that a network tells apart at once: flat colours with noise, of odd sizes."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (40, 36 + label, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def commands_of_the_readme():
    """What the README says for a dataset of one's own."""
    text = (ROOT / "README.md").read_text()
    return re.search(r"\*\*A dataset\*\*.*?```bash\n(.*?)```", text, re.DOTALL)[1]


def test_the_readmes_own_dataset_from_folders_to_the_report(tmp_path):
    data, generated = tmp_path / "outputs", tmp_path / "outputs" / "generated_data"
    (tmp_path / "sitecustomize.py").write_text(MINIATURE)
    draw_classes(tmp_path / "my" / "train", IMAGES)
    draw_classes(tmp_path / "my" / "val", 5)
    for name in ("run.sh", "config.sh"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if name not in CONFIG}
    environment |= {"FADRM_PYTHON": sys.executable, "PYTHONPATH": f"{tmp_path}:{ROOT}", "Main_Data_Path": str(data)}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = commands_of_the_readme()
    assert "python -m utils.data.prepare shapes" in script and "bash run.sh shapes fadrm 1 ConvNetBN_W32" in script
    command = ["bash", "-euc", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "error" not in done.stderr

    assert re.findall("^=== (.*)$", done.stdout, re.MULTILINE) == STEPS
    for made in ("1 teachers", "3 patches", "3 images", "2 epochs"):
        assert f": {made} in " in done.stdout
    described = json.loads((data / "datasets" / "shapes.json").read_text())
    assert (described["num_classes"], described["size"], described["train_images"]) == (3, 32, 3 * IMAGES)
    folder = generated / "validate_output" / "shapes" / "fadrm_ipc1_ConvNetBN_W32"
    result = json.loads((folder / "seed0" / "result.json").read_text())
    assert (result["dataset"], result["method"], result["ipc"], result["seed"]) == ("shapes", "fadrm", 1, 0)
    teacher = json.loads((data / "pretrained_models/shapes_pretrained_models/ConvNetBN_W32.json").read_text())
    assert teacher["top1"] > 90
    assert result["teachers"] == [{"name": "ConvNetBN_W32", "sha256": teacher["sha256"], "weight": 1.0}]
    images = generated / "syn_data" / "shapes" / "fadrm_ipc1"
    with Image.open(images / "new002" / "class002_id000.png") as image:
        assert image.size == (32, 32)
    assert (images / "contact_sheet.png").exists() and (folder / "curve.png").exists()
    assert sorted(path.name for path in (data / "logs").iterdir()) == [
        "choose_shapes_1.log",
        "patches_shapes_fadrm_1.log",
        "pretrain_shapes.log",
        "recover_shapes_fadrm_1.log",
        "relabel_shapes_fadrm_1.log",
        "validate_shapes_fadrm_1_ConvNetBN_W32.log",
    ]
    report = json.loads((generated / "reports" / "shapes_fadrm_ipc1_ConvNetBN_W32.json").read_text())
    assert report["teachers"] == {"ConvNetBN_W32": teacher["top1"]}
    top1 = {row: values["top1"]["mean"] for row, values in report["accuracy"].items()}
    assert top1.keys() == {"fadrm", "random real images"} and top1["fadrm"] == result["top1"]
    assert len(report["steps"]) == 8
    for line in (r"teacher ConvNetBN_W32 +\d", r"fadrm \(1\) +\d", r"random real images \(3\) +\d", r"recover +\d"):
        assert re.search(f"^{line}", done.stdout, re.MULTILINE), line
