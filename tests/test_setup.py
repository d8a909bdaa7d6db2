"""Finding and making the Python that runs the project, with stand-ins for Python, venv and pip."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Python as far as setup.sh uses it. What an interpreter satisfies is a file of requirement files' names beside it.
STAND_IN = r"""#!/usr/bin/env bash
here=$(dirname "$0")
case "$1 $2" in
"-c "*) exit "${STAND_IN_TOO_OLD:-0}" ;;
"-V "*) echo "Python stand-in" ;;
"-m utils.pins")
    for file in "${@:3}"; do
        grep -qx "$(basename "$(dirname "$file")")/$(basename "$file")" "$here/satisfies" || exit 1
    done ;;
"-m venv")
    echo "${*:2}" >>"$CALLS"
    folder=${*: -1}
    [ "$3" != --clear ] || rm -rf "${folder:?}"
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" && touch "$folder/bin/satisfies" ;;
"-m pip")
    echo "${*:2}" >>"$CALLS"
    case "$STAND_IN_PIP" in
    fails) exit 1 ;;
    killed) kill -9 $PPID ; exit 1 ;;
    esac
    for file in "${@:5}"; do
        [ "$file" = -r ] || echo "$(basename "$(dirname "$file")")/$(basename "$file")" >>"$here/satisfies"
    done ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A machine whose only commands are those that setup.sh needs, and a project of its own."""
    tools, project = tmp_path / "bin", tmp_path / "project"
    tools.mkdir()
    for name in ("basename", "bash", "cp", "dirname", "env", "grep", "ls", "mkdir", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("utils/setup.sh", "requirements.txt", "tests/requirements.txt"):
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
        script = f'source "{self.project}/utils/setup.sh"; {function}; status=$?; echo "$python"; exit $status'
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
        f"venv --clear --without-pip {machine.venv}",
        f"venv {machine.venv}",
        f"pip install --disable-pip-version-check -r {machine.project / RUN} -r {machine.project / TESTS}",
    ]
    assert "making" in messages
    assert machine.set_up(RUN, TESTS) == (python, 0, "", [])
    assert machine.call("find_python") == (python, 0, "", [])


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
    assert f"venv --system-site-packages {machine.venv}" in calls


def test_an_install_that_failed_says_so_and_is_begun_anew(machine):
    machine.add_python()
    _, status, messages, _ = machine.set_up(RUN, STAND_IN_PIP="fails")
    assert status == 2
    errors = [line for line in messages.splitlines() if line.startswith("error:")]
    assert errors == [
        f"error: pip could not install into {machine.venv} (its messages are above): "
        "mend that, then run the same command"
    ]
    python, status, _, calls = machine.set_up(RUN)
    assert (python, status) == (str(machine.venv / "bin/python"), 0)
    assert calls[0].startswith("venv --clear")


def test_a_killed_install_is_not_used_and_begun_anew(machine):
    machine.add_python()
    assert machine.set_up(RUN, STAND_IN_PIP="killed")[1] == -9
    assert machine.call("find_python")[0] == "python"
    python, status, _, calls = machine.set_up(RUN)
    assert (python, status) == (str(machine.venv / "bin/python"), 0)
    assert calls[0].startswith("venv --clear")


def test_a_folder_of_other_files_is_left_alone(machine):
    machine.add_python()
    keep = machine.folder / "mine" / "thesis.txt"
    keep.parent.mkdir()
    keep.touch()
    _, status, messages, calls = machine.set_up(RUN, FADRM_VENV=keep.parent)
    assert (status, calls) == (2, [])
    assert messages.startswith(f"error: {keep.parent} has files, but is no virtual environment")
    assert keep.exists()


def test_an_environment_of_the_user_is_completed_not_replaced(machine):
    machine.add_python()
    folder = machine.folder / "mine"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(machine.tools / "python", folder / "bin")
    (folder / "bin/satisfies").touch()
    python, status, _, calls = machine.set_up(RUN, FADRM_VENV=folder)
    assert (python, status) == (str(folder / "bin/python"), 0)
    assert [call.split()[0] for call in calls] == ["pip"]


@pytest.mark.parametrize("function", ["find_python", "setup_python requirements.txt"])
def test_no_python_and_one_that_is_too_old(machine, function):
    assert machine.call(function)[1] == 2
    machine.add_python()
    _, status, messages, _ = machine.call(function, STAND_IN_TOO_OLD=1)
    assert status == 2
    assert messages.startswith("error: no Python 3.11 or later")
    assert messages.count("\n") == 1


@pytest.mark.parametrize("function", ["find_python", "setup_python requirements.txt"])
def test_a_python_that_was_named_is_taken_as_it_is(machine, function):
    machine.add_python()
    assert machine.call(function, FADRM_PYTHON="/my/python") == ("/my/python", 0, "", [])


def test_every_requirement_is_pinned_and_conda_takes_the_same(machine):
    for name in (RUN, TESTS):
        for line in (ROOT / name).read_text().splitlines():
            assert re.fullmatch(r"[a-z-]+==[0-9.]+", line)
    environment = (ROOT / "environment.yml").read_text()
    assert "name: FADRM\n" in environment
    assert "- -r requirements.txt\n" in environment
