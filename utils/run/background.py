"""Work beside the work: files written while the next batch is computed, inputs read or drawn before they are needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

T, R = TypeVar("T"), TypeVar("R")

MOST_PENDING = 4  # jobs that wait: what they hold stays in memory


class BackgroundWriter:
    """A thread that does jobs in their order, at most a few behind.

    A job's error is raised by the next `submit` or on leaving; leaving waits for all jobs, also on an interruption, so
    that what was computed is written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: deque[Future] = deque()

    def submit(self, job: Callable[..., None], *arguments: object) -> None:
        while self._pending and (self._pending[0].done() or len(self._pending) >= MOST_PENDING):
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(job, *arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._thread.shutdown(wait=True)
        if kind is None:
            for job in self._pending:
                job.result()


def one_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(function, items)`, each result made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming: Future | None = None
        for item in items:
            following = thread.submit(function, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
