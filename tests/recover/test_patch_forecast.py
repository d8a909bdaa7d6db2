"""The dry run of make_patches against what a run then writes."""

import pytest

from recover import make_patches, patch_forecast
from utils.distributed import ALONE, Team
from utils.dry_run import Timing


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


@pytest.fixture
def command(world):
    """The flags of a small run: two images a class, two crops of each, three patches."""
    words = "--dataset-name fashion_mnist --observer ShuffleNetV2 --patches-per-class 3 --num-crops 2 --device cpu"
    places = ["--train-dir", str(world.val), "--patch-dir", f"{world.root}/made", "--model-pool-dir", str(world.pool)]
    return [*words.split(), *places]


@pytest.fixture
def dry(command, monkeypatch):
    """Dry runs in which every call takes 2 seconds, and the first one more."""
    found = []
    monkeypatch.setattr(patch_forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    monkeypatch.setattr(make_patches, "tell", lambda run, device, team: found.append(run))

    def run(*extra, team=ALONE):
        settings = make_patches.make_parser().parse_with_recipe("patches", [*command, "--dry-run", *extra])
        make_patches.make_patches(settings, team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(command, world, contents, capsys):
    before = contents(world.root)
    make_patches.main([*command, "--dry-run"])
    assert contents(world.root) == before
    assert not (world.root / "made").exists()
    assert "make_patches, dry run: nothing is written" in capsys.readouterr().out


def test_files_and_bytes_are_those_of_the_run(command, world, dry):
    run = dry()
    make_patches.main(command)
    files = [path for path in (world.root / "made").rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files if path.suffix == ".jpg")
    assert run.output.files == len(files)
    assert run.work == {"classes": 10, "patches": 30, "real images": 20}
    assert written <= run.output.size < run.output.disk
    assert written == pytest.approx(run.typical, rel=0.3)
    assert dry().work["patches"] == dry().seconds == 0


def test_time_of_one_process_and_of_several(dry):
    # a call is a class of two images; there are ten
    assert [dry(team=Member(0, count, 0)).seconds for count in (1, 2, 3)] == [21.0, 11.0, 9.0]
    assert dry("--end-index", "4").seconds == 9.0


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(command, world, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(make_patches.main, [*command, *extra])
    assert f"no space for {world.root}/made/medium" in line and "its disk has 50,000 free" in line
    assert not (world.root / "made").exists()
