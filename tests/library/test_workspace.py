"""The pool of work arrays: memory is reused, but never while an array or a view of it is alive."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Blocks, filled, python, relative_error, reused_memory, snapshot
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from small_model import RAGGED, RECTANGULAR, TOKENS, Model, bits, cut_for, train

import minidl
from minidl.kernels.cpu import cuts, threads, workspace
from minidl.kernels.cpu.workspace import empty

FLOATS = np.zeros(0, np.float32), np.zeros(0, np.float64)
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a system where fork is safe"
)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


# One array.


@pytest.mark.parametrize("like", FLOATS, ids=["float32", "float64"])
@pytest.mark.parametrize("least", [1, 2**16])
def test_every_array_starts_on_a_cache_line(least: int, like: np.ndarray) -> None:
    item = like.itemsize
    lengths = [*range(1, 70), *(2**16 // item + k for k in (-1, 0, 1)), 100_003]
    with reused_memory(least):
        kept = [empty((length,), like) for length in lengths for _ in range(2)]
        assert all(address(array) % 64 == 0 for array in kept)
        assert [array.shape for array in kept] == [(length,) for length in lengths for _ in range(2)]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 5, 6), (1, 1), (0, 5), (300, 400), ()])
@pytest.mark.parametrize("like", FLOATS, ids=["float32", "float64"])
def test_an_array_is_like_any_other(like: np.ndarray, shape: tuple[int, ...]) -> None:
    with reused_memory():
        empty((300, 400), like)  # what comes next lies in memory that is not clean
        array = empty(shape, like)
        assert type(array) is np.ndarray and array.flags.c_contiguous and array.flags.writeable
        assert array.shape == shape and array.dtype == like.dtype
        array[...] = 7
        assert (array == 7).all()


# Which memory.


@pytest.mark.parametrize("shape", [(2**14,), (100, 300), (4, 50, 100)])
def test_memory_is_used_again_as_soon_as_the_array_is_dropped(shape: tuple[int, ...]) -> None:
    with reused_memory(cuts.POOLED_BYTES) as blocks:
        array = empty(shape, FLOATS[0])
        first = address(array)
        for _ in range(5):
            del array
            array = empty(shape, FLOATS[0])
            assert address(array) == first
        assert blocks.fresh == 1
        other = empty(shape, FLOATS[0])
        assert address(other) != first and blocks.fresh == 2


def test_memory_is_used_again_for_an_array_of_half_the_size_but_not_for_a_small_one() -> None:
    with reused_memory() as blocks:
        for length in (1000, 999, 700, 500, 1000):
            empty((length,), FLOATS[0])
        assert blocks.fresh == 1
        small = empty((400,), FLOATS[0])
        assert blocks.fresh == 2 and small.size == 400


VIEWS: dict[str, Callable[[np.ndarray], Any]] = {
    "a slice": lambda array: array[3:5],
    "one row": lambda array: array[-1],
    "an element's view": lambda array: array[1:2, 1:2],
    "every other": lambda array: array[::-2, 1::3],
    "the transpose": lambda array: array.T,
    "another shape": lambda array: array.reshape(-1),
    "another dtype": lambda array: array.view(np.uint8),
    "a view of a view": lambda array: array[2:].T.reshape(-1, order="F")[5:].view(np.uint32)[::7],
    "a broadcast": lambda array: np.broadcast_to(array[0], (3, array.shape[1])),
    "an iterator": lambda array: iter(array),
    "a flat iterator": lambda array: array.flat,
    "a memoryview": lambda array: memoryview(array),
    "the interface": lambda array: np.asarray(memoryview(array)[1:]),
    "a closure": lambda array: lambda: array,
    "ctypes": lambda array: array.ctypes,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_a_view_keeps_the_memory(view: Callable[[np.ndarray], Any]) -> None:
    with reused_memory() as blocks:
        array = empty((8, 20), FLOATS[0])
        array[...] = 3
        first, kept = address(array), view(array)
        before = kept.tobytes() if isinstance(kept, np.ndarray) else None
        del array
        others = [empty((8, 20), FLOATS[0]) for _ in range(3)]
        assert first not in map(address, others)
        assert before is None or kept.tobytes() == before
        del kept
        assert address(empty((8, 20), FLOATS[0])) == first and blocks.fresh == 4


def test_memory_in_a_cycle_comes_back_with_the_garbage_collector() -> None:
    class Holder:
        pass

    with reused_memory() as blocks:
        holder: Any = Holder()
        holder.me, holder.array = holder, empty((1000,), FLOATS[0])
        first = address(holder.array)
        del holder
        gc.collect()
        assert address(empty((1000,), FLOATS[0])) == first and blocks.fresh == 1


class Pool(RuleBasedStateMachine):
    """Arrays come and go in any order, with views that outlive them; each holds its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = reused_memory(64)
        self.blocks = self.memory.__enter__()
        self.numbers = itertools.count(1)
        self.alive: list[tuple[np.ndarray, float]] = []

    @rule(length=st.integers(1, 2000), wide=st.booleans())
    def take(self, length: int, wide: bool) -> None:
        array = empty((length,), FLOATS[wide])
        assert address(array) % 64 == 0
        number = float(next(self.numbers))
        array[...] = number
        self.alive.append((array, number))

    @precondition(lambda self: self.alive)
    @rule(place=st.integers(0, 10**6))
    def drop(self, place: int) -> None:
        del self.alive[place % len(self.alive)]

    @precondition(lambda self: self.alive)
    @rule(place=st.integers(0, 10**6), cut=st.integers(0, 10**6), keep=st.booleans())
    def view(self, place: int, cut: int, keep: bool) -> None:
        array, number = self.alive[place % len(self.alive)]
        cut %= array.size
        kept = array[cut:].reshape(1, -1).T[::2, 0] if cut % 2 else array.view(array.dtype)[: cut + 1]
        if not keep:
            del self.alive[place % len(self.alive)]
        self.alive.append((kept, number))

    @precondition(lambda self: self.alive)
    @rule()
    def release(self) -> None:
        workspace.release()
        assert len(self.blocks.sizes()) == self.blocks.in_use, "a block lies in the pool"

    @invariant()
    def every_array_holds_its_number(self) -> None:
        for array, number in self.alive:
            assert (array == number).all()

    @invariant()
    def there_are_no_more_blocks_of_a_size_than_were_in_use_at_once(self) -> None:
        at_most_one_octave_apart(self.blocks)

    def teardown(self) -> None:
        self.alive.clear()
        assert self.blocks.in_use == 0
        self.memory.__exit__(None, None, None)


def at_most_one_octave_apart(blocks: Blocks) -> None:
    """Of all blocks, in use or free, whose sizes are within a factor of 2, there are at most as many as were in use."""
    sizes = sorted(blocks.sizes())
    for place, size in enumerate(sizes):
        assert sum(other < 2 * size for other in sizes[place:]) <= blocks.most_in_use


Pool.TestCase.settings = settings(max_examples=30, stateful_step_count=40)
TestPool = Pool.TestCase


@pytest.mark.parametrize("spread", [1.9, 30.0])
def test_the_pool_stays_bounded_when_all_sizes_differ(spread: float) -> None:
    """As with batches of sequences of any lengths."""
    rng = np.random.default_rng(0)
    with reused_memory() as blocks:
        largest = 0
        for _ in range(300):
            lengths = np.exp(rng.uniform(0, np.log(spread), 5)) * 1000
            held = [empty((int(length),), FLOATS[0]) for length in lengths]
            largest = max(largest, sum(array.nbytes for array in held))
            del held
        at_most_one_octave_apart(blocks)
        assert spread > 2 or len(blocks.sizes()) == blocks.most_in_use == 5
        assert sum(blocks.sizes()) < 4 * largest


def test_release_empties_the_pool_and_leaves_what_is_in_use() -> None:
    with reused_memory() as blocks:
        kept, dropped = empty((1000,), FLOATS[0]), empty((1000,), FLOATS[0])
        kept[...] = 5
        del dropped
        assert len(blocks.sizes()) == 2
        workspace.release()
        assert len(blocks.sizes()) == 1 and (kept == 5).all()
        second = empty((1000,), FLOATS[0])
        assert blocks.fresh == 3 and (kept == 5).all()
        del kept, second
        assert len(blocks.sizes()) == 2, "what was in use at the release comes back as ever"
        workspace.release()
        assert blocks.sizes() == []


# Threads and processes.


@pytest.fixture
def hasty() -> Any:
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None], number: int) -> list[BaseException]:
    """The errors of `number` threads that work at once; one that hangs is an error too."""
    errors: list[BaseException] = []
    together = threading.Barrier(number, timeout=10)

    def guarded(index: int) -> None:
        try:
            together.wait()
            work(index)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        if worker.is_alive():
            errors.append(TimeoutError("a thread hangs"))
    return errors


def test_threads_take_and_drop_at_once(hasty: None) -> None:
    def work(index: int) -> None:
        rng = np.random.default_rng(index)
        alive: list[tuple[np.ndarray, float]] = []
        for step in range(300):
            array, number = empty((int(rng.integers(10, 60)),), FLOATS[0]), float(10_000 * index + step)
            array[...] = number
            alive.append((array, number))
            assert all((array == number).all() for array, number in alive)
            if len(alive) > 3:
                del alive[int(rng.integers(len(alive)))]

    with reused_memory():
        assert in_threads(work, 4) == []


def test_a_thread_may_release_while_others_take(hasty: None) -> None:
    at_work = {0, 1}

    def work(index: int) -> None:
        while index == 2 and at_work:
            workspace.release()
        try:
            for length in range(5000 if index < 2 else 0):
                kept = empty((20 + length % 5,), FLOATS[0]), empty((30,), FLOATS[0])
                assert kept[0].size < kept[1].size
        finally:
            at_work.discard(index)

    with reused_memory():
        assert in_threads(work, 3) == []


def test_the_garbage_collector_may_return_memory_while_some_is_taken() -> None:
    class Holder:
        pass

    def work(_: int) -> None:
        for length in range(1, 300):
            holder: Any = Holder()
            holder.me, holder.array = holder, empty((length,), FLOATS[0])
            holder.array[...] = length
            kept = empty((length,), FLOATS[0])
            kept[...] = -length
            assert (holder.array == length).all() and (kept == -length).all()

    before = gc.get_threshold()
    with reused_memory():
        gc.set_threshold(1, 1, 1)  # at nearly every allocation
        try:
            assert in_threads(work, 1) == []
        finally:
            gc.set_threshold(*before)


@needs_fork
def test_a_forked_child_shares_no_memory_with_its_parent() -> None:
    code = """
    import os
    import numpy as np
    from minidl.kernels.cpu import workspace
    like = np.zeros(0)
    kept, dropped = workspace.empty((50_000,), like), workspace.empty((50_000,), like)
    kept[...], dropped[...] = 1, 2
    del dropped
    pid = os.fork()
    if not pid:
        kept[...] = 3
        mine = workspace.empty((50_000,), like)
        mine[...] = 4
        os._exit(0 if (kept == 3).all() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    mine = workspace.empty((50_000,), like)
    assert (mine == 2).all() and (kept == 1).all()
    mine[...] = 5
    pid = os.fork()
    if not pid:
        os._exit(0 if (kept == 1).all() and (mine == 5).all() else 1)
    kept[...] = 6
    assert os.waitpid(pid, 0)[1] == 0
    """
    python(code, "-Wignore::DeprecationWarning")


@needs_fork
def test_a_child_forked_while_a_thread_takes_can_take() -> None:
    code = """
    import os, signal, threading
    import numpy as np
    from minidl.kernels.cpu import workspace
    held, end = threading.Event(), threading.Event()
    def hold():
        with workspace._pool.lock:
            held.set()
            end.wait()
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        workspace.empty((50_000,), np.zeros(0))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    end.set()
    """
    python(code, "-Wignore::DeprecationWarning")


def test_arrays_that_live_until_the_interpreter_ends_make_no_noise() -> None:
    code = """
    import builtins, sys, threading
    import numpy as np
    import minidl
    from minidl.kernels.cpu import workspace
    class Holder: pass
    def make(): return workspace.empty((50_000,), np.zeros(0))
    module, builtins.kept, sys.kept, np.kept, workspace.kept, threading.kept = (make() for _ in range(6))
    cycle = Holder(); cycle.me = cycle; cycle.array = make()
    lstm = minidl.LSTM(64, 64)
    y, cache = lstm.forward(np.ones((2000, 64), np.float32), minidl.Packing([500] * 4))
    sys.modules["elsewhere"] = cache
    """
    assert python(code) == ""


# The layers' contract, with memory that is NaN when it changes hands.


class Job:
    """A layer and one batch for it: forward, then backward."""

    def __init__(self, layer: Any, arguments: tuple[Any, ...], rest: tuple[Any, ...], seed: int) -> None:
        self.layer, self.arguments, self.rest = layer, arguments, rest
        self.rng = np.random.default_rng(seed)

    def forward(self) -> None:
        y, self.cache = self.layer.forward(*self.arguments)
        self.output = y, getattr(self.cache, "state", ())
        self.dy = self.rng.normal(size=y.shape)

    def backward(self) -> None:
        self.result = self.layer.backward(self.dy, self.cache, *self.rest), getattr(self.cache, "dstate", ())

    def made(self) -> Any:
        return self.output, self.result


def jobs(name: str, layer: Any) -> tuple[Job, Job]:
    """Two batches of different sizes."""
    found = []
    for seed, sizes in ((1, [5, 3, 3, 1]), (2, [4, 4])):
        rng, rows = np.random.default_rng(seed), sum(sizes)
        x = rng.normal(size=(rows, 3))
        if name == "LSTM":
            state, dstate = rng.normal(size=(2, 2, 6, 4))
            found.append(Job(layer, (x, minidl.Packing(sizes), tuple(state)), (tuple(dstate),), seed))
        elif name == "Embedding":
            found.append(Job(layer, (rng.integers(0, 7, rows),), (), seed))
        else:
            found.append(Job(layer, (x, minidl.Packing(sizes, step=seed)), (), seed))
    return found[0], found[1]


LAYERS: dict[str, Callable[[], Any]] = {
    "Embedding": lambda: filled(minidl.Embedding(7, 3, dtype="float64")),
    "Linear": lambda: filled(minidl.Linear(3, 4, dtype="float64")),
    "LSTM": lambda: filled(minidl.LSTM(3, 4, dtype="float64")),
    "Dropout": lambda: minidl.Dropout(0.5, rng=0),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
@pytest.mark.parametrize("first_back", [0, 1])
def test_two_forwards_before_a_backward_in_either_order(name: str, first_back: int) -> None:
    plain = LAYERS[name]()
    alone = jobs(name, plain)
    for job in alone:
        job.forward()
        job.backward()
    layer = LAYERS[name]()
    both = jobs(name, layer)
    with reused_memory():
        for job in both:
            job.forward()
        layer(*both[0].arguments[:2])
        both[first_back].backward()
        layer.forward(*both[0].arguments)
        both[1 - first_back].backward()
        for job, expected in zip(both, alone, strict=True):
            assert snapshot(job.made()) == snapshot(expected.made())
    for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < 1e-14


@every_layer
def test_what_the_caller_keeps_does_not_change(name: str) -> None:
    """Outputs, caches, states, their gradients, and views of them when nothing else is left."""
    layer = LAYERS[name]()
    with reused_memory():
        kept: list[tuple[Any, list[Any]]] = []
        for _ in range(3):
            for job in jobs(name, layer):
                job.forward()
                job.backward()
                things: list[Any] = [
                    job.made(),
                    job.cache,
                    job.output[0][1:3],
                    job.output[1],
                    layer(*job.arguments[:2]),
                ]
                kept.append((things, snapshot(things)))
                kept.append((things[2], snapshot(things[2])))
                if len(kept) > 6:
                    del kept[int(job.rng.integers(len(kept)))]
                assert all(snapshot(thing) == before for thing, before in kept)


def test_the_state_of_one_chunk_goes_into_the_next_while_others_run() -> None:
    lstm, rng = LAYERS["LSTM"](), np.random.default_rng(0)
    chunks = rng.normal(size=(4, 6, 3))
    expected = []
    state: Any = None
    for x in chunks:
        y, cache = lstm.forward(x, minidl.Packing([3, 2, 1]), state)
        state = cache.state
        expected.append(snapshot(y, state))
    with reused_memory():
        state = None
        for x, before in zip(chunks, expected, strict=True):
            y, cache = lstm.forward(x, minidl.Packing([3, 2, 1]), state)
            state = cache.state
            lstm.backward(rng.normal(size=(9, 4)), lstm.forward(rng.normal(size=(9, 3)), minidl.Packing([5, 4]))[1])
            assert snapshot(y, state) == before


def test_the_heads_gradient_is_the_callers_own() -> None:
    head, rng = filled(minidl.LinearCrossEntropy(3, 5, dtype="float64")), np.random.default_rng(0)
    batches = [(rng.normal(size=(rows, 3)), rng.integers(0, 5, rows)) for rows in (7, 4, 7)]
    expected = [snapshot(head.forward_backward(*batch)) for batch in batches]
    with reused_memory():
        made = [head.forward_backward(*batch) for batch in batches]
        for batch in batches:
            head(*batch)
        assert [snapshot(one) for one in made] == expected


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [RAGGED, RECTANGULAR], ids=["ragged", "rectangular"])
def test_training_reads_nothing_that_it_has_not_written(lengths: list[int], dtype: str, n: int) -> None:
    with cut_for(n):
        expected = bits(train(Model(dtype), lengths))
        with reused_memory():
            assert bits(train(Model(dtype), lengths)) == expected


@pytest.mark.parametrize("n", [2, 3])
def test_gradients_are_right_in_memory_that_is_used_again(n: int) -> None:
    rng = np.random.default_rng(0)
    with cut_for(n), reused_memory():
        lstm = LAYERS["LSTM"]()
        state = rng.normal(size=(2, 5, 4))
        x, packing = rng.normal(size=(9, 3)), minidl.Packing([4, 3, 2])
        assert minidl.gradcheck(lstm, x, packing, state=tuple(state), rng=0).max_error < 1e-6
        head = filled(minidl.LinearCrossEntropy(3, 5, dtype="float64"))
        assert minidl.gradcheck(head, rng.normal(size=(7, 3)), rng.integers(0, 5, 7), rng=0).max_error < 1e-6


# How much memory.


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("lengths", [RAGGED, RECTANGULAR], ids=["ragged", "rectangular"])
def test_a_warm_training_step_makes_no_new_block(lengths: list[int], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with cut_for(n), reused_memory() as blocks:
        # one after the other: how many tasks are at work at once, and so hold work arrays, is a matter of luck
        monkeypatch.setattr(threads, "run", lambda tasks, parts=None: [task() for task in tasks])
        counts = []
        model = Model()
        optimizer = minidl.Adam(model.parameters())
        data = minidl.pack([np.arange(length) % TOKENS for length in lengths])
        for step in range(24):
            optimizer.zero_grad()
            model.forward_backward(data.data, data.batch_sizes, data.data, step)
            minidl.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            counts.append(blocks.fresh)
        assert counts[0] > 10, "the pool is in use"
        assert counts[12:] == [counts[-1]] * 12  # until then it settles which block serves which size
        assert blocks.in_use == 0


@pytest.mark.parametrize("n", [1, 3])
def test_steps_of_all_lengths_keep_the_pool_bounded(n: int) -> None:
    rng = np.random.default_rng(0)
    with cut_for(n), reused_memory() as blocks:
        model = Model("float32")
        for step in range(25):
            lengths = sorted(rng.integers(1, 12, rng.integers(1, 9)).tolist(), reverse=True)
            data = minidl.pack([np.arange(length) % TOKENS for length in lengths])
            model.forward_backward(data.data, data.batch_sizes, data.data, step)
        at_most_one_octave_apart(blocks)
        assert blocks.in_use == 0
