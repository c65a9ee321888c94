"""LSTM: long short-term memory, with backpropagation through time by hand.

For every time step t, with x_t (n, I), h_{t-1} and c_{t-1} (n, H), where n sequences are still alive:

    z_t  = x_t W_ih^T + h_{t-1} W_hh^T + b      (n, 4H), split into z_i, z_f, z_g, z_o
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g), the candidate
    c_t  = f * c_{t-1} + i * g
    h_t  = o * tanh(c_t)

`cell_forward` and `cell_backward` are one time step; `LSTM` walks them over a packed batch. The gradient
is derived line by line in docs/lstm-gradients.md. Source: Hochreiter & Schmidhuber 1997, Gers et al. 2000.

Here the four parts of z lie one after the other, (4, n, H), so that each is one piece of memory: W_ih is seen as
(4, H, I), W_hh as (4, H, H), and a matrix product of such stacks is four products. Time cannot be split over
cores, but sequences can: each core walks through time with some of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np

from .. import backend, checks, initializers, packed, threads
from ..backend import Array, Rng, generator
from ..layer import Layer
from ..parameter import create
from ..workspace import empty, with_ones, zeros

BLOCK_ROWS = 1024  # of the time steps whose dL/dz is kept until it is summed into the weights' gradient
LEAST_PRODUCT = 2**24  # multiplications that are worth a thread
LEAST_STEP = 2**14  # elements of z in one time step that are worth a thread

State = tuple[Array, Array]  # (h, c), each (B, H)


def cell_forward(z: Array, c_before: Array, c: Array, h: Array) -> None:
    """One time step: z (4, n, H) becomes the gates i, f, g, o in place; c and h (n, H) receive c_t and h_t.

    Reads c_{t-1}; h_{t-1} is in z already.
    """
    xp = backend.of(z)
    half, rest = _halves(xp, z.dtype)
    z *= half  # sigmoid(z) = (1 + tanh(z / 2)) / 2, which cannot overflow; g stays tanh(z)
    xp.tanh(z, out=z)
    z *= half
    z += rest
    i, f, g, o = z
    xp.multiply(i, g, out=h)  # h is scratch until the last lines
    xp.multiply(f, c_before, out=c)
    c += h
    xp.tanh(c, out=h)
    h *= o


@functools.cache
def _halves(xp: ModuleType, dtype: np.dtype) -> tuple[Array, Array]:
    """(0.5, 0.5, 1, 0.5) for the gates i, f, g, o, and 1 minus that, each (4, 1, 1)."""
    half = xp.asarray([0.5, 0.5, 1, 0.5], dtype).reshape(4, 1, 1)
    return half, 1 - half


def cell_backward(
    gates: Array, c_before: Array, c: Array, dh: Array, dc: Array, dz: Array, work: Array | None = None
) -> None:
    """The gradient of one time step. Reads gates (4, n, H), c_{t-1}, c_t and dh = dL/dh_t, each (n, H).

    dc comes in as the part of dL/dc_t that flows back from step t+1, and goes out as dL/dc_{t-1}.
    dz (4, n, H) receives dL/dz_t. `work` (2, n, H) is scratch, made here if there is none.

    Each activation's slope is a product with what is at hand: sigmoid' = s (1 - s) and tanh' = 1 - g^2.
    """
    xp = backend.of(gates)
    i, f, g, o = gates
    di, df, dg, do = dz
    tanh_c, part = empty((2, *c.shape), c) if work is None else work

    xp.tanh(c, out=tanh_c)
    xp.multiply(dh, o, out=part)  # dL/dtanh(c_t) = dh * o
    xp.multiply(part, tanh_c, out=do)  # dL/do * o = dh * tanh(c_t) * o
    tanh_c *= do
    part -= tanh_c
    dc += part  # dL/dc_t = what came from t+1, plus dh * o * (1 - tanh(c_t)^2)
    do -= xp.multiply(do, o, out=part)  # dL/dz_o = dL/do * o * (1 - o)

    xp.multiply(dc, i, out=dg)  # dL/dg = dc * i
    xp.multiply(dg, g, out=di)  # dL/di * i = dc * g * i
    dg -= xp.multiply(di, g, out=part)  # dL/dz_g = dL/dg * (1 - g^2)
    di -= xp.multiply(di, i, out=part)  # dL/dz_i = dL/di * i * (1 - i)

    dc *= f  # dL/dc_{t-1} = dc * f: the road that skips all weights
    xp.multiply(dc, c_before, out=df)  # dL/df * f = dc * c_{t-1} * f
    df -= xp.multiply(df, f, out=part)  # dL/dz_f = dL/df * f * (1 - f)


class LSTMCache(NamedTuple):
    """All that `backward` needs; rows are packed, time-major."""

    batch_sizes: list[int]  # T sizes, n_0 >= n_1 >= ...
    x: Array  # (N, I)
    h0: Array  # (B, H)
    c0: Array  # (B, H)
    gates: Array  # (4, N, H): i, f, g, o after their activation
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
        if backend.is_device(self.weight_hh.data):
            from ..kernels import lstm as device

            return device.forward(self, x, batch_sizes, state)
        checks.matrix("x", x, self.input_size, like=self.weight_ih.data)
        sizes = checks.batch_sizes(batch_sizes, len(x))
        h0, c0 = self._state("state", state, sizes[0])
        N, H = len(x), self.hidden_size
        cache = LSTMCache(sizes, x, h0, c0, gates=empty((4, N, H), x), cells=empty((N, H), x), y=empty((N, H), x))
        weight_ih, weight_hh = self._transposed()
        parts = threads.split(N, threads.worth(cache.gates.size * self.input_size, LEAST_PRODUCT, x))
        threads.run([partial(_project, x, weight_ih, cache.gates, rows) for rows in parts])
        threads.run([partial(_walk, weight_hh, cache, shard) for shard in self._shards(sizes)])

        h, c = h0.copy(), c0.copy()
        for rows, sequences in packed.ends(sizes):
            h[sequences], c[sequences] = cache.y[rows], cache.cells[rows]
        return (cache.y, (h, c)), cache

    def backward(self, dy: Array, cache: LSTMCache, dstate: State | None = None) -> tuple[Array, State]:
        """dx, (dh0, dc0) from dy = dL/dy (N, H) and dstate = (dL/dh, dL/dc) of the final state, each (B, H).

        Backpropagation through time: from the last step to the first, dL/dh_t is what the loss asks of y_t
        plus what step t+1 hands back through W_hh, and dL/dc_t likewise through the forget gate.
        """
        if backend.is_device(self.weight_hh.data):
            from ..kernels import lstm as device

            return device.backward(self, dy, cache, dstate)
        x, H = cache.x, self.hidden_size
        checks.matrix("dy", dy, H, like=self.weight_ih.data, rows=len(x))
        dh, dc = (part.copy() for part in self._state("dstate", dstate, len(cache.h0), exact=True))  # (B, H)
        dx = empty(x.shape, x)
        shards = self._shards(cache.batch_sizes)
        shares = threads.run([partial(self._walk_back, cache, dy, dh, dc, dx, shard) for shard in shards])

        for gate in range(4):
            units = slice(gate * H, (gate + 1) * H)
            for dweights in shares:  # always in the same order
                self.weight_ih.grad[units] += dweights[gate, : self.input_size].T
                self.weight_hh.grad[units] += dweights[gate, self.input_size : -1].T
                self.bias.grad[units] += dweights[gate, -1]
        return dx, (dh, dc)

    def _walk_back(self, cache: LSTMCache, dy: Array, dh: Array, dc: Array, dx: Array, shard: slice) -> Array:
        """Backward through time with the sequences of `shard`: takes dh and dc (B, H) to before the first step.

        Fills dx, and returns the gradient of [W_ih W_hh b] as (4, I + H + 1, H): the sum over all rows of
        [x_t h_{t-1} 1]^T dL/dz_t, one product for each block of time steps whose dL/dz a cache still holds.
        """
        x, y, cells, gates, xp = cache.x, cache.y, cache.cells, cache.gates, backend.of(cache.x)
        H, rows = self.hidden_size, packed.steps(cache.batch_sizes, shard)
        weight_hh, blocks = self._stacked()[1], packed.blocks(rows, BLOCK_ROWS)
        longest = max(here.stop for block in blocks for here in block.values())
        inputs = empty((longest, self.input_size + H + 1), x)  # [x_t h_{t-1} 1]
        inputs[:, -1] = 1
        dz_block, dx_block = empty((4, longest, H), x), empty((longest, self.input_size), x)
        products, work = empty((4, shard.stop - shard.start, H), x), empty((2, shard.stop - shard.start, H), x)
        dweights = zeros((4, inputs.shape[1], H), x)

        for block in reversed(blocks):
            for t, here in reversed(block.items()):
                n = here.stop - here.start
                h_before, c_before = cache.h0[shard][:n], cache.c0[shard][:n]
                if t > 0:
                    before = slice(rows[t - 1].start, rows[t - 1].start + n)  # the same n sequences at t-1
                    h_before, c_before = y[before], cells[before]
                inputs[here, : self.input_size], inputs[here, self.input_size : -1] = x[rows[t]], h_before
                dh_t, dc_t, dz = dh[shard][:n], dc[shard][:n], dz_block[:, here]
                dh_t += dy[rows[t]]
                cell_backward(gates[:, rows[t]], c_before, cells[rows[t]], dh_t, dc_t, dz, work[:, :n])
                xp.matmul(dz, weight_hh, out=products[:, :n]).sum(axis=0, out=dh_t)  # dL/dh_{t-1} = dL/dz_t W_hh
            end = max(here.stop for here in block.values())
            self._add_products(inputs[:end], dz_block[:, :end], dweights, dx_block[:end])
            for t, here in block.items():
                dx[rows[t]] = dx_block[here]
        return dweights

    def _add_products(self, inputs: Array, dz: Array, dweights: Array, dx: Array) -> None:
        """dweights += inputs^T dz;  dx = dz W_ih.  On several cores, unless it is itself one of several tasks."""
        xp = backend.of(dz)

        def add(gates: slice) -> None:
            dweights[gates] += xp.matmul(inputs.T, dz[gates], out=empty(dweights[gates].shape, dz))

        def fill(rows: slice) -> None:
            products = empty((4, rows.stop - rows.start, dx.shape[1]), dx)
            xp.matmul(dz[:, rows], self._stacked()[0], out=products).sum(axis=0, out=dx[rows])

        parts = threads.worth(dz.size * inputs.shape[1], LEAST_PRODUCT, dz)
        tasks = [partial(add, gates) for gates in threads.split(4, parts)]
        tasks += [partial(fill, rows) for rows in threads.split(len(dx), parts)]
        threads.run(tasks, parts)

    def _stacked(self) -> tuple[Array, Array]:
        """W_ih (4, H, I) and W_hh (4, H, H): one matrix for each gate."""
        H = self.hidden_size
        return self.weight_ih.data.reshape(4, H, -1), self.weight_hh.data.reshape(4, H, H)

    def _transposed(self) -> tuple[Array, Array]:
        """[W_ih b]^T (4, I + 1, H) and W_hh^T (4, H, H), copied: products with them are faster so."""
        weight_ih, weight_hh = self._stacked()
        with_bias = empty((4, self.input_size + 1, self.hidden_size), weight_ih)
        with_bias[:, :-1] = weight_ih.transpose(0, 2, 1)
        with_bias[:, -1] = self.bias.data.reshape(4, -1)
        return with_bias, backend.of(weight_hh).ascontiguousarray(weight_hh.transpose(0, 2, 1))

    def __call__(
        self, x: Array, batch_sizes: Sequence[int] | np.ndarray, state: State | None = None
    ) -> tuple[Array, State]:
        """Inference: (y, (h, c)), no cache."""
        checks.matrix("x", x, self.input_size, like=self.weight_ih.data)
        sizes = checks.batch_sizes(batch_sizes, len(x))
        if len(sizes) > 1 or backend.is_device(x):
            return self.forward(x, sizes, state)[0]
        # A single step, as when a text is written, is done in as few calls as can be.
        h0, c0 = self._state("state", state, sizes[0])
        n, h, c = sizes[0], h0.copy(), c0.copy()
        z = x @ self.weight_ih.data.T  # (n, 4H)
        z += h0[:n] @ self.weight_hh.data.T
        z += self.bias.data
        gates = np.ascontiguousarray(z.reshape(n, 4, -1).transpose(1, 0, 2))  # (4, n, H)
        cell_forward(gates, c0[:n], c[:n], h[:n])
        return h[:n].copy(), (h, c)

    def _shards(self, sizes: list[int]) -> list[slice]:
        """The sequences, cut for the threads."""
        step = 4 * self.hidden_size * sum(sizes) / len(sizes)  # elements of z
        return packed.shards(sizes, threads.worth(step, LEAST_STEP, self.weight_hh.data))

    def _state(self, name: str, state: State | None, rows: int, exact: bool = False) -> State:
        """`state` checked, or zeros for `rows` sequences."""
        weight, H = self.weight_hh.data, self.hidden_size
        if state is None:
            return zeros((rows, H), weight), zeros((rows, H), weight)
        if not (isinstance(state, (tuple, list)) and len(state) == 2):
            raise TypeError(f"{name} must be a pair (h, c), got {type(state).__name__}")
        h, c = state
        checks.matrix(f"{name} h", h, H, like=weight, rows=rows if exact else None)
        checks.matrix(f"{name} c", c, H, like=weight, rows=len(h))
        if len(h) < rows:
            raise ValueError(f"{name} must hold at least the {rows} rows of batch_sizes[0], got {len(h)}")
        return h, c


def _project(x: Array, weight_ih: Array, gates: Array, rows: slice) -> None:
    """z without W_hh h_{t-1}, for the `rows` of all time steps in one product; weight_ih is [W_ih b]^T."""
    backend.of(x).matmul(with_ones(x[rows]), weight_ih, out=gates[:, rows])


def _walk(weight_hh: Array, cache: LSTMCache, shard: slice) -> None:
    """Forward through time with the sequences of `shard`; weight_hh (4, H, H) is transposed."""
    sizes, _, h0, c0, gates, cells, y = cache
    h, c = h0[shard], c0[shard]
    recurrent = empty((4, *h.shape), h)
    for rows in packed.steps(sizes, shard):
        n = rows.stop - rows.start
        z = gates[:, rows]
        z += backend.of(h).matmul(h[:n], weight_hh, out=recurrent[:, :n])
        c_before, c, h = c[:n], cells[rows], y[rows]
        cell_forward(z, c_before, c, h)  # slices are views: this writes into gates, cells and y
