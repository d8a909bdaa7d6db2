"""torchrun, ending as its processes end: python -m utils.run.torchrun --nproc-per-node N -m MODULE FLAGS...

torchrun itself ends every failure in a traceback of its own and exit status 1, also where a process has said in one
line what was wrong.
"""

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from utils.run.errors import exit_with


def main() -> None:
    logging.disable(logging.ERROR)  # what torchrun logs of a failure is less than what the process says itself
    try:
        run(parse_args(["--standalone", *sys.argv[1:]]))
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # The others were sent SIGTERM because of it.
        rank, status = next(((r, s) for r, s in statuses.items() if s != -signal.SIGTERM), (0, -signal.SIGTERM))
        if status > 0:  # it has said why
            sys.exit(status)
        cause = ", as a system out of memory does" if status == -signal.SIGKILL else ""
        print(file=sys.stderr)  # away from a bar
        exit_with(
            f"process {rank + 1} was ended by {signal.Signals(-status).name}{cause}; "
            "the same command goes on from what is there",
            128 - status,
        )
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


if __name__ == "__main__":
    main()
