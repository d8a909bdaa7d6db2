"""The shell scripts: all there, short, and each handing to Python what its name says, from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils import recipes
from utils.data.table import DATASETS

ROOT = Path(__file__).parents[1]
METHODS, IPCS = ("fadrm", "fadrm+"), (1, 10, 50)
MODULES = {
    "recover": "recover.recover",
    "relabel": "relabel.relabel",
    "validate": "validate.validate",
    "patches": "recover.make_patches",
    "choose": "recover.choose_images",
    "pretrain": "models.pretrain",
}


def words_of(stage, dataset, method=None, ipc=None, *models):
    """What Python is given for a stage."""
    words = ["-m", MODULES[stage], "--dataset-name", dataset]
    words += ["--recipe", method] if method else []
    words += ["--ipc", *ipc.split()] if ipc else []
    return [*words, "--model", *models] if models else words


def expected_scripts():
    """Every script of one recipe that there has to be, and the words that it hands to Python."""
    scripts = {}
    for name, dataset in DATASETS.items():
        for method in METHODS:
            for ipc in IPCS:
                for stage in ("recover", "relabel"):
                    path = f"{stage}/scripts/{name}/{stage}_{method}_ipc{ipc}.sh"
                    scripts[path] = words_of(stage, name, method, str(ipc))
            student = recipes.recipe_of(dataset, method, 10).validate.model
            scripts[f"validate/scripts/{name}/validate_{method}.sh"] = words_of("validate", name, method, "10", student)
        scripts[f"recover/scripts/{name}/make_patches.sh"] = words_of("patches", name, "fadrm+", "50")
        scripts[f"models/scripts/{name}/pretrain.sh"] = words_of("pretrain", name)
    return scripts


SCRIPTS = expected_scripts()
GENERIC = {
    f"{s}/scripts/{dataset}/{s}.sh": (s, dataset) for s in ("recover", "relabel", "validate") for dataset in DATASETS
}
COMMANDS = ("run.sh", "config.sh", "tests/run.sh", ".ci/run", "utils/run/launch.sh", "utils/run/setup.sh")
# Python as launch.sh uses it: it has what it needs, prints its arguments, one a line, and a word on stderr, and fails.
STUB = '#!/usr/bin/env bash\n[ "$1" = -c ] && exit\nprintf "%s\\n" "$@"\necho "a warning" >&2\nexit 7\n'
RECOVER = "recover/scripts/cifar100/recover_fadrm_ipc1.sh"


def command(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def stub(tmp_path):
    return command(tmp_path / "stub python", STUB)


def run(script, *arguments, folder, shell="bash", **environment):
    """Call a script with everything it makes below `folder`; a variable that is None is not set."""
    known = {"Main_Data_Path": folder / "data", "RANK": None, "CUDA_VISIBLE_DEVICES": None, **environment}
    clean = {name: value for name, value in os.environ.items() if name not in known}
    return subprocess.run(
        [shell, str(ROOT / script), *arguments],
        cwd=folder,
        env=clean | {name: str(value) for name, value in known.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
    )


# What there is


def test_there_are_these_scripts_and_no_others():
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob("*/scripts/*/*")}
    assert found == {*SCRIPTS, *GENERIC}


@pytest.mark.parametrize("script", [*SCRIPTS, *GENERIC])
def test_each_script_is_short_and_names_its_recipe_only(script):
    lines = (ROOT / script).read_text().splitlines()
    assert len(lines) <= 5
    assert lines[-1].endswith('-- "$@"')
    assert os.access(ROOT / script, os.X_OK)


def test_all_scripts_are_valid_shell():
    for script in (*SCRIPTS, *GENERIC, *COMMANDS):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


# What they hand to Python


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_starts_its_stage_from_any_folder(script, stub, tmp_path):
    done = run(script, "--seed", "0 1", folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == [*SCRIPTS[script], "--seed", "0 1"]
    assert done.stderr == "a warning\n"
    assert done.returncode == 7


@pytest.mark.parametrize("script", GENERIC)
def test_a_script_of_no_recipe_takes_any(script, stub, tmp_path):
    done = run(script, "cv-dd", "7", "--seed", "1", folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == [*words_of(*GENERIC[script], "cv-dd", "7"), "--seed", "1"]


VALIDATE, PRETRAIN = "validate/scripts/cifar10/validate_fadrm.sh", "models/scripts/cifar10/pretrain.sh"
PATCHES = "recover/scripts/cifar10/make_patches.sh"


@pytest.mark.parametrize(
    ("script", "words", "expected", "flags"),
    [
        (VALIDATE, "50", words_of("validate", "cifar10", "fadrm", "50", "ResNet18"), ""),
        (VALIDATE, "50 B", words_of("validate", "cifar10", "fadrm", "50", "B"), ""),
        (VALIDATE, "B", words_of("validate", "cifar10", "fadrm", "10", "B"), ""),
        (
            VALIDATE,
            "1 50 B timm:c --seed 0 1",
            words_of("validate", "cifar10", "fadrm", "1 50", "B", "timm:c"),
            "--seed 0 1",
        ),
        (VALIDATE, "--seed 0 1", words_of("validate", "cifar10", "fadrm", "10", "ResNet18"), "--seed 0 1"),
        (
            "validate/scripts/cifar10/validate.sh",
            "rded 1 10 A B --seed 2",
            words_of("validate", "cifar10", "rded", "1 10", "A", "B"),
            "--seed 2",
        ),
        (PRETRAIN, "A B --seed 1", words_of("pretrain", "cifar10", None, None, "A", "B"), "--seed 1"),
        (PRETRAIN, "A", words_of("pretrain", "cifar10", None, None, "A"), ""),
        (PATCHES, "rded 10 --factor 2", words_of("patches", "cifar10", "rded", "10"), "--factor 2"),
        (PATCHES, "rded", words_of("patches", "cifar10", "rded", "50"), ""),
        (PATCHES, "7", words_of("patches", "cifar10", "fadrm+", "7"), ""),
        (RECOVER, "2 --lr 1 -- x", words_of("recover", "cifar100", "fadrm", "2"), "--lr 1 -- x"),
    ],
)
def test_words_behind_a_script_stand_in_place_of_its_own(script, words, expected, flags, stub, tmp_path):
    done = run(script, *words.split(), folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == [*expected, *flags.split()]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("recover/scripts/cifar10/recover.sh", ""),
        ("recover/scripts/cifar10/recover.sh", "fadrm"),
        ("relabel/scripts/cifar10/relabel.sh", "10"),
        ("validate/scripts/cifar10/validate.sh", "--seed 0"),
    ],
)
def test_a_script_without_method_or_ipc_says_what_it_needs(script, words, stub, tmp_path):
    done = run(script, *words.split(), folder=tmp_path, FADRM_PYTHON=stub)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: name a method and its IPC, for example: fadrm+ 10\n"
    assert not (tmp_path / "data").exists()


def launch(tmp_path, words, **environment):
    """Call `launch` with these words."""
    script = command(tmp_path / "script.sh", f'. "{ROOT}/utils/run/launch.sh"\nlaunch {words}\n')
    return run(script, folder=tmp_path, **environment)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("choose cifar10 7", words_of("choose", "cifar10", None, "7")),
        ("choose cifar10 7 -- --selector easy", [*words_of("choose", "cifar10", None, "7"), "--selector", "easy"]),
        ('validate cifar10 fadrm "1 10" "A B"', words_of("validate", "cifar10", "fadrm", "1 10", "A", "B")),
        ("pretrain cifar10 -- --recipe rded", [*words_of("pretrain", "cifar10"), "--recipe", "rded"]),
    ],
)
def test_launch_in_a_script_of_ones_own(words, expected, stub, tmp_path):
    assert launch(tmp_path, words, FADRM_PYTHON=stub).stdout.splitlines() == expected


def test_ipc_and_student_of_validate_can_be_edited(stub, tmp_path):
    text = (ROOT / "validate/scripts/cifar100/validate_fadrm+.sh").read_text()
    assert text.splitlines()[1].startswith("ipc=10 model=ResNet18")
    launcher = f'. "{ROOT}/utils/run/launch.sh"'
    lines = text.replace("ipc=10 model=ResNet18", 'ipc="50 1" model=ResNet101').splitlines()
    edited = command(tmp_path / "v.sh", "\n".join(launcher if line.startswith(". ") else line for line in lines))
    done = run(edited, folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == words_of("validate", "cifar100", "fadrm+", "50 1", "ResNet101")


# How they are called


@pytest.mark.parametrize("script", [RECOVER, "validate/scripts/cifar10/validate_fadrm.sh"])
def test_sh_in_place_of_bash(script, stub, tmp_path):
    done = run(script, "--seed", "0 1", folder=tmp_path, shell="sh", FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == [*SCRIPTS[script], "--seed", "0 1"]
    assert (done.returncode, done.stderr) == (7, "a warning\n")


def test_a_bash_that_is_called_sh(stub, tmp_path):
    (tmp_path / "sh").symlink_to(shutil.which("bash"))
    done = run(RECOVER, "--seed", "0 1", folder=tmp_path, shell=str(tmp_path / "sh"), FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == [*SCRIPTS[RECOVER], "--seed", "0 1"]
    assert (done.returncode, done.stderr) == (7, "a warning\n")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_link_to_a_script(shell, stub, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "first.sh").symlink_to(ROOT / RECOVER)
    (tmp_path / "second.sh").symlink_to("folder/first.sh")
    done = run(tmp_path / "second.sh", folder=tmp_path, shell=shell, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == SCRIPTS[RECOVER]


def test_the_script_becomes_python_so_that_signals_reach_it(tmp_path):
    stub = command(tmp_path / "python", '#!/usr/bin/env bash\n[ "$1" = -c ] && exit\necho $$\nkill -TERM $$\n')
    environment = os.environ | {"FADRM_PYTHON": str(stub), "Main_Data_Path": str(tmp_path)}
    with subprocess.Popen(["bash", str(ROOT / RECOVER)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.stdout.readline()) == process.pid
    assert process.returncode == -15


def test_no_module_of_the_folder_that_it_is_called_from_is_taken(tmp_path):
    """Nor of a script's own folder."""
    for name in ("torch.py", "utils.py", "recover.py"):
        (tmp_path / name).write_text("raise SystemExit(99)\n")
    done = run(RECOVER, "--alpha", "2", folder=tmp_path, FADRM_PYTHON=sys.executable)
    assert done.returncode == 2 and done.stderr.startswith("error: --alpha 2.0")


# How many processes

TORCHRUN = ["-m", "utils.run.torchrun", "--nproc-per-node"]


@pytest.mark.parametrize(
    ("environment", "flags", "count"),
    [
        ({"FADRM_PROCESSES": "1"}, "", 1),
        ({"FADRM_PROCESSES": "3"}, "--device cpu", 3),
        ({"FADRM_PROCESSES": "", "CUDA_VISIBLE_DEVICES": ""}, "", 1),
        ({"FADRM_PROCESSES": None, "CUDA_VISIBLE_DEVICES": "-1"}, "", 1),
        ({"FADRM_PROCESSES": None, "CUDA_VISIBLE_DEVICES": "2"}, "", 1),
        ({"FADRM_PROCESSES": None, "CUDA_VISIBLE_DEVICES": "0,1,3"}, "--seed 1", 3),
        ({"FADRM_PROCESSES": None, "CUDA_VISIBLE_DEVICES": "0,1,3"}, "--device cuda", 3),
        ({"FADRM_PROCESSES": None, "CUDA_VISIBLE_DEVICES": "0,1,3"}, "--device cpu", 1),
        ({"FADRM_PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "0,1,3"}, "", 2),
        ({"FADRM_PROCESSES": "3", "RANK": "1"}, "", 1),  # torchrun has started them
    ],
)
def test_how_many_processes(environment, flags, count, stub, tmp_path):
    done = run(RECOVER, *flags.split(), folder=tmp_path, FADRM_PYTHON=stub, **environment)
    before = [] if count == 1 else [*TORCHRUN, str(count)]
    assert done.stdout.splitlines() == [*before, *SCRIPTS[RECOVER], *flags.split()]
    assert done.returncode == 7


@pytest.mark.parametrize("given", ["0", "two", "-1", "2 3"])
def test_a_number_of_processes_that_is_none(given, stub, tmp_path):
    done = run(RECOVER, folder=tmp_path, FADRM_PYTHON=stub, FADRM_PROCESSES=given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: FADRM_PROCESSES={given}: it is a number of processes, 1 or more\n"
    assert not (tmp_path / "data").exists()


def printing(tmp_path, *names):
    """A stand-in for Python that prints variables of its environment."""
    values = " ".join(f'"${{{name}-unset}}"' for name in names)
    return command(tmp_path / "python", f'#!/usr/bin/env bash\n[ "$1" = -c ] && exit\nprintf "%s\\n" {values}\n')


@pytest.mark.parametrize(
    ("processes", "given", "threads"), [("1", None, "unset"), ("2", None, None), ("2", "7", "7"), ("1000", None, "1")]
)
def test_processes_share_the_cores(tmp_path, processes, given, threads):
    stub = printing(tmp_path, "OMP_NUM_THREADS")
    done = run(RECOVER, folder=tmp_path, FADRM_PYTHON=stub, FADRM_PROCESSES=processes, OMP_NUM_THREADS=given)
    assert done.stdout.strip() == threads or str(-(-len(os.sched_getaffinity(0)) // 2))


# config.sh

FOLDERS = ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")


def folders_of_config(tmp_path, **given):
    environment = dict.fromkeys(FOLDERS) | given
    stub = printing(tmp_path, *FOLDERS)
    # a dry run leaves no log, which would lie in the project
    return run(RECOVER, "--dry-run", folder=tmp_path, FADRM_PYTHON=stub, **environment).stdout.splitlines()


def test_folders_of_config_lie_in_the_project(tmp_path):
    outputs = ROOT / "outputs"
    assert folders_of_config(tmp_path) == [str(outputs), *(str(outputs / name) for name in ("train", "val", "patches"))]


def test_a_variable_of_the_environment_wins_over_config(tmp_path):
    given = folders_of_config(tmp_path, Main_Data_Path="/data", val_dir="/elsewhere")
    assert given == ["/data", "/data/train", "/elsewhere", "/data/patches"]


def test_a_quoted_tilde_is_the_home_folder(tmp_path):
    given = folders_of_config(tmp_path, Main_Data_Path="~/data", val_dir="/elsewhere/~/x", HOME="/home/me")
    assert given == ["/home/me/data", "/home/me/data/train", "/elsewhere/~/x", "/home/me/data/patches"]


# The log


@pytest.mark.parametrize(
    ("script", "words", "name"),
    [
        ("recover/scripts/cifar100/recover_fadrm+_ipc10.sh", "--seed 1", "recover_cifar100_fadrm+_10.log"),
        ("relabel/scripts/cifar100/relabel.sh", "cv-dd 7", "relabel_cifar100_cv-dd_7.log"),
        (VALIDATE, "1 timm:vit", "validate_cifar10_fadrm_1_timm_vit.log"),
        (VALIDATE, "1 10 A B", "validate_cifar10_fadrm_1_10_A_B.log"),
        (PRETRAIN, "", "pretrain_cifar10.log"),
        (PRETRAIN, "A B", "pretrain_cifar10_A_B.log"),
        (PATCHES, "", "patches_cifar10_fadrm+_50.log"),
        (PRETRAIN, " ".join(f"timm:a_network{index}" for index in range(30)), None),
    ],
)
def test_the_name_of_the_log(script, words, name, stub, tmp_path):
    run(script, *words.split(), folder=tmp_path, FADRM_PYTHON=stub)
    (log,) = (tmp_path / "data" / "logs").iterdir()
    assert log.name == name or (name is None and len(log.name) == len("x.log") + 119)


def test_the_log_has_the_command_and_both_streams_of_every_run(stub, tmp_path):
    for seed in "12":
        run(RECOVER, "--seed", seed, folder=tmp_path, FADRM_PYTHON=stub)
    lines = (tmp_path / "data/logs/recover_cifar100_fadrm_1.log").read_text().splitlines()
    titles = [line for line in lines if line.startswith("--- ")]
    words = " ".join(SCRIPTS[RECOVER])
    assert [title[len("--- 2000-01-01 00:00:00 ") :] for title in titles] == [
        f"{stub} {words} --seed {s}".replace("stub python", "stub\\ python") for s in "12"
    ]
    assert lines[0] == titles[0]
    rest = [line for line in lines if line not in titles]
    assert sorted(rest) == sorted(
        [*SCRIPTS[RECOVER], "--seed", "1", *SCRIPTS[RECOVER], "--seed", "2", *["a warning"] * 2]
    )


def test_a_dry_run_leaves_no_log(stub, tmp_path):
    done = run(RECOVER, "--dry-run", folder=tmp_path, FADRM_PYTHON=stub)
    assert done.stdout.splitlines() == [*SCRIPTS[RECOVER], "--dry-run"]
    assert done.returncode == 7
    assert not (tmp_path / "data").exists()


def test_output_comes_at_once_and_bars_are_thinned(tmp_path):
    names = ("PYTHONUNBUFFERED", "TQDM_MININTERVAL")
    stub = printing(tmp_path, *names)
    environment = {"PYTHONUNBUFFERED": None, "TQDM_MININTERVAL": None}
    assert run(RECOVER, folder=tmp_path, FADRM_PYTHON=stub, **environment).stdout.split() == ["1", "0.5"]
    environment["TQDM_MININTERVAL"] = "3"
    assert run(RECOVER, folder=tmp_path, FADRM_PYTHON=stub, **environment).stdout.split() == ["1", "3"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no /dev/full")
def test_a_full_disk_does_not_keep_the_message_from_the_terminal(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    command(tools / "tee", f"#!/usr/bin/env bash\nexec {shutil.which('tee')} -ai /dev/full\n")
    line = "error: no space left while writing a.png"
    stub = command(tmp_path / "python", f'#!/usr/bin/env bash\n[ "$1" = -c ] && exit\necho "{line}" >&2\nexit 2\n')
    done = run(RECOVER, folder=tmp_path, FADRM_PYTHON=stub, PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert line in done.stderr.splitlines()


def test_a_log_that_cannot_be_written_is_said_and_the_stage_goes_on(stub, tmp_path):
    """On a disk that is read-only a stage may have nothing left to do; on one that is full it says so itself."""
    (tmp_path / "file").touch()
    done = run(RECOVER, folder=tmp_path, FADRM_PYTHON=stub, Main_Data_Path=tmp_path / "file" / "data")
    assert done.returncode == 7 and "recover.recover" in done.stdout
    log = f"{tmp_path}/file/data/logs/recover_cifar100_fadrm_1.log"
    assert done.stderr == f"note: {log} cannot be written: this run has no log\na warning\n"


@pytest.mark.parametrize("script", [RECOVER, VALIDATE, "models/scripts/cifar10/pretrain.sh"])
def test_a_copy_of_a_script_finds_the_project_where_slurm_says(script, stub, tmp_path):
    """As sbatch runs it: from its spool, submitted in the project's folder."""
    (tmp_path / "spool").mkdir()
    copy = shutil.copy(ROOT / script, tmp_path / "spool" / "slurm_script")
    environment = {**os.environ, "FADRM_PYTHON": str(stub), "Main_Data_Path": str(tmp_path / "data")}
    call = {"capture_output": True, "text": True, "timeout": 60, "cwd": tmp_path}
    done = subprocess.run(["bash", copy], env={**environment, "SLURM_SUBMIT_DIR": str(ROOT)}, **call)
    assert (done.returncode, done.stderr) == (7, "a warning\n") and "--dataset-name" in done.stdout
    lost = subprocess.run(["bash", copy], env=environment, **call)
    assert lost.returncode != 0 and lost.stdout == "" and "utils/run/launch.sh" in lost.stderr


def test_a_whole_call_prints_on_its_streams_and_into_a_log(tmp_path):
    done = run(RECOVER, "--alpha", "2", folder=tmp_path, FADRM_PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --alpha 2.0: it must be from 0 to 1\n"
    log = (tmp_path / "data" / "logs" / "recover_cifar100_fadrm_1.log").read_text()
    assert log.endswith(done.stderr)


# The other commands

PYTEST = ["-m", "pytest", "--numprocesses", "auto", "--dist", "worksteal"]
PYTEST += ["--cov", "--cov-report=term:skip-covered", "--cov-fail-under=90"]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("tests/run.sh", ["-k", "a b"], [[*PYTEST, "-k", "a b"]]),
        (".ci/run", [], [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], PYTEST]),
    ],
)
def test_commands(name, arguments, expected, tmp_path):
    stub = command(tmp_path / "python", '#!/usr/bin/env bash\nprintf "%s|" "$@"\necho\n')
    done = run(name, *arguments, folder=tmp_path, FADRM_PYTHON=stub)
    assert [line.split("|")[:-1] for line in done.stdout.splitlines()] == expected
    assert done.returncode == 0
