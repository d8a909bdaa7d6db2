"""Errors that are for the person who typed the command."""

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message is one line: what was wrong, where, what to do."""


def run_entry(main: Callable[[], None]) -> None:
    """Run an entry point; turn what a user can mend into one line on stderr and exit status 2.

    Anything else is a fault of this project and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        _leave(str(error), status=2)
    except OSError as error:
        _leave(_describe_os_error(error), status=2)
    except KeyboardInterrupt:
        _leave("interrupted; the same command goes on from here", status=130)


def _describe_os_error(error: OSError) -> str:
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left while writing {where}: free some space and run the same command again"
    return f"{where}: {error.strerror or error}; check the path and its permissions"


def _leave(message: str, status: int) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
