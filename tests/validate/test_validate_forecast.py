"""The dry run of validate against what a run then writes."""

import pytest

from recover import recover
from relabel import relabel
from utils.distributed import Team
from utils.dry_run import Timing
from validate import flags, forecast, student, validate


@pytest.fixture
def labelled(world):
    recover.main(world.recover())
    relabel.main(world.relabel())
    return world


@pytest.fixture
def dry(labelled, monkeypatch):
    """Dry runs of validate in which every call takes 2 seconds, and the first one more."""
    found = []
    monkeypatch.setattr(forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    monkeypatch.setattr(validate, "tell", lambda run, device, team: found.append(run))

    def run(*extra, team=None):
        arguments = labelled.validate("--dry-run", *extra)
        validate.main(arguments) if team is None else validate.validate(flags.parse_cells(arguments), team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(labelled, contents, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda call, device: (call(), Timing(1.0, 2.0)))
    before = contents(labelled.root)
    validate.main(labelled.validate("--dry-run"))
    assert contents(labelled.root) == before
    assert not (labelled.root / "results").exists()
    output = capsys.readouterr().out
    assert "validate, dry run: nothing is written" in output
    assert "  steps         9\n" in output


def test_files_and_bytes_are_those_of_the_run(labelled, dry):
    seeds = ("--seed", "0", "1")
    run = dry(*seeds)
    validate.main(labelled.validate(*seeds))
    files = [path for path in (labelled.root / "results").rglob("*") if path.is_file()]
    assert run.output.files == len(files)
    assert sum(path.stat().st_size for path in files if "seed" in str(path)) <= run.output.size
    assert run.work == {"students": 2, "views": 120, "steps": 18, "test images": 120}


def test_what_is_there_is_not_counted(labelled, dry, monkeypatch):
    validate.main(labelled.validate())
    run = dry()
    assert (run.work["students"], run.output.files, run.seconds) == (0, 0, 0.0)
    train_epoch, epochs = student.train_epoch, []

    def stop(*arguments):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(student, "train_epoch", stop)
        validate.main(labelled.validate("--seed", "0", "1"))
    run = dry("--seed", "0", "1", "2")  # one has its result, one two of three epochs, one nothing
    assert run.work == {"students": 2, "views": 80, "steps": 12, "test images": 80}


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


def test_time_of_one_process_and_of_several(dry):
    # a call is an epoch of 20 images or a test of 20; there are three of each for each of three seeds
    for count, seeds in ((1, 3), (2, 2), (3, 1), (4, 1)):
        run = dry("--seed", "0", "1", "2", team=Member(0, count, 0))
        assert run.seconds == pytest.approx(2 * 1.0 + seeds * 3 * (2.0 + 2.0), abs=0.5)  # and decoding


def test_several_networks_are_shared_out_together(labelled, dry):
    networks = ("--model", "ConvNetBN_W32", "ShuffleNetV2", "--seed", "0", "1")
    one, two = (dry(*networks, team=Member(0, count, 0)) for count in (1, 2))
    assert one.work["students"] == 4
    assert one.folder == labelled.root / "results/fashion_mnist"
    assert one.seconds == pytest.approx(4 * 1.0 + 4 * 3 * 4.0, abs=0.5)
    assert two.seconds == pytest.approx(4 * 1.0 + 2 * 3 * 4.0, abs=0.5)
    validate.main(labelled.validate(*networks))
    assert one.output.files == len([path for path in one.folder.rglob("*") if path.is_file()])


def test_only_some_epochs_are_tested(dry):
    assert dry("--test-every", "2").work["test images"] == 40
    assert dry("--test-every", "9").work["test images"] == 20


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(labelled, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(validate.main, labelled.validate(*extra))
    assert f"no space for {labelled.root}/results/fashion_mnist/run: it needs up to 2," in line
    assert "its disk has 50,000 free" in line
    assert not (labelled.root / "results").exists()


def test_a_flag_that_writes_nothing_shapes_no_result(labelled):
    validate.main(labelled.validate())
    validate.main(labelled.validate("--dry-run"))
    validate.main(labelled.validate())
