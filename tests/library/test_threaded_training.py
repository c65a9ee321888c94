"""Training on threads: the same bits in every run, the same numbers at any thread count, also in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PATHS, filled, python, refuses, relative_error
from small_model import RAGGED, RECTANGULAR, Model, batch, bits, cut_for, gradients, train

import minidl
from minidl.kernels.cpu import threads

COUNTS = [1, 2, 3, 4]
SHAPES = {"ragged": RAGGED, "rectangular": RECTANGULAR}
every_shape = pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: minidl.SGD(params, lr=0.1),
    "SGD with momentum": lambda params: minidl.SGD(params, lr=0.1, momentum=0.9),
    "AdaGrad": minidl.AdaGrad,
    "Adadelta": minidl.Adadelta,
    "Adam": minidl.Adam,
    "AdamW": minidl.AdamW,
}
pytestmark = pytest.mark.usefixtures("as_many_threads_afterwards")


# Training.


@every_shape
@pytest.mark.parametrize("n", COUNTS)
def test_the_work_of_every_layer_is_really_split(n: int, lengths: list[int], runs: list[int]) -> None:
    """Otherwise the tests below would compare nothing."""
    model = Model()
    data, sizes, targets = batch(lengths)
    optimizer = minidl.Adam(model.parameters())
    with cut_for(n):
        x = model.embedding(data)
        packing = minidl.Packing(sizes)
        y, cache = model.lstms[0].forward(x, packing)
        steps: list[Callable[[], object]] = [
            lambda: model.lstms[0].forward(x, packing),
            lambda: model.head.forward_backward(y, targets),
            lambda: model.head(y, targets),
            lambda: model.lstms[0].backward(y, cache),
            optimizer.step,
        ]
        for number, step in enumerate(steps):
            del runs[:]
            step()
            assert max(runs) >= n, number


@pytest.mark.slow
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


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_gradients_of_split_work(n: int) -> None:
    """Against numerical ones, with states, and with a state row beyond the batch."""
    rng = np.random.default_rng(0)
    layer, head = filled(minidl.LSTM(3, 4, dtype="float64")), filled(minidl.LinearCrossEntropy(4, 5, dtype="float64"))
    for sizes, rows in (([5, 4, 4, 2, 1], 5), ([3, 3, 3], 3), ([4, 2], 6), ([1, 1], 1)):
        x = rng.normal(size=(sum(sizes), 3))
        state = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 4))
        with cut_for(n):
            assert minidl.gradcheck(layer, x, minidl.Packing(sizes), state=state, rng=0).max_error < 1e-6
            y = layer(x, minidl.Packing(sizes))
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


@pytest.mark.parametrize("keywords", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}], ids=str)
def test_what_is_sampled_does_not_depend_on_the_number_of_threads(keywords: dict[str, Any], runs: list[int]) -> None:
    logits, found = np.random.default_rng(0).normal(size=(50, 9)), []
    for n in COUNTS:
        with cut_for(n):
            found.append(minidl.sample(logits, rng=1, **keywords).tolist())
        assert n == 1 or runs[-1] == n
    assert found == found[:1] * len(COUNTS)


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
from minidl.kernels.cpu import threads
from threadpoolctl import threadpool_info
with cut_for({n}):
    before = bits(train(Model(), RAGGED))
    reader, writer = os.pipe()
    def child(where):
        signal.alarm(30)  # ends a child that waits for a thread it does not have
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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a system where fork is safe")
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("body", FORKS.values(), ids=FORKS.keys())
def test_a_forked_child_can_train(body: str, n: int) -> None:
    assert python(FORK.format(body=body, n=n), "-Wignore::DeprecationWarning") == "['child', '']"


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a system where fork is safe")
def test_a_child_forked_while_blas_is_held_to_one_thread_has_all_of_them() -> None:
    code = """
    import os, signal, threading
    from minidl.kernels.cpu import threads
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
