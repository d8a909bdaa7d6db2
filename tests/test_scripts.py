"""The shell scripts: all there, short, and each starting the stage that its name says, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import recipes

ROOT = Path(__file__).parents[1]
METHODS, IPCS = ("fadrm", "fadrm+"), (1, 10, 50)


def expected_scripts():
    """Every script that there has to be, and the words that it hands to `launch`."""
    scripts = {}
    for dataset in recipes.DATASETS:
        for method in METHODS:
            for ipc in IPCS:
                for stage in ("recover", "relabel"):
                    path = f"{stage}/scripts/{dataset}/{stage}_{method}_ipc{ipc}.sh"
                    scripts[path] = [stage, dataset, method, str(ipc)]
            student = recipes.recipe_of(dataset, method, 10).student
            scripts[f"validate/scripts/{dataset}/validate_{method}.sh"] = ["validate", dataset, method, "10", student]
        scripts[f"recover/scripts/{dataset}/make_patches.sh"] = ["patches", dataset, "fadrm+", "50"]
        scripts[f"models/scripts/{dataset}/pretrain.sh"] = ["pretrain", dataset]
    return scripts


SCRIPTS = expected_scripts()
COMMANDS = ("run.sh", "config.sh", "tests/run.sh", ".ci/run", "utils/launch.sh", "utils/setup.sh")


@pytest.fixture
def stub(tmp_path):
    """A stand-in for Python: prints its arguments, one a line, a word on stderr, and exits with status 7."""
    path = tmp_path / "stub python"
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\necho "a warning" >&2\nexit 7\n')
    path.chmod(0o755)
    return path


def run(script, *arguments, folder, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in environment}
    return subprocess.run(
        ["bash", str(ROOT / script), *arguments],
        cwd=folder,
        env=clean | {name: str(value) for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_there_are_these_scripts_and_no_others():
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob("*/scripts/*/*")}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_is_short_and_names_its_recipe_only(script):
    lines = (ROOT / script).read_text().splitlines()
    assert len(lines) <= 4
    assert lines[-1].endswith('-- "$@"')
    assert os.access(ROOT / script, os.X_OK)


def test_all_scripts_are_valid_shell():
    for script in (*SCRIPTS, *COMMANDS):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_starts_its_stage_from_any_folder(script, stub, tmp_path):
    done = run(script, "--seed", "0 1", folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == ["-m", "utils.launch", *SCRIPTS[script], "--", "--seed", "0 1"]
    assert done.stderr == "a warning\n"
    assert done.returncode == 7


def test_the_script_becomes_python_so_that_signals_reach_it(tmp_path):
    stub = tmp_path / "python"
    stub.write_text("#!/usr/bin/env bash\necho $$\nkill -TERM $$\n")
    stub.chmod(0o755)
    script = ROOT / "recover/scripts/cifar100/recover_fadrm_ipc1.sh"
    environment = os.environ | {"FADRM_PYTHON": str(stub)}
    with subprocess.Popen(["bash", str(script)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.stdout.readline()) == process.pid
    assert process.returncode == -15


def test_ipc_and_student_of_validate_can_be_edited(stub, tmp_path):
    text = (ROOT / "validate/scripts/cifar100/validate_fadrm+.sh").read_text()
    assert text.splitlines()[1].startswith("ipc=10 model=ResNet18")
    copy = tmp_path / "validate.sh"
    launcher = f'source "{ROOT}/utils/launch.sh"'
    lines = text.replace("ipc=10 model=ResNet18", "ipc=50 model=ResNet101").splitlines()
    copy.write_text("\n".join(launcher if line.startswith("source") else line for line in lines))
    done = run(copy, folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines()[2:] == ["validate", "cifar100", "fadrm+", "50", "ResNet101", "--"]


FOLDERS = ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")


def folders_of_config(tmp_path, **given):
    stub = tmp_path / "python"
    stub.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" {" ".join(f"${name}" for name in FOLDERS)}\n')
    stub.chmod(0o755)
    environment = dict.fromkeys(FOLDERS) | given
    script = "recover/scripts/cifar100/recover_fadrm_ipc1.sh"
    return run(script, folder=tmp_path, FADRM_PYTHON=stub, **environment).stdout.splitlines()


def test_folders_of_config_lie_in_the_project(tmp_path):
    outputs = ROOT / "outputs"
    assert folders_of_config(tmp_path) == [str(outputs), *(str(outputs / name) for name in ("train", "val", "patches"))]


def test_a_variable_of_the_environment_wins_over_config(tmp_path):
    given = folders_of_config(tmp_path, Main_Data_Path="/data", val_dir="/elsewhere")
    assert given == ["/data", "/data/train", "/elsewhere", "/data/patches"]


def test_a_whole_call_prints_on_its_streams_and_into_a_log(tmp_path):
    """imagenet1k needs no teachers; cifar100's training data is missing here, which is one line and exit status 2."""
    place = {"folder": tmp_path, "Main_Data_Path": tmp_path / "data", "FADRM_PYTHON": sys.executable}
    done = run("models/scripts/imagenet1k/pretrain.sh", **place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to train" in done.stdout
    done = run("recover/scripts/cifar100/recover_fadrm_ipc1.sh", "--alpha", "2", **place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --alpha 2.0")
    assert done.stderr.count("\n") == 1
    log = (tmp_path / "data" / "logs" / "recover_cifar100_fadrm_ipc1.log").read_text()
    assert log.endswith(done.stderr)


PYTEST = ["-m", "pytest", "--numprocesses", "auto", "--dist", "worksteal"]
PYTEST += ["--cov", "--cov-report=term:skip-covered", "--cov-fail-under=90"]


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("run.sh", ["cifar100", "fadrm+"], [["-m", "utils.pipeline", "cifar100", "fadrm+"]]),
        (
            "tests/run.sh",
            ["-k", "a b"],
            [[*PYTEST, "-k", "a b"]],
        ),
        (
            ".ci/run",
            [],
            [
                ["-m", "ruff", "check", "."],
                ["-m", "ruff", "format", "--check", "."],
                PYTEST,
            ],
        ),
    ],
)
def test_commands(command, arguments, expected, tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\nprintf "%s|" "$@"\necho\n')
    stub.chmod(0o755)
    done = run(command, *arguments, folder=tmp_path, FADRM_PYTHON=stub)
    assert [line.split("|")[:-1] for line in done.stdout.splitlines()] == expected
    assert done.returncode == 0
