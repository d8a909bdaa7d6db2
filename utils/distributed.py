"""Several processes on one task, started by torchrun: who does what, waiting for each other, and how they end.

    torchrun --standalone --nproc-per-node 4 -m recover.recover ...

A stage's parts (class batches, epochs, students) do not depend on each other, so processes share them out and write the
same files that one process would. A process that fails ends the run: torchrun stops the others.
"""

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from utils.errors import MENDABLE, account_of, leave

T = TypeVar("T")

PATIENCE = timedelta(days=30)  # the parts of a stage take as long as they take
PAUSE = 2.0  # seconds: more than torchrun takes to notice a process that ended, and to end the others
TORCHRUN_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


class Team(NamedTuple):
    """The processes of a run and this one's place among them: rank of count, local_rank on its machine."""

    rank: int
    count: int
    local_rank: int

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once: records, manifests, reports, tables."""
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts that are this process's; shares differ by one part at most."""
        return parts[self.rank :: self.count]

    def total(self, number: int) -> int:
        """The sum of what every process gives. Each waits here for all others."""
        total = torch.tensor(number)
        if self.count > 1:
            work = dist.all_reduce(total, async_op=True)
            while not work.is_completed():  # to wait inside of PyTorch would be to be deaf to Ctrl-C
                time.sleep(0.01)
            work.wait()
        return int(total)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.total(0)


def team_of(environment: Mapping[str, str]) -> Team:
    """The team that torchrun describes in the environment; one process without it."""
    return Team(*(int(environment.get(name, default)) for name, default in TORCHRUN_VARIABLES.items()))


ALONE = team_of({})


@contextmanager
def teamwork() -> Iterator[Team]:
    """The team of this run, brought together before and taken apart after.

    Only the leading process prints and draws bars. Errors of all are seen, and one that several processes have at once
    (flags that cannot be, a missing folder) is seen once.
    """
    team = team_of(os.environ)
    if team.count == 1:
        yield team
        return
    store, rank, count = next(dist.rendezvous("env://"))
    # It carries barriers and sums of counts, on any device.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        with ExitStack() as quiet:
            if not team.leads:
                nowhere = quiet.enter_context(Path(os.devnull).open("w"))
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield team
    except MENDABLE as error:
        message, status = account_of(error)
        if not team.leads:
            time.sleep(PAUSE / 4)  # if the leading process has the same to say, it says it
        if is_said(store, message):
            time.sleep(PAUSE / 4)  # the end of this process makes torchrun stop the one that is saying it
            sys.exit(status)
        if not team.leads:
            print(file=sys.stderr)  # away from the leading process's bar
        raise
    except Exception:
        # Where another process ended, this one's connection to it broke, and torchrun stops this one meanwhile: the
        # other's message stands alone. A fault of its own is told a little later.
        time.sleep(PAUSE)
        raise
    dist.destroy_process_group()


def is_said(store: dist.Store, message: str) -> bool:
    """Whether another process of the team has asked this before about the same message."""
    try:
        return store.add(message, 1) > 1
    except RuntimeError:  # whoever kept the store is gone
        return False


def run_processes(count: int, module: str, words: Sequence[str]) -> None:
    """Run `python -m module words` in `count` processes on this machine, as `torchrun --standalone` does.

    Where one of them fails this process ends too: with its status if it ended by itself, having said why; with a line
    on stderr and 128 + the number of the signal where one ended it.
    """
    # These take a second, and who runs under torchrun has no need of them.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # what the launcher logs of a failure is less than what the process says itself
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    config = LaunchConfig(1, 1, count, run_id=uuid.uuid4().hex, max_restarts=0, **here)
    try:
        elastic_launch(config, sys.executable)("-m", module, *words)
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # The others were sent SIGTERM because of it.
        rank, status = next(((r, s) for r, s in statuses.items() if s != -signal.SIGTERM), (0, -signal.SIGTERM))
        if status > 0:  # it has said why
            sys.exit(status)
        name = signal.Signals(-status).name
        message = f"process {rank + 1} of {count} was ended by {name}"
        if status == -signal.SIGKILL:
            message += ", as a system out of memory does"
        print(file=sys.stderr)  # away from a bar
        leave(f"{message}; the same command goes on from what is there", 128 - status)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
