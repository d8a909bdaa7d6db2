"""A team of processes: its members, its shares, and what it says of an error."""

import socket

import pytest

from utils.run.errors import UserError
from utils.run.team import ALONE, PAUSE, Team, team_of, teamwork


@pytest.mark.parametrize(("parts", "count"), [(7, 3), (2, 4), (0, 2), (5, 1)])
def test_every_part_is_in_one_share(parts, count):
    shares = [Team(rank, count, 0).share(range(parts)) for rank in range(count)]
    assert sorted(part for share in shares for part in share) == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_who_belongs_to_it():
    assert team_of({}) == ALONE == Team(rank=0, count=1, local_rank=0)
    assert team_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MASTER}) == Team(5, 8, 1)
    assert ALONE.is_main and not Team(1, 2, 1).is_main


def test_one_process_waits_for_nobody_and_keeps_its_errors(capsys):
    with teamwork() as team:
        team.wait()
        assert team.total(3) == 3
        print("seen")
    assert capsys.readouterr().out == "seen\n"
    with pytest.raises(OSError, match="disk"), teamwork():
        raise OSError("disk")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one"}, "'RANK': 'one', .* these are numbers that torchrun sets"),
        ({"RANK": "-1"}, "these are numbers that torchrun sets; start processes with torchrun, or unset them"),
        ({"RANK": "\u00b2"}, "these are numbers that torchrun sets"),
        ({"WORLD_SIZE": ""}, "these are numbers that torchrun sets"),
        ({"RANK": "2", "WORLD_SIZE": "2", **MASTER}, "no such process in such a team; start processes with torchrun"),
        ({"RANK": "1"}, "no such process in such a team"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "3", **MASTER}, "no such process in such a team"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but MASTER_ADDR or MASTER_PORT is not: start processes with torchr"),
        ({"WORLD_SIZE": "2", **MASTER, "MASTER_PORT": ""}, "WORLD_SIZE is set, but MASTER_ADDR or MASTER_PORT is not"),
    ],
)
def test_what_is_no_team(environment, message):
    with pytest.raises(UserError, match=message):
        team_of(environment)


TEAM = """
import sys, time
from utils.run.errors import UserError, run_entry
from utils.run.team import teamwork

def main():
    with teamwork() as team:
        print("process", team.rank, "of", team.count)
        print("a bar", file=sys.stderr)
        assert team.total(team.rank + 1) == 3
        team.wait()
        {last_words}

run_entry(main)
"""


def run_pair(processes, last_words):
    """Two processes of a team, as torchrun starts them, that end with these words: what each wrote."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    code = TEAM.format(last_words=last_words)
    started = [processes.start("-c", code, RANK=rank, LOCAL_RANK=rank, **environment) for rank in "01"]
    return [processes.wait(process) for process in started]


def test_two_processes_add_up_and_one_speaks(processes):
    main, other = run_pair(processes, "pass")
    assert main == (0, "process 0 of 2\n", "a bar\n")
    assert other == (0, "", "")


def test_errors_of_all_are_seen(processes):
    main, other = run_pair(processes, "raise UserError('no such network')")
    assert main == (2, "process 0 of 2\n", "a bar\nerror: no such network\n")
    assert other == (2, "", "\nerror: no such network\n")  # away from the main process's bar


@pytest.mark.parametrize(("error", "least"), [("UserError", PAUSE), ("ValueError", 2 * PAUSE)])
def test_the_main_process_speaks_first(processes, error, least):
    """torchrun ends the other one while it waits, where the main process has the same to say."""
    wait = "time.sleep = lambda seconds: sys.__stdout__.write(f'{seconds}\\n')"
    _, other = run_pair(processes, f"{wait}; raise {error}('x')")
    assert float(other.output) >= least
    assert f"{'error' if error == 'UserError' else error}: x\n" in other.errors
