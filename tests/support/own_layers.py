"""Three layers as a user would write them: by the layer contract, for both backends, without changing the library."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import minidl


class GRU(minidl.Layer):
    """PyTorch's GRU over packed rows: r, z, n from x and h_{t-1}, with a bias for each; h_t = (1 - z) n + z h_{t-1}."""

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        rng = np.random.default_rng(options.pop("rng", None))

        def weight(name: str, *shape: int) -> minidl.Parameter:
            values = minidl.initializers.uniform(shape, hidden_size**-0.5, rng)
            array = values.astype(options.get("dtype", "float32"))
            return minidl.Parameter(minidl.to_backend(array, options.get("backend", "numpy")), name)

        self.hidden_size = hidden_size
        self.weight_ih = weight("GRU.weight_ih", 3 * hidden_size, input_size)
        self.weight_hh = weight("GRU.weight_hh", 3 * hidden_size, hidden_size)
        self.bias_ih, self.bias_hh = weight("GRU.bias_ih", 3 * hidden_size), weight("GRU.bias_hh", 3 * hidden_size)

    def forward(self, x: Any, packing: Any = None, state: Any = None) -> tuple[Any, Any]:
        xp, H, start, steps = minidl.backend.of(x), self.hidden_size, 0, []
        h = xp.zeros((int(packing.batch_sizes[0]), H), x.dtype) if state is None else state.copy()
        from_x, y = x @ self.weight_ih.data.T + self.bias_ih.data, xp.empty((len(x), H), x.dtype)
        for n in map(int, packing.batch_sizes):
            rows, before = slice(start, start + n), h[:n].copy()
            from_h = before @ self.weight_hh.data.T + self.bias_hh.data
            rz = 1 / (1 + xp.exp(-(from_x[rows, : 2 * H] + from_h[:, : 2 * H])))
            r, z = rz[:, :H], rz[:, H:]
            new = xp.tanh(from_x[rows, 2 * H :] + r * from_h[:, 2 * H :])
            h[:n] = y[rows] = (1 - z) * new + z * before
            steps.append((rows, before, r, z, new, from_h[:, 2 * H :]))
            start += n
        return y, SimpleNamespace(x=x, steps=steps, state=h, dstate=None)

    def backward(self, dy: Any, cache: Any, dstate: Any = None) -> Any:
        xp, H, x = minidl.backend.of(dy), self.hidden_size, cache.x
        dh = xp.zeros_like(cache.state) if dstate is None else dstate.copy()
        by_x, by_h = (xp.empty((len(x), 3 * H), x.dtype) for _ in range(2))
        for rows, before, r, z, new, from_h in reversed(cache.steps):
            dh_t = dh[: len(before)] + dy[rows]
            dnew = dh_t * (1 - z) * (1 - new * new)
            by_x[rows, :H] = by_h[rows, :H] = dnew * from_h * r * (1 - r)
            by_x[rows, H : 2 * H] = by_h[rows, H : 2 * H] = dh_t * (before - new) * z * (1 - z)
            by_x[rows, 2 * H :], by_h[rows, 2 * H :] = dnew, dnew * r
            dh[: len(before)] = dh_t * z + by_h[rows] @ self.weight_hh.data
            self.weight_hh.grad += by_h[rows].T @ before
        self.weight_ih.grad += by_x.T @ x
        self.bias_ih.grad += by_x.sum(axis=0)
        self.bias_hh.grad += by_h.sum(axis=0)
        cache.dstate = dh
        return by_x @ self.weight_ih.data


class LayerNorm(minidl.Layer):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, per row (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float = 1e-5, dtype: str = "float32", backend: str = "numpy") -> None:
        self.eps = eps
        self.weight = minidl.Parameter(minidl.to_backend(np.ones(size, dtype), backend), "LayerNorm.weight")
        self.bias = minidl.Parameter(minidl.to_backend(np.zeros(size, dtype), backend), "LayerNorm.bias")

    def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
        width = x.shape[1]
        centred = x - x.sum(axis=1, keepdims=True) / width
        variance = (centred * centred).sum(axis=1, keepdims=True) / width
        root = minidl.backend.of(x).sqrt(variance + self.eps)
        return centred / root * self.weight.data + self.bias.data, (centred / root, root)

    def backward(self, dy: Any, cache: Any) -> Any:
        normal, root = cache
        self.weight.grad += (dy * normal).sum(axis=0)
        self.bias.grad += dy.sum(axis=0)
        d, width = dy * self.weight.data, dy.shape[1]
        mean, slope = d.sum(axis=1, keepdims=True), (d * normal).sum(axis=1, keepdims=True)
        return (d - mean / width - normal * (slope / width)) / root


class Residual(minidl.Layer):
    """y = x + inner(x)."""

    def __init__(self, inner: minidl.Layer) -> None:
        self.inner = inner

    def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
        y, cache = self.inner.forward(x, packing)
        return x + y, cache

    def backward(self, dy: Any, cache: Any) -> Any:
        return dy + self.inner.backward(dy, cache)

    def __call__(self, x: Any, packing: Any = None) -> Any:
        return x + self.inner(x, packing)
