"""Projection, softmax and cross-entropy on NumPy, in blocks of rows, so that the logits never exist all at once.

At N = 12,800 and V = 3,602 a thread holds 9 MiB instead of 176 MiB for each full-size array, of which a textbook
version has three: logits, softmax and gradient. [W b]^T is a transposed copy, because products with it are faster; the
bias is the weight of an input that is always 1.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ...parameter import Parameter
from . import cuts, threads
from .workspace import empty, with_ones

SAFE = 60.0  # e^60, summed over any vocabulary, and e^-60 are far from the ends of float32


def loss(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, targets: np.ndarray, total: float) -> float:
    """LinearCrossEntropy.__call__."""
    with_bias = _with_bias(weight, bias)

    def loss_of(part: slice) -> float:
        blocks = _blocks(part, len(bias) * x.itemsize)
        return sum(_exponentials(with_ones(x[rows]), with_bias, targets[rows])[0] for rows in blocks)

    return sum(threads.run([partial(loss_of, part) for part in _parts(x, bias)])) / total


def forward_backward(
    x: np.ndarray, targets: np.ndarray, total: float, weight: Parameter, bias: Parameter
) -> tuple[float, np.ndarray]:
    """LinearCrossEntropy.forward_backward: (loss, dx); adds into the gradients of weight (V, D) and bias (V,)."""
    with_bias, dx = _with_bias(weight.data, bias.data), empty(x.shape, x)
    tasks = [partial(_part, x, weight.data, with_bias, targets, total, dx, part) for part in _parts(x, bias.data)]
    losses, dweights = zip(*threads.run(tasks), strict=True)
    first, *others = dweights

    def add(classes: slice) -> None:
        for dweight in others:
            first[:, classes] += dweight[:, classes]
        weight.grad[classes] += first[:-1, classes].T
        bias.grad[classes] += first[-1, classes]

    threads.over(len(bias.data), add, len(tasks))
    return sum(losses) / total, dx


def _part(
    x: np.ndarray,
    weight: np.ndarray,
    with_bias: np.ndarray,
    targets: np.ndarray,
    total: float,
    dx: np.ndarray,
    part: slice,
) -> tuple[float, np.ndarray]:
    """(summed loss, dL/d[W b]^T) of the rows in `part`, whose dL/dx it fills.

    With e = exp(z) and its row sum s, dL/dz = (e / s - onehot) / total = (e - s onehot) / (s total). The division
    by s total is applied to the narrow factors: to x before its product, and to dx after its own.
    """
    loss = 0.0
    dweight = product = empty(with_bias.shape, x)
    for rows in _blocks(part, len(weight) * x.itemsize):
        x1 = with_ones(x[rows])
        block_loss, e, sums = _exponentials(x1, with_bias, targets[rows])
        loss += block_loss
        e[np.arange(len(e)), targets[rows]] -= sums
        scale = (1 / sums / total)[:, None]  # sums * total might overflow
        np.matmul(e, weight, out=dx[rows])
        dx[rows] *= scale
        x1 *= scale
        np.matmul(x1.T, e, out=product)
        if product is dweight:
            product = empty(dweight.shape, x)  # the first block's product starts the sum
        else:
            dweight += product
    return loss, dweight


def _exponentials(x1: np.ndarray, with_bias: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(summed loss, e^z (n, V), its row sums) of logits z = x1 [W b]^T.

    If e^z might overflow or vanish, each row's maximum is subtracted, which leaves the softmax unchanged.
    """
    rows, classes = len(x1), with_bias.shape[1]
    z = np.matmul(x1, with_bias, out=empty((rows, classes), x1))
    top = z.max(axis=1, keepdims=True)
    if not abs(top).max() <= SAFE:  # `not <=` is true of NaN
        z -= top
    picked = z[np.arange(rows), targets]
    np.exp(z, out=z)
    sums = z @ np.ones(classes, z.dtype)
    return (np.log(sums) - picked).sum(dtype=np.float64), z, sums


def _with_bias(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[W b]^T (D + 1, V)."""
    joined = empty((weight.shape[1] + 1, len(weight)), weight)

    def copy(classes: slice) -> None:
        joined[:-1, classes] = weight[classes].T
        joined[-1, classes] = bias[classes]

    threads.over(len(weight), copy, threads.cores_for(joined.size, cuts.NUMBERS))
    return joined


def _parts(x: np.ndarray, bias: np.ndarray) -> list[slice]:
    """The rows, cut for the cores."""
    return threads.split(len(x), threads.cores_for(x.size * len(bias), cuts.PRODUCT))


def _blocks(part: slice, row_bytes: int) -> list[slice]:
    """The rows of `part` in nearly equal blocks of at most LOGITS_BYTES."""
    rows = part.stop - part.start
    blocks = threads.split(rows, math.ceil(rows * row_bytes / cuts.LOGITS_BYTES))
    return [slice(part.start + block.start, part.start + block.stop) for block in blocks]
