"""Softmax cross-entropy: the textbook form, and fused with the projection before it.

For row n with logits z (V,) and target k:   loss_n = log(sum_v exp z_v) - z_k   (nats)
and its gradient                             dloss_n / dz = softmax(z) - onehot(k)

A loss is the sum over rows divided once, by the number of rows or by `total`, so the losses of parts of a batch add up
exactly. It is returned as a number, or as a 0-d array on the layer's device.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from . import backend, checks, initializers
from .backend import Array, Rng, generator, require_same
from .kernels import load_cuda
from .kernels.cpu import softmax as cpu
from .layer import Layer
from .parameter import Parameter, create


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(loss, dlogits): the mean loss in nats per row, and its gradient.

    logits (N, V) floats, targets (N,) integers in [0, V); dlogits is (N, V).
    """
    checks.array("logits", logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape (N, V) with N at least 1, got {logits.shape}")
    checks.float_dtype(logits.dtype, "logits")
    targets = checks.ids("targets", targets, logits.shape[1], like=logits, rows=len(logits))
    if backend.is_device(logits):
        return _kernels(logits).softmax_cross_entropy(logits, targets)
    rows = len(logits)
    dlogits = logits - logits.max(axis=1, keepdims=True)  # the largest exponent is 0: nothing overflows
    picked = dlogits[np.arange(rows), targets]
    np.exp(dlogits, out=dlogits)
    sums = dlogits.sum(axis=1)
    dlogits /= (sums * rows)[:, None]
    dlogits[np.arange(rows), targets] -= 1 / rows
    return (np.log(sums) - picked).sum(dtype=np.float64) / rows, dlogits


class LinearCrossEntropy(Layer):
    """The output projection with its softmax cross-entropy: loss of x W^T + b against targets.

    A head: it ends in the loss, so it has no separate forward and backward. It computes `softmax_cross_entropy` of
    `logits`, but makes, uses and drops the logits (N, V) in blocks of rows, so that they never exist all at once.

    weight W (num_classes, in_features) and bias b (num_classes,) start as Linear's do. `weight` accepts a Parameter of
    that shape to share, such as an Embedding's; the gradients then add up.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        weight: Parameter | None = None,
        *,
        dtype: str = "float32",
        backend: str = "numpy",
        rng: Rng = None,
    ) -> None:
        self.in_features = checks.size("in_features", in_features)
        self.num_classes = checks.size("num_classes", num_classes)
        shape, rng = (self.num_classes, self.in_features), generator(rng)
        bound = 1 / math.sqrt(self.in_features)
        if weight is None:
            weight = create(
                "LinearCrossEntropy.weight", partial(initializers.uniform, shape, bound, rng), dtype, backend
            )
        elif not isinstance(weight, Parameter):
            raise TypeError(f"weight must be a Parameter, got {type(weight).__name__}")
        elif weight.data.shape != shape:
            raise ValueError(f"weight must be a Parameter of shape {shape}, got {weight!r}")
        elif weight.data.dtype != checks.float_dtype(dtype):
            raise TypeError(f"weight must be {dtype} like the layer, got {weight.data.dtype}")
        self.weight = weight
        bias = partial(initializers.uniform, (self.num_classes,), bound, rng)
        self.bias = create("LinearCrossEntropy.bias", bias, dtype, backend)
        require_same(bias=self.bias.data, weight=weight.data)

    def logits(self, x: Array) -> Array:
        """x W^T + b, (N, num_classes), for sampling."""
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        logits = x @ self.weight.data.T
        logits += self.bias.data
        return logits

    def __call__(  # type: ignore[override]
        self, x: Array, targets: Array, total: float | None = None
    ) -> Array:
        """Only the loss: the sum over x's rows in nats, divided by `total` (default: the rows)."""
        targets, total = self._check(x, targets, total)
        return _kernels(x).loss(x, self.weight.data, self.bias.data, targets, total)

    def forward_backward(self, x: Array, targets: Array, total: float | None = None) -> tuple[Array, Array]:
        """(loss, dx): the loss as in a call, and dL/dx (N, in_features); adds dL/dW and dL/db."""
        targets, total = self._check(x, targets, total)
        return _kernels(x).forward_backward(x, targets, total, self.weight, self.bias)

    def _check(self, x: Array, targets: Array, total: float | None) -> tuple[Array, float]:
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        targets = checks.ids("targets", targets, self.num_classes, like=self.weight.data, rows=len(x))
        return targets, len(x) if total is None else checks.number("total", total, 0, open_low=True)


def _kernels(x: Array) -> Any:
    """The kernels for arrays like x."""
    if not backend.is_device(x):
        return cpu
    return load_cuda("softmax")
