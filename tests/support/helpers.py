"""What several test files share."""

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
        elif isinstance(thing, LSTMCache):
            parts += snapshot(thing.x, thing.walks, thing.state)  # and not dstate, which is there for backward to write
        elif isinstance(thing, np.random.Generator):
            parts.append(repr(thing.bit_generator.state))
        elif isinstance(thing, dict):
            parts += snapshot(*thing.items())
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
    # not as the end of another word: a name that was spoilt is no name
    missing = [str(word) for word in words if not re.search(rf"(?<![A-Za-z_]){re.escape(str(word))}", message)]
    assert not missing, f"the message does not name {missing}: {message}"
    assert snapshot(keep) == before, "a refused call changed something"


PATHS = [str(Path(__file__).parent), str(Path(minidl.__file__).parents[1])]  # the tests' files, and this minidl


def python(code: str, *options: str) -> str:
    """What a new Python prints that runs `code` beside the tests' files; it is given 60 s."""
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
    """What a pool's blocks are up to: see `reused_memory`."""

    def __init__(self) -> None:
        self.alive: dict[int, weakref.ref[np.ndarray]] = {}  # in use or free, by id
        self.fresh = 0  # how many were made
        self.in_use = 0
        self.most_in_use = 0

    def sizes(self) -> list[int]:
        blocks = [reference() for reference in self.alive.values()]
        return [block.nbytes - workspace.ALIGNMENT for block in blocks if block is not None]


@contextlib.contextmanager
def reused_memory(least: int = 1) -> Iterator[Blocks]:
    """A pool of its own for all arrays of at least `least` bytes, in which every block is NaN when it changes hands.

    So a value read before it is written, or after its memory has gone to another, shows.
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
