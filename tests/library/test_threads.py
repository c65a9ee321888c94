"""Threads: how work is cut, run and ended, with BLAS limited to one thread; failures leave nothing behind."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import python, refuses, relative_error
from hypothesis import given
from hypothesis import strategies as st
from small_model import Model, bits, gradients, number_of_threads
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from minidl.kernels.cpu import lstm as cpu_lstm
from minidl.kernels.cpu import threads

COUNTS = [1, 2, 3, 4]
pytestmark = pytest.mark.usefixtures("as_many_threads_afterwards")


# How many.


@pytest.mark.parametrize(
    ("n", "error", "words"),
    [
        (0, ValueError, ["at least 1", "0"]),
        (-1, ValueError, ["at least 1", "-1"]),
        (2.0, TypeError, ["int", "float"]),
        (True, TypeError, ["int", "bool"]),
        ("2", TypeError, ["int", "str"]),
        (None, TypeError, ["int", "NoneType"]),
    ],
)
def test_a_bad_number_of_threads_is_refused(n: Any, error: type[Exception], words: list[str]) -> None:
    before = threads.get_num_threads()
    with refuses(error, "n ", *words):
        threads.set_num_threads(n)
    assert threads.get_num_threads() == before


def test_the_number_of_threads_is_what_was_set_last() -> None:
    for n in (3, 1, np.int64(2)):
        threads.set_num_threads(n)  # type: ignore[arg-type]
        assert threads.get_num_threads() == n and type(threads.get_num_threads()) is int


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie a process to cores")
def test_the_default_is_the_cores_that_the_process_may_use() -> None:
    code = """
    import os
    os.sched_setaffinity(0, {})
    from minidl.kernels.cpu import threads
    print(threads.get_num_threads())
    """
    cores = os.sched_getaffinity(0)
    assert python(code.format({min(cores)})) == "1"
    assert 1 <= int(python(code.format(cores))) <= len(cores)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 4),
        ("400000 100000", 4),
        ("800000 100000", 4),
        ("250000 100000", 2),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("no numbers", 4),
        (None, 4),
    ],
)
def test_a_containers_quota_counts(limit: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, *_: object) -> str:
        if limit is None:
            raise FileNotFoundError(path)
        return limit + "\n"

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6}, raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert threads.usable_cores() == expected
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert threads.usable_cores() == expected
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.usable_cores() == 1


# Cutting.


@given(length=st.integers(1, 1000), parts=st.integers(1, 20))
def test_split_covers_all_in_order_and_nearly_equally(length: int, parts: int) -> None:
    cuts = threads.split(length, parts)
    assert [k for cut in cuts for k in range(cut.start, cut.stop)] == list(range(length))
    sizes = [cut.stop - cut.start for cut in cuts]
    assert len(cuts) == min(length, parts) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("work", "expected"), [(0, 1), (9, 1), (19, 1), (20, 2), (39, 3), (40, 4), (1e12, 4)])
def test_work_is_cut_for_the_threads_as_far_as_it_pays(work: float, expected: int) -> None:
    threads.set_num_threads(4)
    found = threads.cores_for(work, 10)
    assert found == expected and type(found) is int
    threads.set_num_threads(2)
    assert threads.cores_for(work, 10) == min(2, expected)


def test_work_that_is_no_whole_number_is_cut_by_its_full_parts() -> None:
    """As the numbers of a mean time step are."""
    threads.set_num_threads(4)
    assert [threads.cores_for(work, 2.5) for work in (4.9, 5.0, 7.4, 7.5)] == [1, 2, 2, 3]


@pytest.mark.parametrize("n", COUNTS)
@given(length=st.integers(1, 60), workers=st.integers(1, 6), pieces=st.integers(1, 30))
def test_over_goes_over_all_once_and_in_order(length: int, workers: int, pieces: int, n: int) -> None:
    threads.set_num_threads(n)
    seen = np.zeros(length, int)

    def task(part: slice) -> tuple[int, int]:
        seen[part] += 1
        return part.start, part.stop

    found = threads.over(length, task, workers, pieces)
    assert (seen == 1).all() and len(found) == min(length, max(workers, pieces))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])] and found[-1][1] == length
    sizes = [stop - start for start, stop in found]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@given(length=st.integers(1, 60), workers=st.integers(1, 6))
def test_over_makes_a_part_for_each_worker_where_no_pieces_are_asked_for(length: int, workers: int) -> None:
    assert len(threads.over(length, id, workers)) == min(length, workers)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_parts_of_over_are_shared_by_its_workers_and_no_more(workers: int) -> None:
    threads.set_num_threads(4)
    together = threading.Barrier(workers, timeout=10)

    def task(part: slice) -> tuple[str, slice]:
        together.wait()  # six parts, so two, three or six rounds of all workers
        return threading.current_thread().name, part

    found = threads.over(12, task, workers, pieces=6)
    assert len({name for name, _ in found}) == workers
    assert [part for _, part in found] == [slice(k, k + 2) for k in range(0, 12, 2)]


@pytest.mark.parametrize("n", COUNTS)
def test_the_error_of_the_first_part_is_raised(n: int) -> None:
    threads.set_num_threads(n)

    def task(part: slice) -> None:
        if part.start >= 4:
            raise LookupError(f"part {part.start}")

    with pytest.raises(LookupError, match="part 4"):
        threads.over(12, task, 3, pieces=6)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60).map(lambda found: sorted(found, reverse=True)),
    n=st.integers(1, 8),
)
def test_shards_have_nearly_equal_sums_of_lengths(lengths: list[int], n: int) -> None:
    sizes = [sum(length > t for length in lengths) for t in range(lengths[0])]
    shards = cpu_lstm.shards(sizes, n)
    sequences = [shard.sequences for shard in shards]
    assert [b for part in sequences for b in range(part.start, part.stop)] == list(range(len(lengths)))
    assert 1 <= len(shards) <= n and (len(shards) > 1 or n == 1 or len(lengths) == 1 or lengths[0] > sum(lengths[1:]))
    for part in sequences:
        assert part.start < part.stop
        assert sum(lengths[part]) <= sum(lengths) / n + lengths[0]


# Running.


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 20])
def test_results_come_in_the_order_of_the_tasks(n: int, number: int) -> None:
    threads.set_num_threads(n)
    assert threads.run([partial(int, k) for k in range(number)]) == list(range(number))


def test_tasks_run_side_by_side_and_one_of_them_in_the_callers_thread() -> None:
    threads.set_num_threads(3)
    together = threading.Barrier(3, timeout=10)

    def task() -> str:
        together.wait()
        return threading.current_thread().name

    names = threads.run([task] * 3)
    assert len(set(names)) == 3 and threading.current_thread().name in names


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("bad", range(4))
@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_an_error_is_raised_when_no_task_is_at_work_any_more(error: type[BaseException], n: int, bad: int) -> None:
    threads.set_num_threads(n)
    begun, ended = [], []

    def task(number: int) -> None:
        begun.append(number)
        if number == bad:
            raise error(f"task {number}")
        time.sleep(0.03 if number == bad + 1 else 0.005)
        ended.append(number)

    with pytest.raises(error, match=f"task {bad}"):
        threads.run([partial(task, number) for number in range(4)])
    assert sorted([*ended, bad]) == sorted(begun)
    assert threads.run([partial(int, k) for k in range(9)]) == list(range(9)), "the team still works"


@pytest.mark.parametrize("n", COUNTS)
def test_of_several_errors_the_first_tasks_is_raised(n: int) -> None:
    threads.set_num_threads(n)

    def task(number: int) -> None:
        time.sleep(0.01 if number == 1 else 0)
        if number:
            raise LookupError(f"task {number}")

    for _ in range(5):
        with pytest.raises(LookupError, match="task 1"):
            threads.run([partial(task, number) for number in range(8)])


def counter(ended: threading.Event, begun: threading.Event | None = None) -> None:
    """A task that is at work for a while."""
    if begun is not None:
        begun.set()
    time.sleep(0.05)
    ended.set()


def test_ctrl_c_waits_for_the_workers() -> None:
    threads.set_num_threads(2)
    begun, ended = threading.Event(), threading.Event()

    def interrupted() -> None:
        assert begun.wait(10)
        _thread.interrupt_main()
        time.sleep(10)

    # a process started in the background may ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run([interrupted, partial(counter, ended, begun)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set(), "a worker was still writing"
    assert threads.run([partial(int, k) for k in range(4)]) == list(range(4))


def test_a_thread_that_cannot_start_leaves_none_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a limit on processes is reached; Ctrl-C between two starts is the same."""
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    threads.set_num_threads(3)
    ended = [threading.Event() for _ in range(3)]
    monkeypatch.setattr(threading.Thread, "start", limited)
    try:
        threads.run([partial(counter, event) for event in ended])
    except RuntimeError:
        at_once = [event.is_set() for event in ended]
        time.sleep(0.15)
        assert at_once == [event.is_set() for event in ended], "a worker was at work after the error"
    else:
        assert all(event.is_set() for event in ended)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert threads.run([partial(int, k) for k in range(9)]) == list(range(9))


@pytest.mark.parametrize("n", [1, 3])
def test_the_callers_error_settings_hold_in_every_task(n: int) -> None:
    threads.set_num_threads(n)
    zero, settings = np.zeros(1), np.geterr()

    def divide() -> str:
        try:
            np.ones(1) / zero
        except (FloatingPointError, RuntimeWarning) as error:
            return type(error).__name__
        return "ignored"

    for mode, expected in (("ignore", "ignored"), ("raise", "FloatingPointError"), ("warn", "RuntimeWarning")):
        with np.errstate(divide=mode):  # type: ignore[call-overload]
            assert threads.run([divide] * 6) == [expected] * 6
    assert threads.run([divide] * 6) == ["RuntimeWarning"] * 6 and np.geterr() == settings
    called: list[str] = []
    with np.errstate(divide="call", call=lambda kind, _: called.append(kind)):
        assert threads.run([divide] * 6) == ["ignored"] * 6
    assert called == ["divide by zero"] * 6


@pytest.mark.parametrize("n", COUNTS)
def test_a_task_may_run_tasks(n: int) -> None:
    threads.set_num_threads(n)

    def outer(k: int) -> list[int]:
        return threads.run([partial(int, 10 * k + j) for j in range(5)])

    assert threads.run([partial(outer, k) for k in range(5)]) == [[10 * k + j for j in range(5)] for k in range(5)]


def test_two_threads_of_the_user_each_get_their_own_results() -> None:
    threads.set_num_threads(2)
    found: dict[int, bool] = {}

    def use(mine: int) -> None:
        expected = [mine + k for k in range(5)]
        found[mine] = all(threads.run([partial(int, k) for k in expected]) == expected for _ in range(200))

    users = [threading.Thread(target=use, args=(100 * k,)) for k in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(30)
    assert found == {0: True, 100: True, 200: True, 300: True}


# BLAS.


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def blas() -> Iterator[list[int]]:
    """BLAS with two threads, whatever the machine has."""
    before = blas_threads()
    set_blas_threads(2)
    counts = blas_threads()
    if set(counts) != {2}:
        pytest.skip("this NumPy's BLAS does not let itself be set to two threads")
    yield counts
    set_blas_threads(before[0])


def set_blas_threads(n: int) -> None:
    """Whichever thread did it last: threadpoolctl (3.8) lets a thread that sets them keep all others from it."""
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        let_go = getattr(library, "clear_controlling_thread", lambda force: None)
        let_go(force=True)
        library.set_num_threads(n)
        let_go(force=True)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("tasks", [1, 3])
def test_blas_has_one_thread_while_tasks_run_and_its_own_afterwards(n: int, tasks: int, blas: list[int]) -> None:
    threads.set_num_threads(n)
    for _ in range(2):
        assert threads.run([blas_threads] * tasks) == [[1] * len(blas)] * tasks
        assert blas_threads() == blas
    assert threads.run([lambda: threads.run([blas_threads] * 2)] * 2) == [[[1] * len(blas)] * 2] * 2
    assert blas_threads() == blas


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_blas_has_its_threads_back_after_an_error(n: int, error: type[BaseException], blas: list[int]) -> None:
    threads.set_num_threads(n)

    def fail() -> None:
        raise error

    for tasks in ([fail], [fail, blas_threads, blas_threads], [blas_threads, blas_threads, fail]):
        with pytest.raises(error):
            threads.run(tasks)
        assert blas_threads() == blas


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_blas_has_its_threads_back_after_the_last_of_two_overlapping_runs(
    first_ends_first: bool, blas: list[int]
) -> None:
    threads.set_num_threads(2)
    begun, end, ended = ([threading.Event() for _ in range(2)] for _ in range(3))
    go_home = threading.Event()

    def task(number: int) -> None:
        begun[number].set()
        assert end[number].wait(10)

    def use(number: int) -> None:
        threads.run([partial(task, number), int])
        ended[number].set()
        go_home.wait(10)  # both users live on after their runs

    users = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(2)]
    for number, user in enumerate(users):
        user.start()
        assert begun[number].wait(10)
    assert blas_threads() == [1] * len(blas)
    first, last = (0, 1) if first_ends_first else (1, 0)
    end[first].set()
    assert ended[first].wait(10)
    assert blas_threads() == [1] * len(blas), "the other is still at work"
    end[last].set()
    assert ended[last].wait(10)
    assert blas_threads() == blas
    go_home.set()
    for user in users:
        user.join(10)


def test_blas_has_one_thread_in_whatever_thread_tasks_run(blas: list[int]) -> None:
    """threadpoolctl (3.8) does nothing, without a word, in a second thread while the first one is alive."""
    threads.set_num_threads(2)
    found = [threads.run([blas_threads] * 2)]
    go_on = [threading.Event() for _ in range(3)]

    def use(number: int) -> None:
        assert go_on[number].wait(10)
        found.append(threads.run([blas_threads] * 2))
        found.append([blas_threads()] * 2)
        go_on[number + 1].set()
        assert go_on[2].wait(10)  # alive until the end

    users = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(2)]
    for user in users:
        user.start()
    go_on[0].set()
    for user in users:
        user.join(10)
    found.append(threads.run([blas_threads] * 2))
    one = [[1] * len(blas)] * 2
    assert found == [one, one, [blas] * 2, one, [blas] * 2, one]
    assert blas_threads() == blas


def test_blas_has_one_thread_although_another_thread_has_set_it(blas: list[int]) -> None:
    threads.set_num_threads(2)
    threadpool_limits(limits=2, user_api="blas")
    found = []
    user = threading.Thread(target=lambda: found.append(threads.run([blas_threads] * 2)))
    user.start()
    user.join(10)
    assert found == [[[1] * len(blas)] * 2] and blas_threads() == blas


def test_others_can_set_blas_after_a_run(blas: list[int]) -> None:
    threads.set_num_threads(2)
    threads.run([int, int])
    found = []

    def other() -> None:
        with threadpool_limits(limits=1, user_api="blas"):
            found.append(blas_threads())

    user = threading.Thread(target=other)
    user.start()
    user.join(10)
    assert found == [[1] * len(blas)] and blas_threads() == blas


def test_work_of_a_real_size_is_split_by_the_thresholds_as_they_are(blas: list[int], runs: list[int]) -> None:
    lengths = sorted(np.random.default_rng(0).integers(1, 12, 128).tolist(), reverse=True)
    sizes, found = (512, 256, 256), {}
    for n in (1, 2, 3):
        with number_of_threads(n):
            del runs[:]
            model = Model("float32", sizes)
            found[n] = gradients(model, lengths)
            again = gradients(model, lengths)
            assert bits(list(found[n].values())) == bits(list(again.values()))
            assert n == 1 or sum(tasks >= n for tasks in runs) >= 6  # both LSTMs, both ways, and the head
        for name, value in found[1].items():
            assert relative_error(found[n][name], value) < 2e-5, name
    assert blas_threads() == blas
