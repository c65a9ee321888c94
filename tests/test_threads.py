"""Threads: the same bits from run to run, the same numbers at every count, and nothing left behind by a failure."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PATHS, filled, python, refuses, relative_error
from hypothesis import given
from hypothesis import strategies as st
from small_model import RAGGED, RECTANGULAR, Model, batch, bits, cut_for, gradients, number_of_threads, train
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

import minidl
from minidl import backend, packed, threads

COUNTS = [1, 2, 3, 4]
SHAPES = {"ragged": RAGGED, "rectangular": RECTANGULAR}
every_shape = pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: minidl.SGD(params, lr=0.1),
    "SGD with momentum": lambda params: minidl.SGD(params, lr=0.1, momentum=0.9),
    "AdaGrad": minidl.AdaGrad,
    "Adadelta": minidl.Adadelta,
    "Adam": minidl.Adam,
}


@pytest.fixture(autouse=True)
def _as_many_threads_afterwards() -> Iterator[None]:
    with number_of_threads(threads.get_num_threads()):
        yield


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tasks in every call of `threads.run` from now on."""
    found: list[int] = []
    run = threads.run

    def watched(tasks: Any, parts: int | None = None) -> Any:
        found.append(min(len(tasks), parts or len(tasks)))
        return run(tasks, parts)

    monkeypatch.setattr(threads, "run", watched)
    return found


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
    code = "import os; os.sched_setaffinity(0, {}); from minidl import threads; print(threads.get_num_threads())"
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
    assert threads.worth(work, 10, np.zeros(1)) == expected


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60).map(lambda found: sorted(found, reverse=True)),
    n=st.integers(1, 8),
)
def test_shards_have_nearly_equal_sums_of_lengths(lengths: list[int], n: int) -> None:
    sizes = [sum(length > t for length in lengths) for t in range(lengths[0])]
    with cut_for(n):
        shards = packed.shards(sizes, n)
    assert [b for shard in shards for b in range(shard.start, shard.stop)] == list(range(len(lengths)))
    assert 1 <= len(shards) <= n and (len(shards) > 1 or n == 1 or len(lengths) == 1 or lengths[0] > sum(lengths[1:]))
    for shard in shards:
        assert shard.start < shard.stop
        assert sum(lengths[shard]) <= sum(lengths) / n + lengths[0]


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
    assert threads.run([partial(int, k) for k in range(9)]) == list(range(9)), "the team goes on"


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

    with pytest.raises(KeyboardInterrupt):
        threads.run([interrupted, partial(counter, ended, begun)])
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


# Training.


@every_shape
@pytest.mark.parametrize("n", COUNTS)
def test_the_work_of_every_layer_is_really_split(n: int, lengths: list[int], runs: list[int]) -> None:
    """Otherwise the tests below would compare nothing."""
    model = Model()
    data, sizes, targets = batch(lengths)
    optimizer = minidl.Adam(model.parameters())
    with cut_for(n):
        x, embedded = model.embedding.forward(data)
        (y, _), cache = model.lstms[0].forward(x, sizes)
        dropped, mask = model.dropouts[1].forward(y, 1)
        steps: list[Callable[[], object]] = [
            lambda: model.lstms[0].forward(x, sizes),
            lambda: model.head.forward_backward(dropped, targets),
            lambda: model.head(dropped, targets),
            lambda: model.dropouts[1].backward(y, mask),
            lambda: model.lstms[0].backward(y, cache),
            lambda: model.embedding.backward(x, embedded),
            lambda: minidl.clip_grad_norm(model.parameters(), 1e9),
            optimizer.step,
            optimizer.zero_grad,
        ]
        for number, step in enumerate(steps):
            del runs[:]
            step()
            if number != 3:  # dropout's products are not worth it yet
                assert max(runs) >= n, number


@every_shape
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", COUNTS)
def test_training_gives_the_same_bits_whichever_thread_is_faster(
    n: int, dtype: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_for(n):
        expected = bits(train(Model(dtype), lengths))
        run, rng = threads.run, np.random.default_rng(n)

        def late(task: Any, delay: float) -> Any:
            time.sleep(delay)
            return task()

        def delayed(tasks: Any, parts: int | None = None) -> Any:
            delays = rng.choice([0, 2e-4], len(tasks))
            return run([partial(late, task, delay) for task, delay in zip(tasks, delays, strict=True)], parts)

        def shuffled(tasks: Any, parts: int | None = None) -> Any:
            results = {index: tasks[index]() for index in rng.permutation(len(tasks))}
            return [results[index] for index in range(len(tasks))]

        for way in (run, delayed, shuffled):
            monkeypatch.setattr(threads, "run", way)
            assert bits(train(Model(dtype), lengths)) == expected, way


@every_shape
def test_gradients_agree_at_every_number_of_threads(lengths: list[int]) -> None:
    expected = gradients(Model(), lengths)  # in one piece: nothing here is worth a cut
    for n in [*COUNTS, 16]:  # more threads than sequences
        with cut_for(n):
            found = gradients(Model(), lengths)
        for name, value in expected.items():
            assert relative_error(found[name], value) < 1e-12, (n, name)


@every_shape
def test_training_agrees_at_every_number_of_threads(lengths: list[int]) -> None:
    expected = train(Model(), lengths)
    for n in COUNTS:
        with cut_for(n):
            found = train(Model(), lengths)
        for got, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-8, atol=1e-10)  # Adam divides by gradients near 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_gradients_of_split_work(n: int) -> None:
    """Against numerical ones, with states, and with a state row beyond the batch."""
    rng = np.random.default_rng(0)
    layer, head = filled(minidl.LSTM(3, 4, dtype="float64")), filled(minidl.LinearCrossEntropy(4, 5, dtype="float64"))
    for sizes, rows in (([5, 4, 4, 2, 1], 5), ([3, 3, 3], 3), ([4, 2], 6), ([1, 1], 1)):
        x = rng.normal(size=(sum(sizes), 3))
        state = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 4))
        with cut_for(n):
            assert minidl.gradcheck(layer, x, sizes, state, rng=0).max_error < 1e-6
            y = layer(x, sizes)[0]
            assert minidl.gradcheck(head, y, rng.integers(0, 5, len(y)), rng=0).max_error < 1e-6


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizers_step_has_the_same_bits_at_every_number_of_threads(make: Callable[[Any], Any]) -> None:
    """Its rules are elementwise, so that no cut may show."""
    found = []
    for n in COUNTS:
        model = Model("float32")
        with cut_for(n):
            optimizer = make(model.parameters())
            for seed in range(3):
                rng = np.random.default_rng(seed)
                for parameter in model.parameters():
                    parameter.grad[...] = rng.normal(size=parameter.grad.shape)
                optimizer.step()
            optimizer.zero_grad()
            assert not any(parameter.grad.any() for parameter in model.parameters())
        found.append(bits([*(p.data for p in model.parameters()), *optimizer.state.values()]))
    assert found == found[:1] * len(COUNTS)


@pytest.mark.parametrize("n", COUNTS)
def test_a_gradient_that_is_not_finite_is_found_in_every_part(n: int) -> None:
    parameter = minidl.Parameter(np.ones(12))
    with cut_for(n):
        optimizer = minidl.SGD([parameter], lr=0.1)
        for place in range(12):
            parameter.grad[...] = 1
            parameter.grad[place] = np.nan
            with refuses(FloatingPointError, "not finite", keep=optimizer):
                optimizer.step()
            with refuses(FloatingPointError, "not finite", keep=optimizer):
                minidl.clip_grad_norm([parameter], 1.0)
        parameter.grad[...] = 2
        assert relative_error(minidl.clip_grad_norm([parameter], 1e9), np.sqrt(48.0)) < 1e-14


@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    n=st.integers(1, 5),
)
def test_rows_are_added_the_same_at_every_number_of_threads(ids: list[int], n: int) -> None:
    """However an id's rows lie across the cuts."""
    rng = np.random.default_rng(len(ids))
    target, rows = rng.normal(size=(7, 3)), rng.normal(size=(len(ids), 3))
    expected = target.copy()
    np.add.at(expected, np.array(ids), rows)
    with cut_for(n):
        backend.add_rows(target, np.array(ids), rows)
    np.testing.assert_allclose(target, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("keywords", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}], ids=str)
def test_what_is_sampled_does_not_depend_on_the_number_of_threads(keywords: dict[str, Any], runs: list[int]) -> None:
    logits, found = np.random.default_rng(0).normal(size=(50, 9)), []
    for n in COUNTS:
        with cut_for(n):
            found.append(minidl.sample(logits, rng=1, **keywords).tolist())
        assert n == 1 or runs[-1] == n
    assert found == found[:1] * len(COUNTS)


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


def test_two_threads_of_the_user_train_as_if_alone() -> None:
    jobs = [(lengths, dtype) for lengths in SHAPES.values() for dtype in ("float32", "float64")]
    with cut_for(2):
        expected = [bits(train(Model(dtype), lengths)) for lengths, dtype in jobs]
        found: list[Any] = [None] * len(jobs)
        together = threading.Barrier(len(jobs), timeout=10)

        def work(number: int) -> None:
            lengths, dtype = jobs[number]
            together.wait()
            found[number] = [bits(train(Model(dtype), lengths)) for _ in range(5)]

        users = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
        for user in users:
            user.start()
        for user in users:
            user.join(60)
    assert found == [[one] * 5 for one in expected]


# Processes.


FORK = """
import os, signal
from small_model import RAGGED, Model, bits, cut_for, train
from minidl import threads
from threadpoolctl import threadpool_info
with cut_for({n}):
    before = bits(train(Model(), RAGGED))
    reader, writer = os.pipe()
    def child(where):
        signal.alarm(30)  # a child that waits for a thread it has not is ended by this
        where = where if bits(train(Model(), RAGGED)) == before else "other bits"
        os.write(writer, (where + "\\n").encode())
        os._exit(0)
    {body}
    assert bits(train(Model(), RAGGED)) == before
    os.close(writer)
    print(os.fdopen(reader).read().split("\\n"))
"""
FORKS = {
    "between calls": 'pid = os.fork() or child("child")\n    os.waitpid(pid, 0)',
    "while another thread is at work": """
    import threading
    begun, end = threading.Event(), threading.Event()
    user = threading.Thread(target=threads.run, args=([lambda: begun.set() or end.wait(), int],), daemon=True)
    user.start()
    begun.wait()
    pid = os.fork() or child("child")
    os.waitpid(pid, 0)
    end.set()
    user.join()
""",
    "by a child": """
    def grandchild():
        train(Model(), RAGGED)
        pid = os.fork() or child("child")
        os.waitpid(pid, 0)
        os._exit(0)
    pid = os.fork() or grandchild()
    os.waitpid(pid, 0)
""",
}


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a system where fork is safe")
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("body", FORKS.values(), ids=FORKS.keys())
def test_a_forked_child_can_train(body: str, n: int) -> None:
    assert python(FORK.format(body=body, n=n), "-Wignore::DeprecationWarning") == "['child', '']"


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a system where fork is safe")
def test_a_child_forked_while_blas_is_held_to_one_thread_has_all_of_them() -> None:
    code = """
    import os, signal, threading
    from minidl import threads
    from threadpoolctl import threadpool_info, threadpool_limits
    def blas():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
    setter = threading.Thread(target=threadpool_limits, kwargs={"limits": 2, "user_api": "blas"})
    setter.start()
    setter.join()
    if blas() == {2}:
        threads.set_num_threads(2)
        begun, end = threading.Event(), threading.Event()
        user = threading.Thread(target=threads.run, args=([lambda: begun.set() or end.wait(), int],), daemon=True)
        user.start()
        begun.wait()
        assert blas() == {1}
        pid = os.fork()
        if not pid:
            signal.alarm(30)
            os._exit(7 if [blas(), *threads.run([blas] * 2), blas()] == [{2}, {1}, {1}, {2}] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert blas() == {1}
        end.set()
        user.join()
        assert blas() == {2}
    """
    python(code, "-Wignore::DeprecationWarning")


def test_a_spawned_child_can_train(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, sys
        sys.path[:0] = {PATHS}
        from small_model import RAGGED, Model, bits, cut_for, train

        def work(n):
            with cut_for(n):
                return bits(train(Model(), RAGGED))

        if __name__ == "__main__":
            expected = work(2)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert pool.apply_async(work, (2,)).get(50) == expected
            print("same")
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "same", "")
