"""Only the matrix products of a training step, in NumPy with its BLAS's own threads: no LSTM can do without them.

Outputs are allocated once; there is no activation, no bias, no loss, no optimizer. The head's products are measured
in blocks of rows and all at once; the faster of the two counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import harness
import numpy as np
from sizes import Size

BLOCK = 640  # rows of logits at a time: 9 MB at the report's vocabulary


class Products(NamedTuple):
    """Some products as one call, and their floating-point operations: 2 m n k each."""

    run: Callable[[], None]
    flops: int


def lstm_products(size: Size, inputs: int, rng: np.random.Generator) -> tuple[Products, Products]:
    """The products of one LSTM layer's forward pass, and of its backward pass."""
    B, T, H = size.batch, size.steps, size.hidden
    N, wide = B * T, 4 * H
    x, h, dz, weight_ih, weight_hh = (
        rng.random(shape, np.float32) for shape in ((N, inputs), (N, H), (N, wide), (wide, inputs), (wide, H))
    )
    transposed = np.ascontiguousarray(weight_hh.T)  # small products are faster with this copy, made once
    z, recurrent = np.empty((N, wide), np.float32), np.empty((B, wide), np.float32)
    dx, dh, dweight_ih, dweight_hh = (
        np.empty(shape, np.float32) for shape in ((N, inputs), (B, H), (wide, inputs), (wide, H))
    )
    steps = [slice(start, start + B) for start in range(0, N, B)]

    def forward() -> None:
        np.matmul(x, weight_ih.T, out=z)
        for rows in steps:
            np.matmul(h[rows], transposed, out=recurrent)

    def backward() -> None:
        for rows in steps:
            np.matmul(dz[rows], weight_hh, out=dh)
        np.matmul(dz.T, x, out=dweight_ih)
        np.matmul(dz.T, h, out=dweight_hh)
        np.matmul(dz, weight_ih, out=dx)

    once = 2 * N * wide * (inputs + H)  # forward; backward has each product twice: for the weight and for its input
    return Products(forward, once), Products(backward, 2 * once)


def head_products(size: Size, rng: np.random.Generator, block: int) -> Products:
    """The logits, and the gradients of the projection's input and weight."""
    N, H, V = size.batch * size.steps, size.hidden, size.vocabulary
    block = min(block, N)
    h, weight = rng.random((N, H), np.float32), rng.random((V, H), np.float32)
    logits, dh, dweight = (np.empty(shape, np.float32) for shape in ((block, V), (N, H), (V, H)))

    def run() -> None:
        for start in range(0, N, block):
            rows = slice(start, min(start + block, N))
            part = logits[: rows.stop - rows.start]
            np.matmul(h[rows], weight.T, out=part)
            np.matmul(part, weight, out=dh[rows])
            np.matmul(part.T, h[rows], out=dweight)

    return Products(run, 3 * 2 * N * H * V)


def products(size: Size) -> dict[str, Products]:
    """The products of each part of a step that has any."""
    rng = np.random.default_rng(0)
    passes = [lstm_products(size, inputs, rng) for inputs in size.inputs()]
    heads = [head_products(size, rng, block) for block in (BLOCK, size.batch * size.steps)]
    for head in heads:
        head.run()
    head = min(heads, key=lambda head: harness.median_seconds(head.run, seconds=0.2))
    return {
        "LSTM forward": _together([forward for forward, _ in passes]),
        "head and loss": head,
        "LSTM backward": _together([backward for _, backward in passes]),
    }


def _together(parts: list[Products]) -> Products:
    def run() -> None:
        for part in parts:
            part.run()

    return Products(run, sum(part.flops for part in parts))
