"""Finding and making the Python that runs the project, with stand-ins for Python, venv and pip."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Python as far as setup.sh uses it. What an interpreter satisfies is a file of requirement files' names beside it;
# PyTorch is there where it satisfies those of the project.
STAND_IN = r"""#!/usr/bin/env bash
here=$(dirname "$0")
satisfies() { grep -qx "$1" "$here/satisfies"; }
case "$1 $2" in
"-c "*)
    [ "${STAND_IN_TOO_OLD:-0}" = 0 ] || exit 1
    case "$2" in *find_spec*) satisfies project/requirements.txt; exit ;; esac
    for file in "${@:3}"; do
        satisfies "$(basename "$(dirname "$file")")/$(basename "$file")" || exit 1
    done ;;
"-V "*) echo "Python stand-in" ;;
"-m venv")
    echo "${*:2}" >>"$CALLS"
    folder=${*: -1}
    [ "$3" != --clear ] || rm -rf "${folder:?}"
    mkdir -p "$folder/bin" && touch "$folder/pyvenv.cfg" "$folder/bin/satisfies" && cp "$0" "$folder/bin/python"
    case "$STAND_IN_VENV" in
    fails) exit 1 ;;
    killed) kill -9 $PPID ; exit 1 ;;
    esac
    cp "$0" "$folder/bin/pip" ;;
"-m pip")
    echo "${*:2}" >>"$CALLS"
    case "$STAND_IN_PIP" in
    fails) exit 1 ;;
    killed) kill -9 $PPID ; exit 1 ;;
    esac
    for file in "${@:5}"; do
        [ "$file" = -r ] || echo "$(basename "$(dirname "$file")")/$(basename "$file")" >>"$here/satisfies"
    done ;;
*) exit 64 ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A machine whose only commands are those that setup.sh needs, and a project of its own."""
    tools, project = tmp_path / "bin", tmp_path / "project"
    tools.mkdir()
    for name in ("basename", "bash", "cp", "dirname", "env", "grep", "ls", "mkdir", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("utils/run/setup.sh", "requirements.txt", "tests/requirements.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    return Machine(tmp_path)


class Machine:
    def __init__(self, folder):
        self.folder, self.project, self.tools = folder, folder / "project", folder / "bin"
        self.calls = folder / "calls"
        self.environment = {"PATH": str(self.tools), "CALLS": str(self.calls)}
        self.venv = self.project / ".venv"

    def add_python(self, satisfies=(), name="python"):
        (self.tools / name).write_text(STAND_IN)
        (self.tools / name).chmod(0o755)
        (self.tools / "satisfies").write_text("".join(f"{file}\n" for file in satisfies))

    def call(self, function, **environment):
        """Which Python a function of setup.sh chose; its status; what it printed; the calls of venv and pip."""
        self.calls.write_text("")
        script = f'source "{self.project}/utils/run/setup.sh"; {function}; status=$?; echo "$python"; exit $status'
        done = subprocess.run(
            [self.tools / "bash", "-c", script],
            env=self.environment | {name: str(value) for name, value in environment.items()},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip(), done.returncode, done.stderr, self.calls.read_text().splitlines()

    def set_up(self, *files, **environment):
        return self.call(f"setup_python {' '.join(str(self.project / file) for file in files)}", **environment)


RUN, TESTS = "requirements.txt", "tests/requirements.txt"
SATISFIES_RUN, SATISFIES_TESTS = "project/requirements.txt", "tests/requirements.txt"


def test_an_active_python_that_has_everything_is_taken(machine):
    machine.add_python(satisfies=[SATISFIES_RUN])
    assert machine.set_up(RUN) == ("python", 0, "", [])
    assert not machine.venv.exists()


def test_python3_is_looked_for_too(machine):
    machine.add_python(satisfies=[SATISFIES_RUN], name="python3")
    assert machine.set_up(RUN) == ("python3", 0, "", [])


def test_a_virtual_environment_is_made_once(machine):
    machine.add_python()
    python, status, messages, calls = machine.set_up(RUN, TESTS)
    assert (python, status) == (str(machine.venv / "bin/python"), 0)
    assert calls == [
        f"venv {machine.venv}",
        f"pip install --disable-pip-version-check -r {machine.project / RUN} -r {machine.project / TESTS}",
    ]
    assert messages == (
        f"setup: making {machine.venv} with Python stand-in\nsetup: installing the requirements into {machine.venv}\n"
    )
    assert machine.set_up(RUN, TESTS) == (python, 0, "", [])
    assert machine.call("find_python") == (python, 0, "", [])


def test_a_python_of_another_name_makes_it(machine):
    machine.add_python(name="python3.13")
    assert machine.set_up(RUN)[:2] == (str(machine.venv / "bin/python"), 0)


def test_another_folder_for_it(machine):
    machine.add_python()
    folder = machine.folder / "elsewhere"
    assert machine.set_up(RUN, FADRM_VENV=folder)[:2] == (str(folder / "bin/python"), 0)
    assert not machine.venv.exists()


def test_what_the_tests_need_is_added_to_it(machine):
    machine.add_python()
    machine.set_up(RUN)
    _, status, _, calls = machine.set_up(RUN, TESTS)
    assert status == 0
    assert [call.split()[0] for call in calls] == ["pip"]


def test_only_the_rest_is_installed_on_top_of_an_active_python(machine):
    machine.add_python(satisfies=[SATISFIES_RUN])
    calls = machine.set_up(RUN, TESTS)[3]
    assert calls[0] == f"venv --system-site-packages {machine.venv}"


def errors_in(messages):
    return [line for line in messages.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("moment", ["STAND_IN_VENV", "STAND_IN_PIP"])
def test_what_failed_says_so_and_is_done_by_the_next_call(machine, moment):
    machine.add_python()
    _, status, messages, _ = machine.set_up(RUN, **{moment: "fails"})
    assert status == 2
    assert errors_in(messages) == [
        f"error: 'python -m venv {machine.venv}' failed: mend what it says"
        if moment == "STAND_IN_VENV"
        else f"error: pip could not install into {machine.venv} (its messages are above): "
        "mend that, then run the same command"
    ]
    python, status, _, calls = machine.set_up(RUN)
    assert (python, status) == (str(machine.venv / "bin/python"), 0)
    assert [call.split()[0] for call in calls] == (["venv", "pip"] if moment == "STAND_IN_VENV" else ["pip"])


@pytest.mark.parametrize("moment", ["STAND_IN_VENV", "STAND_IN_PIP"])
def test_what_was_killed_is_not_used_and_done_by_the_next_call(machine, moment):
    machine.add_python()
    assert machine.set_up(RUN, **{moment: "killed"})[1] == -9
    assert machine.call("find_python")[1] == 2
    python, status, _, calls = machine.set_up(RUN)
    assert (python, status) == (str(machine.venv / "bin/python"), 0)
    assert [call.split()[0] for call in calls] == (["venv", "pip"] if moment == "STAND_IN_VENV" else ["pip"])


def test_a_folder_of_other_files_is_left_alone(machine):
    machine.add_python()
    keep = machine.folder / "mine" / "thesis.txt"
    keep.parent.mkdir()
    keep.touch()
    _, status, messages, calls = machine.set_up(RUN, FADRM_VENV=keep.parent)
    assert (status, calls) == (2, [])
    assert messages == (
        f"error: {keep.parent} has files, but is no virtual environment: remove it, or name another in FADRM_VENV\n"
    )
    assert keep.exists()


def test_an_environment_of_the_user_is_completed_not_replaced(machine):
    machine.add_python()
    folder = machine.folder / "mine"
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "pip"):
        shutil.copy(machine.tools / "python", folder / "bin" / name)
    (folder / "bin/satisfies").touch()
    (folder / "pyvenv.cfg").touch()
    python, status, _, calls = machine.set_up(RUN, FADRM_VENV=folder)
    assert (python, status) == (str(folder / "bin/python"), 0)
    assert [call.split()[0] for call in calls] == ["pip"]


def test_an_environment_without_pip_that_has_files_of_the_user_is_not_cleared(machine):
    """As `uv venv` makes them."""
    machine.add_python()
    folder = machine.folder / "mine"
    keep = folder / "lib" / "python3.11" / "site-packages" / "theirs.py"
    keep.parent.mkdir(parents=True)
    keep.touch()
    (folder / "bin").mkdir()
    shutil.copy(machine.tools / "python", folder / "bin")
    (folder / "bin/satisfies").touch()
    (folder / "pyvenv.cfg").touch()
    machine.set_up(RUN, FADRM_VENV=folder)
    assert keep.exists()


def test_the_environment_that_was_set_up_goes_before_the_active_python(machine):
    machine.add_python()
    machine.set_up(RUN)
    machine.add_python(satisfies=[SATISFIES_RUN])
    assert machine.call("find_python") == (str(machine.venv / "bin/python"), 0, "", [])
    shutil.rmtree(machine.venv)
    assert machine.call("find_python") == ("python", 0, "", [])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "find_python",
            "no Python 3.11 that has torch torchvision numpy PIL tqdm timm safetensors matplotlib was found: "
            "run 'bash {}/utils/run/setup.sh', or set FADRM_PYTHON",
        ),
        ("setup_python requirements.txt", "no Python 3.11 or later was found: install one, or set FADRM_PYTHON to it"),
    ],
)
def test_no_python_and_one_that_is_too_old(machine, function, message):
    line = f"error: {message.format(machine.project)}\n"
    assert machine.call(function)[1:] == (2, line, [])
    machine.add_python(satisfies=[SATISFIES_RUN])
    assert machine.call(function, STAND_IN_TOO_OLD=1)[1:] == (2, line, [])


def test_a_python_that_was_named_is_taken_as_it_is(machine):
    machine.add_python(satisfies=[SATISFIES_RUN])
    _, status, messages, _ = machine.call("setup_python requirements.txt", FADRM_PYTHON="/my/python")
    assert (status, messages) == (2, "error: FADRM_PYTHON=/my/python is no program: name a Python, or unset it\n")
    named = machine.folder / "named"
    named.mkdir()
    shutil.copy(machine.tools / "python", named)
    (named / "satisfies").write_text(f"{SATISFIES_RUN}\n")
    for function in ("find_python", "setup_python requirements.txt"):
        assert machine.call(function, FADRM_PYTHON=named / "python") == (str(named / "python"), 0, "", [])


def test_no_other_python_is_taken_for_one_that_was_named(machine):
    machine.add_python(satisfies=[SATISFIES_RUN])
    _, status, messages, _ = machine.call("find_python", FADRM_PYTHON="/my/python")
    assert status == 2
    assert messages.startswith("error: ") and "/my/python" in messages and messages.count("\n") == 1


def test_a_path_with_a_colon(machine, tmp_path):
    """Python's search path ends names at it."""
    project = tmp_path / "a:b"
    shutil.copytree(machine.project, project)
    done = subprocess.run(
        [machine.tools / "bash", project / "utils/run/setup.sh"],
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the path {project} has a colon, which Python's search path cannot have: move the project\n"
    )


def test_called_as_a_command_it_sets_up(machine):
    machine.add_python()
    command = [machine.tools / "bash", machine.project / "utils/run/setup.sh"]
    done = subprocess.run(command, env=machine.environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"setup: ready, with {machine.venv}/bin/python\n")


# What is asked of a real Python


def ask(function, *words, **environment):
    """The exit status of a function of setup.sh."""
    script = f'source "{ROOT}/utils/run/setup.sh"; "$@"'
    known = {name: str(value) for name, value in environment.items()}
    return subprocess.run(["bash", "-c", script, "-", function, *map(str, words)], env=os.environ | known).returncode


@pytest.mark.parametrize(
    ("lines", "satisfied"),
    [
        (["stand-in==2.14.1", "another==2.4.6"], True),  # as for pip, 2.14.1+cpu is 2.14.1
        (["# numbers", "", "another==2.4.6  # exact"], True),
        (["stand-in==2.14.0", "another==2.4.6"], False),
        (["absent==1.0.31"], False),
        ([], True),
    ],
)
def test_the_versions_that_a_python_has(tmp_path, lines, satisfied):
    for name, version in (("stand_in", "2.14.1+cpu"), ("another", "2.4.6")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    good, file = tmp_path / "good.txt", tmp_path / "given.txt"
    good.write_text("another==2.4.6\n")
    file.write_text("\n".join(lines))
    assert (ask("satisfies", sys.executable, good, file, PYTHONPATH=tmp_path) == 0) == satisfied


def test_a_python_with_pytorch_and_one_without(tmp_path):
    assert ask("find_python", FADRM_PYTHON=sys.executable) == 0
    without = tmp_path / "python"
    without.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -S "$@"\n')
    without.chmod(0o755)
    assert ask("find_python", FADRM_PYTHON=without) == 2


def test_every_requirement_is_pinned_and_conda_takes_the_same(machine):
    for name in (RUN, TESTS):
        for line in (ROOT / name).read_text().splitlines():
            assert re.fullmatch(r"[a-z-]+==[0-9.]+", line)
    environment = (ROOT / "environment.yml").read_text()
    assert "name: FADRM\n" in environment
    assert "- -r requirements.txt\n" in environment
