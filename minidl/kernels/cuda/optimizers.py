"""Optimizers and clipping on a GPU: each rule one kernel over the flat buffer, and no look from the host.

Whether a gradient is finite, and its norm, need all of it, and blocks of threads cannot wait for each other. So a
first kernel leaves one number for each of its blocks, and the blocks of the second begin by putting these
together, all in the same way. A step whose gradient is not finite changes nothing but `skipped`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ...backend import Array, of
from .launch import Kernel, blocks

MOST_BLOCKS = 1024  # fill any GPU, and leave few enough numbers for every block to put together

FIND_BAD = Kernel(r"""
extern "C" __global__ void find_bad(
    const real* grad,  // (size)
    int* bad,          // one for each block: whether it met a number that is not finite
    long long size)
{
    __shared__ int found;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS)
        if (!isfinite(grad[k])) found = 1;  // whoever writes it writes the same
    __syncthreads();
    if (threadIdx.x == 0) bad[blockIdx.x] = found;
}
""")

_BLOCK_SUM = r"""
// The sum of what the block's threads hold; all of them get it.
__device__ double block_sum(double value)
{
    __shared__ double shared[THREADS];
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}
"""

SQUARES = Kernel(
    _BLOCK_SUM
    + r"""
extern "C" __global__ void sum_squares(
    const real* grad,  // (size)
    double* squares,   // one sum for each block; no float32 overflows a double so
    long long size)
{
    double sum = 0;
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS)
        sum += (double)grad[k] * grad[k];
    sum = block_sum(sum);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}
"""
)

CLIP = Kernel(
    _BLOCK_SUM
    + r"""
extern "C" __global__ void clip_norm(
    real* grad,             // (size)
    const double* squares,  // (parts)
    double* norm,           // of the whole gradient
    long long size,
    int parts,
    double max_norm)
{
    double sum = 0;
    for (int part = threadIdx.x; part < parts; part += THREADS) sum += squares[part];
    double length = sqrt(block_sum(sum));
    if (blockIdx.x == 0 && threadIdx.x == 0) *norm = length;
    if (length <= max_norm) return;
    // a norm that is not finite makes the gradient NaN, and not 0: the step is then left out and told
    real scale = max_norm / (length + 1e-6) + 0 * length;
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS)
        grad[k] *= scale;
}
"""
)


@functools.cache
def rule(name: str, lines: str, states: tuple[str, ...], numbers: tuple[str, ...]) -> Kernel:
    """The kernel of an optimizer's rule: its `lines` change data[k] and the states by the gradient g."""
    arrays = "".join(f"    real* {state},\n" for state in states)
    constants = "".join(f",\n    real {number}" for number in numbers)
    return Kernel(rf"""
extern "C" __global__ void {name}(
    real* data,          // (size), as are all that follow but the two last
    const real* grad,
{arrays}    const int* bad,      // (parts): find_bad's
    long long* skipped,  // counts the steps that were left out; null where another launch counts this one
    long long size,
    int parts{constants})
{{
    __shared__ int found;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (int part = threadIdx.x; part < parts; part += THREADS)
        if (bad[part]) found = 1;
    __syncthreads();
    if (found) {{
        if (skipped && blockIdx.x == 0 && threadIdx.x == 0) *skipped += 1;
        return;
    }}
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS) {{
        real g = grad[k];
        {lines.strip()}
    }}
}}
""")


KERNELS = (FIND_BAD, SQUARES, CLIP)


def step(kernel: Kernel, numbers: Sequence[float], pieces: Sequence[tuple[Array, ...]], skipped: Array) -> None:
    """One step of an optimizer's rule on (data, grad, *states) of each piece, unless a gradient is not finite."""
    parts = [_blocks(grad) for _, grad, *_ in pieces]
    bad = of(skipped).empty(sum(parts), "int32")
    first = 0
    for (_, grad, *_), count in zip(pieces, parts, strict=True):
        FIND_BAD.on(grad, bad[first : first + count])(count, grad.size)
        first += count
    for index, arrays in enumerate(pieces):
        launch = kernel.on(*arrays, bad, None if index else skipped)
        launch(_blocks(arrays[0]), arrays[0].size, bad.size, *numbers)


def clip_grad_norm(grads: Sequence[Array], max_norm: float) -> Array:
    """The norm of all `grads` together, which are scaled down to `max_norm`; it stays on the device."""
    parts = [_blocks(grad) for grad in grads]
    xp = of(grads[0])
    squares, norm = xp.empty(sum(parts), "float64"), xp.empty((), "float64")
    first = 0
    for grad, count in zip(grads, parts, strict=True):
        SQUARES.on(grad, squares[first : first + count])(count, grad.size)
        first += count
    for grad in grads:
        CLIP.on(grad, squares, norm)(_blocks(grad), grad.size, squares.size, max_norm)
    return norm


def _blocks(flat: Array) -> int:
    # at least one, also of an empty parameter: CuPy would launch it all the same, with no place for what it leaves
    return max(1, min(blocks(flat.size), MOST_BLOCKS))
