"""Softmax cross-entropy: the textbook form, and fused with the projection before it.

For row n with logits z (V,) and target k:   loss_n = log(sum_v exp z_v) - z_k   (nats)
and its gradient                             dloss_n / dz = softmax(z) - onehot(k)

A loss is the sum over rows divided once, by the number of rows or by `total`, so that parts of a batch add
up exactly. It comes back as a number, or as a 0-d array on the layer's device.
"""

from __future__ import annotations

import math

from . import backend, checks, initializers
from .backend import Array, Rng, generator, require_same
from .layer import Layer
from .parameter import Parameter, create

BLOCK_BYTES = 16 * 2**20  # logits alive at a time: small enough for a cache, large enough for a matrix product


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(loss, dlogits): the mean loss in nats per row, and its gradient.

    logits (N, V) floats, targets (N,) integers in [0, V); dlogits is (N, V).
    """
    if not hasattr(logits, "dtype"):
        raise TypeError(f"logits must be an array, got {type(logits).__name__}")
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape (N, V) with N at least 1, got {logits.shape}")
    checks.float_dtype(logits.dtype, "logits")
    targets = checks.ids("targets", targets, logits.shape[1], like=logits, rows=len(logits))
    dlogits = logits.copy()
    loss, sums = _exponentials(dlogits, targets)
    _to_gradient(dlogits, sums, targets, len(logits))
    return loss / len(logits), dlogits


class LinearCrossEntropy(Layer):
    """The output projection with its softmax cross-entropy: loss of x W^T + b against targets.

    The logits (N, V) are made, used and dropped in blocks of rows, so that they never exist as a whole:
    at N = 12,800 and V = 3,602 that is 16 MB in place of 184 for each array of that size; a textbook version
    holds three: logits, softmax and gradient.

    weight W (num_classes, in_features) and bias b (num_classes,) start as Linear's do. `weight` takes a
    Parameter of that shape to share, such as an Embedding's; its gradients then add.
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
            weight = create("LinearCrossEntropy.weight", initializers.uniform(shape, bound, rng), dtype, backend)
        elif not isinstance(weight, Parameter):
            raise TypeError(f"weight must be a Parameter, got {type(weight).__name__}")
        elif weight.data.shape != shape:
            raise ValueError(f"weight must be a Parameter of shape {shape}, got {weight!r}")
        self.weight = weight
        bias = initializers.uniform((self.num_classes,), bound, rng)
        self.bias = create("LinearCrossEntropy.bias", bias, dtype, backend)
        require_same(bias=self.bias.data, weight=weight.data)
        if self.bias.data.dtype != weight.data.dtype:
            raise TypeError(f"weight must be {self.bias.data.dtype} like the layer, got {weight.data.dtype}")

    def logits(self, x: Array) -> Array:
        """x W^T + b, (N, num_classes): what a sampler wants."""
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        return self._project(x)

    def __call__(self, x: Array, targets: Array, total: float | None = None) -> Array:
        """The loss alone: the sum over x's rows in nats, divided by `total` (default: the rows)."""
        targets, total = self._check(x, targets, total)
        loss = 0.0
        for rows in self._blocks(len(x)):
            loss += _exponentials(self._project(x[rows]), targets[rows])[0]
        return loss / total

    def forward_backward(self, x: Array, targets: Array, total: float | None = None) -> tuple[Array, Array]:
        """(loss, dx): the loss as in a call, and dL/dx (N, in_features); adds dL/dW and dL/db."""
        targets, total = self._check(x, targets, total)
        xp, weight = backend.of(x), self.weight.data
        dx = xp.empty_like(x)
        dweight = xp.empty_like(weight)
        loss = 0.0
        for rows in self._blocks(len(x)):
            dlogits = self._project(x[rows])  # (n, V), at first the logits
            block_loss, sums = _exponentials(dlogits, targets[rows])
            _to_gradient(dlogits, sums, targets[rows], total)
            loss += block_loss
            xp.matmul(dlogits, weight, out=dx[rows])
            self.weight.grad += xp.matmul(dlogits.T, x[rows], out=dweight)
            self.bias.grad += dlogits.sum(axis=0)
        return loss / total, dx

    def _check(self, x: Array, targets: Array, total: float | None) -> tuple[Array, float]:
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        targets = checks.ids("targets", targets, self.num_classes, like=self.weight.data, rows=len(x))
        return targets, len(x) if total is None else checks.number("total", total, 0, open_low=True)

    def _project(self, x: Array) -> Array:
        logits = x @ self.weight.data.T
        logits += self.bias.data
        return logits

    def _blocks(self, rows: int) -> list[slice]:
        size = max(1, BLOCK_BYTES // (self.num_classes * self.weight.data.itemsize))
        return [slice(start, start + size) for start in range(0, rows, size)]


def _exponentials(logits: Array, targets: Array) -> tuple[Array, Array]:
    """In place logits (N, V) -> e^(logits - the row's maximum). Returns the summed loss, and the row sums (N,)."""
    xp = backend.of(logits)
    logits -= logits.max(axis=1, keepdims=True)  # the largest exponent is 0: nothing overflows
    picked = logits[xp.arange(len(targets)), targets]
    xp.exp(logits, out=logits)
    sums = logits.sum(axis=1)
    return (xp.log(sums) - picked).sum(dtype=xp.float64), sums


def _to_gradient(exponentials: Array, sums: Array, targets: Array, total: float) -> None:
    """In place (softmax - onehot) / total, from what `_exponentials` left."""
    exponentials *= (1 / (sums * total))[:, None]
    exponentials[backend.of(exponentials).arange(len(targets)), targets] -= 1 / total
