"""Softmax cross-entropy: the textbook form, and fused with the projection before it.

For row n with logits z (V,) and target k:   loss_n = log(sum_v exp z_v) - z_k   (nats)
and its gradient                             dloss_n / dz = softmax(z) - onehot(k)

A loss is the sum over rows divided once, by the number of rows or by `total`, so that parts of a batch add
up exactly. It comes back as a number, or as a 0-d array on the layer's device.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from . import backend, checks, initializers, threads
from .backend import Array, Rng, generator, is_device, require_same
from .layer import Layer
from .parameter import Parameter, create
from .workspace import empty, with_ones

BLOCK_BYTES = 9 * 2**20  # logits alive at a time in each thread: enough rows for a fast matrix product
STRIP_BYTES = 2**19  # logits that one core's own cache holds while several passes go over them
LEAST_PRODUCT = 2**23  # multiplications that are worth a thread
LEAST_COPY = 2**18  # numbers to copy that are worth a thread
SAFE = 60.0  # e^60, summed over any vocabulary, and e^-60 are far from the ends of float32


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
        from .kernels import softmax as device

        return device.softmax_cross_entropy(logits, targets)
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

    The logits (N, V) are made, used and dropped in blocks of rows, so that they never exist as a whole:
    at N = 12,800 and V = 3,602 that is 9 MiB a thread in place of 176 for each array of that size; a textbook version
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
        """x W^T + b, (N, num_classes): what a sampler wants."""
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        logits = x @ self.weight.data.T
        logits += self.bias.data
        return logits

    def __call__(self, x: Array, targets: Array, total: float | None = None) -> Array:
        """The loss alone: the sum over x's rows in nats, divided by `total` (default: the rows)."""
        targets, total = self._check(x, targets, total)
        if is_device(x):
            from .kernels import softmax as device

            return device.loss(x, self.weight.data, self.bias.data, targets, total)
        weight = self._with_bias()

        def loss_of(part: slice) -> Array:
            blocks = self._blocks(part)
            return sum(_exponentials(with_ones(x[rows]), weight, targets[rows])[0] for rows in blocks)

        return sum(threads.run([partial(loss_of, part) for part in self._parts(x)])) / total

    def forward_backward(self, x: Array, targets: Array, total: float | None = None) -> tuple[Array, Array]:
        """(loss, dx): the loss as in a call, and dL/dx (N, in_features); adds dL/dW and dL/db."""
        targets, total = self._check(x, targets, total)
        if is_device(x):
            from .kernels import softmax as device

            return device.forward_backward(x, targets, total, self.weight, self.bias)
        weight, dx = self._with_bias(), empty(x.shape, x)
        parts = threads.run([partial(self._part, x, weight, targets, total, dx, part) for part in self._parts(x)])
        first, *others = (dweight for _, dweight in parts)

        def add(units: slice) -> None:
            for dweight in others:
                first[:, units] += dweight[:, units]
            self.weight.grad[units] += first[:-1, units].T
            self.bias.grad[units] += first[-1, units]

        threads.run([partial(add, units) for units in threads.split(self.num_classes, len(parts))])
        return sum(loss for loss, _ in parts) / total, dx

    def _part(
        self, x: Array, weight: Array, targets: Array, total: float, dx: Array, part: slice
    ) -> tuple[Array, Array]:
        """(summed loss, dL/d[W b]^T) of the rows in `part`, whose dL/dx it fills.

        With e = exp(z) and its row's sum s, dL/dz = (e / s - onehot) / total = (e - s onehot) / (s total). The division
        by s total is left to the narrow factors: x before its product, and dx after its own.
        """
        loss = 0.0
        dweight = product = empty((self.in_features + 1, self.num_classes), x)
        for rows in self._blocks(part):
            x1 = with_ones(x[rows])
            block_loss, e, sums = _exponentials(x1, weight, targets[rows])
            loss += block_loss
            e[np.arange(len(e)), targets[rows]] -= sums
            scale = (1 / sums / total)[:, None]  # sums * total might overflow
            np.matmul(e, self.weight.data, out=dx[rows])
            dx[rows] *= scale
            x1 *= scale
            np.matmul(x1.T, e, out=product)
            if product is dweight:
                product = empty(dweight.shape, x)  # the first block's product began the sum
            else:
                dweight += product
        return loss, dweight

    def _with_bias(self) -> Array:
        """[W b]^T (in_features + 1, V): the bias is the weight of an input that always is 1.

        Copied the other way round because a product with it is faster so.
        """
        weight = empty((self.in_features + 1, self.num_classes), self.weight.data)

        def copy(units: slice) -> None:
            weight[:-1, units] = self.weight.data[units].T
            weight[-1, units] = self.bias.data[units]

        parts = threads.split(self.num_classes, threads.worth(weight.size, LEAST_COPY, weight))
        threads.run([partial(copy, units) for units in parts])
        return weight

    def _check(self, x: Array, targets: Array, total: float | None) -> tuple[Array, float]:
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        targets = checks.ids("targets", targets, self.num_classes, like=self.weight.data, rows=len(x))
        return targets, len(x) if total is None else checks.number("total", total, 0, open_low=True)

    def _parts(self, x: Array) -> list[slice]:
        """The rows, cut for the threads."""
        return threads.split(len(x), threads.worth(x.size * self.num_classes, LEAST_PRODUCT, x))

    def _blocks(self, part: slice) -> list[slice]:
        """The rows of `part` in nearly equal blocks of at most BLOCK_BYTES of logits."""
        rows, row_bytes = part.stop - part.start, self.num_classes * self.weight.data.itemsize
        blocks = threads.split(rows, -(-rows * row_bytes // BLOCK_BYTES))
        return [slice(part.start + block.start, part.start + block.stop) for block in blocks]


def _exponentials(x1: Array, weight: Array, targets: Array) -> tuple[Array, Array, Array]:
    """(summed loss, e^z (n, V), its row sums) of logits z = x1 weight.

    Where e^z might overflow or vanish, the row's maximum is taken from all its logits: softmax stays the same.
    """
    rows, classes = len(x1), weight.shape[1]
    z = np.matmul(x1, weight, out=empty((rows, classes), x1))
    picked, sums = empty((rows,), x1), empty((rows,), x1)
    ones = np.ones(classes, x1.dtype)
    size = max(1, STRIP_BYTES // (classes * x1.itemsize))
    for start in range(0, rows, size):
        strip, places = z[start : start + size], targets[start : start + size]
        top = strip.max(axis=1, keepdims=True)
        if not abs(top).max() <= SAFE:  # `not <=` is true of NaN
            strip -= top
        picked[start : start + size] = strip[np.arange(len(strip)), places]
        np.exp(strip, out=strip)
        np.dot(strip, ones, out=sums[start : start + size])  # a product is the fastest sum
    return (np.log(sums) - picked).sum(dtype=np.float64), z, sums
