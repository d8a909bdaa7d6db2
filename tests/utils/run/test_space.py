"""What a run will write: told, and refused where it does not fit."""

import shutil
from pathlib import Path

import pytest

from utils.run.errors import UserError
from utils.run.space import BESIDE, BLOCK, Output, free_bytes, in_bytes, print_dry_run, require_space


@pytest.mark.parametrize("sizes", [[0], [1], [BLOCK], [BLOCK + 1], [1, 1, BLOCK - 1], [5000, 0, 3 * BLOCK + 7]])
def test_files_take_whole_blocks_and_the_few_beside_them(sizes):
    blocks = sum(-(-size // BLOCK) for size in sizes)
    disk = Output(len(sizes), sum(sizes)).disk
    assert blocks * BLOCK + BESIDE <= disk <= (blocks + len(sizes)) * BLOCK + BESIDE


def test_what_has_nothing_to_make_needs_nothing():
    assert Output(0, 0).disk == 0


def test_free_bytes_of_folders_that_are_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    for folder in (tmp_path / "a/b/c", Path("a/b"), Path("a")):
        assert free_bytes(folder) == pytest.approx(free, rel=0.1)


def test_what_does_not_fit_is_refused_with_folder_needed_and_free_bytes(tmp_path, small_disk):
    output = Output(10, 1000)
    small_disk(output.disk)
    require_space(tmp_path, output)
    small_disk(output.disk - 1)
    with pytest.raises(UserError) as caught:
        require_space(tmp_path / "new", output)
    assert str(caught.value) == (
        f"no space for {tmp_path}/new: it needs up to 2,139,112 bytes, its disk has 2,139,111 free; "
        "free some, or name a folder on another disk"
    )
    assert not (tmp_path / "new").exists()


def test_a_dry_run_tells_work_files_and_disk(capsys, small_disk):
    small_disk(7 * 10**9)
    print_dry_run("stage", {"images": 2000, "batches": 20}, Path("/"), Output(2000, 6 * 10**6))
    assert capsys.readouterr().out == (
        "stage, dry run: nothing is written. Still to be made:\n"
        "  images        2,000\n"
        "  batches       20\n"
        "  files         2,000, at most 6 MB, in /\n"
        "  disk          16.3 MB needed at most, 7 GB free\n"
    )


def test_bytes_in_words():
    shown = [in_bytes(size) for size in (0, 999, 1000, 999_499, 999_500, 30_345_678_901, 3.28e12)]
    assert shown == ["0 bytes", "999 bytes", "1 kB", "999 kB", "1 MB", "30.3 GB", "3.28 TB"]
