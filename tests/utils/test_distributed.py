"""A team of processes: its shares, its end, and what it says of an error."""

import os
import signal
import sys

import pytest
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from utils import distributed
from utils.distributed import ALONE, Team, is_said, run_processes, team_of, teamwork


@pytest.mark.parametrize(("parts", "count"), [(7, 3), (2, 4), (0, 2), (5, 1)])
def test_every_part_is_in_one_share(parts, count):
    shares = [Team(rank, count, 0).share(range(parts)) for rank in range(count)]
    assert sorted(part for share in shares for part in share) == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_who_belongs_to_it():
    assert team_of({}) == ALONE == Team(rank=0, count=1, local_rank=0)
    assert team_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Team(5, 8, 1)
    assert ALONE.leads and not Team(1, 2, 1).leads


def test_one_process_waits_for_nobody_and_keeps_its_errors(capsys):
    with teamwork() as team:
        team.wait()
        assert team.total(3) == 3
        print("seen")
    assert capsys.readouterr().out == "seen\n"
    with pytest.raises(OSError, match="disk"), teamwork():
        raise OSError("disk")


def test_a_message_is_said_once():
    store = dist.HashStore()
    assert [is_said(store, message) for message in ("a", "b", "a", "b", "c")] == [False, False, True, True, False]


def failed(*exitcodes):
    failures = {rank: ProcessFailure(rank, 1, code, "none") for rank, code in enumerate(exitcodes) if code}
    return ChildFailedError("name", failures)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (failed(-signal.SIGTERM, 2), 2, ""),  # it has said why; the other one was stopped because of it
        (failed(1, 0), 1, ""),
        (failed(-signal.SIGTERM, -signal.SIGSEGV), 139, "error: process 2 of 2 was ended by SIGSEGV; the same command"),
        (failed(-signal.SIGKILL, -signal.SIGTERM), 137, "error: process 1 of 2 was ended by SIGKILL, as a system out"),
        (failed(-signal.SIGTERM, -signal.SIGTERM), 143, "error: process 1 of 2 was ended by SIGTERM; the same command"),
        (SignalException("", signal.SIGINT), 130, ""),
    ],
)
def test_how_many_processes_end_as_one(monkeypatch, capsys, error, status, said):
    def launch(config, entrypoint):
        def run(*words):
            assert (config.nproc_per_node, entrypoint, words) == (2, sys.executable, ("-m", "a.module", "--flag"))
            assert os.environ["OMP_NUM_THREADS"] == "3"
            raise error

        return run

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(api, "elastic_launch", launch)
    monkeypatch.setattr(distributed.logging, "disable", lambda level: None)
    with pytest.raises(SystemExit) as stopped:
        run_processes(2, "a.module", ["--flag"])
    assert stopped.value.code == status
    assert capsys.readouterr().err.strip().startswith(said)
