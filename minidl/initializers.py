"""Initial values for weights: host arrays in float64, cast when they are stored.

    parameter.data[...] = minidl.initializers.orthogonal(parameter.data.shape, rng=0)

`shape` is (fan_out, fan_in) for a matrix, as layers store their weights.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from . import checks
from .backend import Rng, generator


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """All zeros: right for a bias, useless for a weight matrix, whose units would all stay equal."""
    return np.zeros(_shape(shape))


def uniform(shape: tuple[int, ...], bound: float, rng: Rng = None) -> np.ndarray:
    """U(-bound, bound)."""
    bound = checks.number("bound", bound, 0.0)
    return generator(rng).uniform(-bound, bound, _shape(shape))


def normal(shape: tuple[int, ...], std: float = 1.0, rng: Rng = None) -> np.ndarray:
    """N(0, std^2)."""
    return generator(rng).normal(0.0, checks.number("std", std, 0.0), _shape(shape))


def xavier_uniform(shape: tuple[int, int], rng: Rng = None) -> np.ndarray:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)): preserves the variance of signals (Glorot & Bengio 2010)."""
    fan_out, fan_in = _matrix(shape)
    return uniform(shape, math.sqrt(6.0 / (fan_in + fan_out)), rng)


def orthogonal(shape: tuple[int, int], rng: Rng = None) -> np.ndarray:
    """A uniformly random matrix with orthonormal rows or columns, whichever are fewer (Saxe et al. 2014)."""
    rows, columns = _matrix(shape)
    q, r = np.linalg.qr(generator(rng).normal(size=(max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))  # QR's own choice of signs would not be uniform
    return np.ascontiguousarray(q if rows >= columns else q.T)


def _matrix(shape: tuple[int, int]) -> tuple[int, int]:
    if isinstance(shape, (tuple, list)) and len(shape) != 2:
        raise ValueError(f"shape must have two dimensions (fan_out, fan_in), got {shape}")
    fan_out, fan_in = _shape(shape)
    return fan_out, fan_in


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`, each size at least 1; MemoryError for more numbers than can be addressed."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"shape must be a tuple of ints, got {type(shape).__name__}")
    sizes = tuple(checks.size(f"shape[{axis}]", length) for axis, length in enumerate(shape))
    if math.prod(sizes) > sys.maxsize // 8:
        raise MemoryError(f"no memory can hold an array of shape {sizes}")
    return sizes
