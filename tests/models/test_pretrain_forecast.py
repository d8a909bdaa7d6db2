"""The dry run of pretrain against what a run then writes."""

import pytest

from models import pretrain, pretrain_forecast
from models.pretrain_flags import parse
from utils.distributed import ALONE, Team
from utils.dry_run import Timing

NAMES = ("ConvNetBN_W32", "ConvNetBN_W64")


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


@pytest.fixture
def command(world):
    """The flags of a small run: 20 images in batches of 8 (8, 8 and 4), two epochs, two teachers."""
    words = "--dataset-name fashion_mnist --epochs 2 --batch-size 8 --workers 0 --device cpu --model"
    places = ["--train-dir", str(world.val), "--val-dir", str(world.val), "--model-pool-dir", f"{world.root}/made"]
    return [*words.split(), *NAMES, *places]


@pytest.fixture
def dry(command, monkeypatch):
    """Dry runs in which every call takes 2 seconds, and the first one more."""
    found = []
    monkeypatch.setattr(pretrain_forecast, "measure", lambda call, device, most=0: (call(), Timing(1.0, 2.0)))
    monkeypatch.setattr(pretrain, "tell", lambda run, device, team: found.append(run))

    def run(*extra, team=ALONE):
        pretrain.pretrain(parse([*command, "--dry-run", *extra]), team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(command, world, contents, capsys):
    before = contents(world.root)
    pretrain.main([*command, "--dry-run"])
    assert contents(world.root) == before
    assert not (world.root / "made").exists()
    assert "pretrain, dry run: nothing is written" in capsys.readouterr().out


def test_files_and_bytes_are_those_of_the_run(command, world, dry):
    run = dry()
    assert run.work == {"teachers": 2, "iterations": 12, "test images": 40}
    # a call is an epoch of three batches, or a test; each is made twice or once, for two teachers
    assert run.seconds == pytest.approx(2 * (1 + 1 + 2 * 2.0 + 2.0), abs=0.5)
    pretrain.main(command)
    files = [path for path in (world.root / "made").rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    assert run.output.files == len(files)
    assert 0.8 * run.output.size < written <= run.output.size < run.output.disk
    assert dry().work["teachers"] == dry().seconds == 0
    assert dry("--test-every", "1").work["teachers"] == 0


def test_a_training_that_was_stopped_has_less_before_it(command, dry, monkeypatch):
    train_epoch, epochs = pretrain.train_epoch, []

    def stop(*arguments):
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        train_epoch(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "train_epoch", stop)
        pretrain.main(command)
    assert dry().work["iterations"] == 9


def test_every_test_counts(dry):
    assert dry("--test-every", "1").work["test images"] == 80


def test_images_at_224_pixels_are_decoded_as_they_are_trained_on(world, monkeypatch, capsys):
    monkeypatch.setattr(pretrain_forecast, "measure", lambda call, device, most=0: (None, Timing(1.0, 2.0)))
    words = (
        "--dataset-name imagenet-nette --epochs 2 --batch-size 8 --workers 0 --device cpu --model ResNet18 --dry-run"
    )
    places = ["--train-dir", str(world.val), "--val-dir", str(world.val), "--model-pool-dir", f"{world.root}/made"]
    pretrain.main([*words.split(), *places])
    assert "  iterations    6\n" in capsys.readouterr().out


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(command, world, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(pretrain.main, [*command, *extra])
    assert f"no space for {world.root}/made: " in line and "its disk has 50,000 free" in line
    assert not (world.root / "made").exists()
