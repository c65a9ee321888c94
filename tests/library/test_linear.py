"""Linear: the product, the bias and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import directional_derivative, filled, refuses, snapshot

import minidl


def linear(bias: bool = True, dtype: str = "float64") -> Any:
    return filled(minidl.Linear(3, 4, bias=bias, dtype=dtype))


X = np.random.default_rng(1).normal(size=(5, 3))
DY = np.random.default_rng(2).normal(size=(5, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients(bias: bool) -> None:
    report = minidl.gradcheck(linear(bias), X, rng=0)
    names = ["input 0", "weight", "bias"] if bias else ["input 0", "weight"]
    assert [check.name for check in report.checks] == names and report.max_error < 1e-7


def test_gradients_along_a_random_direction() -> None:
    """The same without gradcheck, so that gradcheck is not its own judge."""
    layer, x, rng = linear(), X.copy(), np.random.default_rng(3)
    _, cache = layer.forward(x)
    gradients = [layer.backward(DY, cache), layer.weight.grad, layer.bias.grad]
    arrays = [x, layer.weight.data, layer.bias.data]
    directions = [rng.normal(size=array.shape) for array in arrays]
    numeric = directional_derivative(lambda: float((layer(x) * DY).sum()), arrays, directions)
    analytic = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert abs(analytic - numeric) < 1e-9 * abs(numeric)


def test_the_formula() -> None:
    layer = linear()
    expected = np.array([[row @ w + b for w, b in zip(layer.weight.data, layer.bias.data, strict=True)] for row in X])
    np.testing.assert_allclose(layer(X), expected, rtol=1e-13)
    assert (layer.forward(X)[0] == layer(X)).all()


def test_gradients_add_and_nothing_else_is_written() -> None:
    layer, x, dy = linear(), X.copy(), DY.copy()
    attributes = vars(layer).copy()
    y, cache = layer.forward(x)
    before = snapshot(x, dy, y, *cache)
    layer.backward(dy, cache)
    once = [p.grad.copy() for p in layer.parameters()]
    layer.backward(dy, cache)
    for parameter, grad in zip(layer.parameters(), once, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * grad, rtol=1e-14)
    assert snapshot(x, dy, y, *cache) == before and vars(layer) == attributes


def test_two_forwards_before_a_backward() -> None:
    together, apart = linear(), linear()
    (_, first), (_, second) = together.forward(X[:2]), together.forward(X[2:])
    dx = [together.backward(DY[:2], first), together.backward(DY[2:], second)]
    _, cache = apart.forward(X)
    np.testing.assert_allclose(np.concatenate(dx), apart.backward(DY, cache), rtol=1e-13)
    for p, q in zip(together.parameters(), apart.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-13)


def test_arrays_in_any_memory_order() -> None:
    layer, strided = linear(), np.asfortranarray(X)
    np.testing.assert_allclose(layer(strided), layer(X), rtol=1e-13)
    np.testing.assert_allclose(layer(np.repeat(X, 2, axis=0)[::2]), layer(X), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_keeps_the_layers_dtype(dtype: str) -> None:
    layer = linear(dtype=dtype)
    y, cache = layer.forward(X.astype(dtype))
    dx = layer.backward(y, cache)
    assert {str(array.dtype) for array in (y, dx, layer.weight.grad, layer.bias.grad)} == {dtype}


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones((5, 4)), ValueError, ["(N, 3)", "(5, 4)"]),
        (np.ones(3), ValueError, ["(N, 3)", "(3,)"]),
        (np.ones((2, 5, 3)), ValueError, ["(N, 3)", "(2, 5, 3)"]),
        (np.ones((0, 3)), ValueError, ["empty batch", "(N, 3)"]),
        (np.ones((5, 3), np.float32), TypeError, ["float64", "float32"]),
        (np.ones((5, 3), int), TypeError, ["float64", "int64"]),
        ([[1.0, 2.0, 3.0]], TypeError, ["array", "list"]),
        (None, TypeError, ["array", "NoneType"]),
    ],
)
def test_a_bad_x_is_refused(x: Any, error: type[Exception], words: list[str]) -> None:
    layer = linear()
    with refuses(error, "x ", *words, keep=layer):
        layer.forward(x)
    with refuses(error, "x ", *words, keep=layer):
        layer(x)


@pytest.mark.parametrize(
    ("dy", "error", "words"),
    [
        (np.ones((4, 4)), ValueError, ["(5, 4)", "(4, 4)"]),
        (np.ones((1, 4)), ValueError, ["(5, 4)", "(1, 4)"]),
        (np.ones((5, 3)), ValueError, ["(5, 4)", "(5, 3)"]),
        (np.ones(4), ValueError, ["(5, 4)", "(4,)"]),
        (np.ones((5, 4), np.float32), TypeError, ["float64", "float32"]),
        (1.0, TypeError, ["array", "float"]),
    ],
)
def test_a_bad_dy_is_refused(dy: Any, error: type[Exception], words: list[str]) -> None:
    layer = linear()
    _, cache = layer.forward(X)
    with refuses(error, "dy", *words, keep=[layer, *cache]):
        layer.backward(dy, cache)
