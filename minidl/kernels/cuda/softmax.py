"""Softmax cross-entropy on a GPU: for each row, one block of threads computes the loss and the gradient together.

With z the logits of a row and k its target, as in `losses`: loss = log(sum_v exp z_v) - z_k and
dloss/dz = softmax(z) - onehot(k). The row's maximum is subtracted from its logits first, so nothing overflows.
"""

from __future__ import annotations

from itertools import pairwise

from ...backend import Array, of
from ...parameter import Parameter
from .launch import Kernel, int32, shaped
from .product import add_column_sums, product

BLOCK_BYTES = 2**28  # logits held at a time: few blocks of rows, in memory that a GPU can spare

ROWS = Kernel(r"""
// The maximum, or the sum, over the threads of the block, returned to all of them.
__device__ real combined(real value, bool largest, real* shared)
{
    __syncthreads();  // the results of the previous call have been read
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            real mine = shared[threadIdx.x], other = shared[threadIdx.x + half];
            shared[threadIdx.x] = largest ? (mine < other ? other : mine) : mine + other;
        }
        __syncthreads();
    }
    return shared[0];
}

extern "C" __global__ void softmax_rows(
    const real* logits,  // (n, V), without their bias
    const real* bias,    // (V), or null
    const int* targets,  // (n)
    real* losses,        // (n)
    real* dlogits,       // (n, V), which may be `logits`; null if only the loss is wanted
    long long V,
    real total)          // the gradient is divided by it
{
    __shared__ real shared[THREADS];
    const real* z = logits + blockIdx.x * V;
    long long target = targets[blockIdx.x];

    long long own = threadIdx.x < V ? threadIdx.x : 0;
    real top = z[own] + (bias ? bias[own] : 0);
    for (long long v = own; v < V; v += THREADS) {
        real value = z[v] + (bias ? bias[v] : 0);
        if (top < value) top = value;
    }
    top = combined(top, true, shared);

    real sum = 0, picked = 0;
    for (long long v = threadIdx.x; v < V; v += THREADS) {
        real value = z[v] + (bias ? bias[v] : 0) - top;
        sum += exp(value);
        if (v == target) picked = value;  // one thread has the target, the others keep 0
    }
    sum = combined(sum, false, shared);
    picked = combined(picked, false, shared);
    if (target < 0 || target >= V) sum = sqrt((real)-1);  // NaN shows a wrong id, which nothing has checked before
    if (threadIdx.x == 0) losses[blockIdx.x] = log(sum) - picked;

    if (dlogits)
        for (long long v = threadIdx.x; v < V; v += THREADS) {
            real share = exp(z[v] + (bias ? bias[v] : 0) - top) / sum;
            dlogits[blockIdx.x * V + v] = (v == target ? share - 1 : share) / total;
        }
}
""")

# One block: a fixed order, in double
SUM = Kernel(r"""
extern "C" __global__ void sum_losses(
    const real* losses,  // (N)
    double* result,      // their sum / total
    long long N,
    double total)
{
    __shared__ double shared[THREADS];
    double sum = 0;
    for (long long n = threadIdx.x; n < N; n += THREADS) sum += losses[n];
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) *result = shared[0] / total;
}
""")

KERNELS = (ROWS, SUM)


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """losses.softmax_cross_entropy."""
    xp, (N, V) = of(logits), logits.shape
    losses, dlogits = xp.empty(N, logits.dtype), xp.empty((N, V), logits.dtype)
    ROWS.on(xp.ascontiguousarray(logits), None, int32(targets), losses, dlogits)(N, V, N)
    return _sum(losses, N), dlogits


def loss(x: Array, weight: Array, bias: Array, targets: Array, total: float) -> Array:
    """LinearCrossEntropy.__call__."""
    xp, V = of(x), len(weight)
    x, targets, losses = xp.ascontiguousarray(x), int32(shaped("targets", targets, len(x))), xp.empty(len(x), x.dtype)
    for rows in _blocks(x, V):
        logits = xp.empty((rows.stop - rows.start, V), x.dtype)
        product(x[rows], weight, logits, transposed="NT")
        ROWS.on(logits, bias, targets[rows], losses[rows], None)(len(logits), V, total)
    return _sum(losses, total)


def forward_backward(x: Array, targets: Array, total: float, weight: Parameter, bias: Parameter) -> tuple[Array, Array]:
    """LinearCrossEntropy.forward_backward: (loss, dx); adds into the gradients of weight (V, D) and bias (V,)."""
    xp, V = of(x), len(weight.data)
    x, targets, losses = xp.ascontiguousarray(x), int32(shaped("targets", targets, len(x))), xp.empty(len(x), x.dtype)
    dx = xp.empty(x.shape, x.dtype)
    for rows in _blocks(x, V):
        logits = xp.empty((rows.stop - rows.start, V), x.dtype)
        product(x[rows], weight.data, logits, transposed="NT")
        dlogits = logits  # in place
        ROWS.on(logits, bias.data, targets[rows], losses[rows], dlogits)(len(logits), V, total)
        product(dlogits, weight.data, dx[rows])
        product(dlogits, x[rows], weight.grad, add=True, transposed="TN")
        add_column_sums(dlogits, bias.grad)
    return _sum(losses, total), dx


def _blocks(x: Array, V: int) -> list[slice]:
    """The rows of x in nearly equal blocks of at most BLOCK_BYTES of logits."""
    count = min(-(-len(x) * V * x.itemsize // BLOCK_BYTES), len(x))
    cuts = [len(x) * part // count for part in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(cuts)]


def _sum(losses: Array, total: float) -> Array:
    result = of(losses).empty((), "float64")
    SUM.on(losses, result)(1, len(losses), total)
    return result
