"""Linear: a matrix product and a bias."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

from .. import checks, initializers
from ..backend import Array, Rng, generator
from ..layer import Layer
from ..parameter import create
from ..sequences import AnyPacking


class LinearCache(NamedTuple):
    """What backward needs."""

    x: Array  # (N, in_features)


class Linear(Layer):
    """y = x W^T + b.

    x (N, in_features), y (N, out_features); weight W (out_features, in_features) and bias b (out_features,)
    start as U(-k, k) with k = 1 / sqrt(in_features), as in PyTorch. `bias=False` omits b.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: str = "float32",
        backend: str = "numpy",
        rng: Rng = None,
    ) -> None:
        self.in_features = checks.size("in_features", in_features)
        self.out_features = checks.size("out_features", out_features)
        rng, bound = generator(rng), 1 / math.sqrt(self.in_features)
        weight = partial(initializers.uniform, (self.out_features, self.in_features), bound, rng)
        self.weight = create("Linear.weight", weight, dtype, backend)
        self.bias = None
        if bias:
            draw = partial(initializers.uniform, (self.out_features,), bound, rng)
            self.bias = create("Linear.bias", draw, dtype, backend)

    def forward(self, x: Array, packing: AnyPacking | None = None) -> tuple[Array, LinearCache]:
        checks.matrix("x", x, self.in_features, like=self.weight.data)
        y = x @ self.weight.data.T
        if self.bias is not None:
            y += self.bias.data
        return y, LinearCache(x)

    def backward(self, dy: Array, cache: LinearCache) -> Array:
        """dL/dx = dy W;  dL/dW = dy^T x;  dL/db = the sum of dy over its rows."""
        checks.cache(cache, LinearCache)
        checks.matrix("cache.x", cache.x, self.in_features, like=self.weight.data)
        checks.matrix("dy", dy, self.out_features, like=self.weight.data, rows=len(cache.x))
        self.weight.grad += dy.T @ cache.x
        if self.bias is not None:
            self.bias.grad += dy.sum(axis=0)
        return dy @ self.weight.data
