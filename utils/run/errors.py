"""Errors that are for the person who typed the command, and how a process ends."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend. The message is one line: what was wrong, where, what to do."""


USER_ERRORS = (UserError, OSError, KeyboardInterrupt, MemoryError)


def run_entry(main: Callable[[], None]) -> None:
    """Run an entry point; user errors are one line on stderr and exit status 2.

    Anything else is a fault of this project and keeps its traceback.
    """
    prepare_streams()
    try:
        main()
        sys.stdout.flush()  # a full disk shows here, not after the end
    except BrokenPipeError:  # whoever read the output has read enough, as `| head` does
        silence(sys.stdout)
        sys.exit(128 + signal.SIGPIPE)
    except USER_ERRORS as error:
        exit_with(*describe(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exit_with(*describe(MemoryError(str(error))))


def prepare_streams() -> None:
    """Make sure that all three streams are there, and that no text is too much for them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (it lasts as long as the process)
        with contextlib.suppress(AttributeError):  # a stream that a test put there
            getattr(sys, name).reconfigure(errors="backslashreplace")


def silence(stream: object) -> None:
    """Send what a stream still holds nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no memory, on a GPU or on a CPU, or the system none for a thread."""
    said = ("can't allocate memory", "can't start new thread")
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in said)


def describe(error: BaseException) -> tuple[str, int]:
    """What to say of a user error, and the exit status that it ends in."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from here", 130
    if isinstance(error, MemoryError):
        stage = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "this stage")
        reason = f" ({' '.join(str(error).split())[:160]})" if str(error) else ""
        return f"{stage} is out of memory{reason}: lower --batch-size, or take a machine with more", 2
    return _describe_os_error(error) if isinstance(error, OSError) else str(error), 2


def _describe_os_error(error: OSError) -> str:
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "inodes" if _has_no_inodes(str(where)) else "space"
        return f"no {what} left while writing {where}: free some space and run the same command again"
    return f"{where}: {error.strerror or error}; check the path and its permissions"


def _has_no_inodes(path: str) -> bool:
    """Whether the disk of a file has room for no more files."""
    try:
        found = os.statvfs(os.path.dirname(os.path.abspath(path)))  # noqa: PTH100, PTH120 (it may not be there)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail == 0


def exit_with(message: str, status: int) -> NoReturn:
    """End this process with one line on stderr."""
    try:
        sys.stdout.flush()
    except OSError:  # it is what is full: what it holds goes nowhere, or Python would complain of it once more
        silence(sys.stdout)
    with contextlib.suppress(OSError):
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
