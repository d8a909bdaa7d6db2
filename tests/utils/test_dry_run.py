"""Calibrating calls, and what a dry run tells of them."""

from pathlib import Path

import pytest
import torch

from utils import dry_run
from utils.distributed import ALONE, Team
from utils.forecast import Held, Output

CPU = torch.device("cpu")
RUN = dry_run.DryRun("stage", {"images": 2000}, Path("/"), Output(2003, 6 * 10**6, 8 * 10**6), Held(10**9, 10**9), 400)


@pytest.mark.parametrize(("seconds_a_call", "calls"), [(0.0, 20), (1.0, 5), (60.0, 3)])
def test_a_call_is_timed_as_often_as_some_seconds_allow(monkeypatch, seconds_a_call, calls):
    clock = iter(x for call in range(99) for x in (1000.0 * call, 1000.0 * call + seconds_a_call))
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(clock))
    made = []
    last, timing = dry_run.measure(lambda: made.append(1) or len(made), CPU)
    assert last == len(made) == calls
    assert timing == (0.0, seconds_a_call)


def test_what_the_first_call_takes_more_is_counted_once(monkeypatch):
    clock = iter((0.0, 9.0, 10.0, 12.0, 20.0, 22.0, 30.0, 32.0))
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(clock))
    assert dry_run.measure(lambda: None, CPU)[1] == (7.0, 2.0)


def test_a_dry_run_tells_work_files_disk_memory_and_time(capsys):
    dry_run.tell(RUN, CPU, ALONE)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "stage, dry run: nothing is written. Still to be made:"
    told = {line[2:16].strip(): line[16:] for line in lines}
    assert told["images"] == "2,000"
    assert told["files"] == "2,003, 6 MB, in /"
    assert told["disk"].startswith("8 MB needed at most, ")
    assert told["memory"].endswith(" GB at the peak")
    assert float(told["memory"].split()[0]) > 2  # what is held, and this process
    assert told["time"].startswith("6.7 min in one process on cpu")


def test_of_several_processes_it_tells_the_memory_of_each(capsys):
    dry_run.tell(RUN, CPU, Team(0, 4, 0))
    output = capsys.readouterr().out
    assert "at the peak of each process" in output
    assert "6.7 min in 4 processes" in output


def test_a_gpu_has_its_own_memory(capsys, monkeypatch):
    peaks = {"cpu": 2 * 10**9, "cuda": 5 * 10**9}
    monkeypatch.setattr(dry_run, "peak_memory_bytes", lambda device: peaks[device.type])
    monkeypatch.setattr(dry_run, "describe_device", lambda device: "a GPU")
    dry_run.tell(RUN, torch.device("cuda"), ALONE)
    assert "6 GB on the GPU, 3 GB on the host" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (119, "119.0 s"), (7199, "120.0 min"), (7200, "2.0 h"), (172800, "2.0 days")],
)
def test_time_in_words(seconds, text):
    assert dry_run.in_time(seconds) == text
