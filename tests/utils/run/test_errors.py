"""Errors as people see them: one line, one exit status, and a traceback only for faults of the project."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.run.errors import USER_ERRORS, UserError, describe, exit_with, run_entry


def ended(capsys, error):
    """Exit status and stderr of an entry that raises `error`."""

    def main():
        print("working")
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_entry(main)
    output, errors = capsys.readouterr()
    assert output == "working\n"
    return stopped.value.code, errors


def test_an_entry_that_ends_well_prints_nothing_and_does_not_exit(capsys):
    run_entry(lambda: None)
    assert capsys.readouterr() == ("", "")


def test_a_user_error_is_one_line_whatever_it_holds(capsys):
    message = "cannot read a.png:\n  it is\tno image; replace it"
    assert ended(capsys, UserError(message)) == (2, "error: cannot read a.png: it is no image; replace it\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(("path", "where"), [("/data/image.png", "/data/image.png"), (None, "a file")])
def test_no_space_names_the_file_and_the_remedy(capsys, number, path, where):
    line = f"error: no space left while writing {where}: free some space and run the same command again\n"
    assert ended(capsys, OSError(number, os.strerror(number), path)) == (2, line)


def test_other_system_errors_name_the_file_and_what_is_wrong(capsys):
    status, errors = ended(capsys, PermissionError(errno.EACCES, "Permission denied", "/data"))
    assert (status, errors) == (2, "error: /data: Permission denied; check the path and its permissions\n")
    assert "quite broken" in ended(capsys, OSError("quite broken"))[1]  # no number, no name


def test_ctrl_c(capsys):
    assert ended(capsys, KeyboardInterrupt()) == (130, "error: interrupted; the same command goes on from here\n")


def test_a_fault_of_the_project_keeps_its_traceback(capsys):
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_entry(main)
    assert capsys.readouterr().err == ""


def test_an_exit_status_that_an_entry_chose_stays():
    with pytest.raises(SystemExit) as stopped:
        run_entry(lambda: sys.exit(7))
    assert stopped.value.code == 7


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (UserError("no such network"), "no such network", 2),
        (KeyboardInterrupt(), "interrupted; the same command goes on from here", 130),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), "a.png: No such file; check the path and its", 2),
    ],
)
def test_what_is_said_of_a_user_error(error, message, status):
    assert isinstance(error, USER_ERRORS)
    text, code = describe(error)
    assert text.startswith(message) and code == status


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 3.1 GiB"),
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of 79 GiB"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(capsys, error):
    status, line = ended(capsys, error)
    assert status == 2 and line.count("\n") == 1
    assert " is out of memory" in line and line.endswith(": lower --batch-size, or take a machine with more\n")
    assert str(error)[:20] in line


# What the process's streams take

SAYS = "from utils.run.errors import UserError, run_entry\ndef main():\n    print('1 ± 2')\n{}\nrun_entry(main)"


def python(code, redirected="", **environment):
    """Exit status, output and errors of such a program, its streams redirected by a shell."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirected}', sys.executable, SAYS.format(code)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_text_that_the_terminal_cannot_take_is_escaped():
    fails = "    raise UserError('µ is wrong')"
    status, output, errors = python(fails, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (status, output, errors) == (2, "1 \\xb1 2\n", "error: \\xb5 is wrong\n")


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_status_and_take_no_files_place(tmp_path, redirected):
    writes = f"    with open({str(tmp_path / 'made')!r}, 'w') as file: file.write(str(file.fileno()))"
    status, _, errors = python(writes, redirected)
    assert (status, errors) == (0, "")
    assert int((tmp_path / "made").read_text()) > 2
    assert python("    raise UserError('wrong')", redirected)[0] == 2


def test_a_reader_that_has_read_enough_ends_the_process_quietly():
    prints = "    for _ in range(100_000): print('more')"
    status, output, errors = python(prints, "| head -1; exit ${PIPESTATUS[0]}")
    assert (status, output, errors) == (128 + 13, "1 ± 2\n", "")


def test_a_full_disk_behind_stdout_is_one_line():
    status, _, errors = python("", "> /dev/full")
    assert status == 2 and errors.startswith("error: no space left while writing a file") and errors.count("\n") == 1


def test_the_last_line_comes_behind_what_was_printed(capfd):
    print("working", end="")
    with pytest.raises(SystemExit) as stopped:
        exit_with("one\n line", 7)
    assert stopped.value.code == 7
    assert capfd.readouterr() == ("working", "error: one line\n")
