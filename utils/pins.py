"""Whether this Python has the versions that requirement files pin: `python -m utils.pins FILE...`, exit status 0 or 1.

It reads what is installed without importing it, in milliseconds.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


def unsatisfied(lines: Sequence[str]) -> list[str]:
    """The lines `name==version` of a requirements file that what is installed does not satisfy.

    As for pip, a local version such as 2.14.1+cpu is the 2.14.1 that was asked for. Comments and blank lines are none.
    """
    pins = [line.split("#")[0].strip() for line in lines]
    return [pin for pin in pins if pin and _installed(pin.partition("==")[0]) != pin.partition("==")[2]]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def main(argv: Sequence[str] | None = None) -> None:
    files = sys.argv[1:] if argv is None else argv
    sys.exit(any(unsatisfied(Path(file).read_text().splitlines()) for file in files))


if __name__ == "__main__":
    main()
