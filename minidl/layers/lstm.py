"""LSTM: long short-term memory, with backpropagation through time by hand.

For every time step t, with x_t (n, I), h_{t-1} and c_{t-1} (n, H), where n sequences are still alive:

    z_t  = x_t W_ih^T + h_{t-1} W_hh^T + b      (n, 4H), split into z_i, z_f, z_g, z_o
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g), the candidate
    c_t  = f * c_{t-1} + i * g
    h_t  = o * tanh(c_t)

What is elementwise in one time step, forward and backward, stands in lstm_cell.py; here it is walked through time,
over a packed batch. The gradient is derived line by line in docs/lstm-gradients.md. Source: Hochreiter &
Schmidhuber 1997, Gers et al. 2000.

Here the four parts of z lie one after the other, (4, n, H), so that each is one piece of memory: W_ih is seen as
(4, H, I), W_hh as (4, H, H), and a matrix product of such stacks is four products. Time cannot be split over
cores, but sequences can: each core walks through time with some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import backend, checks, initializers, packed, threads
from ..backend import Array, Rng, generator
from ..layer import Layer
from ..parameter import create
from ..workspace import empty, zeros
from .lstm_cell import cell_backward, cell_forward, cell_slopes, halves

BLOCK_ROWS = 1024  # of the time steps whose dL/dz is kept until it is summed into the weights' gradient
STRIP = 2**16  # elements of each (n, H) in `cell_slopes`: a core's cache should hold the five that it uses at a time
LEAST_PRODUCT = 2**24  # multiplications that are worth a thread
LEAST_STEP = 2**14  # elements of z, in what is computed at once, that are worth a thread

State = tuple[Array, Array]  # (h, c), each (B, H)


class Shard(NamedTuple):
    """Some of a batch's sequences, S with M rows, with which one core walks through time: packed by themselves."""

    sequences: slice  # which ones
    rows: list[slice]  # where their rows of each time step lie in the batch
    own: list[slice]  # and where among their own M
    before: list[slice]  # where the c that they had before each time step lies in `cells`
    gates: Array  # (4, M, H): i, f, g, o after their activation
    cells: Array  # (S + M, H): c_0, and c after every step


class LSTMCache(NamedTuple):
    """All that `backward` needs; rows are packed, time-major."""

    x: Array  # (N, I)
    h0: Array  # (B, H)
    y: Array  # (N, H): h after every step, the output
    shards: list[Shard]


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
        weight_ih = partial(initializers.xavier_uniform, (wide, self.input_size), rng)
        weight_hh = partial(initializers.xavier_uniform, (wide, self.hidden_size), rng)
        self.weight_ih = create("LSTM.weight_ih", weight_ih, dtype, backend)
        self.weight_hh = create("LSTM.weight_hh", weight_hh, dtype, backend)
        self.bias = create("LSTM.bias", partial(initializers.zeros, (wide,)), dtype, backend)

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
        y, h, c = empty((len(x), self.hidden_size), x), h0.copy(), c0.copy()
        weights = self._forward_weights()
        walks = [partial(self._walk, x, weights, y, h, c, sequences, sizes) for sequences in self._shards(sizes)]
        cache = LSTMCache(x, h0, y, threads.run(walks))
        return (y, (h, c)), cache

    def backward(self, dy: Array, cache: LSTMCache, dstate: State | None = None) -> tuple[Array, State]:
        """dx, (dh0, dc0) from dy = dL/dy (N, H) and dstate = (dL/dh, dL/dc) of the final state, each (B, H).

        Backpropagation through time: from the last step to the first, dL/dh_t is what the loss asks of y_t
        plus what step t+1 hands back through W_hh, and dL/dc_t likewise through the forget gate.
        """
        if backend.is_device(self.weight_hh.data):
            from ..kernels import lstm as device

            return device.backward(self, dy, cache, dstate)
        checks.cache(cache, LSTMCache)
        x, H = cache.x, self.hidden_size
        checks.matrix("cache.x", x, self.input_size, like=self.weight_ih.data)
        checks.matrix("cache.y", cache.y, H, like=self.weight_ih.data)
        checks.matrix("dy", dy, H, like=self.weight_ih.data, rows=len(x))
        dh, dc = (part.copy() for part in self._state("dstate", dstate, len(cache.h0), exact=True))  # (B, H)
        dx = empty(x.shape, x)
        sums = threads.run([partial(self._walk_back, cache, shard, dy, dh, dc, dx) for shard in cache.shards])

        for gate in range(4):
            units = slice(gate * H, (gate + 1) * H)
            for dweights in sums:  # always in the same order
                self.weight_ih.grad[units] += dweights[gate, : self.input_size].T
                self.weight_hh.grad[units] += dweights[gate, self.input_size : -1].T
                self.bias.grad[units] += dweights[gate, -1]
        return dx, (dh, dc)

    def _walk(
        self, x: Array, weights: tuple[Array, Array], y: Array, h: Array, c: Array, sequences: slice, sizes: list[int]
    ) -> Shard:
        """Forward through time with some `sequences`: fills y, and takes h and c (B, H) to after their last steps.

        weights are those of `_forward_weights`.
        """
        H, rows = self.hidden_size, packed.steps(sizes, sequences)
        own, before = packed.repacked(rows)
        x1 = empty((own[-1].stop, self.input_size + 1), x)  # [x 1]
        x1[:, -1] = 1
        for there, here in zip(rows, own, strict=True):
            x1[here, :-1] = x[there]
        gates, cells = empty((4, len(x1), H), x), empty((before[0].stop + len(x1), H), x)
        c_after = cells[before[0].stop :]  # a row for each of x1's, as in `gates`
        parts = threads.split(len(x1), threads.worth(x1.size * 4 * H, LEAST_PRODUCT, x))
        threads.run([partial(np.matmul, x1[part], weights[0], out=gates[:, part]) for part in parts])

        h_before, cells[before[0]] = h[sequences], c[sequences]
        products = empty((4, *h_before.shape), x)
        for t, here in enumerate(own):
            n = here.stop - here.start
            z = gates[:, here]
            z += np.matmul(h_before[:n], weights[1], out=products[:, :n])
            h_t = y[rows[t]]
            cell_forward(z, cells[before[t]], c_after[here], h_t)  # slices are views: fills gates, cells and y
            h_before = h_t
        for states, steps, final in ((y, rows, h), (c_after, own, c)):
            for last, ended in packed.ends(steps):
                final[sequences][ended] = states[last]
        return Shard(sequences, rows, own, before, gates, cells)

    def _walk_back(self, cache: LSTMCache, shard: Shard, dy: Array, dh: Array, dc: Array, dx: Array) -> Array:
        """Backward through time with the sequences of `shard`: takes dh and dc (B, H) to before the first step.

        Fills dx, and returns the gradient of [W_ih W_hh b] as (4, I + H + 1, H): the sum over all rows of
        [x_t h_{t-1} 1]^T dL/dz_t, one product for each block of time steps whose dL/dz a cache still holds.
        """
        x, y, H, weight_hh = cache.x, cache.y, self.hidden_size, self._stacked()[1]
        sequences, rows, own, _, gates, _ = shard
        dh, dc = dh[sequences], dc[sequences]
        blocks = packed.blocks(own, limit=BLOCK_ROWS)
        longest = max(own[block[-1]].stop - own[block[0]].start for block in blocks)
        inputs = empty((longest, self.input_size + H + 1), x)  # [x_t h_{t-1} 1]
        inputs[:, -1] = 1
        dz, (dh_dc, work) = empty((4, longest, H), x), empty((2, longest, H), x)
        dx_own = empty((longest, self.input_size), x)
        products, dweights = empty((4, *dh.shape), x), zeros((4, inputs.shape[1], H), x)

        for block in reversed(blocks):
            start, end = own[block[0]].start, own[block[-1]].stop
            here = {t: slice(own[t].start - start, own[t].stop - start) for t in block}  # step t's rows of the block's
            for t in block:
                h_before = y[rows[t - 1]] if t else cache.h0[sequences]
                n = here[t].stop - here[t].start
                inputs[here[t], : self.input_size] = x[rows[t]]
                inputs[here[t], self.input_size : -1] = h_before[:n]
            _fill_slopes(shard, block, dz, dh_dc, work)  # which dz holds until the loop below
            for t in reversed(block):
                dz_t, n = dz[:, here[t]], here[t].stop - here[t].start
                dh_t = dh[:n]
                dh_t += dy[rows[t]]
                cell_backward(dz_t, dh_dc[here[t]], gates[1, own[t]], dh_t, dc[:n])  # slopes become dL/dz_t
                np.matmul(dz_t, weight_hh, out=products[:, :n]).sum(axis=0, out=dh_t)  # dL/dh_{t-1} = dL/dz_t W_hh
            n = end - start
            self._add_products(inputs[:n], dz[:, :n], dweights, dx_own[:n])
            for t in block:
                dx[rows[t]] = dx_own[here[t]]
        return dweights

    def _add_products(self, inputs: Array, dz: Array, dweights: Array, dx: Array) -> None:
        """dweights += inputs^T dz;  dx = dz W_ih, summed over the gates.

        inputs (n, I + H + 1), dz (4, n, H), dweights (4, I + H + 1, H), dx (n, I). On several cores, unless it is
        itself one of several tasks.
        """

        def add(some: slice) -> None:  # of the four gates
            dweights[some] += np.matmul(inputs.T, dz[some], out=empty(dweights[some].shape, dz))

        def fill(rows: slice) -> None:
            products = empty((4, rows.stop - rows.start, dx.shape[1]), dx)
            np.matmul(dz[:, rows], self._stacked()[0], out=products).sum(axis=0, out=dx[rows])

        parts = threads.worth(dz.size * inputs.shape[1], LEAST_PRODUCT, dz)
        tasks = [partial(add, some) for some in threads.split(4, parts)]
        tasks += [partial(fill, rows) for rows in threads.split(len(dx), parts)]
        threads.run(tasks, parts)

    def _stacked(self) -> tuple[Array, Array]:
        """W_ih (4, H, I) and W_hh (4, H, H): one matrix for each gate."""
        H = self.hidden_size
        return self.weight_ih.data.reshape(4, H, -1), self.weight_hh.data.reshape(4, H, H)

    def _forward_weights(self) -> tuple[Array, Array]:
        """[W_ih b]^T (4, I + 1, H) and W_hh^T (4, H, H), halved for i, f and o as `cell_forward` wants z.

        Copied because products with them are faster so.
        """
        weight_ih, weight_hh = self._stacked()
        half = halves(weight_ih.dtype)[0]
        with_bias = empty((4, self.input_size + 1, self.hidden_size), weight_ih)
        np.multiply(weight_ih.transpose(0, 2, 1), half, out=with_bias[:, :-1])
        np.multiply(self.bias.data.reshape(4, -1), half[:, 0], out=with_bias[:, -1])
        recurrent = empty(weight_hh.shape, weight_hh)
        return with_bias, np.multiply(weight_hh.transpose(0, 2, 1), half, out=recurrent)

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
        halved = z.reshape(n, 4, -1).transpose(1, 0, 2) * halves(z.dtype)[0]  # (4, n, H)
        cell_forward(halved, c0[:n], c[:n], h[:n])
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


def _fill_slopes(shard: Shard, block: range, slopes: Array, dh_dc: Array, work: Array) -> None:
    """`cell_slopes` of the time steps in `block`, in few calls: many small steps at once.

    Fills the first n rows of slopes (4, ..., H) and dh_dc (..., H), n being the block's; work (..., H) is scratch.
    """
    gates, cells, H = shard.gates, shard.cells, shard.gates.shape[2]
    c_after = cells[shard.before[0].stop :]  # (M, H)
    steps = slice(block.start, block.stop)
    own, before = shard.own[steps], shard.before[steps]
    tasks, start = [], own[0].start
    for strip in packed.blocks(own, before, limit=STRIP // H):
        rows = packed.joined(own, strip)
        here = slice(rows.start - start, rows.stop - start)
        c_before = cells[packed.joined(before, strip)]
        arrays = gates[:, rows], c_before, c_after[rows], slopes[:, here], dh_dc[here], work[here]
        tasks.append(partial(cell_slopes, *arrays))
    threads.run(tasks, threads.worth(4 * (own[-1].stop - start) * H, LEAST_STEP, gates))
