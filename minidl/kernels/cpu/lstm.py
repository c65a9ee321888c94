"""Cuts an LSTM's batch for the cores, by sequences because time cannot be cut; and its work on all rows at once.

Stacks of the four gates are (4, N, H). A product with a transposed copy of the weights is faster than with a view.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ... import checks
from . import cuts, threads
from .workspace import empty, with_ones

State = tuple[np.ndarray, np.ndarray]  # (h, c), each (B, H)
T = TypeVar("T")


class Shard(NamedTuple):
    """Some of a batch's sequences, as a packed batch of their own."""

    sequences: slice  # in a state
    rows: slice | np.ndarray  # in x and y
    sizes: list[int]


def shards(sizes: list[int], parts: int) -> list[Shard]:
    """The sequences in up to `parts` parts with nearly equal sums of lengths."""
    if parts == 1:
        return [Shard(slice(0, sizes[0]), slice(None), sizes)]
    sequence = np.arange(sum(sizes)) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)  # of each row
    sums = np.cumsum([0, *np.bincount(sequence)])
    bounds = np.searchsorted(sums, sums[-1] * np.arange(parts + 1) / parts).tolist()
    found = []
    for first, last in itertools.pairwise(bounds):
        if first < last:
            rows = np.flatnonzero((first <= sequence) & (sequence < last))
            found.append(Shard(slice(first, last), rows, [min(n, last) - first for n in sizes if n > first]))
    return found


def in_shards(
    walk: Callable[..., tuple[np.ndarray, T]], x: np.ndarray, sizes: list[int], state: State
) -> tuple[np.ndarray, list[tuple[Shard, T]]]:
    """(y, walks): on as many cores as pay off, walk(x, sizes, h, c) -> (y, its cache) over some of the sequences.

    (h, c) are views of the state, which the walk overwrites with the state after each sequence's last step.
    """
    h, c = state
    y = empty((len(x), h.shape[1]), x)

    def run(shard: Shard) -> tuple[Shard, T]:
        some = shard.sequences
        y[shard.rows], left = walk(_taken(x, shard.rows), shard.sizes, h[some], c[some])
        return shard, left

    cores = threads.cores_for(4 * y.size / len(sizes), cuts.STEP)
    return y, threads.run([partial(run, shard) for shard in shards(sizes, cores)])


def in_shards_back(
    walk_back: Callable[..., tuple[np.ndarray, np.ndarray]],
    dy: np.ndarray,
    x: np.ndarray,
    walks: list[tuple[Shard, Any]],
    dstate: State,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(dx, sums): walk_back(dy, x, walk, block, dh, dc) -> (dx, sums) for each walk of `in_shards`, block by block.

    Blocks of time steps, the last one first, save memory: the work arrays cover only a few rows at a time.
    """
    (dh, dc), dx = dstate, empty(x.shape, dy)

    def run(shard: Shard, walk: Any) -> np.ndarray:
        last, *others = reversed(blocks(shard.sizes, 4 * dy.shape[1]))

        def back(block: Block) -> np.ndarray:
            rows = block.rows if isinstance(shard.rows, slice) else shard.rows[block.rows]
            states = dh[shard.sequences], dc[shard.sequences]
            dx[rows], sums = walk_back(_taken(dy, rows), _taken(x, rows), walk, block, *states)
            return sums

        total = back(last)
        for block in others:
            total += back(block)
        return total

    return dx, threads.run([partial(run, *pair) for pair in walks])


def _taken(rows: np.ndarray, places: slice | np.ndarray) -> np.ndarray:
    if isinstance(places, slice):
        return rows[places]
    return np.take(rows, places, axis=0, out=empty((len(places), rows.shape[1]), rows), mode="clip")


def steps(sizes: list[int]) -> list[tuple[slice, slice, slice]]:
    """(rows, before, after) of every time step: where its rows are; and where the states before and after it are, in an
    array that starts with the n_0 initial states, followed by the state after each row's step."""
    found, rows, before = [], 0, 0
    for n in sizes:
        after = rows + sizes[0]
        found.append((slice(rows, rows + n), slice(before, before + n), slice(after, after + n)))
        rows, before = rows + n, after
    return found


class Block(NamedTuple):
    """Consecutive time steps."""

    rows: slice  # of the whole block
    steps: list[slice]  # where each step's rows are within the block
    before: np.ndarray  # where the state before each row is
    after: slice  # where the states after the rows are


def blocks(sizes: list[int], width: int) -> list[Block]:
    """All time steps in blocks of up to BACK numbers with `width` per row, or of a single step."""
    found: list[list[slice]] = []
    for rows, _, _ in steps(sizes):
        if not found or (rows.stop - found[-1][0].start) * width > cuts.BACK:
            found.append([])
        found[-1].append(rows)
    shift = np.repeat([sizes[0], *sizes[:-1]], sizes)
    return [_block([(rows.start, rows.stop) for rows in some], sizes[0], shift) for some in found]


def _block(bounds: list[tuple[int, int]], first: int, shift: np.ndarray) -> Block:
    start, stop = bounds[0][0], bounds[-1][1]
    before = np.arange(first + start, first + stop) - shift[start:stop]
    own = [slice(a - start, b - start) for a, b in bounds]
    return Block(slice(start, stop), own, before, slice(first + start, first + stop))


def begun(first: np.ndarray, rows: int) -> np.ndarray:
    """An array for the states before and after all steps (see `steps`), with the initial states filled in."""
    states = empty((len(first) + rows, first.shape[1]), first)
    states[: len(first)] = first
    return states


def last(sizes: list[int]) -> np.ndarray:
    """(n_0,): the rows of that array that contain the state after each sequence's own last step."""
    lengths = (np.array(sizes)[:, None] > np.arange(sizes[0])).sum(axis=0)
    return np.cumsum([sizes[0], *sizes])[lengths - 1] + np.arange(sizes[0])


def states(name: str, state: State | None, rows: int, width: int, like: np.ndarray, exact: bool = False) -> State:
    """Copies of (h, c), each with `rows` rows or (unless `exact`) more; zeros if none is given."""
    if state is None:
        return np.zeros((rows, width), like.dtype), np.zeros((rows, width), like.dtype)
    h, c = checks.state(name, state, rows, width, like, exact)
    return h.copy(), c.copy()


@functools.cache
def _halves(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(0.5, 0.5, 1, 0.5) for the gates i, f, g, o, and 1 minus that, each (4, 1, 1)."""
    half = np.array([0.5, 0.5, 1, 0.5], dtype).reshape(4, 1, 1)
    return half, 1 - half


def squash(z: np.ndarray) -> np.ndarray:
    """The gates i, f, g, o (4, n, H), computed in place from z, which is already halved except for g.

    sigmoid(z) = (1 + tanh(z / 2)) / 2, which cannot overflow and shares the call with g.
    """
    half, rest = _halves(z.dtype)
    np.tanh(z, out=z)
    z *= half
    z += rest
    return z


def halved(z: np.ndarray) -> np.ndarray:
    """z (n, 4H) as `squash` expects it."""
    return z.reshape(len(z), 4, -1).transpose(1, 0, 2) * _halves(z.dtype)[0]


def turned(weight: np.ndarray) -> np.ndarray:
    """(4H, D) as (4, D, H), halved except for g: then z is halved too, at no cost per step."""
    stacked = weight.reshape(4, len(weight) // 4, -1).transpose(0, 2, 1)
    return np.multiply(stacked, _halves(weight.dtype)[0], out=empty(stacked.shape, weight))


def input_products(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x W^T + b as (4, N, H), halved except for g. The bias is the weight of an input that is always 1."""
    with_bias = turned(np.concatenate([weight, bias[:, None]], axis=1))
    z = empty((4, len(x), with_bias.shape[2]), x)

    def fill(rows: slice) -> None:
        np.matmul(with_ones(x[rows]), with_bias, out=z[:, rows])

    threads.over(len(x), fill, threads.cores_for(with_bias.size * len(x), cuts.PRODUCT))
    return z


def in_blocks(task: Callable[[slice], object], rows: int, width: int) -> None:
    """task(rows) for blocks of rows of `width` numbers that fit a cache, on as many cores as pay off."""
    threads.over(rows, task, threads.cores_for(4 * rows * width, cuts.NUMBERS), pieces=-(-rows * width // cuts.BLOCK))


def products_back(
    dz: np.ndarray, x: np.ndarray, h_before: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """dx = dz W summed over the gates (N, D), and [x_t h_{t-1} 1]^T dz (4, D + H + 1, H); 1 is the bias's input."""
    (_, N, H), D = dz.shape, x.shape[1]
    inputs = empty((N, D + H + 1), x)
    inputs[:, :D], inputs[:, D:-1], inputs[:, -1] = x, h_before, 1
    dweights, dx, stacked = empty((4, D + H + 1, H), dz), empty((N, D), dz), weight.reshape(4, H, D)

    def sum_rows(gates: slice) -> None:
        np.matmul(inputs.T, dz[gates], out=dweights[gates])

    def fill(rows: slice) -> None:
        products = empty((4, rows.stop - rows.start, D), dz)
        np.matmul(dz[:, rows], stacked, out=products).sum(axis=0, out=dx[rows])

    cores = threads.cores_for(dz.size * inputs.shape[1], cuts.PRODUCT)
    tasks = [partial(sum_rows, gates) for gates in threads.split(4, cores)]
    tasks += [partial(fill, rows) for rows in threads.split(N, max(cores, -(-N * D // cuts.BLOCK)))]
    threads.run(tasks, cores)
    return dx, dweights


def add_to(weight_ih: np.ndarray, weight_hh: np.ndarray, bias: np.ndarray, dweights: list[np.ndarray]) -> None:
    """Add the sums of `products_back`, always in the same order, to the gradients (4H, D), (4H, H), (4H,)."""
    D, H = weight_ih.shape[1], weight_hh.shape[1]
    for gate in range(4):
        units = slice(gate * H, (gate + 1) * H)
        for sums in dweights:
            weight_ih[units] += sums[gate, :D].T
            weight_hh[units] += sums[gate, D:-1].T
            bias[units] += sums[gate, -1]
