"""Dropout: zeros a share of the units while training."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from .. import checks, threads
from ..backend import Array, Rng, generator, is_device, of
from ..layer import Layer
from ..workspace import empty

LEAST = 2**18  # elements that are worth a thread
BLOCK = 2**17  # elements at a time: few enough for a cache, many enough that calls cost little


class DropoutCache(NamedTuple):
    """What was dropped."""

    scale: Array | None  # (N, D): 0 where dropped, else 1 / (1 - p); None where nothing is


class Dropout(Layer):
    """y = x * m / (1 - p), where m is 0 with probability p and else 1; at inference y = x (Srivastava et al. 2014).

    The mask is a function of (seed, step, row, unit), not of a generator that advances: threads, machines,
    a resumed run and both backends draw the same one. So tell `forward` the number of the training step;
    without it every call is step 0 and drops the same units. `rows` are the positions of x's rows in the
    whole batch (default 0 ... N-1), for one who holds a part of it. The seed is drawn from `rng` when the layer is
    made and is no part of state_dict: a run that is to go on exactly makes its layers with the same rng.
    x and y are (N, D).
    """

    def __init__(self, p: float, *, dtype: str = "float32", backend: str = "numpy", rng: Rng = None) -> None:
        # dtype and backend are those of x; both are taken so that all layers are made alike.
        checks.float_dtype(dtype)
        if backend not in ("numpy", "cupy"):
            raise ValueError(f"backend must be 'numpy' or 'cupy', got {backend!r}")
        self.p = checks.number("p", p, 0.0, 1.0)
        self.differs_in_training = self.p > 0
        self.seed = int(generator(rng).integers(2**63))

    def forward(self, x: Array, step: int = 0, rows: Array | None = None) -> tuple[Array, DropoutCache]:
        _check(x)
        step = checks.integer("step", step, 0)
        if self.p == 0.0:
            return x, DropoutCache(None)
        if is_device(rows):
            raise TypeError("rows must be on the host, got a cupy array")
        given = rows
        rows = np.arange(x.shape[0]) if rows is None else _positions(rows, x.shape[0])
        if is_device(x):
            from ..kernels import dropout as device

            y, scale = device.forward(x, self.seed, step, None if given is None else rows, self.p)
            return y, DropoutCache(scale)
        row_keys, unit_keys = _keys(self.seed, step, rows, x.shape[1])
        y, scale = empty(x.shape, x), empty(x.shape, x)
        threshold = np.uint32(min(round(self.p * 2**32), 2**32 - 1))

        def fill(part: slice) -> None:
            scale[part] = _mix(row_keys[part, None] ^ unit_keys) >= threshold
            scale[part] *= 1 / (1 - self.p)
            np.multiply(x[part], scale[part], out=y[part])

        blocks = threads.split(len(x), -(-x.size // BLOCK))
        threads.run([partial(fill, part) for part in blocks], threads.worth(x.size, LEAST, x))
        return y, DropoutCache(scale)

    def __call__(self, x: Array) -> Array:
        _check(x)
        return x

    def backward(self, dy: Array, cache: DropoutCache) -> Array:
        """dL/dx = dy * m / (1 - p)."""
        checks.cache(cache, DropoutCache)
        if cache.scale is None:
            return dy
        checks.matrix("dy", dy, cache.scale.shape[1], like=cache.scale, rows=len(cache.scale))
        xp, dx = of(dy), empty(dy.shape, dy)
        parts = threads.split(len(dy), threads.worth(dy.size, LEAST, dy))
        threads.run([partial(xp.multiply, dy[part], cache.scale[part], out=dx[part]) for part in parts])
        return dx


def _check(x: Array) -> None:
    checks.array("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (N, D) with N at least 1, got {x.shape}")
    checks.float_dtype(x.dtype, "x")


def _positions(rows: Array, length: int) -> np.ndarray:
    try:
        positions = np.asarray(rows)
    except ValueError:  # a list of lists of other lengths
        positions = np.asarray(None)
    if positions.shape != (length,) or positions.dtype.kind not in "iu":
        raise ValueError(
            f"rows must hold one integer for each of the {length} rows, got {positions.shape} {positions.dtype}"
        )
    if positions.min() < 0:
        raise ValueError(f"rows must be at least 0, got {positions.min()}")
    return positions


def _keys(seed: int, step: int, rows: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """A random 32-bit key for each row and one for each unit, from (seed, step) and their positions."""
    salt = np.random.SeedSequence([seed, step]).generate_state(4)
    spread = rows.astype(np.uint64)
    row_keys = _mix(_mix(spread.astype(np.uint32) ^ salt[0]) ^ (spread >> np.uint64(32)).astype(np.uint32) ^ salt[1])
    return row_keys, _mix(_mix(np.arange(units, dtype=np.uint32) ^ salt[2]) ^ salt[3])


def _mix(bits: Array) -> Array:
    """A bijection of 32-bit numbers in which every input bit reaches every output bit ("lowbias32", C. Wellons)."""
    bits = bits ^ (bits >> np.uint32(16))
    bits *= np.uint32(0x7FEB352D)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x846CA68B)
    bits ^= bits >> np.uint32(16)
    return bits
