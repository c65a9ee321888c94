"""gradcheck itself: it must accept correct gradients and, above all, reject wrong ones."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses, snapshot

import minidl
from minidl.gradcheck import ENTRIES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
BATCH = (RNG.normal(size=(5, 3)), minidl.Packing([2, 2, 1]))
STATE = (RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2)))


class Square(minidl.Layer):
    """y = x * x * weight, with a place for a mistake."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.weight = minidl.Parameter(np.array([0.5, -2.0, 3.0]), "Square.weight")

    def forward(self, x: np.ndarray, packing: Any = None) -> tuple[np.ndarray, list[np.ndarray]]:
        return x * x * self.weight.data, [x.copy()]

    def backward(self, dy: np.ndarray, cache: list[np.ndarray]) -> Any:
        (x,) = cache
        dx, dweight = 2 * x * self.weight.data * dy, (dy * x * x).sum(axis=0)
        if self.mistake == "factor":
            dx = dx * (1 + 1e-4)
        if self.mistake == "one entry":
            dx[2, 1] += 1e-3
        if self.mistake == "nan":
            dx[1, 0] = np.nan
        if self.mistake == "weight":
            dweight[1] *= -1
        if self.mistake == "shape":
            dx = dx[:1]
        if self.mistake == "dy":
            dy *= 2
        if self.mistake == "cache":
            cache[0] *= 2
        if self.mistake == "sets":
            self.weight.grad[...] = dweight
        elif self.mistake != "not stored":
            self.weight.grad += dweight
        return None if self.mistake == "nothing" else dx


def test_a_right_layer_passes_and_the_report_says_what_was_checked() -> None:
    report = minidl.gradcheck(Square(), X, rng=0)
    assert [(c.name, c.shape, c.entries) for c in report.checks] == [
        ("input 0", (4, 3), 12),
        ("weight", (3,), 3),
    ]
    assert report.max_error < 1e-8 and all(check.error <= report.max_error for check in report.checks)
    text = str(report)
    assert text.count("\n") == 1 and "input 0" in text and "weight" in text and "(4, 3)" in text


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("factor", ["input 0", "(4, 3)", "analytic", "numeric"]),
        ("one entry", ["input 0", "worst at (2, 1)"]),
        ("nan", ["input 0", "worst at (1, 0)", "analytic nan"]),
        ("weight", ["weight", "(3,)", "worst at (1,)"]),
        ("not stored", ["weight", "analytic 0"]),
        ("shape", ["input 0", "(1, 3)", "(4, 3)"]),
        ("dy", ["dy"]),
        ("cache", ["cache"]),
        ("sets", ["add", "Square.weight.grad"]),
        ("nothing", ["input 0"]),
    ],
)
def test_a_wrong_layer_is_refused(mistake: str, words: list[str]) -> None:
    with pytest.raises(minidl.GradientError) as caught:
        minidl.gradcheck(Square(mistake), X, rng=0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_worst_entry_is_shown_with_both_its_values() -> None:
    with pytest.raises(minidl.GradientError) as caught:
        minidl.gradcheck(Square("weight"), X, rng=0)
    words = str(caught.value).replace(",", "").split()
    analytic, numeric = (float(words[words.index(name) + 1]) for name in ("analytic", "numeric"))
    assert np.isclose(analytic, -numeric, rtol=1e-5) and numeric != 0


class BrokenLSTM(minidl.LSTM):
    """An LSTM with one of the mistakes that published ones had."""

    mistake = ""

    def backward(self, dy: Any, cache: Any, dstate: Any = None) -> Any:
        if self.mistake == "dstate ignored":
            return super().backward(dy, cache)
        if self.mistake == "the cell-state road cut":
            return super().backward(dy, cache, (dstate[0], np.zeros_like(dstate[1])))
        if self.mistake == "h[t] for h[t-1]":
            return self.backward_with_the_h_of_the_step_itself(dy, cache, dstate)
        before = [parameter.grad.copy() for parameter in (self.weight_hh, self.bias)]
        dx = super().backward(dy, cache, dstate)
        if self.mistake == "h0 and c0 swapped":
            cache.dstate = cache.dstate[::-1]
        if self.mistake == "the first step skipped":
            dx[: cache.walks[-1][0].sequences.stop] = 0
        if self.mistake == "one gate not stored":
            self.weight_hh.grad[:2] = before[0][:2]
        if self.mistake == "two gates exchanged":
            self.bias.grad[:4] = before[1][:4] + np.roll(self.bias.grad[:4] - before[1][:4], 2)
        if self.mistake == "dc0 not left":
            cache.dstate = cache.dstate[:1]
        if self.mistake == "dstate not left":
            cache.dstate = None
        if self.mistake == "dstate left from before":
            cache.dstate = tuple(np.zeros_like(part) for part in cache.dstate)
        if self.mistake == "dstate summed up":
            self.sums = [part + old for part, old in zip(cache.dstate, self.sums or (0, 0), strict=True)]
            cache.dstate = tuple(self.sums)
        if self.mistake == "dstate written to":
            dstate[0][...] = cache.dstate[0]
        if self.mistake == "dx beside dstate":
            return dx, cache.dstate
        return dx

    sums: Any = None

    def backward_with_the_h_of_the_step_itself(self, dy: Any, cache: Any, dstate: Any) -> Any:
        walks = []
        for shard, walk in cache.walks:
            alive, h = shard.sizes[0], walk.h.copy()
            h[:alive] = h[alive : 2 * alive]
            walks.append((shard, walk._replace(h=h)))
        wrong = dataclasses.replace(cache, walks=walks)
        dx = super().backward(dy, wrong, dstate)
        cache.dstate = wrong.dstate
        return dx


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("h0 and c0 swapped", ["state 0"]),
        ("dstate ignored", ["input 0"]),
        ("h[t] for h[t-1]", ["weight_hh"]),
        ("the cell-state road cut", ["input 0"]),
        ("the first step skipped", ["input 0"]),
        ("one gate not stored", ["weight_hh"]),
        ("two gates exchanged", ["bias"]),
        ("dc0 not left", ["2 gradients for 3", "state 1"]),
        ("dstate not left", ["1 gradients for 3", "state 0, state 1"]),
        ("dstate left from before", ["state 0"]),
        ("dstate summed up", ["different result"]),
        ("dstate written to", ["changed dy"]),
        ("dx beside dstate", ["5 gradients for 3"]),
    ],
)
def test_a_wrong_lstm_is_refused(mistake: str, words: list[str]) -> None:
    lstm = filled(BrokenLSTM(3, 2, dtype="float64"))
    assert minidl.gradcheck(lstm, *BATCH, state=STATE, rng=0).max_error < 1e-7
    lstm.mistake = mistake
    with refuses(minidl.GradientError, *words):
        minidl.gradcheck(lstm, *BATCH, state=STATE, rng=0)


def test_a_state_is_checked_where_it_is_given_and_only_there() -> None:
    lstm = filled(minidl.LSTM(3, 2, dtype="float64"))
    weights = ["weight_ih", "weight_hh", "bias"]
    report = minidl.gradcheck(lstm, *BATCH, rng=0)
    assert [check.name for check in report.checks] == ["input 0", *weights]
    report = minidl.gradcheck(lstm, *BATCH, state=STATE, rng=0)
    assert [check.name for check in report.checks] == ["input 0", "state 0", "state 1", *weights]
    assert [check.shape for check in report.checks[1:3]] == [(2, 2), (2, 2)]


def test_the_gradient_by_way_of_the_last_state_is_checked_too() -> None:
    """A layer whose y says nothing of its state."""

    class Sum(minidl.Layer):
        def forward(self, x: Any, packing: Any = None, state: Any = None) -> Any:
            return 0 * x, SimpleNamespace(state=(state[0] + 3 * x.sum(axis=0),), dstate=None)

        def backward(self, dy: Any, cache: Any, dstate: Any = None) -> Any:
            cache.dstate = (by_state * dstate[0],)
            return 0 * dy + by_x * dstate[0]

    by_x, by_state = 3, 1
    assert minidl.gradcheck(Sum(), X, state=(np.ones(3),), rng=0).max_error < 1e-7
    by_x = 2
    with pytest.raises(minidl.GradientError, match="input 0"):
        minidl.gradcheck(Sum(), X, state=(np.ones(3),), rng=0)
    by_x, by_state = 3, 2
    with pytest.raises(minidl.GradientError, match="state 0"):
        minidl.gradcheck(Sum(), X, state=(np.ones(3),), rng=0)


def test_a_wrong_loss_is_refused() -> None:
    def mean_instead_of_sum(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float((x * x).sum()), 2 * x / x.size

    def right(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float((x * x).sum()), 2 * x

    assert minidl.gradcheck(right, X, rng=0).max_error < 1e-8
    with pytest.raises(minidl.GradientError):
        minidl.gradcheck(mean_instead_of_sum, X, rng=0)


def test_a_loss_that_forgets_an_input_is_refused() -> None:
    def forgets(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        return float((x * y).sum()), y

    with pytest.raises(minidl.GradientError):
        minidl.gradcheck(forgets, X, X + 1, rng=0)


def test_a_state_of_float32_is_refused() -> None:
    lstm = minidl.LSTM(3, 2, dtype="float64")
    for number in range(2):
        state = tuple(part.astype(np.float32 if k == number else np.float64) for k, part in enumerate(STATE))
        with refuses(TypeError, "float64", "float32", f"state {number}", keep=[lstm, state]):
            minidl.gradcheck(lstm, *BATCH, state=state, rng=0)


@pytest.mark.parametrize("where", ["input", "parameter"])
def test_float32_is_refused(where: str) -> None:
    layer = minidl.Linear(3, 2, dtype="float32" if where == "parameter" else "float64")
    with pytest.raises(TypeError, match="float64.*float32.*" + ("input 0" if where == "input" else "weight")):
        minidl.gradcheck(layer, X.astype(np.float32 if where == "input" else np.float64), rng=0)


def test_layer_and_inputs_are_left_as_they_were() -> None:
    lstm = filled(minidl.LSTM(3, 2, dtype="float64"))
    for parameter in lstm.parameters():
        parameter.grad[...] = 7.0
    before = snapshot(lstm, BATCH, STATE)
    minidl.gradcheck(lstm, *BATCH, state=STATE, rng=0)
    lstm_with_a_mistake = filled(BrokenLSTM(3, 2, dtype="float64"))
    lstm_with_a_mistake.mistake = "dstate ignored"
    kept = snapshot(lstm_with_a_mistake)
    with pytest.raises(minidl.GradientError):
        minidl.gradcheck(lstm_with_a_mistake, *BATCH, state=STATE, rng=0)
    assert snapshot(lstm, BATCH, STATE) == before and snapshot(lstm_with_a_mistake) == kept


def test_of_a_large_array_a_random_part_is_checked() -> None:
    x = np.random.default_rng(1).normal(size=(ENTRIES, 3))
    first, second = (minidl.gradcheck(Square(), x, rng=seed).checks[0] for seed in (0, 1))
    assert first.entries == second.entries == ENTRIES < x.size
    assert first.worst != second.worst or first.error != second.error

    class WrongAtTheEnd(Square):
        def backward(self, dy: np.ndarray, cache: list[np.ndarray]) -> Any:
            dx = super().backward(dy, cache)
            dx[-ENTRIES // 3 :] = 0
            return dx

    with pytest.raises(minidl.GradientError):
        minidl.gradcheck(WrongAtTheEnd(), x, rng=0)


def test_a_seed_makes_the_report_repeatable() -> None:
    lstm = filled(minidl.LSTM(3, 2, dtype="float64"))
    first, second = (minidl.gradcheck(lstm, *BATCH, state=STATE, rng=3) for _ in range(2))
    assert first == second != minidl.gradcheck(lstm, *BATCH, state=STATE, rng=4)


def test_a_whole_model_is_a_layer() -> None:
    class Model(minidl.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = minidl.Embedding(5, 3, dtype="float64", rng=0)
            self.lstm = filled(minidl.LSTM(3, 4, dtype="float64"))
            self.dropout = minidl.Dropout(0.3, dtype="float64", rng=2)
            self.linear = minidl.Linear(4, 3, dtype="float64", rng=3)
            self.head = minidl.LinearCrossEntropy(3, 5, weight=self.embedding.weight, dtype="float64", rng=4)

        def forward_backward(self, batch: Any, targets: Any) -> tuple[Any, None]:
            x, embedded = self.embedding.forward(batch.data)
            y, walked = self.lstm.forward(x, batch)
            dropped, dropout = self.dropout.forward(y, batch)
            h, projected = self.linear.forward(dropped)
            loss, dh = self.head.forward_backward(h, targets)
            dy = self.dropout.backward(self.linear.backward(dh, projected), dropout)
            self.embedding.backward(self.lstm.backward(dy, walked), embedded)
            return loss, None

    batch = minidl.pack([[0, 1, 2, 2], [4], [3, 3, 0]])._replace(step=5)
    targets = minidl.pack([[1, 2, 2, 0], [1], [3, 0, 4]]).data
    report = minidl.gradcheck(Model(), batch, targets, rng=0)
    names = "embedding.weight lstm.weight_ih lstm.weight_hh lstm.bias linear.weight linear.bias head.bias"
    assert [check.name for check in report.checks] == names.split()
    assert report.max_error < 1e-6


def test_a_sequential_is_a_layer_whose_packing_goes_to_all() -> None:
    body = minidl.Sequential(
        minidl.Linear(3, 4, dtype="float64", rng=0),
        minidl.Dropout(0.3, dtype="float64", rng=1),
        minidl.Sequential(filled(minidl.LSTM(4, 3, dtype="float64")), minidl.Dropout(0.3, dtype="float64", rng=2)),
        filled(minidl.LSTM(3, 2, dtype="float64")),
    )
    x, packing = np.random.default_rng(0).normal(size=(8, 3)), minidl.Packing([3, 2, 2, 1], step=5)
    report = minidl.gradcheck(body, x, packing, rng=0)
    lstms = [f"layers.{place}.{name}" for place in ("2.layers.0", "3") for name in ("weight_ih", "weight_hh", "bias")]
    assert [check.name for check in report.checks] == ["input 0", "layers.0.weight", "layers.0.bias", *lstms]
    assert report.max_error < 1e-6


def test_a_check_of_nothing_is_refused() -> None:
    with refuses(TypeError, "nothing to check"):
        minidl.gradcheck(lambda values: (values[0] ** 2, [0.0]), [1.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_packing_is_passed_on_as_it_is_and_not_looked_into(dtype: str) -> None:
    """Not even into the rows of a PackedSequence; but it is a copy, of which the caller's own sees nothing."""
    batch = minidl.pack([np.ones((3, 2), dtype), np.ones((1, 2), dtype)])._replace(step=5, rows=np.array([7, 3, 1, 0]))
    kept, seen = snapshot(batch), []

    class Watching(Square):
        def forward(self, x: np.ndarray, packing: Any = None) -> tuple[np.ndarray, list[np.ndarray]]:
            seen.append(packing)
            return super().forward(x)

    for packing in (batch, minidl.Packing([2, 1, 1], step=5, rows=np.array([7, 3, 1, 0]))):
        del seen[:]
        report = minidl.gradcheck(Watching(), X, packing, rng=0)
        assert [check.name for check in report.checks] == ["input 0", "weight"]
        assert len(seen) > 24 and all(type(found) is type(packing) for found in seen)
        assert all(snapshot(found) == snapshot(packing) for found in seen)
        assert seen[0].rows is not packing.rows
    assert snapshot(batch) == kept


def test_what_is_nested_is_looked_into_in_order() -> None:
    """Tuples and lists, as a state of several layers is."""

    class Squares(minidl.Layer):
        def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
            a, [b, (c,)] = x
            return [a * a, (b * b, c * c)], x

        def backward(self, dy: Any, cache: Any) -> Any:
            da, (db, dc) = dy
            a, (b, (c,)) = cache
            return 2 * a * da, (2 * b * db, [factor * c * dc])

    x = (np.arange(1.0, 5.0), [np.arange(2.0, 5.0), (np.arange(3.0, 5.0),)])
    factor = 2.0
    report = minidl.gradcheck(Squares(), x, rng=0)
    assert [(c.name, c.shape) for c in report.checks] == [("input 0", (4,)), ("input 1", (3,)), ("input 2", (2,))]
    assert report.max_error < 1e-7
    factor = 1.0
    with pytest.raises(minidl.GradientError, match="input 2"):
        minidl.gradcheck(Squares(), x, rng=0)


def test_a_dict_of_arrays_is_no_input_and_a_check_of_nothing_else_is_refused() -> None:
    """It must not pass as checked."""

    class Square(minidl.Layer):
        def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
            return x["x"] ** 2, x["x"]

        def backward(self, dy: Any, cache: Any) -> Any:
            return {"x": 0 * dy * cache}

    with refuses(TypeError, "nothing to check"):
        minidl.gradcheck(Square(), {"x": np.arange(4.0).reshape(2, 2)}, rng=0)


def test_an_array_that_is_handed_in_twice_is_two_inputs() -> None:
    layer, zeros = minidl.LSTM(3, 4, dtype="float64", rng=0), np.zeros((2, 4))
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert minidl.gradcheck(layer, x, minidl.Packing([2, 2]), state=(zeros, zeros), rng=0).max_error < 1e-6


def test_a_forward_without_a_cache_is_refused() -> None:
    class Forgetful(minidl.Layer):
        def forward(self, *inputs: Any) -> Any:
            return inputs[0]

    with pytest.raises(minidl.GradientError, match=r"forward must return a pair \(y, cache\)"):
        minidl.gradcheck(Forgetful(), np.ones((3, 2)))


@pytest.mark.parametrize("y", [None, {"y": X}, minidl.pack([X])], ids=["None", "dict", "packed"])
def test_an_output_that_is_no_array_is_refused(y: Any) -> None:
    class Wrong(Square):
        def forward(self, x: np.ndarray, packing: Any = None) -> Any:
            return y, [x]

    with refuses(minidl.GradientError, "y", type(y).__name__):
        minidl.gradcheck(Wrong(), X, rng=0)
