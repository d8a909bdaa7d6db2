"""Work beside the work: nothing is lost, errors surface, order stays."""

import threading
import time

import pytest

from utils.run.background import MOST_PENDING, BackgroundWriter, one_ahead


def test_jobs_are_done_in_their_order_and_all_of_them():
    done = []
    with BackgroundWriter() as writer:
        for number in range(3 * MOST_PENDING):
            writer.submit(lambda n: (time.sleep(0.001), done.append(n)), number)
    assert done == list(range(3 * MOST_PENDING))


def test_jobs_are_done_by_another_thread_a_few_behind_at_most():
    gate, threads = threading.Event(), []

    def wait() -> None:
        gate.wait()
        threads.append(threading.current_thread())

    with BackgroundWriter() as writer:
        for _ in range(MOST_PENDING):
            writer.submit(wait)
        blocked = threading.Thread(target=writer.submit, args=(wait,))
        blocked.start()
        blocked.join(0.05)
        assert blocked.is_alive()  # one too many waits for a place
        gate.set()
        blocked.join()
    assert len(threads) == MOST_PENDING + 1
    assert threading.main_thread() not in threads


def fail() -> None:
    raise OSError(28, "No space left on device", "somewhere")


def test_a_jobs_error_is_raised_on_leaving():
    with pytest.raises(OSError, match="No space left"), BackgroundWriter() as writer:
        writer.submit(fail)


def test_a_jobs_error_is_raised_by_a_later_submit():
    with pytest.raises(OSError, match="No space left"), BackgroundWriter() as writer:
        writer.submit(fail)
        for _ in range(2 * MOST_PENDING):
            writer.submit(time.sleep, 0.001)
        pytest.fail("no submit raised")


def test_an_interruption_waits_for_what_was_submitted():
    done = []
    with pytest.raises(KeyboardInterrupt), BackgroundWriter() as writer:
        writer.submit(lambda: (time.sleep(0.05), done.append(True)))
        raise KeyboardInterrupt
    assert done == [True]


def test_one_ahead_is_map():
    assert list(one_ahead(lambda n: n * n, range(5))) == [0, 1, 4, 9, 16]
    assert list(one_ahead(str, [])) == []


def test_the_next_result_is_made_while_this_one_is_used():
    started = []
    results = one_ahead(lambda n: started.append(n) or n, range(3))
    assert next(results) == 0
    deadline = time.monotonic() + 5
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert started == [0, 1]
    assert list(results) == [1, 2]


def test_an_error_ahead_is_raised_where_its_result_is_due():
    results = one_ahead(lambda n: 1 // n, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
