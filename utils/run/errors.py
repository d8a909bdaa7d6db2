"""Errors that are for the person who typed the command."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend. The message is one line: what was wrong, where, what to do."""


USER_ERRORS = (UserError, OSError, KeyboardInterrupt)


def run_entry(main: Callable[[], None]) -> None:
    """Run an entry point; user errors are one line on stderr and exit status 2.

    Anything else is a fault of this project and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()  # a full disk shows here, not after the end
    except USER_ERRORS as error:
        exit_with(*describe(error))


def describe(error: BaseException) -> tuple[str, int]:
    """What to say of a user error, and the exit status that it ends in."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from here", 130
    return _describe_os_error(error) if isinstance(error, OSError) else str(error), 2


def _describe_os_error(error: OSError) -> str:
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left while writing {where}: free some space and run the same command again"
    return f"{where}: {error.strerror or error}; check the path and its permissions"


def exit_with(message: str, status: int) -> NoReturn:
    """End this process with one line on stderr."""
    try:
        sys.stdout.flush()
    except OSError:  # it is what is full: what it holds goes nowhere, or Python would complain of it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
