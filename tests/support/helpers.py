"""Helpers shared by several test files."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import minidl
from minidl.kernels.cpu import cuts, workspace
from minidl.layers.lstm import LSTMCache
from minidl.optimizers import Optimizer


def thorough(usual: int, many: int) -> int:
    """How many cases to try: `usual`, or `many` with MINIDL_THOROUGH=1 in the environment."""
    return many if os.environ.get("MINIDL_THOROUGH") == "1" else usual


def filled(layer: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """`layer` with random values in all its parameters: a zero or constant bias hides mistakes."""
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
    """dL/de of L(arrays + e directions) at e = 0 by a five-point difference; `loss` re-reads `arrays` on every call."""
    start = [array.copy() for array in arrays]

    def at(shift: float) -> float:
        for array, values, direction in zip(arrays, start, directions, strict=True):
            array[...] = values + shift * direction
        return loss()

    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    at(0.0)
    return slope


def snapshot(*things: Any) -> list[Any]:
    """The state of layers, optimizers, arrays, or nests of them, that a refused call must not change by a bit."""
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
        elif isinstance(thing, LSTMCache):
            parts += snapshot(thing.x, thing.walks, thing.state)  # not dstate, which backward writes
        elif isinstance(thing, np.random.Generator):
            parts.append(repr(thing.bit_generator.state))
        elif isinstance(thing, dict):
            parts += snapshot(*thing.items())
        else:
            parts.append(thing)
    return parts


@contextlib.contextmanager
def refuses(error: type[Exception], *words: object, keep: Any = ()) -> Iterator[None]:
    """The block raises `error` with a one-line message that contains all `words`, and does not change `keep`."""
    before = snapshot(keep)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert caught.type is error, f"{caught.type.__name__} instead of {error.__name__}: {message}"
    assert "\n" not in message and len(message) < 400, f"not one line: {message}"
    # not as the end of another word, which would be a different name
    missing = [str(word) for word in words if not re.search(rf"(?<![A-Za-z_]){re.escape(str(word))}", message)]
    assert not missing, f"the message does not name {missing}: {message}"
    assert snapshot(keep) == before, "a refused call changed something"


PATHS = [str(Path(__file__).parent), str(Path(minidl.__file__).parents[1])]  # the test helpers, and this minidl


def python(code: str, *options: str) -> str:
    """The output of a new Python that runs `code` with the test helpers importable, within 60 s."""
    start = f"import sys; sys.path[:0] = {PATHS}\n"
    done = subprocess.run(
        [sys.executable, *options, "-c", start + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


class Blocks:
    """The state of a pool's blocks: see `reused_memory`."""

    def __init__(self) -> None:
        self.alive: dict[int, weakref.ref[np.ndarray]] = {}  # in use or free, by id
        self.fresh = 0  # how many were allocated
        self.in_use = 0
        self.most_in_use = 0

    def sizes(self) -> list[int]:
        blocks = [reference() for reference in self.alive.values()]
        return [block.nbytes - workspace.ALIGNMENT for block in blocks if block is not None]


@contextlib.contextmanager
def reused_memory(least: int = 1) -> Iterator[Blocks]:
    """A separate pool for all arrays of at least `least` bytes; fills a block with NaN when it is taken or returned.

    This reveals values that are read before they are written, or after their memory has been reused.
    """
    blocks, pool = Blocks(), workspace._Pool()
    take = pool._take

    def watched_take(nbytes: int) -> np.ndarray:
        block = take(nbytes)
        known = blocks.alive.get(id(block))
        if known is None or known() is not block:
            blocks.alive[id(block)] = weakref.ref(block)
            blocks.fresh += 1
        block.fill(255)
        blocks.in_use += 1
        blocks.most_in_use = max(blocks.most_in_use, blocks.in_use)
        return block

    class Returned(list[Any]):
        def append(self, watch: Any) -> None:
            watch.block.fill(255)
            blocks.in_use -= 1
            super().append(watch)

    with (
        mock.patch.object(pool, "_take", watched_take),
        mock.patch.object(pool, "returned", Returned()),
        mock.patch.object(workspace, "_pool", pool),
        mock.patch.object(cuts, "POOLED_BYTES", least),
    ):
        yield blocks
