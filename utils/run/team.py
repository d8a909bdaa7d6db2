"""Several processes on one task, started by torchrun: who does what, and waiting for each other.

    torchrun --standalone --nproc-per-node 4 -m recover.recover ...

A stage's parts (batches, epochs, students) do not depend on each other, so processes share them out and write the same
files that one process would. A process that fails ends the run: torchrun stops the others.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from utils.run.errors import USER_ERRORS, UserError

T = TypeVar("T")

PATIENCE = timedelta(days=30)  # the parts of a stage take as long as they take
NCCL_PATIENCE = timedelta(minutes=30)  # for a step of a teacher, or the test after an epoch
PAUSE = 2.0  # seconds: more than torchrun takes to notice a process that ended and end the others, on a busy machine
TORCHRUN_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


class Team(NamedTuple):
    """The processes of a run and this one's place among them: rank of count, local_rank on its machine."""

    rank: int
    count: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this process does what is done once: manifests, reports, tables."""
        return self.rank == 0

    @property
    def workers(self) -> int:
        """How many processes may decode for this one: its part of the machine's cores."""
        return (os.cpu_count() or 1) // self.count

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts that are this process's; shares differ by one part at most."""
        return parts[self.rank :: self.count]

    def total(self, number: int) -> int:
        """The sum of what every process gives. Each waits here for all others."""
        total = torch.tensor(number)
        if self.count > 1:
            work = dist.all_reduce(total, async_op=True)
            while not work.is_completed():  # a blocking wait would ignore Ctrl-C
                time.sleep(0.01)
            work.wait()
        return int(total)

    def gather(self, value: T) -> list[T]:
        """What every process gives, by rank. Each waits here for all others."""
        self.wait()  # where Ctrl-C is heard
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        self.total(0)


def team_of(environment: Mapping[str, str]) -> Team:
    """The team that torchrun describes in the environment; one process without it. UserError for what is no team."""
    words = {name: environment.get(name, default) for name, default in TORCHRUN_VARIABLES.items()}
    if not all(word.isascii() and word.isdecimal() for word in words.values()):
        raise UserError(f"{words}: these are numbers that torchrun sets; start processes with torchrun, or unset them")
    team = Team(*map(int, words.values()))
    if not (team.rank < team.count and team.local_rank < team.count):
        raise UserError(f"{words}: no such process in such a team; start processes with torchrun, or unset them")
    if team.count > 1 and not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise UserError("WORLD_SIZE is set, but MASTER_ADDR or MASTER_PORT is not: start processes with torchrun")
    return team


ALONE = Team(0, 1, 0)


@contextmanager
def teamwork() -> Iterator[Team]:
    """The team of this run, brought together before and taken apart after.

    Only the main process prints and draws bars. Errors of all are seen; one that several processes have at once (flags
    that cannot be, a missing folder) is printed by the first, before torchrun stops the others.
    """
    team = team_of(os.environ)
    if team.count == 1:
        yield team
        return
    dist.init_process_group("gloo", timeout=PATIENCE)  # it carries barriers and sums of counts, on any device
    try:
        with ExitStack() as quiet:
            if not team.is_main:
                nowhere = quiet.enter_context(Path(os.devnull).open("w"))
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield team
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and not team.is_main:
            sys.exit(130)  # the main process says it
        is_users = isinstance(error, USER_ERRORS)
        if not (is_users and team.is_main):
            # If the main process has the same to say, it says it now. And where another process ended, this one's
            # connection to it broke, which is no news.
            time.sleep(PAUSE * (1 + team.rank / 8 if is_users else 2))
            print(file=sys.stderr)  # away from the main process's bar
        raise
    dist.destroy_process_group()
