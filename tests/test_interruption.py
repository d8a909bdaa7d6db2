"""Runs that are killed or stopped in the middle: the second run leaves the files of one that was not."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recover import recover
from relabel import relabel
from utils.fkd import store as fkd
from validate import validate
from validate.training import CHECKPOINT

# A process that takes Ctrl-C even where this one was started without (by a shell, in the background).
TAKING_CTRL_C = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
TAKING_CTRL_C += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
LONGER = ("--epochs", "30")  # enough of them for a kill to come in between


def wait_until(process, is_there: Callable[[], bool]) -> None:
    """Return as soon as something is there; the process must still run."""
    patience = time.monotonic() + 120
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.002)


def kill_when(process, is_there: Callable[[], bool]) -> None:
    """kill -9 as soon as something is there, which must be before the process ends."""
    wait_until(process, is_there)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def images_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("class*.png"))


@pytest.fixture
def distilled(world):
    recover.main(world.recover())
    return world


@pytest.fixture
def labelled(distilled):
    relabel.main(distilled.relabel(*LONGER))
    return distilled


def test_a_killed_recover_ends_with_the_same_images(world, processes, contents, capsys):
    budgets = ("--optimization-budgets", "4", "4")
    recover.main(world.recover(*budgets, name="whole"))
    killed = world.root / "syn" / "killed"
    process = processes.start("-m", "recover.recover", *world.recover(*budgets, name="killed"))
    kill_when(process, lambda: images_below(killed))
    there = {path: path.stat().st_mtime_ns for path in images_below(killed)}
    assert 0 < len(there) < 20
    capsys.readouterr()
    recover.main(world.recover(*budgets, name="killed"))
    assert contents(killed) == contents(world.root / "syn" / "whole")
    whole_batches = len(there) // 5  # these were not made again
    assert f"{20 - 5 * whole_batches} images" in capsys.readouterr().out
    assert sum(path.stat().st_mtime_ns == changed for path, changed in there.items()) == 5 * whole_batches


def test_a_killed_relabel_ends_with_the_same_labels(distilled, processes, contents, capsys):
    relabel.main(distilled.relabel(*LONGER, labels="whole"))
    killed = distilled.root / "fkd" / "killed_bs8_ipc2"
    process = processes.start("-m", "relabel.relabel", *distilled.relabel(*LONGER, labels="killed"))
    kill_when(process, fkd.epoch_path(killed, 2).exists)
    there = len(list(killed.glob("epoch_*")))
    assert 3 <= there < 30 and not (killed / fkd.MANIFEST).exists()
    capsys.readouterr()
    relabel.main(distilled.relabel(*LONGER, labels="killed"))
    assert f"{30 - there} epochs" in capsys.readouterr().out
    assert contents(killed) == contents(distilled.root / "fkd" / "whole_bs8_ipc2")


def results_without_times(folder: Path) -> dict[str, object]:
    """The files of a validate run but for hidden ones; times, memory, device and versions are left out of its
    results."""
    files = {}
    for path in sorted(path for path in folder.rglob("[!.]*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            content = [json.loads(line) for line in content.splitlines()]
            content = [{key: value for key, value in line.items() if key != "seconds"} for line in content]
        if path.name == "result.json":
            used = ("seconds", "seconds_this_run", "peak_memory_gib", "device", "versions", "metrics")
            content = {key: value for key, value in json.loads(content).items() if key not in used}
        files[str(path.relative_to(folder))] = content
    return files


def test_a_killed_validate_ends_with_the_same_result(labelled, processes):
    results, words = labelled.root / "results" / "fashion_mnist", (*LONGER, "--method", "m")
    validate.main(labelled.validate(*words, name="whole"))
    process = processes.start("-m", "validate.validate", *labelled.validate(*words, name="killed"))
    metrics = results / "killed" / "seed0" / "metrics.jsonl"
    kill_when(process, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 2)
    assert (metrics.parent / CHECKPOINT).exists() and not (metrics.parent / "result.json").exists()
    trained = metrics.read_text().splitlines()[:2]  # at least these are in the checkpoint
    validate.main(labelled.validate(*words, name="killed"))
    assert metrics.read_text().splitlines()[:2] == trained  # to the millisecond: they were not trained again
    assert results_without_times(results / "killed") == results_without_times(results / "whole")
    assert len(results_without_times(results / "whole")["seed0/metrics.jsonl"]) == 30
    left = {path.suffix for path in (results / "killed" / "seed0").glob(".*")}
    assert left <= {"", ".part"}  # the lock's file, and perhaps what was being written


def test_ctrl_c_is_one_line_and_status_130(world, processes):
    words = world.recover("--optimization-budgets", "500", "500")
    process = processes.start("-c", TAKING_CTRL_C, "recover.recover", *words)
    seen = b""
    while b"it/s" not in seen:  # the bar moves
        part = os.read(process.stderr.fileno(), 4096)
        assert part, seen
        seen += part
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    ended = processes.wait(process)
    assert ended.status == 130
    bar, *rest = processes.screen(seen.decode() + ended.errors)
    assert bar.startswith("recover:") and "it/s" in bar
    assert rest == ["error: interrupted; the same command goes on from here"]
    assert not (world.root / "syn").exists()  # nothing was made, not even a record


def test_ctrl_c_while_a_student_trains_leaves_what_to_go_on_from(labelled, processes):
    process = processes.start("-c", TAKING_CTRL_C, "validate.validate", *labelled.validate(*LONGER))
    folder = labelled.root / "results/fashion_mnist/run/seed0"
    wait_until(process, (folder / CHECKPOINT).exists)
    process.send_signal(signal.SIGINT)
    ended = processes.wait(process)
    assert ended.status == 130
    assert processes.screen(ended.errors)[-1] == "error: interrupted; the same command goes on from here"
    assert {path.name for path in folder.iterdir()} == {".lock", "settings.json", "metrics.jsonl", CHECKPOINT}
    validate.main(labelled.validate(*LONGER))
    assert (folder / "result.json").exists() and not (folder / CHECKPOINT).exists()


def test_where_nothing_is_left_to_do_nothing_is_written(distilled):
    """So a folder that is complete may be read-only."""
    seeds = ("--seed", "0", "1")
    states = []
    for _ in range(2):
        recover.main(distilled.recover())
        relabel.main(distilled.relabel())
        validate.main(distilled.validate(*seeds))
        places = [distilled.root, *distilled.root.rglob("*")]
        states.append({path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in places})
    assert states[0] == states[1]
