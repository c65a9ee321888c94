"""LSTM: the final state, the gradient of the initial state, single steps, and the packing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses, relative_error, snapshot
from small_model import cut_for
from test_lstm import BAD_STATES, CASES, Case, case

import minidl

every_case = pytest.mark.parametrize("c", CASES.values(), ids=CASES.keys())
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
pytestmark = pytest.mark.usefixtures("as_many_threads_afterwards")


def of(pair: Any, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    return pair[0][rows], pair[1][rows]


# A step.


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "inputs", "hidden"), [(1, 1, 1), (1, 3, 4), (4, 3, 1), (7, 2, 5), (3, 6, 2)])
@pytest.mark.parametrize("stated", [True, False])
def test_a_step_gives_what_forwards_one_step_gives(
    stated: bool, rows: int, inputs: int, hidden: int, dtype: str
) -> None:
    c = case([1] * rows, inputs, hidden, dtype=dtype)
    state = c.state if stated else None
    y, cache = c.lstm.forward(c.x, minidl.Packing([rows]), state)
    h, cell = c.lstm.step(c.x, state)
    for found, expected in ((h, y), (h, cache.state[0]), (cell, cache.state[1])):
        assert found.dtype == dtype and relative_error(found, expected) < TOLERANCE[dtype]
    assert relative_error(h, cell) > 1e-3, "the case must be able to fail"


@every_case
def test_steps_one_after_the_other_give_what_forward_gives(c: Case) -> None:
    """As a text is written, of which some lines end earlier."""
    whole, cache = c.lstm.forward(c.x, c.packing, c.state)
    state, alive = c.state, len(c.state[0])
    for t, rows in enumerate(pairwise(np.cumsum([0, *c.sizes]))):
        n = c.sizes[t]
        h, cell = c.lstm.step(c.x[slice(*rows)], of(state, slice(n)))
        assert relative_error(h, whole[slice(*rows)]) < 1e-13
        state = tuple(np.concatenate([new, old[n:]]) for new, old in zip((h, cell), state, strict=True))
    for found, expected in zip(state, cache.state, strict=True):
        assert len(found) == alive and relative_error(found, expected) < 1e-13


def test_a_step_from_nothing_is_a_step_from_zeros() -> None:
    c = CASES["ragged"]
    zeros = (np.zeros((4, 4)), np.zeros((4, 4)))
    assert (
        snapshot(c.lstm.step(c.x[:4])) == snapshot(c.lstm.step(c.x[:4], None)) == snapshot(c.lstm.step(c.x[:4], zeros))
    )
    assert snapshot(c.lstm.step(c.x[:4])) != snapshot(c.lstm.step(c.x[:4], c.state))


def test_a_steps_state_is_the_callers_own_and_what_came_in_is_left_alone() -> None:
    c = CASES["ragged"]
    x, attributes = c.x[:4].copy(), vars(c.lstm).copy()
    before = snapshot(c.lstm, x, c.state)
    after = c.lstm.step(x, c.state)
    kept = snapshot(after)
    for part in c.lstm.step(x, c.state):
        part[...] = 1e6
    c.lstm.step(x + 1, after)
    assert snapshot(after) == kept and snapshot(c.lstm, x, c.state) == before and vars(c.lstm) == attributes
    arrays = [*after, x, *c.state]
    assert not any(np.shares_memory(a, b) for index, a in enumerate(arrays) for b in arrays[:index])


@pytest.mark.parametrize(("change", "error", "words"), BAD_STATES)
def test_a_step_refuses_a_bad_state_by_name(change: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    with refuses(error, "state ", *words, keep=[c.lstm, c.x, c.state]):
        c.lstm.step(c.x[:4], change(*c.state))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_steps_state_has_as_many_rows_as_its_x(rows: int) -> None:
    """More would be let through by NumPy where x has one row."""
    c = CASES["spare states"]
    for n in {1, 2, 3} - {rows}:
        with refuses(ValueError, "state h", f"({n}, 3)", f"({rows}, 3)", keep=[c.lstm, c.x, c.state]):
            c.lstm.step(c.x[:n], of(c.state, slice(rows)))
        with refuses(ValueError, "state c", f"({n}, 3)", f"({rows}, 3)", keep=[c.lstm, c.x, c.state]):
            c.lstm.step(c.x[:n], (c.state[0][:n], c.state[1][:rows]))


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones((4, 2)), ValueError, ["(N, 3)", "(4, 2)"]),
        (np.ones(3), ValueError, ["(N, 3)", "(3,)"]),
        (np.ones((1, 4, 3)), ValueError, ["(N, 3)", "(1, 4, 3)"]),
        (np.ones((0, 3)), ValueError, ["empty batch"]),
        (np.ones((4, 3), np.float32), TypeError, ["float64", "float32"]),
        (np.ones((4, 3), int), TypeError, ["float64", "int64"]),
        ([[1.0] * 3] * 4, TypeError, ["array", "list"]),
        (None, TypeError, ["array", "NoneType"]),
    ],
)
def test_a_step_refuses_a_bad_x(x: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    with refuses(error, "x ", *words, keep=[c.lstm, c.state]):
        c.lstm.step(x, c.state)


# The cache.


@every_case
@pytest.mark.parametrize("n", [1, 2, 3])
def test_backward_writes_cache_dstate_and_nothing_else_of_the_cache(c: Case, n: int) -> None:
    with cut_for(n):
        _, cache = c.lstm.forward(c.x, c.packing, c.state)
        assert vars(cache).keys() == {"x", "walks", "state", "dstate"} and cache.dstate is None
        walks, state = cache.walks, cache.state
        parts, bits = [*walks, *state], snapshot(walks, state)
        c.lstm.backward(c.dy, cache, c.dstate)
    assert vars(cache).keys() == {"x", "walks", "state", "dstate"}
    assert cache.walks is walks and cache.state is state
    assert all(a is b for a, b in zip(parts, [*cache.walks, *cache.state], strict=True))
    assert snapshot(cache.walks, cache.state) == bits
    for part, beginning in zip(cache.dstate, c.state, strict=True):
        assert part.shape == beginning.shape and part.dtype == beginning.dtype and part.all()


def test_every_backward_leaves_a_dstate_of_its_own() -> None:
    c = CASES["spare states"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    c.lstm.backward(c.dy, cache, c.dstate)
    first = cache.dstate
    kept = snapshot(first)
    c.lstm.backward(c.dy, cache)
    without, arrays = cache.dstate, [*first, *cache.dstate, *c.dstate]
    assert snapshot(without) != kept == snapshot(first), "the earlier one is the caller's"
    assert not any(np.shares_memory(a, b) for index, a in enumerate(arrays) for b in arrays[:index])
    c.lstm.backward(c.dy, cache, (np.zeros((5, 3)), np.zeros((5, 3))))
    assert snapshot(cache.dstate) == snapshot(without), "none is one of zeros"


def test_a_backward_with_anothers_state_leaves_its_gradient_in_its_own_cache() -> None:
    c = CASES["ragged"]
    (_, first), (_, second) = (c.lstm.forward(c.x, c.packing, state) for state in (c.state, None))
    c.lstm.backward(c.dy, second, c.dstate)
    assert first.dstate is None
    kept = snapshot(second.dstate)
    c.lstm.backward(c.dy, first, second.dstate)
    assert snapshot(second.dstate) == kept != snapshot(first.dstate)


def test_a_refused_backward_leaves_the_dstate_of_the_one_before() -> None:
    c = CASES["ragged"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    c.lstm.backward(c.dy, cache, c.dstate)
    kept = snapshot(vars(cache))
    with refuses(ValueError, "dy", keep=c.lstm):
        c.lstm.backward(c.dy[:-1], cache, c.dstate)
    with refuses(ValueError, "dstate", keep=c.lstm):
        c.lstm.backward(c.dy, cache, of(c.dstate, slice(3)))
    assert snapshot(vars(cache)) == kept


def test_a_copy_of_a_cache_with_something_replaced_is_a_cache() -> None:
    c = CASES["ragged"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    dx = c.lstm.backward(c.dy, cache, c.dstate)
    copied = dataclasses.replace(cache, dstate=None)
    assert snapshot(c.lstm.backward(c.dy, copied, c.dstate), copied.dstate) == snapshot(dx, cache.dstate)


@pytest.mark.parametrize("cache", [None, (), [], minidl.Linear(3, 4, rng=0).forward(np.ones((12, 3), "float32"))[1]])
def test_what_is_no_cache_is_refused(cache: Any) -> None:
    c = CASES["ragged"]
    with refuses(TypeError, "cache", "LSTMCache", type(cache).__name__, keep=c.lstm):
        c.lstm.backward(c.dy, cache)


@pytest.mark.parametrize(
    ("inputs", "hidden", "dtype", "error", "words"),
    [
        (5, 4, "float64", ValueError, ["cache.x", "(N, 3)", "(12, 5)"]),
        (3, 2, "float64", ValueError, ["cache.h", "(N, 4)", "(16, 2)"]),
        (3, 4, "float32", TypeError, ["cache.x", "float64", "float32"]),
    ],
)
def test_the_cache_of_an_lstm_of_other_sizes_is_refused(
    inputs: int, hidden: int, dtype: str, error: type[Exception], words: Sequence[str]
) -> None:
    c, other = CASES["ragged"], case([5, 3, 3, 1], inputs, hidden, dtype=dtype)
    _, cache = other.lstm.forward(other.x, other.packing)
    with refuses(error, *words, keep=[c.lstm, vars(cache)]):
        c.lstm.backward(c.dy, cache)


# The call, and the packing.


@every_case
@pytest.mark.parametrize("n", [1, 2])
def test_a_call_gives_y_alone(c: Case, n: int) -> None:
    with cut_for(n):
        y, _ = c.lstm.forward(c.x, c.packing)
        found = c.lstm(c.x, c.packing)
        at_a_step = c.lstm(c.x, c.packing._replace(step=3))
    assert (
        type(found) is np.ndarray and found.shape == y.shape and snapshot(found) == snapshot(at_a_step) == snapshot(y)
    )


def test_a_packed_sequence_is_a_packing() -> None:
    c = CASES["ragged"]
    lengths = [3, 5, 1, 3]
    batch = minidl.pack(np.split(np.random.default_rng(0).normal(size=(12, 3)), np.cumsum(lengths)[:-1]))
    y, cache = c.lstm.forward(batch.data, batch, c.state)
    expected, same = c.lstm.forward(batch.data, minidl.Packing([4, 3, 3, 1, 1]), c.state)
    assert snapshot(y, cache.state) == snapshot(expected, same.state)
    assert snapshot(c.lstm(batch.data, batch)) == snapshot(c.lstm(batch.data, minidl.Packing([4, 3, 3, 1, 1])))


NO_PACKINGS = {
    "a list": [4, 3, 3, 1, 1],
    "a tuple": (4, 3, 3, 1, 1),
    "an array": np.array([4, 3, 3, 1, 1]),
    "a number": 12,
    "a dict": {"batch_sizes": [4, 3, 3, 1, 1]},
    "None": None,
}


@pytest.mark.parametrize("packing", NO_PACKINGS.values(), ids=NO_PACKINGS.keys())
def test_what_is_no_packing_is_refused(packing: Any) -> None:
    c = CASES["ragged"]
    words = ["packing ", "minidl.Packing", "PackedSequence", type(packing).__name__]
    with refuses(TypeError, *words, keep=[c.lstm, c.x, c.state]):
        c.lstm.forward(c.x, packing, c.state)
    with refuses(TypeError, *words, keep=[c.lstm, c.x]):
        c.lstm(c.x, packing)
    with refuses(TypeError, *words, keep=[c.lstm, c.x]):
        minidl.Sequential(c.lstm)(c.x, packing)


def test_a_packing_that_is_left_out_is_refused() -> None:
    c = CASES["ragged"]
    with refuses(TypeError, "packing ", "minidl.Packing", "NoneType", keep=[c.lstm, c.x]):
        c.lstm.forward(c.x)
    with refuses(TypeError, "packing ", "minidl.Packing", "NoneType", keep=[c.lstm, c.x]):
        c.lstm(c.x)


def test_a_packing_of_another_batch_is_refused() -> None:
    lstm, x = filled(minidl.LSTM(3, 4, dtype="float64")), np.ones((12, 3))
    batch = minidl.pack([np.ones((5, 3)), np.ones((6, 3))])
    with refuses(ValueError, "batch_sizes", "12 rows", "11", keep=[lstm, x]):
        lstm.forward(x, batch)
    with refuses(ValueError, "batch_sizes", "12 rows", "11", keep=[lstm, x]):
        lstm(x, batch)
