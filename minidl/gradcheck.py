"""Numerical gradients: checks a backward pass against central differences.

For a random R of the output's shape, L = sum(R * output) is a number, so dL/dw can be computed in two
ways: by `backward` with dy = R, and as (L(w + e) - L(w - e)) / 2e. In float64 they agree to 1e-7 or better.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import backend
from .backend import Rng
from .layer import Layer

EPSILON = 1e-5
TOLERANCE = 1e-5  # relative; a correct float64 gradient stays below 1e-7
ENTRIES = 200  # of a larger array, this many random entries are checked


class Check(NamedTuple):
    """One array's result: the worst entry, with the error relative to the larger of the two values."""

    name: str
    shape: tuple[int, ...]
    entries: int
    error: float
    worst: tuple[int, ...]
    analytic: float
    numeric: float


class Report(NamedTuple):
    """One Check per input or parameter."""

    checks: list[Check]

    @property
    def max_error(self) -> float:
        return max(check.error for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(f"{c.name:24} {c.shape!s:16} {c.entries:5} entries  {c.error:.1e}" for c in self.checks)


class GradientError(AssertionError):
    """A backward pass disagrees with the numerical gradient, or breaks the layer contract."""


def gradcheck(layer: Any, *inputs: Any, rng: Rng = None, state: Any = None) -> Report:
    """Check the gradients of all parameters of `layer` and of its float64 inputs; returns a Report.

    `layer` is a Layer, and the inputs are those of its forward: x, and the packing if it needs one. With a `state`,
    forward starts from it, and the gradients through `cache.state` and in `cache.dstate` are checked too (see
    layer.py). Or `layer` is a loss: a Layer with forward_backward(*inputs) -> (loss, dx), or such a function, for
    example softmax_cross_entropy; with several float64 inputs it returns their gradients as a tuple.

    Raises GradientError with the worst entry, its analytic and its numeric value, and also if backward changes dy or
    the cache, or sets a gradient instead of adding to it. TypeError if anything is not float64, or if there is nothing
    to check. `layer` is not changed (a function's own variables may be).
    """
    rng = backend.generator(rng)
    if isinstance(layer, type) or not callable(layer):
        raise TypeError(f"layer must be a Layer or a function, got {type(layer).__name__}")
    layer, inputs, state = copy.deepcopy(layer), _copied(inputs), _copied(state)
    parameters = layer.named_parameters() if isinstance(layer, Layer) else []
    arrays = [(f"input {index}", array) for index, array in enumerate(_floats(inputs))]
    arrays += [(f"state {index}", array) for index, array in enumerate(_floats(state))]
    for name, array in arrays + [(name, p.data) for name, p in parameters]:
        if backend.is_device(array):
            raise TypeError(
                f"gradcheck works on the host, but {name} is a cupy array: check a layer with backend='numpy'"
            )
        if array.dtype != np.float64:
            raise TypeError(f"gradcheck needs float64, got {array.dtype} for {name}")

    for _, parameter in parameters:  # backward must add to existing gradients, not replace them
        parameter.grad[...] = rng.normal(size=parameter.grad.shape)
    before = [parameter.grad.copy() for _, parameter in parameters]
    if isinstance(layer, Layer) and not hasattr(layer, "forward_backward"):
        loss, gradients = _gradients_of_layer(layer, inputs, state, rng)
    else:
        loss, gradients = _gradients_of_loss(getattr(layer, "forward_backward", layer), inputs)
    if len(gradients) != len(arrays):
        wanted = ", ".join(name for name, _ in arrays) or "none"
        raise GradientError(f"backward returned {len(gradients)} gradients for {len(arrays)} inputs: {wanted}")
    checked = [(name, array, grad) for (name, array), grad in zip(arrays, gradients, strict=True)]
    checked += [(name, p.data, p.grad - old) for (name, p), old in zip(parameters, before, strict=True)]
    report = Report([_compare(name, array, grad, loss, rng) for name, array, grad in checked])
    if not report.checks:
        raise TypeError("gradcheck found nothing to check: no float64 array among the inputs, and no parameters")
    for check in report.checks:
        if not check.error < TOLERANCE:  # also true of NaN
            raise GradientError(
                f"gradient of {check.name} {check.shape} is wrong: worst at {check.worst}, "
                f"analytic {check.analytic:.9g}, numeric {check.numeric:.9g}, relative error {check.error:.2g}"
            )
    return report


def _gradients_of_loss(both: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Callable[[], float], list[Any]]:
    """The loss as a function without arguments (it rereads `inputs`), and the gradients of the inputs."""
    result = both(*inputs)
    _require_pair(result, "forward_backward must return a pair (loss, dx)")
    return lambda: float(both(*inputs)[0]), _floats(result[1])


def _gradients_of_layer(
    layer: Any, inputs: tuple[Any, ...], state: Any, rng: np.random.Generator
) -> tuple[Callable[[], float], list[Any]]:
    """L = sum(R * y) + sum(S * cache.state) as a function without arguments, and the gradients of x and of the given
    state; also checks the layer contract."""

    def forward() -> Any:
        return layer.forward(*inputs) if state is None else layer.forward(*inputs, state=state)

    both = forward()
    _require_pair(both, "forward must return a pair (y, cache)")
    y, cache = both
    last = () if state is None else cache.state
    for leaf in _leaves((y, last)):
        if not _is_array(leaf):
            raise GradientError(
                f"forward must return y, and cache.state if there is one, as arrays, got {type(leaf).__name__}"
            )
    upstream = [rng.normal(size=array.shape) for array in _floats((y, last))]
    dy, dlast = _like((y, last), iter(array.copy() for array in upstream))

    def backward() -> list[Any]:
        if state is None:
            return _floats(layer.backward(dy, cache))
        return _floats((layer.backward(dy, cache, dstate=dlast), cache.dstate))

    grads, results = [[p.grad.copy() for p in layer.parameters()]], []
    for _ in range(2):
        results.append(backward())
        grads.append([p.grad.copy() for p in layer.parameters()])
    if not all(np.array_equal(a, b) for a, b in zip(_floats((dy, dlast)), upstream, strict=True)):
        raise GradientError("backward changed dy, which belongs to the caller")
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*results, strict=True)):
        raise GradientError("backward returned a different result when called again: it changed its cache")
    for p, start, once, twice in zip(layer.parameters(), *grads, strict=True):
        if not np.allclose(twice - once, once - start, rtol=1e-9, atol=1e-9):
            raise GradientError(f"backward must add its gradient to {p.name}.grad every time it is called")
        p.grad[...] = once

    def loss() -> float:
        y, cache = forward()
        outputs = _floats((y, () if state is None else cache.state))
        return float(sum((r * array).sum() for r, array in zip(upstream, outputs, strict=True)))

    return loss, results[0]


def _require_pair(result: Any, rule: str) -> None:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise GradientError(f"{rule}, got {type(result).__name__}")


def _compare(name: str, array: Any, gradient: Any, loss: Callable[[], float], rng: np.random.Generator) -> Check:
    """The worst of up to ENTRIES entries of `array`, which is changed in place and restored."""
    if gradient.shape != array.shape:
        raise GradientError(f"gradient of {name} has shape {gradient.shape}; expected {array.shape}")
    picked = np.sort(rng.permutation(array.size)[:ENTRIES])
    analytic, numeric = gradient.reshape(-1)[picked], np.empty(len(picked))
    for place, index in enumerate(picked):
        value = array.flat[index]
        array.flat[index] = value + EPSILON
        above = loss()
        array.flat[index] = value - EPSILON
        numeric[place] = (above - loss()) / (2 * EPSILON)
        array.flat[index] = value
    # Rounding of the differences is absolute and grows with the loss, so smaller entries are judged on its scale.
    floor = max(1e-3 * np.abs(numeric).max(), 1e-4 * max(1.0, abs(loss())))
    error = np.abs(analytic - numeric) / np.maximum(np.maximum(np.abs(analytic), np.abs(numeric)), floor)
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    where = tuple(int(k) for k in np.unravel_index(picked[worst], array.shape))
    return Check(name, array.shape, len(picked), float(error[worst]), where, analytic[worst], numeric[worst])


def _floats(value: Any) -> list[Any]:
    """The float arrays in a nest of tuples and lists, in order. Named tuples, such as a packing, are skipped."""
    return [leaf for leaf in _leaves(value) if _is_array(leaf) and leaf.dtype.kind == "f"]


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _leaves(part)] if _is_nest(value) else [value]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or backend.is_device(value)


def _copied(value: Any) -> Any:
    """The nest with every array copied separately: one that is passed twice becomes two."""
    return tuple(_copied(part) for part in value) if _is_nest(value) else copy.deepcopy(value)


def _like(value: Any, arrays: Iterator[Any]) -> Any:
    """The nest of `value` with its arrays replaced by the next of `arrays`."""
    return tuple(_like(part, arrays) for part in value) if _is_nest(value) else next(arrays)


def _is_nest(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not hasattr(value, "_fields")
