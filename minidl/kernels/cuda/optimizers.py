"""Optimizers and clipping on a GPU: each rule is one kernel over the flat buffer, and the host never waits.

The finiteness check and the norm need the complete gradient, but blocks of threads cannot wait for each other. So a
first kernel leaves one number per block, and every block of the second kernel starts by combining these numbers in the
same way. A step with a gradient that is not finite changes nothing except `skipped`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ...backend import Array, of
from .launch import Kernel, blocks

MOST_BLOCKS = 1024  # enough to fill any GPU, and few enough numbers for every block to combine

FIND_BAD = Kernel(r"""
extern "C" __global__ void find_bad(
    const real* grad,  // (size)
    int* bad,          // one per block: whether it found a value that is not finite
    long long size)
{
    __shared__ int found;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS)
        if (!isfinite(grad[k])) found = 1;  // every writer writes the same value
    __syncthreads();
    if (threadIdx.x == 0) bad[blockIdx.x] = found;
}
""")

_BLOCK_SUM = r"""
// The sum over the threads of the block, returned to all of them.
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
    double* squares,   // one sum per block; squares of float32 cannot overflow a double
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
    // a norm that is not finite makes the gradient NaN, not 0: the step is then skipped and reported
    real scale = max_norm / (length + 1e-6) + 0 * length;
    for (long long k = blockIdx.x * (long long)THREADS + threadIdx.x; k < size; k += gridDim.x * (long long)THREADS)
        grad[k] *= scale;
}
"""
)


@functools.cache
def rule(name: str, lines: str, states: tuple[str, ...], numbers: tuple[str, ...]) -> Kernel:
    """The kernel for an optimizer's rule: its `lines` update data[k] and the states from the gradient g."""
    arrays = "".join(f"    real* {state},\n" for state in states)
    constants = "".join(f",\n    real {number}" for number in numbers)
    return Kernel(rf"""
extern "C" __global__ void {name}(
    real* data,          // (size), like all that follow except the last two
    const real* grad,
{arrays}    const int* bad,      // (parts), from find_bad
    long long* skipped,  // counts skipped steps; null if another launch counts this one
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
    """Scale all `grads` together to a norm of at most `max_norm`; returns the norm before, on the device."""
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
    # at least one, even for an empty parameter: CuPy launches it anyway, and its result needs a place
    return max(1, min(blocks(flat.size), MOST_BLOCKS))
