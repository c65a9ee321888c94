"""LSTM: long short-term memory, with backpropagation through time by hand.

For every time step t at which n sequences are still alive, with x_t (n, I), h_{t-1} and c_{t-1} (n, H):

    z_t  = x_t W_ih^T + h_{t-1} W_hh^T + b      which has four parts: z_i, z_f, z_g, z_o
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g), the candidate
    c_t  = f * c_{t-1} + i * g
    h_t  = o * tanh(c_t)

The four parts are stacked, (4, N, H), and W_hh is viewed as (4, H, H): a product of such stacks is four products.
docs/lstm-gradients.md derives the gradient. Source: Hochreiter & Schmidhuber 1997, Gers et al. 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import backend, checks, initializers
from ..backend import Array, Rng, generator
from ..kernels import load_cuda
from ..kernels.cpu import lstm as cpu
from ..kernels.cpu.workspace import empty
from ..layer import Layer
from ..parameter import create
from ..sequences import AnyPacking

State = tuple[Array, Array]  # (h, c), each (B, H)


class Walk(NamedTuple):
    """What backward needs for sequences that walked through time together: a whole batch, or one core's shard."""

    gates: Array  # (4, N, H): i, f, g, o
    h: Array  # (n_0 + N, H): before the first step, then after the step of each row
    c: Array  # (n_0 + N, H)


@dataclass(eq=False)
class LSTMCache:
    """What backward needs, and the states at both ends."""

    x: Array  # (N, I)
    walks: list[tuple[cpu.Shard, Walk]]
    state: State  # after every sequence's own last step
    dstate: State | None = None  # set by backward: the gradient of the initial state


class LSTM(Layer):
    """One LSTM layer over packed rows: x (N, I), y (N, H), packing.batch_sizes = [n_0, n_1, ...].

    weight_ih (4H, I), weight_hh (4H, H), bias (4H,); gates in PyTorch's order i, f, g, o, but one bias instead of two.
    Weights start Xavier-uniform over all four gates, the bias at zero; lstm.bias.data[H : 2 * H] = 1 helps to remember
    over many steps. A state is (h, c), each (B, H) with B >= n_0, one row per sequence in packed order; zeros if none
    is given. `cache.state` is the state after each sequence's own last step; rows beyond n_0 are passed through.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, dtype: str = "float32", backend: str = "numpy", rng: Rng = None
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        wide, uniform = 4 * self.hidden_size, partial(initializers.xavier_uniform, rng=generator(rng))
        self.weight_ih = create("LSTM.weight_ih", partial(uniform, (wide, self.input_size)), dtype, backend)
        self.weight_hh = create("LSTM.weight_hh", partial(uniform, (wide, self.hidden_size)), dtype, backend)
        self.bias = create("LSTM.bias", partial(initializers.zeros, (wide,)), dtype, backend)

    def forward(self, x: Array, packing: AnyPacking | None = None, state: State | None = None) -> tuple[Array, Any]:
        checks.matrix("x", x, self.input_size, like=self.weight_ih.data)
        sizes = checks.packing(packing, len(x))
        if backend.is_device(x):
            return load_cuda("lstm").forward(self, x, sizes, state)
        last = cpu.states("state", state, sizes[0], self.hidden_size, like=x)  # a copy, which the walks update
        y, walks = cpu.in_shards(partial(self._walk, cpu.turned(self.weight_hh.data)), x, sizes, last)
        return y, LSTMCache(x, walks, last)

    def _walk(self, weight_hh: Array, x: Array, sizes: list[int], h_last: Array, c_last: Array) -> tuple[Array, Walk]:
        """Forward through time: y; h_last and c_last hold the initial state and receive the final one."""
        gates = cpu.input_products(x, self.weight_ih.data, self.bias.data)
        h, c = cpu.begun(h_last, len(x)), cpu.begun(c_last, len(x))
        for rows, before, after in cpu.steps(sizes):
            z = gates[:, rows]
            z += h[before] @ weight_hh
            i, f, g, o = cpu.squash(z)
            c_t = np.multiply(f, c[before], out=c[after])
            c_t += i * g
            np.multiply(o, np.tanh(c_t, out=h[after]), out=h[after])
        last = cpu.last(sizes)
        h_last[...], c_last[...] = h[last], c[last]
        return h[sizes[0] :], Walk(gates, h, c)

    def backward(self, dy: Array, cache: Any, dstate: State | None = None) -> Array:
        """dx (N, I) from dy (N, H) and `dstate`, the gradient of cache.state; sets cache.dstate, the initial one's."""
        if backend.is_device(self.weight_hh.data):
            return load_cuda("lstm").backward(self, dy, cache, dstate)
        checks.cache(cache, LSTMCache)
        checks.matrix("cache.x", cache.x, self.input_size, like=self.weight_ih.data)
        checks.matrix("cache.h", cache.walks[0][1].h, self.hidden_size, like=self.weight_hh.data)
        checks.matrix("dy", dy, self.hidden_size, like=self.weight_hh.data, rows=len(cache.x))
        cache.dstate = cpu.states("dstate", dstate, len(cache.state[0]), self.hidden_size, like=dy, exact=True)
        dx, dweights = cpu.in_shards_back(self._walk_back, dy, cache.x, cache.walks, cache.dstate)
        cpu.add_to(self.weight_ih.grad, self.weight_hh.grad, self.bias.grad, dweights)
        return dx

    def _walk_back(
        self, dy: Array, x: Array, walk: Walk, block: cpu.Block, dh: Array, dc: Array
    ) -> tuple[Array, Array]:
        """Backward through the time steps of `block`: dx and the weight gradients; moves dh and dc to its start.

        dL/dh_t is the loss's gradient of y_t plus what step t+1 passes back through W_hh. dL/dc_t is the part through
        h_t plus what step t+1 passes back through its forget gate.
        """
        gates, weight_hh = walk.gates[:, block.rows], self.weight_hh.data.reshape(4, -1, self.hidden_size)
        dz, dh_dc, h, c = empty(gates.shape, dy), empty(dy.shape, dy), walk.h[block.after], walk.c[block.after]

        def slopes(rows: slice) -> None:  # dc/dz_i, dc/dz_f, dc/dz_g, dh/dz_o and dh/dc need no loss and no other row
            (i, f, g, o), (dz_i, dz_f, dz_g, dz_o) = gates[:, rows], dz[:, rows]
            ig, fc, tanh_c, oh = i * g, f * walk.c[block.before[rows]], np.tanh(c[rows]), h[rows]  # oh = o tanh(c)
            np.subtract(ig, ig * i, out=dz_i)  # g i (1 - i)
            np.subtract(fc, fc * f, out=dz_f)  # c_{t-1} f (1 - f)
            np.subtract(i, ig * g, out=dz_g)  # i (1 - g^2)
            np.subtract(oh, oh * o, out=dz_o)  # tanh(c) o (1 - o)
            np.subtract(o, oh * tanh_c, out=dh_dc[rows])  # o (1 - tanh(c)^2)

        cpu.in_blocks(slopes, *dy.shape)
        for rows in reversed(block.steps):
            alive = slice(0, rows.stop - rows.start)
            dh_t, dc_t, dz_t = dh[alive], dc[alive], dz[:, rows]
            dh_t += dy[rows]
            dc_t += np.multiply(dh_t, dh_dc[rows], out=dh_dc[rows])
            dz_t[:3] *= dc_t
            dz_t[3] *= dh_t
            (dz_t @ weight_hh).sum(axis=0, out=dh_t)
            dc_t *= gates[1, rows]
        return cpu.products_back(dz, x, walk.h[block.before], self.weight_ih.data)

    def step(self, x: Array, state: State | None = None) -> State:
        """(h, c) after one time step of inference, for generating text, from x (B, I) and the state before it."""
        checks.matrix("x", x, self.input_size, like=self.weight_ih.data)
        if backend.is_device(x):
            return load_cuda("lstm").step(self, x, state)
        h, c = cpu.states("state", state, len(x), self.hidden_size, like=x, exact=True)
        z = x @ self.weight_ih.data.T + h @ self.weight_hh.data.T
        z += self.bias.data
        i, f, g, o = cpu.squash(cpu.halved(z))
        c = f * c + i * g
        return o * np.tanh(c), c
