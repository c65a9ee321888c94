"""The embedding's gradient on a GPU: the same bits every time, unlike with atomic additions.

dweight[v] += the sum of dy[n] over all n with ids[n] = v. Each sum belongs to one block of threads, which adds the
rows in order: first LANES partial sums, each over every LANES-th row of that id, then their total. `minidl.pack` sorts
the ids on the host, so a block finds its rows without a search. If only the device knows the ids, every block scans all
of them, which is slower but gives the same bits.
"""

from __future__ import annotations

import numpy as np

from ... import backend, checks
from ...backend import Array
from ...sequences import RowsById, upload
from .launch import THREADS, Kernel, int32, shaped

LANES = 8  # partial sums of one id
UNITS = THREADS // LANES  # of the embedding in one block: a warp, which reads neighbours together

# A block's sum over its lanes, at the end of both kernels.
_FINISH = r"""
    __shared__ real parts[LANES][UNITS];
    parts[lane][unit] = total;
    __syncthreads();
    if (lane == 0 && d < D) {
        for (int other = 1; other < LANES; other++) total += parts[other][unit];
        dweight[id * D + d] += total;
    }
}
"""

# One block for each id that occurs, and each UNITS of the embedding.
RUNS = Kernel(
    f"#define LANES {LANES}\n#define UNITS {UNITS}"
    + r"""
extern "C" __global__ void embedding_runs(
    const real* dy,     // (N, D)
    const int* ids,     // (N)
    const int* rows,    // (N): the rows sorted by their id
    const int* starts,  // (R + 1): where in `rows` each of the R ids begins, and the end
    real* dweight,      // (V, D)
    int slices,         // blocks for one id
    long long D)
{
    int unit = threadIdx.x % UNITS, lane = threadIdx.x / UNITS;
    int run = blockIdx.x / slices;
    long long d = blockIdx.x % slices * UNITS + unit;
    long long id = ids[rows[starts[run]]];

    real total = 0;
    if (d < D)
        for (int k = starts[run] + lane; k < starts[run + 1]; k += LANES) total += dy[rows[k] * D + d];
"""
    + _FINISH
)

# One block for each row of the table, and each UNITS of the embedding.
SEARCH = Kernel(
    f"#define LANES {LANES}\n#define UNITS {UNITS}"
    + r"""
extern "C" __global__ void embedding_search(
    const real* dy,  // (N, D)
    const int* ids,  // (N)
    real* dweight,   // (V, D)
    long long N,
    int slices,
    long long D)
{
    __shared__ int seen[THREADS];
    __shared__ int found;
    int unit = threadIdx.x % UNITS, lane = threadIdx.x / UNITS;
    long long id = blockIdx.x / slices;
    long long d = blockIdx.x % slices * UNITS + unit;

    real total = 0;
    int matches = 0;
    for (long long first = 0; first < N; first += THREADS) {  // all threads scan THREADS ids together
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        seen[threadIdx.x] = first + threadIdx.x < N ? ids[first + threadIdx.x] : -1;
        if (seen[threadIdx.x] == id) found = 1;
        __syncthreads();
        if (found && d < D)
            for (int k = 0; k < THREADS; k++)
                if (seen[k] == id && matches++ % LANES == lane) total += dy[(first + k) * D + d];
        __syncthreads();  // before `found` and `seen` are written again
    }
"""
    + _FINISH
)

KERNELS = (RUNS, SEARCH)


def checked(ids: Array, order: RowsById | None, weight: Array) -> tuple[Array, RowsById | None]:
    """`ids` on the device, checked as far as the host knows them, and their order if it is known."""
    if not backend.is_device(ids):
        ids = checks.ids("ids", ids, len(weight), like=np.empty(0))  # stays on the host
        order, (ids,) = upload(ids)
        return ids, order
    ids = checks.ids("ids", ids, len(weight), like=weight)
    if order is not None and (order.smallest < 0 or order.largest >= len(weight)):
        wrong = order.smallest if order.smallest < 0 else order.largest
        raise IndexError(f"ids contains the id {wrong}; expected 0 to {len(weight) - 1}")
    return ids, order


def add_rows(dweight: Array, ids: Array, dy: Array, order: RowsById | None) -> None:
    """dweight[ids[n]] += dy[n] for every n; dweight (V, D), ids (N,), dy (N, D)."""
    (V, D), N = dweight.shape, len(ids)
    ids, dy, slices = int32(ids), shaped("dy", dy, N, D), -(-D // UNITS)
    if order is None:
        SEARCH.on(dy, ids, dweight)(V * slices, N, slices, D)
    else:
        shaped("order.rows", order.rows, N)
        RUNS.on(dy, ids, order.rows, order.starts, dweight)((len(order.starts) - 1) * slices, slices, D)
