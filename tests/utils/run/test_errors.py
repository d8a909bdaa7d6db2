"""Errors as people see them: one line, one exit status, and a traceback only for faults of the project."""

import errno
import os
import sys

import pytest

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


def test_the_last_line_comes_behind_what_was_printed(capfd):
    print("working", end="")
    with pytest.raises(SystemExit) as stopped:
        exit_with("one\n line", 7)
    assert stopped.value.code == 7
    assert capfd.readouterr() == ("working", "error: one line\n")
