"""torchrun, ending as its processes end."""

import signal
import sys

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from utils.run import torchrun


def failed(*exitcodes):
    failures = {rank: ProcessFailure(rank, 1, code, "none") for rank, code in enumerate(exitcodes) if code}
    return ChildFailedError("name", failures)


GOES_ON = "the same command goes on from what is there\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (failed(-signal.SIGTERM, 2), 2, ""),  # it has said why; the other one was stopped because of it
        (failed(1, 0), 1, ""),
        (failed(-signal.SIGTERM, -signal.SIGSEGV), 139, f"error: process 2 was ended by SIGSEGV; {GOES_ON}"),
        (
            failed(-signal.SIGKILL, -signal.SIGTERM),
            137,
            f"error: process 1 was ended by SIGKILL, as a system out of memory does; {GOES_ON}",
        ),
        (failed(-signal.SIGTERM, -signal.SIGTERM), 143, f"error: process 1 was ended by SIGTERM; {GOES_ON}"),
        (SignalException("", signal.SIGINT), 130, ""),
        (SignalException("", signal.SIGTERM), 143, ""),
    ],
)
def test_how_many_processes_end_as_one(monkeypatch, capsys, error, status, said):
    def run(given):
        raise error

    monkeypatch.setattr(sys, "argv", ["torchrun", "--nproc-per-node", "2", "-m", "a.module", "--flag"])
    monkeypatch.setattr(torchrun, "run", run)
    with pytest.raises(SystemExit) as stopped:
        torchrun.main()
    assert stopped.value.code == status
    assert capsys.readouterr().err.lstrip("\n") == said  # away from a bar


def test_the_words_go_to_torchrun(monkeypatch):
    given = []
    monkeypatch.setattr(sys, "argv", ["torchrun", "--nproc-per-node", "2", "-m", "a.module", "--flag", "--rank"])
    monkeypatch.setattr(torchrun, "run", given.append)
    torchrun.main()
    (words,) = given
    assert (words.nproc_per_node, words.standalone, words.module) == ("2", True, True)
    assert (words.training_script, words.training_script_args) == ("a.module", ["--flag", "--rank"])


@pytest.fixture
def module(tmp_path):
    """A module whose second process ends as told, once the first one is there; that waits until it is stopped."""
    (tmp_path / "ends.py").write_text(
        "import os, sys, time\n"
        'line = f\'process {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} {sys.argv[2:]}\'\n'
        "os.write(1, (line + chr(10)).encode())\n"
        "there = __file__ + '.there'\n"
        "if os.environ['RANK'] == '0': open(there, 'w').close()\n"
        "while not os.path.exists(there): time.sleep(0.01)\n"
        "end = int(sys.argv[1])\n"
        "if os.environ['RANK'] == '1' and end < 0: os.kill(os.getpid(), -end)\n"
        "if os.environ['RANK'] == '1' or end == 0: sys.exit(end)\n"
        "time.sleep(60)\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (0, 0, []),
        (7, 7, []),
        (-signal.SIGKILL, 137, ["error: process 2 was ended by SIGKILL, as a system out of memory does; "]),
    ],
)
def test_real_processes(processes, module, end, status, said):
    words = ("--nproc-per-node", "2", "-m", "ends", str(end), "--flag", "a b")
    path = f"{module}:{torchrun.__file__.removesuffix('/utils/run/torchrun.py')}"
    ended = processes.run("-m", "utils.run.torchrun", *words, PYTHONPATH=path)
    assert ended.status == status
    assert sorted(ended.output.splitlines()) == [f"process {rank} of 2 ['--flag', 'a b']" for rank in (0, 1)]
    lines = [line for line in ended.errors.splitlines() if line]
    assert len(lines) == len(said) and all(line.startswith(start) for line, start in zip(lines, said, strict=True)), (
        lines
    )
