"""What each kernel of minidl.kernels.cuda computes, in NumPy, for the double of CuPy (device_double).

Each function has its kernel's name and takes the number of launched blocks of 256 threads, followed by the kernel's own
arguments: arrays, which it writes in place, and numbers. Tests on a device or the emulator check that the CUDA source
computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

import minidl

THREADS = 256


def optimizers_rules() -> list[Any]:
    """The kernels that are not in a module's KERNELS, because optimizers define theirs next to their rules."""

    def one() -> list[minidl.Parameter]:
        return [minidl.Parameter(np.zeros(1, np.float32))]

    made = [minidl.SGD(one(), 1.0), minidl.SGD(one(), 1.0, momentum=0.5)]
    made += [make(one()) for make in (minidl.AdaGrad, minidl.Adadelta, minidl.Adam, minidl.AdamW)]
    return [optimizer.kernel() for optimizer in made]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def lstm_forward(
    blocks: int, gates: Any, bias: Any, h_before: Any, c_before: Any, y: Any, h_last: Any, c_last: Any, *numbers: Any
) -> None:
    start, n, going_on, H = map(int, numbers)
    assert blocks * THREADS >= n * H and gates.shape[1] == 4 * H == bias.size
    here, after = slice(start, start + n), slice(start + n, start + n + going_on)
    z = gates[here].reshape(n, 4, H)
    z += bias.reshape(4, H)
    i, f, o = (sigmoid(z[:, gate]) for gate in (0, 1, 3))
    g = np.tanh(z[:, 2])
    z[:, 0], z[:, 1], z[:, 2], z[:, 3] = i, f, g, o
    c = f * c_before[here] + i * g
    y[here] = h = o * np.tanh(c)
    h_before[after], c_before[after] = h[:going_on], c[:going_on]
    h_last[going_on:n], c_last[going_on:n] = h[going_on:], c[going_on:]


def lstm_backward(
    blocks: int, gates: Any, c_before: Any, dy: Any, dh_later: Any, dc_later: Any, dz: Any, *numbers: Any
) -> None:
    start, n, H = map(int, numbers)
    assert blocks * THREADS >= n * H and gates.shape[1] == 4 * H
    here = slice(start, start + n)
    i, f, g, o = gates[here].reshape(n, 4, H).transpose(1, 0, 2)
    tanh_c = np.tanh(f * c_before[here] + i * g)
    dh = dy[here] + dh_later[:n]
    dc = dc_later[:n] + dh * o * (1 - tanh_c**2)
    parts = dc * g * i * (1 - i), dc * c_before[here] * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
    dz[here] = np.concatenate(parts, axis=1)
    dc_later[:n] = dc * f


def mix(bits: np.ndarray) -> np.ndarray:
    bits = bits ^ (bits >> np.uint32(16))
    bits = bits * np.uint32(0x7FEB352D)
    bits = bits ^ (bits >> np.uint32(15))
    bits = bits * np.uint32(0x846CA68B)
    return bits ^ (bits >> np.uint32(16))


def dropout_forward(blocks: int, x: Any, rows: Any, y: Any, scale: Any, size: Any, D: Any, *numbers: Any) -> None:
    s0, s1, s2, s3, least, kept = numbers
    assert blocks > 0 and size == x.size and x.shape[1] == D
    places = (np.arange(len(x)) if rows is None else rows).astype(np.uint64)
    low, high = places.astype(np.uint32), (places >> np.uint64(32)).astype(np.uint32)
    row_keys = mix(mix(low ^ s0) ^ high ^ s1)
    unit_keys = mix(mix(np.arange(D, dtype=np.uint32) ^ s2) ^ s3)
    scale[...] = np.where(mix(row_keys[:, None] ^ unit_keys) >= least, kept, x.dtype.type(0))
    y[...] = x * scale


def embedding_runs(blocks: int, dy: Any, ids: Any, rows: Any, starts: Any, dweight: Any, slices: Any, D: Any) -> None:
    assert blocks == (len(starts) - 1) * slices and slices * 32 >= D == dy.shape[1]
    assert starts[0] == 0 and starts[-1] == len(rows) == len(ids)
    for start, end in pairwise(starts):
        run = rows[start:end]
        assert (np.diff(run) > 0).all(), "rows of one id keep their order"
        assert len(set(ids[run].tolist())) == 1
        dweight[ids[run[0]]] += dy[run].sum(axis=0)


def embedding_search(blocks: int, dy: Any, ids: Any, dweight: Any, N: Any, slices: Any, D: Any) -> None:
    assert blocks == len(dweight) * slices and slices * 32 >= D == dy.shape[1] and len(ids) == N
    for v in range(len(dweight)):
        dweight[v] += dy[ids == v].sum(axis=0)


def softmax_rows(
    blocks: int, logits: Any, bias: Any, targets: Any, losses: Any, dlogits: Any, V: Any, total: Any
) -> None:
    assert blocks == len(logits) == len(targets) == losses.size and logits.shape[1] == V
    rows = np.arange(blocks)
    z = logits if bias is None else logits + bias
    z = z - z.max(axis=1, keepdims=True)
    e = np.exp(z)
    inside = (targets >= 0) & (targets < V)
    sums, places = np.where(inside, e.sum(axis=1), np.nan), np.where(inside, targets, 0)
    losses[...] = np.log(sums) - z[rows, places]
    if dlogits is not None:
        dlogits[...] = e / sums[:, None]
        dlogits[rows, places] -= 1
        dlogits /= total


def sum_losses(blocks: int, losses: Any, result: Any, N: Any, total: Any) -> None:
    assert blocks == 1 and losses.size == N
    result[...] = losses.sum(dtype=np.float64) / total


def find_bad(blocks: int, grad: Any, bad: Any, size: Any) -> None:
    assert blocks == bad.size and size == grad.size
    bad[...] = 0
    bad[-1] = not np.isfinite(grad).all()


def sum_squares(blocks: int, grad: Any, squares: Any, size: Any) -> None:
    assert blocks == squares.size and size == grad.size
    squares[...] = 0
    squares[-1] = np.square(grad, dtype=np.float64).sum()


def clip_norm(blocks: int, grad: Any, squares: Any, norm: Any, size: Any, parts: Any, max_norm: Any) -> None:
    assert blocks > 0 and size == grad.size and parts == squares.size
    norm[...] = length = np.sqrt(squares.sum())
    if not length <= max_norm:
        grad *= grad.dtype.type(max_norm / (length + 1e-6) + 0 * length)


def rule(change: Callable[..., None]) -> Callable[..., None]:
    """A kernel that runs `change(data, g, *states, *numbers)`, or changes nothing if find_bad found something."""

    def kernel(blocks: int, data: Any, grad: Any, *rest: Any) -> None:
        states = [thing for thing in rest if isinstance(thing, np.ndarray) and thing.shape == data.shape != ()]
        bad, skipped, size, parts, *numbers = rest[len(states) :]
        assert blocks > 0 and size == data.size == grad.size and parts == bad.size
        if not bad.any():
            change(data, grad, *states, *numbers)
        elif skipped is not None:
            skipped += 1

    return kernel


@rule
def sgd(data: Any, g: Any, lr: Any) -> None:
    data -= lr * g


@rule
def momentum(data: Any, g: Any, velocity: Any, lr: Any, share: Any) -> None:
    velocity[...] = share * velocity + g
    data -= lr * velocity


@rule
def adagrad(data: Any, g: Any, total: Any, lr: Any, eps: Any) -> None:
    total += g * g
    data -= lr * g / (np.sqrt(total) + eps)


@rule
def adadelta(data: Any, g: Any, square: Any, moved: Any, lr: Any, rho: Any, rest: Any, eps: Any) -> None:
    square[...] = rho * square + rest * g * g
    delta = g * np.sqrt((moved + eps) / (square + eps))
    moved[...] = rho * moved + rest * delta * delta
    data -= lr * delta


@rule
def adam(data: Any, g: Any, mean: Any, square: Any, *numbers: Any) -> None:
    _adam(data, g, mean, square, *numbers)


@rule
def adamw(data: Any, g: Any, mean: Any, square: Any, keep: Any, *numbers: Any) -> None:
    data *= keep
    _adam(data, g, mean, square, *numbers)


def _adam(data: Any, g: Any, mean: Any, square: Any, *numbers: Any) -> None:
    b1, rest1, b2, rest2, root, eps, rate = numbers
    mean[...] = b1 * mean + rest1 * g
    square[...] = b2 * square + rest2 * g * g
    data -= mean / (np.sqrt(square) * root + eps) * rate
