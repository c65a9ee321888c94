"""Dropout on a GPU: the mask and its product with x in one kernel, the same bits as on NumPy."""

from __future__ import annotations

import numpy as np

from ... import backend
from ...backend import Array
from .launch import Kernel, blocks

# The same hash as in kernels/cpu/dropout.py: one key per row and one per unit, mixed.

FORWARD = Kernel(r"""
__device__ unsigned mix(unsigned bits)
{
    bits ^= bits >> 16;
    bits *= 0x7FEB352Du;
    bits ^= bits >> 15;
    bits *= 0x846CA68Bu;
    return bits ^ bits >> 16;
}

extern "C" __global__ void dropout_forward(
    const real* x,          // (N, D)
    const long long* rows,  // (N): the rows' positions in the full batch; null if they are 0 ... N-1
    real* y,                // (N, D)
    real* scale,            // (N, D): 0 where dropped, else `kept`
    long long size,         // N D
    int D,
    unsigned salt0,
    unsigned salt1,
    unsigned salt2,
    unsigned salt3,
    unsigned least,         // hashes below it are dropped
    real kept)              // 1 / (1 - p)
{
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS) {
        unsigned long long row = rows ? rows[k / D] : k / D;
        unsigned row_key = mix(mix((unsigned)row ^ salt0) ^ (unsigned)(row >> 32) ^ salt1);
        unsigned unit_key = mix(mix((unsigned)(k % D) ^ salt2) ^ salt3);
        scale[k] = mix(row_key ^ unit_key) >= least ? kept : 0;
        y[k] = x[k] * scale[k];
    }
}
""")

KERNELS = (FORWARD,)


def forward(x: Array, seed: int, step: int, rows: np.ndarray | None, p: float) -> tuple[Array, Array]:
    """(y, scale), both like x (N, D); `rows` (N,) are on the host."""
    xp = backend.of(x)
    x = xp.ascontiguousarray(x)
    y, scale = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    places = None if rows is None else xp.asarray(rows.astype(np.int64))
    salt = np.random.SeedSequence([seed, step]).generate_state(4)
    least = min(round(p * 2**32), 2**32 - 1)
    launch = FORWARD.on(x, places, y, scale)
    launch(blocks(x.size), x.size, x.shape[1], *salt, least, 1 / (1 - p))
    return y, scale
