"""Layers and losses against slow_reference.py: random shapes, lengths, dtypes, memory layouts, threads and cuts.

A result may differ from the reference only by the rounding that the reference's own analysis allows, in units of the
dtype's eps. There is no other tolerance. MINIDL_THOROUGH=1 draws more examples, different ones each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import slow_reference as slow
from helpers import snapshot
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import Number
from small_model import cut_for

import minidl
from minidl.kernels.cpu import cuts as all_cuts
from minidl.kernels.cpu import lstm as cpu_lstm

sizes = st.integers(1, 17)
rows_of_a_batch = st.integers(1, 20)
dtypes = st.sampled_from(["float32", "float64"])
seeds = st.integers(0, 2**32 - 1)
lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=7) | st.builds(
    lambda length, batch: [length] * batch, st.integers(1, 9), st.integers(1, 7)
)
LAYOUTS = ["C", "Fortran", "every second", "backwards"]
KINDS = ["usual", "large", "tiny", "zeros"]
layouts, kinds = st.sampled_from(LAYOUTS), st.sampled_from(KINDS)


class Cut(NamedTuple):
    """How work is cut: for how many threads, and into blocks of how many rows, an LSTM's backward pass too."""

    threads: int
    block: int
    back: int

    @contextlib.contextmanager
    def __call__(self, width: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(cut_for(self.threads))
            for name, value in (
                ("BLOCK", self.block * width),
                ("BACK", self.back * width * 4),
                ("LOGITS_BYTES", self.block * width * 8),
            ):
                stack.enter_context(mock.patch.object(all_cuts, name, value))
            yield


cuts = st.builds(Cut, st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers, elsewhere in memory."""
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "every second":
        wide = np.full(tuple(2 * n for n in array.shape), -1 if array.dtype.kind == "i" else np.nan, array.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if layout == "backwards":
        turned = tuple(slice(None, None, -1) for _ in array.shape)
        return np.ascontiguousarray(array[turned])[turned]
    return array


class Draw:
    """Random arrays of a dtype."""

    def __init__(self, seed: int, dtype: str, layout: str = "C") -> None:
        self.rng, self.dtype, self.layout = np.random.default_rng(seed), np.dtype(dtype), layout

    def normal(self, *shape: int, kind: str = "usual") -> np.ndarray:
        """`large`: one number of each row is +-1e30, so that nothing cancels; `tiny`: denormal; `zeros`: +-0."""
        values = self.rng.normal(size=shape)
        if kind == "large":
            places = self.rng.integers(0, shape[-1], (*shape[:-1], 1))
            np.put_along_axis(values, places, self.rng.choice([-1e30, 1e30], places.shape), axis=-1)
        elif kind == "tiny":
            values *= np.finfo(self.dtype).smallest_subnormal * 1000
        elif kind == "zeros":
            values = np.copysign(0.0, values)
        return laid_out(values.astype(self.dtype), self.layout)

    def fill(self, layer: Any) -> None:
        for parameter in layer.parameters():
            parameter.data[...] = self.rng.normal(0.0, 0.7, parameter.data.shape)


def assert_close(got: Any, expected: Any, name: str, dtype: str, gradient: bool = False, times: int = 1) -> None:
    """`expected`: Numbers in the nest that `got` is an array of. `times`: how often the gradient was added."""
    flat: list[Number] = []

    def gather(nest: Any) -> None:
        if isinstance(nest, Number):
            flat.append(nest)
        else:
            for part in nest:
                gather(part)

    gather(expected)
    got, info = np.asarray(got), np.finfo(dtype)
    assert got.size == len(flat), name
    values = np.array([number.grad if gradient else number.value for number in flat]) * times
    bounds = np.array([number.bound() if gradient else number.error for number in flat]) * times
    bounds += (times - 1) * np.abs(values) * times
    assert np.isfinite(got).all(), name
    wrong = np.abs(got.reshape(-1).astype(np.float64) - values)
    allowed = info.eps * bounds + info.smallest_subnormal * 1e3
    worst = int(np.argmax(wrong - allowed))
    assert wrong[worst] <= allowed[worst], (name, worst, got.reshape(-1)[worst], values[worst], allowed[worst])


def run_twice(layer: Any, inputs: Sequence[Any], dys: Sequence[Any]) -> tuple[Any, Any]:
    """(y, dx) of a forward and two backward passes, which must leave all inputs, weights and the cache alone."""
    weights = [parameter.data for parameter in layer.parameters()]
    before = snapshot(inputs, dys, weights)
    y, cache = layer.forward(*inputs)
    state = getattr(cache, "state", None)
    kept = snapshot(cache, y)
    first = layer.backward(dys[0], cache, *dys[1:]), getattr(cache, "dstate", None)
    assert snapshot(cache, y) == kept
    second = layer.backward(dys[0], cache, *dys[1:]), getattr(cache, "dstate", None)
    assert snapshot(first) == snapshot(second), "the cache is used up"
    assert snapshot(inputs, dys, weights) == before
    return (y, first[0]) if state is None else ((y, state), first)


def chain(rows: list[list[Number]], dy: np.ndarray) -> list[tuple[Number, float]]:
    return [(number, float(dy[n, k])) for n, row in enumerate(rows) for k, number in enumerate(row)]


@given(table=sizes, width=sizes, rows=rows_of_a_batch, dtype=dtypes, seed=seeds, layout=layouts, kind=kinds, cut=cuts)
def test_embedding(table: int, width: int, rows: int, dtype: str, seed: int, layout: str, kind: str, cut: Cut) -> None:
    draw = Draw(seed, dtype, layout)
    layer = minidl.Embedding(table, width, dtype=dtype)
    draw.fill(layer)
    ids = laid_out(draw.rng.integers(0, table, rows), layout)
    dy = draw.normal(rows, width, kind=kind)
    weight = slow.numbers(layer.weight.data)
    expected = slow.embedding(weight, ids)
    slow.gradients([])
    for row, of_row in zip(expected, dy, strict=True):  # an id that comes twice is the same Number twice
        for number, gradient in zip(row, of_row, strict=True):
            number.receive(float(gradient), 0.0)
    with cut(width):
        y, dx = run_twice(layer, [ids], [dy])
    assert dx is None and y.dtype == dtype
    assert np.array_equal(y, [[number.value for number in row] for row in expected])
    assert_close(layer.weight.grad, weight, "weight", dtype, gradient=True, times=2)


@given(
    rows=rows_of_a_batch, inputs=sizes, outputs=sizes, bias=st.booleans(), dtype=dtypes, seed=seeds, layout=layouts,
    kind=kinds, cut=cuts,
)  # fmt: skip
def test_linear(
    rows: int, inputs: int, outputs: int, bias: bool, dtype: str, seed: int, layout: str, kind: str, cut: Cut
) -> None:
    draw = Draw(seed, dtype, layout)
    layer = minidl.Linear(inputs, outputs, bias, dtype=dtype)
    draw.fill(layer)
    x, dy = draw.normal(rows, inputs, kind=kind), draw.normal(rows, outputs)
    weight, slow_x = slow.numbers(layer.weight.data), slow.numbers(x)
    slow_bias = slow.numbers(layer.bias.data)[0] if layer.bias else None
    expected = slow.linear(slow_x, weight, slow_bias)
    slow.gradients(chain(expected, dy))
    with cut(outputs):
        y, dx = run_twice(layer, [x], [dy])
    assert y.dtype == dx.dtype == dtype
    assert_close(y, expected, "y", dtype)
    assert_close(dx, slow_x, "dx", dtype, gradient=True)
    assert_close(layer.weight.grad, weight, "weight", dtype, gradient=True, times=2)
    if layer.bias:
        assert_close(layer.bias.grad, slow_bias, "bias", dtype, gradient=True, times=2)


@given(
    rows=rows_of_a_batch, width=sizes, p=st.sampled_from([0.0, 0.1, 0.5, 0.9]), step=st.integers(0, 9), dtype=dtypes,
    seed=seeds, layout=layouts, kind=kinds, cut=cuts,
)  # fmt: skip
def test_dropout(
    rows: int, width: int, p: float, step: int, dtype: str, seed: int, layout: str, kind: str, cut: Cut
) -> None:
    draw = Draw(seed, dtype, layout)
    layer = minidl.Dropout(p, dtype=dtype, rng=seed)
    x, dy = draw.normal(rows, width, kind=kind), draw.normal(rows, width)
    packing = minidl.Packing([rows], step=step)
    uncut = layer.forward(x, packing)[1]
    kept = np.ones(x.shape, bool) if uncut.scale is None else uncut.scale > 0
    slow_x = slow.numbers(x)
    expected = slow.dropout(slow_x, kept, p)
    slow.gradients(chain(expected, dy))
    with cut(width):
        y, dx = run_twice(layer, [x, packing], [dy])
    assert_close(y, expected, "y", dtype)
    assert_close(dx, slow_x, "dx", dtype, gradient=True)


class Places(NamedTuple):
    """Where a packed batch of sequences has its rows, counted out one by one."""

    order: list[int]  # the sequences, longest first; of equal ones the first
    batch_sizes: list[int]
    rows: list[list[int]]  # of each of the caller's sequences


def places_of(lengths: Sequence[int]) -> Places:
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    found, rows, batch_sizes = 0, [list[int]() for _ in lengths], []
    for t in range(max(lengths)):
        alive = [b for b in order if lengths[b] > t]
        for b in alive:
            rows[b].append(found)
            found += 1
        batch_sizes.append(len(alive))
    return Places(order, batch_sizes, rows)


class Case:
    """An LSTM, a packed batch with states and upstream gradients, and what the reference makes of it."""

    def __init__(self, lengths: list[int], inputs: int, hidden: int, spare: int, draw: Draw, kind: str) -> None:
        self.dtype, self.draw, self.hidden = str(draw.dtype), draw, hidden
        self.layer = minidl.LSTM(inputs, hidden, dtype=self.dtype)
        draw.fill(self.layer)
        self.places, rows, states = places_of(lengths), sum(lengths), len(lengths) + spare
        self.x, self.dy = draw.normal(rows, inputs, kind=kind), draw.normal(rows, hidden)
        self.state = (draw.normal(states, hidden), draw.normal(states, hidden))
        self.dstate = (draw.normal(states, hidden), draw.normal(states, hidden))

    def solve(self) -> None:
        names = ("weight_ih", "weight_hh", "bias")
        self.weights = {name: slow.numbers(getattr(self.layer, name).data) for name in names}
        self.slow_x = slow.numbers(self.x)
        self.slow_state = [slow.numbers(part) for part in self.state]
        self.y: list[Any] = [None] * len(self.x)
        self.final = [list(part) for part in self.slow_state]
        for place, b in enumerate(self.places.order):
            rows, start = self.places.rows[b], (self.slow_state[0][place], self.slow_state[1][place])
            weights = self.weights["weight_ih"], self.weights["weight_hh"], self.weights["bias"][0]
            outputs, last = slow.lstm([self.slow_x[row] for row in rows], *weights, start)
            for row, output in zip(rows, outputs, strict=True):
                self.y[row] = output
            self.final[0][place], self.final[1][place] = last
        # the last h is also the last y, so a Number may be asked twice: what is asked is added up first
        asked: dict[int, tuple[Number, float]] = {}
        pairs = chain(self.y, self.dy) + chain(self.final[0], self.dstate[0]) + chain(self.final[1], self.dstate[1])
        for number, gradient in pairs:
            asked[number.order] = (number, gradient + asked.get(number.order, (number, 0.0))[1])
        slow.gradients(asked.values())

    def check(self, y: Any, state: Any, dx: Any, dstate: Any, times: int) -> None:
        assert y.dtype == dx.dtype == self.dtype
        assert_close(y, self.y, "y", self.dtype)
        assert_close(dx, self.slow_x, "dx", self.dtype, gradient=True)
        for k, name in enumerate(("h", "c")):
            assert_close(state[k], self.final[k], name, self.dtype)
            assert_close(dstate[k], self.slow_state[k], f"d{name}0", self.dtype, gradient=True)
        for name, parameter in self.layer.named_parameters():
            assert_close(parameter.grad, self.weights[name], name, self.dtype, gradient=True, times=times)


@pytest.mark.slow
@given(
    lengths=lengths_lists, inputs=sizes, hidden=sizes, spare=st.integers(0, 2), dtype=dtypes, seed=seeds,
    layout=layouts, kind=kinds, cut=cuts,
)  # fmt: skip
def test_lstm(
    lengths: list[int], inputs: int, hidden: int, spare: int, dtype: str, seed: int, layout: str, kind: str, cut: Cut
) -> None:
    case = Case(lengths, inputs, hidden, spare, Draw(seed, dtype, layout), kind)
    case.solve()
    packing, first = minidl.Packing(case.places.batch_sizes), len(lengths)
    with cut(hidden):
        (y, state), (dx, dstate) = run_twice(case.layer, [case.x, packing, case.state], [case.dy, case.dstate])
        h, c = case.layer.step(case.x[:first], tuple(part[:first] for part in case.state))
    case.check(y, state, dx, dstate, times=2)
    assert_close(h, case.y[:first], "h of one step", dtype)
    ended = case.places.batch_sizes[1] if len(case.places.batch_sizes) > 1 else 0  # those whose only step it is
    if ended < first:
        assert_close(c[ended:], case.final[1][ended:first], "c of one step", dtype)


@given(lengths=lengths_lists, hidden=st.integers(1, 6), every=st.integers(1, 8), dtype=dtypes, seed=seeds, cut=cuts)
def test_a_chunked_lstm_is_the_whole(
    lengths: list[int], hidden: int, every: int, dtype: str, seed: int, cut: Cut
) -> None:
    """Fed in chunks of time steps, states forward and their gradients back."""
    case = Case(lengths, 3, hidden, 0, Draw(seed, dtype), "usual")
    case.solve()
    steps, starts = case.places.batch_sizes, [0, *np.cumsum(case.places.batch_sizes).tolist()]
    state, caches, ys = case.state, [], []
    with cut(hidden):
        for first in range(0, len(steps), every):
            some = slice(starts[first], starts[min(first + every, len(steps))])
            y, cache = case.layer.forward(case.x[some], minidl.Packing(steps[first : first + every]), state)
            state = cache.state
            caches.append((some, cache))
            ys.append(y)
        dstate, dx = case.dstate, np.empty_like(case.x)
        for some, cache in reversed(caches):
            dx[some] = case.layer.backward(case.dy[some], cache, dstate)
            dstate = cache.dstate
    case.check(np.concatenate(ys), state, dx, dstate, times=1)


@given(rows=rows_of_a_batch, classes=sizes, dtype=dtypes, seed=seeds, layout=layouts, kind=kinds)
def test_softmax_cross_entropy(rows: int, classes: int, dtype: str, seed: int, layout: str, kind: str) -> None:
    draw = Draw(seed, dtype, layout)
    logits, targets = draw.normal(rows, classes, kind=kind), laid_out(draw.rng.integers(0, classes, rows), layout)
    slow_logits, before = slow.numbers(logits), snapshot(logits, targets)
    expected = slow.cross_entropy(slow_logits, targets, rows)
    slow.gradients([(expected, 1.0)])
    loss, dlogits = minidl.softmax_cross_entropy(logits, targets)
    assert dlogits.dtype == dtype and snapshot(logits, targets) == before
    assert_close(loss, expected, "loss", dtype)
    assert_close(dlogits, slow_logits, "dlogits", dtype, gradient=True)


@given(
    rows=rows_of_a_batch, width=sizes, classes=sizes, tied=st.booleans(), scale=st.sampled_from([1.0, 300.0]),
    total=st.none() | st.floats(0.5, 1e3), dtype=dtypes, seed=seeds, layout=layouts, kind=kinds, cut=cuts,
)  # fmt: skip
def test_linear_cross_entropy(
    rows: int, width: int, classes: int, tied: bool, scale: float, total: float | None, dtype: str, seed: int,
    layout: str, kind: str, cut: Cut,
) -> None:  # fmt: skip
    draw = Draw(seed, dtype, layout)
    table = minidl.Embedding(classes, width, dtype=dtype)
    layer = minidl.LinearCrossEntropy(width, classes, table.weight if tied else None, dtype=dtype)
    draw.fill(layer)
    layer.weight.data[...] *= scale
    x, targets = draw.normal(rows, width, kind=kind), laid_out(draw.rng.integers(0, classes, rows), layout)
    before = snapshot(x, targets, [parameter.data for parameter in layer.parameters()])
    weight, bias, slow_x = slow.numbers(layer.weight.data), slow.numbers(layer.bias.data)[0], slow.numbers(x)
    logits = slow.linear(slow_x, weight, bias)
    expected = slow.cross_entropy(logits, targets, total or rows)
    slow.gradients([(expected, 1.0)])
    with cut(classes):
        loss, dx = layer.forward_backward(x, targets, total)
        again, same = layer.forward_backward(x, targets, total)
        alone = layer(x, targets, total)
    assert snapshot(loss, dx) == snapshot(again, same) and dx.dtype == dtype
    assert snapshot(x, targets, [parameter.data for parameter in layer.parameters()]) == before
    assert_close(loss, expected, "loss", dtype)
    assert_close(alone, expected, "loss alone", dtype)
    assert_close(layer.logits(x), logits, "logits", dtype)
    assert_close(dx, slow_x, "dx", dtype, gradient=True)
    assert_close(layer.weight.grad, weight, "weight", dtype, gradient=True, times=2)
    assert_close(layer.bias.grad, bias, "bias", dtype, gradient=True, times=2)
    if tied:
        assert table.weight.grad is layer.weight.grad


@given(lengths=lengths_lists, width=st.none() | st.integers(1, 3), dtype=dtypes, layout=layouts, seed=seeds)
def test_packing_puts_every_item_in_its_place_and_back(
    lengths: list[int], width: int | None, dtype: str, layout: str, seed: int
) -> None:
    draw, places = Draw(seed, dtype, layout), places_of(lengths)
    shapes = [(length,) if width is None else (length, width) for length in lengths]
    sequences = [draw.normal(*shape) for shape in shapes]
    before = snapshot(sequences)
    batch = minidl.pack(sequences)
    assert list(batch.batch_sizes) == places.batch_sizes and list(batch.sorted_indices) == places.order
    for b, sequence in enumerate(sequences):
        assert np.array_equal(batch.data[places.rows[b]], sequence)
    assert [part.tolist() for part in minidl.unpack(batch)] == [sequence.tolist() for sequence in sequences]
    assert snapshot(sequences) == before


@given(lengths=lengths_lists, parts=st.integers(1, 4))
def test_shards_are_all_sequences_and_their_rows_all_rows(lengths: list[int], parts: int) -> None:
    steps = places_of(lengths).batch_sizes
    shards, places = cpu_lstm.shards(steps, parts), np.arange(sum(lengths))
    some = [range(shard.sequences.start, shard.sequences.stop) for shard in shards]
    assert [b for sequences in some for b in sequences] == list(range(len(lengths)))
    assert sorted(row for shard in shards for row in places[shard.rows]) == list(places)
    for shard, sequences in zip(shards, some, strict=True):
        assert shard.sizes == [alive for n in steps if (alive := len([b for b in sequences if b < n]))]


# The reference itself.


def test_the_reference_differentiates_its_own_equations() -> None:
    """By five-point differences, so that the chain rule above is not its own judge."""
    draw = Draw(0, "float64")
    x, h, c = draw.normal(3, 2), draw.normal(2), draw.normal(2)
    weights, targets = [draw.normal(8, 2), draw.normal(8, 2), draw.normal(8)], [1, 0, 1]
    arrays = [x, h, c, *weights]

    def loss(*values: np.ndarray) -> tuple[Number, list[Any]]:
        x, h, c, w, u, b = nests = [slow.numbers(value) for value in values]
        rows, (_, last) = slow.lstm(x, w, u, b[0], (h[0], c[0]))
        rows = slow.dropout(rows, np.array([[1, 0], [1, 1], [0, 1]], bool), 0.5)
        return slow.cross_entropy(slow.linear([*rows[:2], last], w[:2], b[0][:2]), targets, 2.5), nests

    whole, nests = loss(*arrays)
    slow.gradients([(whole, 1.0)])
    for k, array in enumerate(arrays):
        found = np.array([[number.grad for number in row] for row in nests[k]]).reshape(array.shape)
        for place in np.ndindex(array.shape):

            def at(shift: float, k: int = k, place: Any = place) -> float:
                moved = [value.copy() for value in arrays]
                moved[k][place] += shift
                return loss(*moved)[0].value

            slope = (8 * (at(1e-3) - at(-1e-3)) - (at(2e-3) - at(-2e-3))) / 12e-3
            assert abs(found[place] - slope) < 1e-10, (k, place)


def test_the_references_bounds_are_tight_enough_to_find_a_lost_term() -> None:
    """A thousandth of one weight's gradient is found in float32, and a billionth in float64."""
    for dtype, part in (("float32", 1e-3), ("float64", 1e-9)):
        case = Case([4, 3, 1], 5, 4, 0, Draw(1, dtype), "usual")
        case.solve()
        _, cache = case.layer.forward(case.x, minidl.Packing(case.places.batch_sizes), case.state)
        case.layer.backward(case.dy, cache, case.dstate)
        grad = case.layer.weight_hh.grad
        assert_close(grad, case.weights["weight_hh"], "weight_hh", dtype, gradient=True)
        grad[np.unravel_index(np.argmax(np.abs(grad)), grad.shape)] *= 1 + part
        with pytest.raises(AssertionError, match="weight_hh"):
            assert_close(grad, case.weights["weight_hh"], "weight_hh", dtype, gradient=True)
