"""Programs with one fault each, for test_emulator_faults.py: `faults.py NAME` prints the resulting numbers.

Each looks right if work runs at once and in order. In the mode that reveals it, the numbers are wrong or the program
dies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import cupy
import cupyx
import numpy as np


def kernel(name: str, body: str) -> Any:
    return cupy.RawKernel(f'extern "C" __global__ void {name}(float* x, float* y, int n) {{ {body} }}', name)


INDEX = "int i = blockIdx.x * blockDim.x + threadIdx.x;"
CHAIN = f"{INDEX} if (i < n) y[i] = i ? y[i - 1] + 1 : 0;"
NEIGHBOUR = "__shared__ float s[8]; int i = threadIdx.x; s[i] = x[i]; {} y[i] = i ? s[i - 1] : s[i];"
COPY = f"{INDEX} if (i <= n) y[i] = x[i];"  # one element too many
LATE = f"{INDEX} if (i <= n) y[i] = 1;"
DIVERGED = "if (threadIdx.x < 4) __syncthreads(); y[threadIdx.x] = x[threadIdx.x]; __syncthreads();"


def arrays(n: int) -> tuple[Any, Any]:
    return cupy.arange(n, dtype=np.float32), cupy.zeros(n, np.float32)


def threads_that_read_what_others_write() -> Any:
    x, y = arrays(8)
    kernel("chain", CHAIN)((1,), (8,), (x, y, np.int32(8)))
    return y


def blocks_that_read_what_others_write() -> Any:
    x, y = arrays(8)
    kernel("chain", CHAIN)((8,), (1,), (x, y, np.int32(8)))
    return y


def a_missing_barrier() -> Any:
    x, y = arrays(8)
    kernel("neighbour", NEIGHBOUR.format(""))((1,), (8,), (x, y, np.int32(8)))
    return y


def no_fault() -> Any:
    """a_missing_barrier with its barrier."""
    x, y = arrays(8)
    kernel("neighbour", NEIGHBOUR.format("__syncthreads();"))((1,), (8,), (x, y, np.int32(8)))
    return y


def a_result_that_is_read_too_early() -> Any:
    x, _ = arrays(8)
    host = cupyx.zeros_pinned(8, np.float32)
    x.get(out=host, blocking=False)
    return host.copy()


def a_source_that_changes_before_it_was_copied() -> Any:
    host = cupyx.zeros_pinned(8, np.float32)
    host[:] = np.arange(8)
    x = cupy.empty(8, np.float32)
    x.set(host, stream=cupy.cuda.Stream.null)
    host[:] = -1
    return x


def used_memory(n: int) -> None:
    """Leave zeros in the pool, so that the next allocation looks cleared."""
    blocks = [cupy.zeros(n, np.float32) for _ in range(3)]
    del blocks


def a_read_past_the_end() -> Any:
    used_memory(9)
    x, y = arrays(8)[0], cupy.zeros(9, np.float32)
    kernel("copy", COPY)((1,), (16,), (x, y, np.int32(8)))
    return y[:8]


def a_write_past_the_end() -> Any:
    """A write into a block's few bytes of alignment padding: detected when it is freed."""
    x, y = arrays(7)
    kernel("late", LATE)((1,), (16,), (x, y, np.int32(7)))
    cupy.cuda.Device().synchronize()
    return y


def memory_that_was_never_written() -> Any:
    used_memory(8)
    return cupy.empty(8, np.float32) + cupy.arange(8, dtype=np.float32)


def a_barrier_that_some_threads_never_reach() -> Any:
    x, y = arrays(8)
    kernel("diverged", DIVERGED)((1,), (8,), (x, y, np.int32(8)))
    return y


if __name__ == "__main__":
    program: Callable[[], Any] = globals()[sys.argv[1]]
    print(np.asarray(cupy.asnumpy(program())).tolist())
