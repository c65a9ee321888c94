"""LSTM: its gradients, its states, packed rows and chunks.

Its results, forward and backward, are checked against slow_reference.py in test_properties.py and against the formulas
in test_lstm_formulas.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import filled, refuses, relative_error, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

import minidl
from minidl.kernels.cpu import cuts, threads

State = tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    """A layer with non-zero biases, a batch with states, and an upstream gradient for all that comes out."""

    lstm: minidl.LSTM
    x: np.ndarray
    sizes: list[int]
    state: State
    dy: np.ndarray
    dstate: State

    @property
    def packing(self) -> minidl.Packing:
        return minidl.Packing(self.sizes)


def sizes_of(lengths: Sequence[int]) -> list[int]:
    """[5, 3, 1] -> [3, 2, 2, 1, 1]."""
    return [sum(length > t for length in lengths) for t in range(max(lengths))]


def case(lengths: Sequence[int], inputs: int = 3, hidden: int = 4, spare: int = 0, dtype: str = "float64") -> Case:
    """`spare`: rows of the state beyond the batch, of sequences that have ended in an earlier chunk."""
    rng = np.random.default_rng([*lengths, inputs, hidden, spare])
    lstm = filled(minidl.LSTM(inputs, hidden, dtype=dtype), seed=1)
    rows, states = sum(lengths), len(lengths) + spare

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    state, dstate = ((normal(states, hidden), normal(states, hidden)) for _ in range(2))
    return Case(lstm, normal(rows, inputs), sizes_of(lengths), state, normal(rows, hidden), dstate)


CASES = {
    "ragged": case([5, 3, 3, 1]),
    "rectangular": case([3, 3], inputs=5, hidden=2),
    "one sequence": case([4], inputs=1, hidden=3),
    "one step": case([1, 1, 1], hidden=1),
    "spare states": case([4, 2, 1], hidden=3, spare=2),
    "one step, spare states": case([1, 1], hidden=3, spare=2),
}


def run(c: Case) -> dict[str, np.ndarray]:
    """All that a forward and a backward give, with the gradients by name."""
    y, cache = c.lstm.forward(c.x, c.packing, c.state)
    h, cell = cache.state
    before = [p.grad.copy() for p in c.lstm.parameters()]
    dx = c.lstm.backward(c.dy, cache, c.dstate)
    dh0, dc0 = cache.dstate
    grads = {f"d{n}": p.grad - old for (n, p), old in zip(c.lstm.named_parameters(), before, strict=True)}
    return {"y": y, "h": h, "c": cell, "dx": dx, "dh0": dh0, "dc0": dc0, **grads}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    c = CASES[name]
    report = minidl.gradcheck(c.lstm, c.x, c.packing, state=c.state, rng=0)
    assert [check.name for check in report.checks] == [
        *("input 0", "state 0", "state 1"),  # x, h0, c0
        *("weight_ih", "weight_hh", "bias"),
    ]
    assert [check.shape for check in report.checks[:3]] == [c.x.shape, c.state[0].shape, c.state[1].shape]
    assert report.max_error < 1e-6


def test_gradients_without_a_state() -> None:
    c = CASES["ragged"]
    report = minidl.gradcheck(c.lstm, c.x, c.packing, rng=0)
    assert len(report.checks) == 4 and report.max_error < 1e-6


def test_a_state_of_none_is_a_state_of_zeros() -> None:
    c = CASES["ragged"]
    zeros = (np.zeros((4, 4)), np.zeros((4, 4)))
    y, cache = c.lstm.forward(c.x, c.packing)
    expected, with_zeros = c.lstm.forward(c.x, c.packing, zeros)
    assert snapshot(y, cache.state) == snapshot(expected, with_zeros.state)
    assert snapshot(c.lstm.backward(c.dy, cache)) == snapshot(c.lstm.backward(c.dy, with_zeros, zeros))
    assert snapshot(cache.dstate) == snapshot(with_zeros.dstate)


@pytest.mark.parametrize("name", CASES)
def test_the_final_state_is_each_sequences_own_last_step(name: str) -> None:
    c = CASES[name]
    made, alive = run(c), c.sizes[0]
    y, h, cell = (made[part] for part in ("y", "h", "c"))
    last = [max(t for t, size in enumerate(c.sizes) if size > b) for b in range(alive)]
    starts = np.cumsum([0, *c.sizes])
    assert all((h[b] == y[starts[t] + b]).all() for b, t in enumerate(last))
    assert snapshot(h[alive:], cell[alive:]) == snapshot(c.state[0][alive:], c.state[1][alive:])
    spare_gradients = snapshot(made["dh0"][alive:], made["dc0"][alive:])
    assert spare_gradients == snapshot(c.dstate[0][alive:], c.dstate[1][alive:])


def chunked(c: Case, at: Sequence[int]) -> dict[str, np.ndarray]:
    """`run`, cut before the steps `at`: the state is fed forward, then its gradient back."""
    edges = [0, *at, len(c.sizes)]
    starts = np.cumsum([0, *c.sizes])
    state, outputs, caches = c.state, [], []
    for first, last in pairwise(edges):
        rows = slice(starts[first], starts[last])
        y, cache = c.lstm.forward(c.x[rows], minidl.Packing(c.sizes[first:last]), state)
        state = cache.state
        outputs.append(y)
        caches.append((rows, cache))
    before = [p.grad.copy() for p in c.lstm.parameters()]
    dstate, dxs = c.dstate, list[np.ndarray]()
    for rows, cache in reversed(caches):
        dxs.insert(0, c.lstm.backward(c.dy[rows], cache, dstate))
        dstate = cache.dstate
    grads = {f"d{n}": p.grad - old for (n, p), old in zip(c.lstm.named_parameters(), before, strict=True)}
    made = {"y": np.concatenate(outputs), "h": state[0], "c": state[1], "dx": np.concatenate(dxs)}
    return {**made, "dh0": dstate[0], "dc0": dstate[1], **grads}


@pytest.mark.parametrize("at", [[1], [2], [3], [4], [1, 2, 3, 4], [2, 4]])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 3, 3, 1], [5, 4, 2, 2, 1, 1]])
def test_chunked_equals_whole(lengths: list[int], at: list[int]) -> None:
    """Sequences that end within a chunk, at its edge, and before it; nothing is lost on the way back."""
    c = case(lengths)
    whole, parts = run(c), chunked(c, at)
    for name, values in whole.items():
        assert relative_error(parts[name], values) < 1e-13, name


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5).map(lambda found: sorted(found, reverse=True)),
    every=st.integers(1, 4),
    spare=st.integers(0, 2),
)
def test_chunks_of_any_length_equal_the_whole(lengths: list[int], every: int, spare: int) -> None:
    c = case(lengths, spare=spare)
    whole, parts = run(c), chunked(c, range(every, max(lengths), every))
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_batch_equals_its_sequences_one_by_one() -> None:
    c = case([5, 3, 3, 1])
    together = run(c)
    starts = np.cumsum([0, *c.sizes])
    total = {name: np.zeros_like(p.data) for name, p in c.lstm.named_parameters()}
    for b in range(4):
        rows = [starts[t] + b for t, size in enumerate(c.sizes) if size > b]
        one = slice(b, b + 1)
        state, dstate = ((pair[0][one], pair[1][one]) for pair in (c.state, c.dstate))
        alone = run(Case(c.lstm, c.x[rows], [1] * len(rows), state, c.dy[rows], dstate))
        for name in ("y", "dx"):
            np.testing.assert_allclose(alone[name], together[name][rows], rtol=1e-11, atol=1e-14)
        for name in ("h", "c", "dh0", "dc0"):
            np.testing.assert_allclose(alone[name], together[name][one], rtol=1e-11, atol=1e-14)
        for name in total:
            total[name] += alone[f"d{name}"]
    for name, gradient in total.items():
        assert relative_error(gradient, together[f"d{name}"]) < 1e-13


def test_inference_equals_forward_and_nothing_is_written_on_the_layer() -> None:
    for c in CASES.values():
        attributes, before = vars(c.lstm).copy(), snapshot(c.lstm, c.x, c.state)
        y, _ = c.lstm.forward(c.x, c.packing)
        assert snapshot(c.lstm(c.x, c.packing)) == snapshot(y)
        c.lstm.forward(c.x, c.packing, c.state)
        c.lstm.step(c.x[:1], (c.state[0][:1], c.state[1][:1]))
        assert vars(c.lstm) == attributes and snapshot(c.lstm, c.x, c.state) == before


def test_forward_step_by_step_equals_the_whole() -> None:
    """With a state row for each line of a text, of which some end earlier; every step's output is the caller's own."""
    c = CASES["spare states"]
    whole, last = c.lstm.forward(c.x, c.packing, c.state)
    starts = np.cumsum([0, *c.sizes])
    state, outputs = c.state, []
    for t, n in enumerate(c.sizes):
        y, cache = c.lstm.forward(c.x[starts[t] : starts[t + 1]], minidl.Packing([n]), state)
        state = cache.state
        outputs.append((y, y.copy()))
    for (_, y), rows in zip(outputs, pairwise(starts), strict=True):
        assert relative_error(y, whole[slice(*rows)]) < 1e-13
    assert relative_error(state[0], last.state[0]) < 1e-13 and relative_error(state[1], last.state[1]) < 1e-13
    y, cache = c.lstm.forward(c.x[:3], minidl.Packing([3]), c.state)
    kept = snapshot(y, c.state)
    for part in cache.state:
        part[...] = 1e6
    assert snapshot(y, c.state) == kept
    assert all((y == copied).all() for y, copied in outputs)


def test_backward_leaves_its_arguments_alone_and_adds() -> None:
    c = CASES["spare states"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    assert cache.dstate is None
    before = snapshot(cache.walks, cache.state, c.x, c.dy, c.state, c.dstate)
    grads = [[p.grad.copy() for p in c.lstm.parameters()]]
    results = []
    for _ in range(2):
        results.append(snapshot(c.lstm.backward(c.dy, cache, c.dstate), cache.dstate))
        grads.append([p.grad.copy() for p in c.lstm.parameters()])
    assert snapshot(cache.walks, cache.state, c.x, c.dy, c.state, c.dstate) == before and results[0] == results[1]
    for start, once, twice in zip(*grads, strict=True):
        assert relative_error(twice - once, once - start) < 1e-12


def test_two_forwards_before_a_backward() -> None:
    """Tied use, and an evaluation in the middle of training: a cache is not touched by what runs after it."""
    first, second = case([5, 3, 1]), case([4, 4])
    expected = [run(first), run(second)]
    y, cache = first.lstm.forward(first.x, first.packing, first.state)
    kept = snapshot(y, vars(cache))
    first.lstm(second.x, second.packing)
    first.lstm.step(second.x[:2], second.state)
    _, other = first.lstm.forward(second.x, second.packing, second.state)
    assert snapshot(y, vars(cache)) == kept
    before = [p.grad.copy() for p in first.lstm.parameters()]
    dx = first.lstm.backward(first.dy, cache, first.dstate)
    other_dx = first.lstm.backward(second.dy, other, second.dstate)
    assert relative_error(dx, expected[0]["dx"]) < 1e-14 and relative_error(other_dx, expected[1]["dx"]) < 1e-14
    for (name, p), old in zip(first.lstm.named_parameters(), before, strict=True):
        both = expected[0][f"d{name}"] + expected[1][f"d{name}"]
        assert relative_error(p.grad - old, both) < 1e-13


def test_the_state_that_comes_out_is_the_callers_own() -> None:
    """Writing into it (to reset a sequence, say) changes neither y nor what backward computes."""
    c = case([3, 2])
    expected = run(c)
    y, cache = c.lstm.forward(c.x, c.packing, c.state)
    for part in cache.state:
        part[...] = 1e6
    dx = c.lstm.backward(c.dy, cache, c.dstate)
    assert snapshot(y, dx, cache.dstate) == snapshot(expected["y"], expected["dx"], (expected["dh0"], expected["dc0"]))


def test_what_a_caller_keeps_stays_valid() -> None:
    """Outputs, states and caches, and mere views of them, whatever runs afterwards."""
    c = CASES["ragged"]
    kept = [(values, values.copy()) for values in run(c).values()]
    y, cache = c.lstm.forward(c.x, c.packing, c.state)
    c.lstm.backward(c.dy, cache, c.dstate)
    (h, cell), (dh0, dc0), (_, walk) = cache.state, cache.dstate, cache.walks[0]
    views = [y[3:5], h[1:], cell[:, 2:], dh0[1:], dc0[:, 2:], walk.gates[:, 4:6], walk.h[2:6], walk.c[-1:]]
    kept += [(view, view.copy()) for view in views]
    del y, h, cell, dh0, dc0, cache, walk, views
    for number in range(10):
        run(c._replace(x=np.full_like(c.x, number)))
    assert all((view == copied).all() for view, copied in kept)


def test_threads_do_not_disturb_each_other() -> None:
    """Inference of one layer, and training of copies of it, from several threads at once."""
    c = case([9, 7, 7, 2])
    expected, found = snapshot(*run(c).values()), []
    inference = snapshot(c.lstm(c.x, c.packing), c.lstm.step(c.x[:4], c.state))

    def work() -> None:
        mine = c._replace(lstm=copy.deepcopy(c.lstm))
        for _ in range(20):
            for parameter in mine.lstm.parameters():
                parameter.grad[...] = 0
            same = snapshot(c.lstm(c.x, c.packing), c.lstm.step(c.x[:4], c.state)) == inference
            found.append(same and snapshot(*run(mine).values()) == expected)

    users = [Thread(target=work) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(found) == 80 and all(found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_keeps_the_layers_dtype(dtype: str) -> None:
    assert {str(array.dtype) for array in run(case([3, 1], dtype=dtype)).values()} == {dtype}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturated_gates_neither_overflow_nor_lose_their_meaning(dtype: str) -> None:
    lstm = minidl.LSTM(1, 1, dtype=dtype)
    x, packing = np.ones((2, 1), dtype), minidl.Packing([1, 1])
    state = (np.zeros((1, 1), dtype), np.full((1, 1), 0.75, dtype))
    lstm.bias.data[...] = [-1e4, 1e4, 1e4, 1e4]  # write nothing, keep all, show all
    y, cache = lstm.forward(x, packing, state)
    c = cache.state[1]
    assert (c == 0.75).all() and (lstm.step(x[:1], state)[1] == 0.75).all()
    np.testing.assert_allclose(y, np.tanh(0.75), rtol=1e-6)
    np.testing.assert_allclose(lstm.step(x[:1], state)[0], np.tanh(0.75), rtol=1e-6)
    dx = lstm.backward(np.zeros_like(y), cache, (np.zeros_like(c), np.ones_like(c)))
    dh0, dc0 = cache.dstate
    assert dc0.item() == 1.0, "the cell-state road lets a gradient through unchanged where the forget gate is open"
    assert not dx.any() and not dh0.any()
    lstm.bias.data[...] = [1e4, -1e4, -1e4, 1e4]  # forget all, write -1
    assert (lstm.forward(x, packing, state)[1].state[1] == -1).all() and (lstm.step(x[:1], state)[1] == -1).all()
    lstm.bias.data[...] = 1e4  # keep all, write 1: it counts, and nothing bounds the count
    counted = lstm.forward(np.ones((50, 1), dtype), minidl.Packing([1] * 50), state)[1].state
    assert (counted[1] == 50.75).all() and (lstm.step(x[:1], counted)[1] == 51.75).all()


@pytest.mark.parametrize("sizes", [[4, 3, 3, 1, 1], (4, 3, 3, 1, 1), np.array([4, 3, 3, 1, 1], np.int32)])
def test_batch_sizes_are_any_sequence_of_ints(sizes: Any) -> None:
    c = CASES["ragged"]
    expected, whole = c.lstm.forward(c.x, c.packing, c.state)
    kept = list(sizes)
    y, cache = c.lstm.forward(c.x, minidl.Packing(sizes), c.state)
    assert snapshot(y, cache.state) == snapshot(expected, whole.state)
    c.lstm.backward(c.dy, cache)
    assert list(sizes) == kept
    assert snapshot(c.lstm(c.x, minidl.Packing(sizes))) == snapshot(c.lstm(c.x, c.packing))


def test_the_cache_does_not_change_with_the_callers_list_of_sizes() -> None:
    c, sizes = CASES["ragged"], [4, 3, 3, 1, 1]
    _, cache = c.lstm.forward(c.x, minidl.Packing(sizes), c.state)
    expected = snapshot(c.lstm.backward(c.dy, cache))
    sizes[:] = [12]
    assert snapshot(c.lstm.backward(c.dy, cache)) == expected


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ([3, 4, 3, 1, 1], ValueError, ["not increase", "3 then 4", "step 1"]),
        ([4, 3, 3, 1], ValueError, ["12 rows", "11"]),
        ([4, 3, 3, 1, 1, 1], ValueError, ["12 rows", "13"]),
        ([4, 4, 4, 0], ValueError, ["at least 1", "0"]),
        ([4, 0, 8], ValueError, ["not increase"]),
        ([13, -1], ValueError, ["at least 1", "-1"]),
        ([], ValueError, ["empty"]),
        ([4.0, 3.0, 3.0, 1.0, 1.0], TypeError, ["ints", "4.0"]),
        (np.array([4.0, 3.0, 3.0, 1.0, 1.0]), TypeError, ["ints"]),
        (np.ones(500), TypeError, ["ints"]),
        (12, TypeError, ["ints", "12"]),
        (None, TypeError, ["ints", "None"]),
        ("431", TypeError, ["ints"]),
        ([[4, 3], [3, 2]], TypeError, ["ints"]),
    ],
)
def test_bad_batch_sizes_are_refused(sizes: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    with refuses(error, "batch_sizes", *words, keep=[c.lstm, c.x, c.state]):
        c.lstm.forward(c.x, minidl.Packing(sizes), c.state)
    with refuses(error, "batch_sizes", *words, keep=[c.lstm, c.x, c.state]):
        c.lstm(c.x, minidl.Packing(sizes))


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones((12, 2)), ValueError, ["(N, 3)", "(12, 2)"]),
        (np.ones(12), ValueError, ["(N, 3)", "(12,)"]),
        (np.ones((3, 4, 3)), ValueError, ["(N, 3)", "(3, 4, 3)"]),
        (np.ones((0, 3)), ValueError, ["empty batch"]),
        (np.ones((12, 3), np.float32), TypeError, ["float64", "float32"]),
        (np.ones((12, 3), int), TypeError, ["float64", "int64"]),
        ([[1.0] * 3] * 12, TypeError, ["array", "list"]),
    ],
)
def test_a_bad_x_is_refused(x: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    with refuses(error, "x ", *words, keep=[c.lstm, c.state]):
        c.lstm.forward(x, c.packing, c.state)
    with refuses(error, "x ", *words, keep=[c.lstm, c.state]):
        c.lstm(x, c.packing)


BAD_STATES = [
    (lambda h, c: (h[:3], c[:3]), ValueError, ["4", "3"]),
    (lambda h, c: (h, c[:3]), ValueError, ["(4, 4)", "(3, 4)"]),
    (lambda h, c: (h[:, :3], c), ValueError, ["4)", "(4, 3)"]),
    (lambda h, c: (h, c[:, :3]), ValueError, ["(4, 4)", "(4, 3)"]),
    (lambda h, c: (h[None], c[None]), ValueError, ["4)", "(1, 4, 4)"]),
    (lambda h, c: (h.astype(np.float32), c), TypeError, ["float64", "float32"]),
    (lambda h, c: (h, c.astype(int)), TypeError, ["float64", "int64"]),
    (lambda h, c: (h, None), TypeError, ["array", "NoneType"]),
    (lambda h, c: (h,), TypeError, ["pair (h, c)"]),
    (lambda h, c: (h, c, h), TypeError, ["pair (h, c)"]),
    (lambda h, c: h, TypeError, ["pair (h, c)", "ndarray"]),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD_STATES)
def test_a_bad_state_is_refused(change: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    with refuses(error, "state", *words, keep=[c.lstm, c.x, c.state]):
        c.lstm.forward(c.x, c.packing, change(*c.state))
    with refuses(error, "state", *words, keep=[c.lstm, c.x, c.state]):
        c.lstm.step(c.x[: c.sizes[0]], change(*c.state))  # a single step, which has a way of its own


@pytest.mark.parametrize(("change", "error", "words"), BAD_STATES)
def test_a_bad_dstate_is_refused(change: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    with refuses(error, "dstate", *words, keep=[c.lstm, vars(cache), c.dy, c.dstate]):
        c.lstm.backward(c.dy, cache, change(*c.dstate))


def test_a_dstate_has_as_many_rows_as_the_state() -> None:
    c = CASES["spare states"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    short = (c.dstate[0][:3], c.dstate[1][:3])
    with refuses(ValueError, "dstate", "(5, 3)", "(3, 3)", keep=[c.lstm, vars(cache)]):
        c.lstm.backward(c.dy, cache, short)


@pytest.mark.parametrize(
    ("dy", "error", "words"),
    [
        (np.ones((11, 4)), ValueError, ["(12, 4)", "(11, 4)"]),
        (np.ones((1, 4)), ValueError, ["(12, 4)", "(1, 4)"]),
        (np.ones((12, 3)), ValueError, ["(12, 4)", "(12, 3)"]),
        (np.ones(12), ValueError, ["(12, 4)", "(12,)"]),
        (np.ones((12, 4), np.float32), TypeError, ["float64", "float32"]),
        (None, TypeError, ["array", "NoneType"]),
    ],
)
def test_a_bad_dy_is_refused(dy: Any, error: type[Exception], words: list[str]) -> None:
    c = CASES["ragged"]
    _, cache = c.lstm.forward(c.x, c.packing, c.state)
    with refuses(error, "dy", *words, keep=[c.lstm, vars(cache), c.dstate]):
        c.lstm.backward(dy, cache, c.dstate)


def test_sizes_may_be_narrow_integers_of_numpy() -> None:
    layer = minidl.LSTM(np.uint8(3), np.uint8(64), rng=0)  # type: ignore[arg-type]
    assert layer.weight_hh.data.shape == (256, 64)


@pytest.mark.parametrize("numbers", [1, 4, 9, 16, 35])
def test_blocks_of_any_size_give_the_same_gradients(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case([7, 5, 5, 2, 1])
    expected = run(c)
    cut, split = [], threads.split

    def watched(length: int, parts: int) -> list[slice]:
        cut.append(min(length, parts))
        return split(length, parts)

    monkeypatch.setattr(threads, "split", watched)
    monkeypatch.setattr(cuts, "BLOCK", numbers)
    for name, value in run(c).items():
        assert relative_error(value, expected[name]) < 1e-12, name
    assert {min(20, -(-80 // numbers)), min(20, -(-60 // numbers))} <= set(cut), "it was not cut into blocks"
