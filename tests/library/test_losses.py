"""Softmax cross-entropy, on its own and fused with the projection before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers import directional_derivative, filled, refuses, relative_error, snapshot
from hypothesis import given
from hypothesis import strategies as st
from small_model import cut_for

import minidl
from minidl.kernels.cpu import cuts, softmax

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3))
TARGETS = np.array([2, 0, 8, 8, 4, 2, 2])
LOGITS = RNG.normal(0.0, 3.0, (7, 9))


def head() -> minidl.LinearCrossEntropy:
    return filled(minidl.LinearCrossEntropy(3, 9, dtype="float64"))


def written_out(logits: np.ndarray, targets: np.ndarray) -> float:
    """The mean of log(sum e^z) - z_k, row by row."""
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    return math.fsum(math.log(math.fsum(map(math.exp, row))) - row[k] for row, k in rows) / len(logits)


def test_gradients() -> None:
    report = minidl.gradcheck(minidl.softmax_cross_entropy, LOGITS, TARGETS, rng=0)
    assert [check.name for check in report.checks] == ["input 0"] and report.max_error < 1e-7
    report = minidl.gradcheck(head(), X, TARGETS, rng=0)
    assert [check.name for check in report.checks] == [
        "input 0",
        "weight",
        "bias",
    ] and report.max_error < 1e-7
    assert minidl.gradcheck(head(), X, TARGETS, 20.0, rng=0).max_error < 1e-7


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_gradients_when_the_logits_are_made_in_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "LOGITS_BYTES", rows * 9 * 8)
    assert minidl.gradcheck(head(), X, TARGETS, rng=0).max_error < 1e-7


def test_gradients_along_a_random_direction() -> None:
    """The same without gradcheck, so that gradcheck is not its own judge."""
    layer, x, rng = head(), X.copy(), np.random.default_rng(3)
    _, dx = layer.forward_backward(x, TARGETS)
    arrays = [x, layer.weight.data, layer.bias.data]
    directions = [rng.normal(size=array.shape) for array in arrays]
    gradients = [dx, layer.weight.grad, layer.bias.grad]

    def loss() -> float:
        return written_out(x @ layer.weight.data.T + layer.bias.data, TARGETS)

    analytic = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    numeric = directional_derivative(loss, arrays, directions)
    assert abs(analytic - numeric) < 1e-9 * abs(numeric)


def test_the_loss_is_the_formulas() -> None:
    loss, dlogits = minidl.softmax_cross_entropy(LOGITS, TARGETS)
    assert relative_error(loss, written_out(LOGITS, TARGETS)) < 1e-14
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected[np.arange(7), TARGETS] -= 1
    assert relative_error(dlogits, expected / 7) < 1e-14
    assert np.ndim(loss) == 0 and float(loss) > 0


def test_equal_logits_cost_log_v_and_a_sure_answer_costs_nothing() -> None:
    loss, dlogits = minidl.softmax_cross_entropy(np.full((2, 8), 5.0), [3, 0])
    assert math.isclose(loss, math.log(8), rel_tol=1e-14)
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-16)
    sure = np.zeros((1, 3))
    sure[0, 1] = 1e4
    assert minidl.softmax_cross_entropy(sure, [1])[0] == 0.0
    assert minidl.softmax_cross_entropy(sure, [0])[0] == 1e4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_do_not_overflow(dtype: str) -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype)
    loss, dlogits = minidl.softmax_cross_entropy(logits, [1, 2])
    np.testing.assert_allclose(loss, (2e4 + math.log(3)) / 2, rtol=1e-6)
    assert np.isfinite(dlogits).all() and dlogits.dtype == dtype


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    loss, dlogits = minidl.softmax_cross_entropy(LOGITS, TARGETS)
    moved, dmoved = minidl.softmax_cross_entropy(LOGITS + np.arange(7.0)[:, None], TARGETS)
    assert relative_error(moved, loss) < 1e-14 and relative_error(dmoved, dlogits) < 1e-13


@given(
    rows=st.integers(1, 12),
    classes=st.integers(1, 9),
    width=st.integers(1, 4),
    block=st.integers(1, 5),
    scale=st.sampled_from([0.1, 1.0, 300.0]),
    n=st.integers(1, 4),
)
def test_the_fused_loss_is_the_textbooks(rows: int, classes: int, width: int, block: int, scale: float, n: int) -> None:
    """With blocks of any number of rows, more threads than rows, and logits that need a shift."""
    rng = np.random.default_rng([rows, classes, width])
    layer = filled(minidl.LinearCrossEntropy(width, classes, dtype="float64"), scale=scale)
    x, targets = rng.normal(size=(rows, width)), rng.integers(0, classes, rows)
    logits = x @ layer.weight.data.T + layer.bias.data
    loss, dlogits = minidl.softmax_cross_entropy(logits, targets)
    with cut_for(n), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "LOGITS_BYTES", block * classes * 8)
        fused, dx = layer.forward_backward(x, targets)
        alone = layer(x, targets)
    for got, expected in (
        (fused, loss),
        (alone, loss),
        (dx, dlogits @ layer.weight.data),
        (layer.weight.grad, dlogits.T @ x),
        (layer.bias.grad, dlogits.sum(axis=0)),
        (layer.logits(x), logits),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14 * max(1, scale))


def reference(layer: minidl.LinearCrossEntropy, x: np.ndarray, targets: Any, total: float) -> dict[str, np.ndarray]:
    """The textbook, in float64, from the same values."""
    x, weight, bias = (array.astype(np.float64) for array in (x, layer.weight.data, layer.bias.data))
    logits = x @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    dlogits = np.exp(logits)
    sums = dlogits.sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    loss = (np.log(sums[:, 0]) - logits[rows, targets]).sum() / total
    dlogits /= sums
    dlogits[rows, targets] -= 1
    dlogits /= total
    return {"loss": loss, "dx": dlogits @ weight, "weight": dlogits.T @ x, "bias": dlogits.sum(axis=0)}


def fused(layer: minidl.LinearCrossEntropy, x: np.ndarray, targets: Any, total: float) -> dict[str, np.ndarray]:
    """The same by the layer; its loss alone must be the loss with the gradients."""
    for parameter in layer.parameters():
        parameter.grad[...] = 0
    loss, dx = layer.forward_backward(x, targets, total)
    np.testing.assert_allclose(layer(x, targets, total), loss, rtol=1e-12, equal_nan=True)
    return {"loss": loss, "dx": dx, "weight": layer.weight.grad.copy(), "bias": layer.bias.grad.copy()}


def equals_the_reference(
    layer: minidl.LinearCrossEntropy, x: np.ndarray, targets: Any, tolerance: float, total: float | None = None
) -> None:
    total = len(x) if total is None else total
    expected, found = reference(layer, x, targets, total), fused(layer, x, targets, total)
    for name, value in expected.items():
        assert np.isfinite(found[name]).all(), name
        assert relative_error(found[name], value) < tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
@pytest.mark.parametrize("part", [slice(None), slice(3, 4)], ids=["all", "one"])
@pytest.mark.parametrize("largest", [30, 1000, 30_000])
def test_huge_logits_lose_nothing(largest: int, part: slice, where: str, dtype: str, tolerance: float) -> None:
    """Integers, so that float32 has the logits exactly and only softmax can be inexact."""
    rng = np.random.default_rng(0)
    layer = minidl.LinearCrossEntropy(4, 12, dtype=dtype)
    x = rng.integers(-3, 4, (9, 4)).astype(dtype)
    for parameter in layer.parameters():
        parameter.data[...] = rng.integers(-3, 4, parameter.data.shape)
    for array in (x, layer.weight.data, layer.bias.data):
        array[3] = 3 - 6 * (np.arange(array[3].size) % 2).reshape(array[3].shape)  # 3 and -3
    {"x": x, "weight": layer.weight.data, "bias": layer.bias.data}[where][part] *= largest // 3
    assert abs(layer.logits(x)).max() >= largest // 3
    equals_the_reference(layer, x, rng.integers(0, 12, 9), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("nearness", [0.5, 0.99, 1 - 1e-6, 1.0, 1 + 1e-6, 1.01, 1.4, 1.5, 2.0])
@pytest.mark.parametrize("total", [1.0, 3e5])
def test_logits_near_the_limit_of_what_is_not_shifted(
    nearness: float, sign: int, total: float, dtype: str, tolerance: float
) -> None:
    """All logits of a row at one end, many classes: sums of 1e29 or 1e-23."""
    rng, far, targets = np.random.default_rng(0), nearness * softmax.SAFE - 1.5, np.arange(40) * 70
    layer = minidl.LinearCrossEntropy(2, 3000, dtype=dtype)
    layer.weight.data[...] = np.column_stack([np.full(3000, sign), rng.uniform(-1, 1, 3000)])
    x = np.column_stack([np.full(40, far), rng.uniform(-1, 1, 40)]).astype(dtype)
    layer.bias.data[...] = 0
    equals_the_reference(layer, x, targets, tolerance, total)
    layer.bias.data[...] = sign * far
    x[:, 0] = 0
    equals_the_reference(layer, x, targets, tolerance, total)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("mask", [-1e9, -1e4, -100.0, -np.inf])
def test_a_class_that_its_bias_rules_out_has_no_share(mask: float, dtype: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    layer = filled(minidl.LinearCrossEntropy(4, 8, dtype=dtype))
    layer.bias.data[[2, 5]] = mask
    x, targets = rng.normal(size=(9, 4)).astype(dtype), rng.choice([0, 1, 3, 4, 6, 7], 9)
    equals_the_reference(layer, x, targets, tolerance)
    found = fused(layer, x, targets, 9)
    assert abs(found["weight"][[2, 5]]).max() < 1e-30 and abs(found["bias"][[2, 5]]).max() < 1e-30
    assert mask < -200 or found["bias"][2] > 0
    if mask > -np.inf:  # asked for all the same: the loss is what the mask costs
        assert relative_error(fused(layer, x, [2] * 9, 9)["loss"], -mask) < 0.1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_not_finite_never_gives_a_finite_loss(n: int, dtype: str, where: str, value: float) -> None:
    """But where it should: a class of logit -inf has no share."""
    rng = np.random.default_rng(0)
    for place in range(4):
        layer = filled(minidl.LinearCrossEntropy(4, 8, dtype=dtype))
        x, targets = rng.normal(size=(9, 4)).astype(dtype), rng.integers(0, 8, 9)
        {"x": x, "weight": layer.weight.data, "bias": layer.bias.data}[where][place] = value
        with np.errstate(all="ignore"), cut_for(n):
            expected = reference(layer, x, targets, 9)
            found = fused(layer, x, targets, 9)
        assert np.isfinite(found["loss"]) == np.isfinite(expected["loss"]), place
        assert where == "bias" or not np.isfinite(found["loss"])
        for name, values in expected.items():
            assert not np.isfinite(found[name][~np.isfinite(values)]).any(), (place, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [0.0, 50.0, -50.0, 1e4])
def test_one_class_costs_nothing(bias: float, dtype: str) -> None:
    layer = filled(minidl.LinearCrossEntropy(3, 1, dtype=dtype))
    layer.bias.data[...] = bias
    found = fused(layer, X.astype(dtype), [0] * 7, 7)
    tolerance = 100 * np.finfo(dtype).eps
    assert all(abs(values).max() < tolerance for values in map(np.asarray, found.values()))


def test_float32_is_as_exact_as_float32_can_be() -> None:
    """At a size like a report's: 500 rows of 64 units, 700 classes, in blocks and two threads."""
    rng = np.random.default_rng(0)
    layer = filled(minidl.LinearCrossEntropy(64, 700), scale=0.2)
    x, targets = rng.uniform(-1, 1, (500, 64)).astype(np.float32), rng.integers(0, 700, 500)
    expected = reference(layer, x, targets, 500)
    with cut_for(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "LOGITS_BYTES", 130 * 700 * 4)
        found = fused(layer, x, targets, 500)
    assert relative_error(found["loss"], expected["loss"]) < 1e-7
    for name in ("dx", "weight", "bias"):
        assert relative_error(found[name], expected[name]) < 2e-6, name


def test_a_huge_total_does_not_overflow_beside_logits_that_are_not_shifted() -> None:
    layer = minidl.LinearCrossEntropy(2, 3600, rng=0)
    layer.bias.data[...] = 59.5
    layer.forward_backward(np.zeros((4, 2), np.float32), np.zeros(4, np.int64), 1e10)
    assert relative_error(layer.bias.grad[1:] * 1e10, np.full(3599, 4 / 3600)) < 1e-5


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    whole, parts = head(), head()
    loss, dx = whole.forward_backward(X, TARGETS)
    made = [parts.forward_backward(X[rows], TARGETS[rows], total=7) for rows in (slice(0, 2), slice(2, 7))]
    assert relative_error(sum(part for part, _ in made), loss) < 1e-14
    assert relative_error(np.concatenate([part for _, part in made]), dx) < 1e-13
    for p, q in zip(parts.parameters(), whole.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < 1e-13
    assert relative_error(whole(X, TARGETS, total=21), loss / 3) < 1e-14


def test_gradients_add_and_inputs_are_left_alone() -> None:
    layer, x, targets = head(), X.copy(), TARGETS.copy()
    attributes, before = vars(layer).copy(), snapshot(x, targets)
    layer.forward_backward(x, targets)
    once = [p.grad.copy() for p in layer.parameters()]
    layer.forward_backward(x, targets)
    for parameter, grad in zip(layer.parameters(), once, strict=True):
        assert relative_error(parameter.grad, 2 * grad) < 1e-14
    kept = snapshot(layer)
    layer(x, targets)
    layer.logits(x)
    assert snapshot(layer) == kept, "the loss alone must leave gradients as they are"
    assert snapshot(x, targets) == before and vars(layer) == attributes
    logits = LOGITS.copy()
    minidl.softmax_cross_entropy(logits, targets)
    assert (logits == LOGITS).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_keep_the_layers_dtype(dtype: str) -> None:
    layer = minidl.LinearCrossEntropy(3, 9, dtype=dtype, rng=0)
    _, dx = layer.forward_backward(X.astype(dtype), TARGETS)
    assert dx.dtype == layer.logits(X.astype(dtype)).dtype == layer.weight.grad.dtype == dtype


def test_a_float32_loss_over_many_rows_is_summed_exactly_enough() -> None:
    logits = np.zeros((200_000, 2), np.float32)
    logits[:, 0] = 1e-3
    loss, _ = minidl.softmax_cross_entropy(logits, np.zeros(len(logits), int))
    assert math.isclose(loss, math.log(1 + math.exp(-1e-3)), rel_tol=1e-6)
    assert np.asarray(loss).dtype == np.float64
    layer = minidl.LinearCrossEntropy(3, 9, rng=0)
    x = X.astype(np.float32)
    for value in (layer(x, TARGETS), layer.forward_backward(x, TARGETS)[0]):
        assert np.asarray(value).dtype == np.float64


BAD_TARGETS = [
    ([0, 1], ValueError, ["7 ids", "2"]),
    ([0] * 8, ValueError, ["7 ids", "8"]),
    ([[0] * 7], ValueError, ["1-D", "(1, 7)"]),
    ([0] * 6 + [9], IndexError, ["the id 9", "0 to 8"]),
    ([0] * 6 + [-1], IndexError, ["the id -1", "0 to 8"]),
    ([0.0] * 7, TypeError, ["integers", "float64"]),
    ([True] * 7, TypeError, ["integers", "bool"]),
]


@pytest.mark.parametrize(("targets", "error", "words"), BAD_TARGETS)
def test_bad_targets_are_refused(targets: Any, error: type[Exception], words: list[str]) -> None:
    layer = head()
    with refuses(error, "targets", *words, keep=layer):
        layer.forward_backward(X, targets)
    with refuses(error, "targets", *words, keep=layer):
        layer(X, targets)
    with refuses(error, "targets", *words, keep=LOGITS):
        minidl.softmax_cross_entropy(LOGITS, targets)


BAD_X = [
    (np.ones((7, 4)), ValueError, ["(N, 3)", "(7, 4)"]),
    (np.ones(3), ValueError, ["(N, 3)", "(3,)"]),
    (np.ones((0, 3)), ValueError, ["empty batch"]),
    (np.ones((7, 3), np.float32), TypeError, ["float64", "float32"]),
    ([[1.0] * 3] * 7, TypeError, ["array", "list"]),
]


@pytest.mark.parametrize(("x", "error", "words"), BAD_X)
def test_a_bad_x_is_refused(x: Any, error: type[Exception], words: list[str]) -> None:
    layer = head()
    for call in (layer.forward_backward, layer):
        with refuses(error, "x ", *words, keep=layer):
            call(x, TARGETS)
    with refuses(error, "x ", *words, keep=layer):
        layer.logits(x)


@pytest.mark.parametrize(
    ("logits", "error", "words"),
    [
        (np.ones(9), ValueError, ["(N, V)", "(9,)"]),
        (np.ones((0, 9)), ValueError, ["(N, V)", "(0, 9)"]),
        (np.ones((7, 0)), ValueError, ["(N, V)", "(7, 0)"]),
        (np.ones((7, 9), int), TypeError, ["int64"]),
        ([[1.0] * 9] * 7, TypeError, ["array", "list"]),
    ],
)
def test_bad_logits_are_refused(logits: Any, error: type[Exception], words: list[str]) -> None:
    with refuses(error, "logits", *words):
        minidl.softmax_cross_entropy(logits, TARGETS)


@pytest.mark.parametrize("total", [0, -1, float("nan"), float("inf")])
def test_a_bad_total_is_refused(total: float) -> None:
    layer = head()
    with refuses(ValueError, "total", "above 0", total, keep=layer):
        layer.forward_backward(X, TARGETS, total)
    with refuses(ValueError, "total", "above 0", total, keep=layer):
        layer(X, TARGETS, total)


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (minidl.Parameter(np.zeros((3, 9))), ValueError, ["(9, 3)", "(3, 9)"]),
        (np.zeros((9, 3)), TypeError, ["Parameter", "ndarray"]),
        (minidl.Parameter(np.zeros((9, 3), np.float32)), TypeError, ["float64", "float32"]),
    ],
)
def test_a_weight_that_cannot_be_shared_is_refused(weight: Any, error: type[Exception], words: list[str]) -> None:
    with refuses(error, "weight", *words):
        minidl.LinearCrossEntropy(3, 9, weight=weight, dtype="float64")
