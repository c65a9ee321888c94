"""What several test files share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import minidl
from minidl.optimizers import Optimizer


def filled(layer: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """`layer` with random values in all its parameters: a bias that is zero or all alike hides mistakes."""
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters():
        parameter.data[...] = rng.normal(0.0, scale, parameter.data.shape)
    return layer


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest expected value."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    largest = float(np.abs(expected).max())
    return float(np.abs(got - expected).max()) / (largest or 1.0)


def directional_derivative(
    loss: Callable[[], float],
    arrays: Sequence[np.ndarray],
    directions: Sequence[np.ndarray],
    step: float = 1e-3,
) -> float:
    """dL/de of L(arrays + e directions) at e = 0 by a five-point difference; `loss` reads `arrays` anew."""
    start = [array.copy() for array in arrays]

    def at(shift: float) -> float:
        for array, values, direction in zip(arrays, start, directions, strict=True):
            array[...] = values + shift * direction
        return loss()

    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    at(0.0)
    return slope


def snapshot(*things: Any) -> list[Any]:
    """What a refused call must leave alone, bit for bit, of layers, optimizers, arrays, or nests of them."""
    parts: list[Any] = []
    for thing in things:
        if isinstance(thing, minidl.Layer):
            parts += snapshot(*thing.parameters())
            parts += [(name, value) for name, value in vars(thing).items() if not isinstance(value, minidl.Layer)]
        elif isinstance(thing, Optimizer):
            parts += [*snapshot(*thing.params, *thing.state.values()), thing.steps, thing.lr]
        elif isinstance(thing, minidl.Parameter):
            parts += [thing.data.tobytes(), thing.grad.tobytes()]
        elif isinstance(thing, (tuple, list)):
            parts += snapshot(*thing)
        elif isinstance(thing, np.ndarray):
            parts.append(thing.tobytes())
        else:
            parts.append(thing)
    return parts


@contextlib.contextmanager
def refuses(error: type[Exception], *words: object, keep: Any = ()) -> Iterator[None]:
    """The block raises `error`, in one line that has all `words` in it, and changes nothing of `keep`."""
    before = snapshot(keep)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert caught.type is error, f"{caught.type.__name__} in place of {error.__name__}: {message}"
    assert "\n" not in message and len(message) < 400, f"not one line: {message}"
    missing = [str(word) for word in words if str(word) not in message]
    assert not missing, f"the message does not name {missing}: {message}"
    assert snapshot(keep) == before, "a refused call changed something"
