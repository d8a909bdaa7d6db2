"""A log file that gets a copy of what a run prints."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

SECONDS_BETWEEN_BARS = 10  # a progress bar is redrawn ten times a second: too much for a file


class CopiedStream:
    """A text stream whose writes go to a log file too; all else is the stream's own.

    The terminal stays a terminal to whoever asks, so that progress bars keep their width, and nothing has to be waited
    for when the process ends or is killed.
    """

    def __init__(self, stream: TextIO, log: Path) -> None:
        self._stream = stream
        self._log = log.open("ab", buffering=0)
        self._bar = ""  # the last state of a progress bar, as long as it is not in the log
        self._next_bar = 0.0

    def write(self, text: str) -> int:
        self._stream.write(text)
        self._stream.flush()
        if text.startswith("\r") and time.monotonic() < self._next_bar:
            self._bar = text
        else:
            if text.startswith("\r"):
                self._bar, self._next_bar = "", time.monotonic() + SECONDS_BETWEEN_BARS
            with suppress(OSError):  # a full disk must not keep the message about it from the terminal
                self._log.write((self._bar + text).encode())
            self._bar = ""
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def copy_output_to(log: Path, title: str | None) -> None:
    """From here to the end of the process, append what goes to stdout and stderr to `log`, after a line with `title`.

    Both streams stay what they are for everyone else, each on its own. Raises OSError where `log` cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if title is not None:
        with log.open("a") as stream:
            stream.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} {title}\n")
    sys.stdout, sys.stderr = CopiedStream(sys.stdout, log), CopiedStream(sys.stderr, log)
