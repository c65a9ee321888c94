"""gradcheck itself: it must pass what is right and, above all, refuse what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses, snapshot

import minidl
from minidl.gradcheck import ENTRIES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
BATCH = (RNG.normal(size=(5, 3)), [2, 2, 1], (RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2))))


class Square(minidl.Layer):
    """y = x * x * weight, with a place for a mistake."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.weight = minidl.Parameter(np.array([0.5, -2.0, 3.0]), "Square.weight")

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
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
        if self.mistake == "h0 and c0 swapped":
            dx, (dh0, dc0) = super().backward(dy, cache, dstate)
            return dx, (dc0, dh0)
        if self.mistake == "dstate ignored":
            return super().backward(dy, cache)
        if self.mistake == "h[t] for h[t-1]":
            return super().backward(dy, cache._replace(h0=cache.y[: len(cache.h0)]), dstate)
        if self.mistake == "the cell-state road cut":
            return super().backward(dy, cache, (dstate[0], np.zeros_like(dstate[1])))
        if self.mistake == "the first step skipped":
            dx, dstate = super().backward(dy, cache, dstate)
            dx[: cache.shards[-1].sequences.stop] = 0
            return dx, dstate
        if self.mistake == "one gate not stored":
            before = self.weight_hh.grad.copy()
            result = super().backward(dy, cache, dstate)
            self.weight_hh.grad[:2] = before[:2]
            return result
        if self.mistake == "two gates exchanged":
            before = self.bias.grad.copy()
            result = super().backward(dy, cache, dstate)
            self.bias.grad[:4] = before[:4] + np.roll(self.bias.grad[:4] - before[:4], 2)
            return result
        if self.mistake == "dc0 not returned":
            dx, (dh0, _) = super().backward(dy, cache, dstate)
            return dx, (dh0,)
        return super().backward(dy, cache, dstate)


@pytest.mark.parametrize(
    "mistake",
    [
        "h0 and c0 swapped",
        "dstate ignored",
        "h[t] for h[t-1]",
        "the cell-state road cut",
        "the first step skipped",
        "one gate not stored",
        "two gates exchanged",
        "dc0 not returned",
    ],
)
def test_a_wrong_lstm_is_refused(mistake: str) -> None:
    lstm = filled(BrokenLSTM(3, 2, dtype="float64"))
    assert minidl.gradcheck(lstm, *BATCH, rng=0).max_error < 1e-7
    lstm.mistake = mistake
    with pytest.raises(minidl.GradientError):
        minidl.gradcheck(lstm, *BATCH, rng=0)


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


@pytest.mark.parametrize("where", ["input", "parameter"])
def test_float32_is_refused(where: str) -> None:
    layer = minidl.Linear(3, 2, dtype="float32" if where == "parameter" else "float64")
    with pytest.raises(TypeError, match="float64.*float32.*" + ("input 0" if where == "input" else "weight")):
        minidl.gradcheck(layer, X.astype(np.float32 if where == "input" else np.float64), rng=0)


def test_layer_and_inputs_are_left_as_they_were() -> None:
    lstm = filled(minidl.LSTM(3, 2, dtype="float64"))
    for parameter in lstm.parameters():
        parameter.grad[...] = 7.0
    before = snapshot(lstm, BATCH)
    minidl.gradcheck(lstm, *BATCH, rng=0)
    lstm_with_a_mistake = filled(BrokenLSTM(3, 2, dtype="float64"))
    lstm_with_a_mistake.mistake = "dstate ignored"
    kept = snapshot(lstm_with_a_mistake)
    with pytest.raises(minidl.GradientError):
        minidl.gradcheck(lstm_with_a_mistake, *BATCH, rng=0)
    assert snapshot(lstm, BATCH) == before and snapshot(lstm_with_a_mistake) == kept


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
    assert minidl.gradcheck(lstm, *BATCH, rng=3) == minidl.gradcheck(lstm, *BATCH, rng=3)


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
            (y, _), walked = self.lstm.forward(x, batch.batch_sizes)
            dropped, dropout = self.dropout.forward(y, 5)
            h, projected = self.linear.forward(dropped)
            loss, dh = self.head.forward_backward(h, targets)
            dy = self.dropout.backward(self.linear.backward(dh, projected), dropout)
            self.embedding.backward(self.lstm.backward(dy, walked)[0], embedded)
            return loss, None

    batch = minidl.pack([[0, 1, 2, 2], [4], [3, 3, 0]])
    targets = minidl.pack([[1, 2, 2, 0], [1], [3, 0, 4]]).data
    report = minidl.gradcheck(Model(), batch, targets, rng=0)
    names = "embedding.weight lstm.weight_ih lstm.weight_hh lstm.bias linear.weight linear.bias head.bias"
    assert [check.name for check in report.checks] == names.split()
    assert report.max_error < 1e-6


def test_a_check_of_nothing_is_refused() -> None:
    with refuses(TypeError, "nothing to check"):
        minidl.gradcheck(lambda values: (values[0] ** 2, [0.0]), [1.0])


def test_a_dict_of_arrays_is_looked_into() -> None:
    class Square(minidl.Layer):
        def forward(self, *inputs: Any) -> tuple[Any, Any]:
            return inputs[0]["x"] ** 2, inputs[0]["x"]

        def backward(self, dy: Any, cache: Any, *rest: Any) -> Any:
            return {"x": factor * dy * cache}

    x = {"x": np.arange(4.0).reshape(2, 2)}
    factor = 2.0
    assert minidl.gradcheck(Square(), x, rng=0).max_error < 1e-7
    factor = 0.0
    with pytest.raises(minidl.GradientError, match="input 0"):
        minidl.gradcheck(Square(), x, rng=0)


def test_an_array_that_is_handed_in_twice_is_two_inputs() -> None:
    layer, zeros = minidl.LSTM(3, 4, dtype="float64", rng=0), np.zeros((2, 4))
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert minidl.gradcheck(layer, x, [2, 2], (zeros, zeros), rng=0).max_error < 1e-6


def test_a_forward_without_a_cache_is_refused() -> None:
    class Forgetful(minidl.Layer):
        def forward(self, *inputs: Any) -> Any:
            return inputs[0]

    with pytest.raises(minidl.GradientError, match=r"forward must return a pair \(y, cache\)"):
        minidl.gradcheck(Forgetful(), np.ones((3, 2)))
