"""Optimizers on NumPy, over flat arrays: in blocks that fit a cache, on all cores; and the gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import cuts, threads


def apply(update: Callable[..., object], *arrays: np.ndarray) -> None:
    """Call `update`, which works element by element, on flat `arrays` of equal length."""
    size = arrays[0].size

    def change(part: slice) -> None:
        update(*(array[part] for array in arrays))

    threads.over(size, change, threads.cores_for(size, cuts.NUMBERS), pieces=math.ceil(size / cuts.BLOCK))


def square(flat: np.ndarray) -> float:
    """The squared norm; infinite, without NumPy's warning, if a square overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(flat, flat))


def norm(grads: Sequence[np.ndarray]) -> float:
    """The norm of all `grads` together, which must be finite."""
    whole = math.sqrt(sum(square(grad) for grad in grads))
    if math.isfinite(whole):
        return whole
    largest = max(float(abs(grad).max()) for grad in grads)  # finite gradients whose squares overflow
    return largest * math.sqrt(sum(float(np.dot(grad / largest, grad / largest)) for grad in grads))
