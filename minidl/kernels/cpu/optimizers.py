"""Optimizers on NumPy, over flat arrays: in blocks that stay in a cache, on all cores; and the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import cuts, threads


def apply(update: Callable[..., object], *arrays: np.ndarray) -> None:
    """`update` of flat `arrays` of one length, which it changes element by element."""
    size = arrays[0].size

    def change(part: slice) -> None:
        update(*(array[part] for array in arrays))

    threads.over(size, change, threads.cores_for(size, cuts.NUMBERS), pieces=math.ceil(size / cuts.BLOCK))


def square(flat: np.ndarray) -> float:
    """The squared norm; infinite, without NumPy's warning, where a square overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(flat, flat))


def norm(grads: Sequence[np.ndarray]) -> float:
    """That of all `grads` together, finite as they are."""
    whole = math.sqrt(sum(square(grad) for grad in grads))
    if math.isfinite(whole):
        return whole
    largest = max(float(abs(grad).max()) for grad in grads)  # finite gradients whose squares overflow
    return largest * math.sqrt(sum(float(np.dot(grad / largest, grad / largest)) for grad in grads))
