"""The dry run of recover against what a run then writes."""

import pytest

from recover import flags, forecast, recover
from utils.datasets import get_dataset
from utils.distilled import distilled_path
from utils.distributed import Team
from utils.dry_run import Timing

FASHION = get_dataset("fashion_mnist")


@pytest.fixture
def dry(world, monkeypatch):
    """Dry runs of recover in which every call takes 2 seconds, and the first one more."""
    found = []
    monkeypatch.setattr(forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    monkeypatch.setattr(recover, "tell", lambda run, device, team: found.append(run))

    def run(*extra, team=None):
        arguments = world.recover("--dry-run", *extra)
        recover.main(arguments) if team is None else recover.recover(flags.parse(arguments), team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(world, contents, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    before = contents(world.root)
    recover.main(world.recover("--dry-run"))
    assert contents(world.root) == before
    assert not (world.root / "syn").exists()
    output = capsys.readouterr().out
    assert "recover, dry run: nothing is written" in output
    assert "  iterations    24\n" in output


@pytest.mark.parametrize("extra", [(), ("--store-initialised-images",)])
def test_files_and_bytes_are_those_of_the_run(world, dry, extra):
    run = dry(*extra)
    recover.main(world.recover(*extra))
    files = [path for path in (world.root / "syn").rglob("*") if path.is_file()]
    images = [path for path in files if path.name.startswith("class")]
    assert run.output.files == len(files)
    assert run.work == {"images": 20, "class batches": 4, "iterations": 24}
    written = sum(path.stat().st_size for path in images)
    assert written <= run.output.size < run.output.disk
    assert written == pytest.approx(run.typical, rel=0.3)


def test_what_is_there_is_not_counted(world, dry):
    recover.main(world.recover())
    run = dry()
    assert (run.work["images"], run.output.files, run.seconds) == (0, 0, 0.0)
    distilled_path(world.root / "syn/images", 10, 7, 1).unlink()
    run = dry()
    assert run.work == {"images": 5, "class batches": 1, "iterations": 6}
    assert dry("--ipc-end", "1").work["images"] == 0


def test_time_of_one_process_and_of_several(dry):
    # a call has 5 iterations; a class batch 3 at each of two sizes; there are four batches
    a_batch = 2 * 3 * 2.0 / 5
    for count, batches in ((1, 4), (2, 2), (3, 2), (4, 1), (9, 1)):
        run = dry(team=Member(0, count, 0))
        assert run.seconds == pytest.approx(2 * 1.0 + batches * a_batch, abs=0.5)  # and reading the patches


def test_a_smaller_last_batch_takes_less(dry):
    run = dry("--batch-size", "8")  # 8 and 2 classes
    assert run.seconds == pytest.approx(2 * 1.0 + 2 * (1 + 2 / 8) * 2.4, abs=0.5)


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(world, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(recover.main, world.recover(*extra))
    assert f"no space for {world.root}/syn/images: it needs up to 2,2" in line
    assert "its disk has 50,000 free" in line
    assert not (world.root / "syn").exists()


def test_other_settings_are_refused_in_a_dry_run_too(world, refusal):
    recover.main(world.recover())
    assert "alpha (0.5 there, 0.7 here)" in refusal(recover.main, world.recover("--dry-run", "--alpha", "0.7"))


def test_missing_work_is_by_class_batch(tmp_path):
    work = [(0, range(0, 5)), (0, range(5, 10))]
    for index in (5, 6, 7, 8, 9, 1):
        path = distilled_path(tmp_path, 10, index, 0)
        path.parent.mkdir()
        path.touch()
    assert forecast.missing_work(work, tmp_path, FASHION) == [(0, range(0, 5))]
