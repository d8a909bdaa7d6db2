"""Run stages on file systems that are too small for them, then again when there is space: for test_bad_input.

    unshare --user --map-root-user --mount python tests/on_small_disks.py JOBS

JOBS and what is printed are JSON: a list of {module, arguments, disk, kilobytes}; for each the two exit statuses and
texts on stderr. What lay on the disk after each run is copied to <disk>_full and <disk>_freed.
"""

import contextlib
import importlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

from utils.run.errors import run_entry


def main() -> None:
    results = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={job['kilobytes']}k", "tmpfs", job["disk"]], check=True)
        full = run(job, "full")
        subprocess.run(["mount", "-o", "remount,size=100m", job["disk"]], check=True)
        results.append({"full": full, "freed": run(job, "freed")})
        subprocess.run(["umount", job["disk"]], check=True)
    json.dump(results, sys.stdout)


def run(job: dict, moment: str) -> tuple[int, str]:
    entry = importlib.import_module(job["module"]).main
    status, errors = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            # A stage first looks whether there is space: what is tested is a disk that fills up later.
            with mock.patch("utils.run.space.free_bytes", return_value=2**40):
                run_entry(lambda: entry(job["arguments"]))
        except SystemExit as end:
            status = end.code
    shutil.copytree(job["disk"], f"{job['disk']}_{moment}")
    return status, errors.getvalue()


if __name__ == "__main__":
    main()
