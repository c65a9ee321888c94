"""LSTM: long short-term memory, with backpropagation through time by hand.

For every time step t, with x_t (n, I), h_{t-1} and c_{t-1} (n, H), where n sequences are still alive:

    z_t  = x_t W_ih^T + h_{t-1} W_hh^T + b      (n, 4H), split into z_i, z_f, z_g, z_o
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g), the candidate
    c_t  = f * c_{t-1} + i * g
    h_t  = o * tanh(c_t)

`cell_forward` and `cell_backward` are one time step; `LSTM` walks them over a packed batch. The gradient
is derived line by line in docs/lstm-gradients.md. Source: Hochreiter & Schmidhuber 1997, Gers et al. 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from .. import backend, checks, initializers
from ..backend import Array, Rng, generator
from ..layer import Layer
from ..parameter import create

State = tuple[Array, Array]  # (h, c), each (B, H)


def cell_forward(z: Array, h: Array, c: Array) -> None:
    """One time step, in place: z (n, 4H) becomes the gates i, f, g, o, and c (n, H) goes from c_{t-1} to c_t.

    h (n, H) receives h_t; h_{t-1} is in z already.
    """
    xp, H = backend.of(z), h.shape[1]
    _sigmoid(xp, z[:, : 2 * H])
    xp.tanh(z[:, 2 * H : 3 * H], out=z[:, 2 * H : 3 * H])
    _sigmoid(xp, z[:, 3 * H :])
    i, f, g, o = _split(z)
    c *= f
    c += i * g
    xp.tanh(c, out=h)
    h *= o


def cell_backward(gates: Array, c_before: Array, c: Array, dh: Array, dc: Array, dz: Array) -> None:
    """The gradient of one time step. Reads gates (n, 4H), c_{t-1}, c_t and dh = dL/dh_t, each (n, H).

    dc comes in as the part of dL/dc_t that flows back from step t+1, and goes out as dL/dc_{t-1}.
    dz (n, 4H) receives dL/dz_t.
    """
    xp = backend.of(gates)
    i, f, g, o = _split(gates)
    di, df, dg, do = _split(dz)

    tanh_c = xp.tanh(c)
    xp.multiply(dh, tanh_c, out=do)  # dL/do = dh * tanh(c_t)
    tanh_c *= tanh_c
    xp.subtract(1, tanh_c, out=tanh_c)
    tanh_c *= o
    tanh_c *= dh
    dc += tanh_c  # dL/dc_t = what came from t+1, plus dh * o * (1 - tanh(c_t)^2)

    xp.multiply(dc, g, out=di)  # dL/di = dc * g
    xp.multiply(dc, c_before, out=df)  # dL/df = dc * c_{t-1}
    xp.multiply(dc, i, out=dg)  # dL/dg = dc * i
    dc *= f  # dL/dc_{t-1} = dc * f: the road that skips all weights

    slope = gates * gates  # through the activations: sigmoid' = s - s^2, tanh' = 1 - g^2
    i2, f2, g2, o2 = _split(slope)
    for gate, squared in ((i, i2), (f, f2), (o, o2)):
        xp.subtract(gate, squared, out=squared)
    xp.subtract(1, g2, out=g2)
    dz *= slope


def _split(z: Array) -> tuple[Array, Array, Array, Array]:
    """Views of the four gates in z (n, 4H), each (n, H)."""
    H = z.shape[1] // 4
    return z[:, :H], z[:, H : 2 * H], z[:, 2 * H : 3 * H], z[:, 3 * H :]


def _sigmoid(xp: ModuleType, z: Array) -> None:
    """In place 1 / (1 + e^-z) = (1 + tanh(z / 2)) / 2, which cannot overflow."""
    z *= 0.5
    xp.tanh(z, out=z)
    z *= 0.5
    z += 0.5


class LSTMCache(NamedTuple):
    """All that `backward` needs; rows are packed, time-major."""

    batch_sizes: list[int]  # T sizes, n_0 >= n_1 >= ...
    x: Array  # (N, I)
    h0: Array  # (B, H)
    c0: Array  # (B, H)
    gates: Array  # (N, 4H): i, f, g, o after their activation
    cells: Array  # (N, H): c after every step
    y: Array  # (N, H): h after every step, the output


class LSTM(Layer):
    """One LSTM layer over packed rows.

    weight_ih (4H, I), weight_hh (4H, H), bias (4H,), gates in the order i, f, g, o as in PyTorch, whose
    two biases are one here. Weights start Xavier-uniform over the stacked matrix
    (fan_out 4H, as torch.nn.init.xavier_uniform_ would), the bias at zero; a forget bias of 1 or more
    (lstm.bias.data[H : 2 * H] = 1) helps to remember over many steps.

    x (N, I) holds the rows of all sequences time-major and sorted by falling length: first the n_0 first
    rows, then the n_1 second ones, ...; batch_sizes = [n_0, n_1, ...] never rises and sums to N.
    y (N, H) has the same row order. A state is (h, c), each (B, H) with B >= n_0, one row a sequence.
    The state that comes out holds every sequence's own last step; sequences beyond n_0 keep the state
    they came with, so that a long text can be fed in chunks.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dtype: str = "float32",
        backend: str = "numpy",
        rng: Rng = None,
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        rng, wide = generator(rng), 4 * self.hidden_size
        weight_ih = initializers.xavier_uniform((wide, self.input_size), rng)
        weight_hh = initializers.xavier_uniform((wide, self.hidden_size), rng)
        self.weight_ih = create("LSTM.weight_ih", weight_ih, dtype, backend)
        self.weight_hh = create("LSTM.weight_hh", weight_hh, dtype, backend)
        self.bias = create("LSTM.bias", initializers.zeros((wide,)), dtype, backend)

    def forward(
        self, x: Array, batch_sizes: Sequence[int] | np.ndarray, state: State | None = None
    ) -> tuple[tuple[Array, State], LSTMCache]:
        """(y, (h, c)), cache. Without `state` both h and c start at zero."""
        checks.matrix("x", x, self.input_size, like=self.weight_ih.data)
        sizes = checks.batch_sizes(batch_sizes, len(x))
        h0, c0 = self._state("state", state, sizes[0])
        xp, H = backend.of(x), self.hidden_size

        gates = x @ self.weight_ih.data.T  # (N, 4H): z without W_hh h_{t-1}, of all time steps in one product
        gates += self.bias.data
        cells = xp.empty((len(x), H), x.dtype)
        y = xp.empty((len(x), H), x.dtype)
        recurrent = xp.empty((sizes[0], 4 * H), x.dtype)
        h, c = h0.copy(), c0.copy()  # (B, H): each sequence's latest
        start = 0
        for n in sizes:
            rows = slice(start, start + n)
            gates[rows] += xp.matmul(h[:n], self.weight_hh.data.T, out=recurrent[:n])
            cell_forward(gates[rows], h[:n], c[:n])  # slices are views: this writes into gates, h and c
            y[rows], cells[rows] = h[:n], c[:n]
            start += n
        return (y, (h, c)), LSTMCache(sizes, x, h0, c0, gates, cells, y)

    def backward(self, dy: Array, cache: LSTMCache, dstate: State | None = None) -> tuple[Array, State]:
        """dx, (dh0, dc0) from dy = dL/dy (N, H) and dstate = (dL/dh, dL/dc) of the final state, each (B, H).

        Backpropagation through time: from the last step to the first, dL/dh_t is what the loss asks of y_t
        plus what step t+1 hands back through W_hh, and dL/dc_t likewise through the forget gate.
        """
        sizes, x, h0, c0, gates, cells, y = cache
        checks.matrix("dy", dy, self.hidden_size, like=self.weight_ih.data, rows=len(x))
        xp = backend.of(dy)
        dh, dc = (part.copy() for part in self._state("dstate", dstate, len(h0), exact=True))  # (B, H)

        dz = xp.empty_like(gates)  # (N, 4H)
        h_before = xp.empty_like(y)  # (N, H): h_{t-1} beside every row of step t
        stop = len(x)
        for t in reversed(range(len(sizes))):
            n = sizes[t]
            start = stop - n
            rows = slice(start, stop)  # step t
            if t == 0:
                h_before[rows], c_before = h0[:n], c0[:n]
            else:
                before = slice(start - sizes[t - 1], start - sizes[t - 1] + n)  # the same n sequences at t-1
                h_before[rows], c_before = y[before], cells[before]
            dh[:n] += dy[rows]
            cell_backward(gates[rows], c_before, cells[rows], dh[:n], dc[:n], dz[rows])
            xp.matmul(dz[rows], self.weight_hh.data, out=dh[:n])  # dL/dh_{t-1} = dL/dz_t W_hh
            stop = start

        self.weight_ih.grad += dz.T @ x  # sums over all time steps, each in one product
        self.weight_hh.grad += dz.T @ h_before
        self.bias.grad += dz.sum(axis=0)
        return dz @ self.weight_ih.data, (dh, dc)

    def __call__(
        self, x: Array, batch_sizes: Sequence[int] | np.ndarray, state: State | None = None
    ) -> tuple[Array, State]:
        """Inference: (y, (h, c)), no cache."""
        return self.forward(x, batch_sizes, state)[0]

    def _state(self, name: str, state: State | None, rows: int, exact: bool = False) -> State:
        """`state` checked, or zeros for `rows` sequences."""
        weight, H = self.weight_hh.data, self.hidden_size
        if state is None:
            xp = backend.of(weight)
            return xp.zeros((rows, H), weight.dtype), xp.zeros((rows, H), weight.dtype)
        if not (isinstance(state, (tuple, list)) and len(state) == 2):
            raise TypeError(f"{name} must be a pair (h, c), got {type(state).__name__}")
        h, c = state
        checks.matrix(f"{name} h", h, H, like=weight, rows=rows if exact else None)
        checks.matrix(f"{name} c", c, H, like=weight, rows=len(h))
        if len(h) < rows:
            raise ValueError(f"{name} must hold at least the {rows} rows of batch_sizes[0], got {len(h)}")
        return h, c
