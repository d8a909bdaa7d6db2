"""The dry run of relabel against what a run then writes."""

import pytest

from recover import recover
from relabel import flags, forecast, relabel
from utils import fkd
from utils.distributed import Team
from utils.dry_run import Timing


@pytest.fixture
def distilled(world):
    recover.main(world.recover())
    return world


@pytest.fixture
def dry(distilled, monkeypatch):
    """Dry runs of relabel in which every call takes 2 seconds, and the first one more."""
    found = []
    monkeypatch.setattr(forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    monkeypatch.setattr(relabel, "tell", lambda run, device, team: found.append(run))

    def run(*extra, team=None):
        arguments = distilled.relabel("--dry-run", *extra)
        relabel.main(arguments) if team is None else relabel.relabel(flags.parse(arguments), team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(distilled, contents, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    before = contents(distilled.root)
    relabel.main(distilled.relabel("--dry-run"))
    assert contents(distilled.root) == before
    assert not (distilled.root / "fkd").exists()
    output = capsys.readouterr().out
    assert "relabel, dry run: nothing is written" in output
    assert "  views         60\n" in output


def test_files_and_bytes_are_those_of_the_run(distilled, dry):
    run = dry()
    relabel.main(distilled.relabel())
    files = [path for path in (distilled.root / "fkd").rglob("*") if path.is_file()]
    epochs = [path for path in files if path.suffix == ".safetensors"]
    assert run.output.files == len(files)
    assert run.output.size == sum(path.stat().st_size for path in epochs)
    assert run.output.size < run.output.disk
    assert run.work == {"epochs": 3, "views": 60}


def test_what_is_there_is_not_counted(distilled, dry):
    relabel.main(distilled.relabel())
    run = dry()
    assert (run.work["epochs"], run.output.files, run.seconds) == (0, 0, 0.0)
    fkd.epoch_path(distilled.root / "fkd/labels_bs8_ipc2", 1).unlink()
    assert dry().work == {"epochs": 1, "views": 20}
    assert dry("--epochs", "3").seconds == 3.0


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


def test_time_of_one_process_and_of_several(dry, monkeypatch):
    # 20 images are one chunk, so a call is an epoch; there are three
    assert [dry(team=Member(0, count, 0)).seconds for count in (1, 2, 3, 5)] == [7.0, 5.0, 3.0, 3.0]
    monkeypatch.setattr(relabel, "images_at_once", lambda network, size: 10)  # one batch of 8
    assert dry(team=Member(0, 3, 0)).seconds == 1.0 + 2.0 * 20 / 8


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(distilled, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(relabel.main, distilled.relabel(*extra))
    assert f"no space for {distilled.root}/fkd/labels_bs8_ipc2: it needs up to 2,1" in line
    assert "its disk has 50,000 free" in line
    assert not (distilled.root / "fkd").exists()
