"""Dropout: zeroes a random share of the units during training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import checks
from ..backend import Array, Rng, generator, is_device, of
from ..kernels import load_cuda
from ..kernels.cpu import dropout as cpu
from ..kernels.cpu.workspace import empty
from ..layer import Layer
from ..sequences import AnyPacking


class DropoutCache(NamedTuple):
    """What was dropped."""

    scale: Array | None  # (N, D): 0 where dropped, else 1 / (1 - p); None if p = 0


class Dropout(Layer):
    """y = x * m / (1 - p), where m is 0 with probability p and else 1; at inference y = x (Srivastava et al. 2014).

    The mask is a function of (seed, step, row, unit), not of a generator that advances: threads, machines, a resumed
    run and both backends get the same mask. So `forward` needs the training step's number in `packing.step`, and
    raises TypeError without it. `packing.rows` are the positions of x's rows in the whole batch (default 0 ... N-1),
    for callers that hold only a part of it. The seed is drawn from `rng` when the layer is created and is not part of
    the state dict: to resume a run exactly, create its layers with the same rng. x and y are (N, D).
    """

    def __init__(self, p: float, *, dtype: str = "float32", backend: str = "numpy", rng: Rng = None) -> None:
        # dtype and backend are those of x; the arguments exist so that all layers have the same signature.
        checks.float_dtype(dtype)
        if backend not in ("numpy", "cupy"):
            raise ValueError(f"backend must be 'numpy' or 'cupy', got {backend!r}")
        self.p = checks.number("p", p, 0.0, 1.0)
        self.seed = int(generator(rng).integers(2**63))

    def forward(self, x: Array, packing: AnyPacking | None = None) -> tuple[Array, DropoutCache]:
        _check(x)
        step, rows = (getattr(packing, name, None) for name in ("step", "rows"))
        if step is None:
            raise TypeError(
                "Dropout.forward needs packing.step, the training step's number: pass batch._replace(step=step) "
                "or minidl.Packing(batch_sizes, step=step); for inference call the layer"
            )
        step = checks.integer("packing.step", step, 0)
        if self.p == 0.0:
            return x, DropoutCache(None)
        if rows is not None:
            rows = _positions(rows, x.shape[0])
        if is_device(x):
            y, scale = load_cuda("dropout").forward(x, self.seed, step, rows, self.p)
        else:
            y, scale = cpu.forward(x, self.seed, step, rows, self.p)
        return y, DropoutCache(scale)

    def __call__(self, x: Array, packing: AnyPacking | None = None) -> Array:
        _check(x)
        return x

    def backward(self, dy: Array, cache: DropoutCache) -> Array:
        """dL/dx = dy * m / (1 - p)."""
        checks.cache(cache, DropoutCache)
        if cache.scale is None:
            return dy
        checks.matrix("dy", dy, cache.scale.shape[1], like=cache.scale, rows=len(cache.scale))
        return of(dy).multiply(dy, cache.scale, out=empty(dy.shape, dy))


def _check(x: Array) -> None:
    checks.array("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (N, D) with N at least 1, got {x.shape}")
    checks.float_dtype(x.dtype, "x")


def _positions(rows: Array, length: int) -> np.ndarray:
    if is_device(rows):
        raise TypeError("packing.rows must be on the host, got a cupy array")
    try:
        positions = np.asarray(rows)
    except ValueError:  # a list of lists of different lengths
        positions = np.asarray(None)
    if positions.shape != (length,) or positions.dtype.kind not in "iu":
        raise ValueError(
            f"packing.rows must hold one integer for each of the {length} rows, got {positions.shape} {positions.dtype}"
        )
    if positions.min() < 0:
        raise ValueError(f"packing.rows must be at least 0, got {positions.min()}")
    return positions
