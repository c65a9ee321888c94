"""Matrix products that add in place, one direct cuBLAS call each.

CuPy's own functions cost the host 8 µs a product; these cost 1 µs, and a loop over time waits for the host. The price
is that cuBLAS checks nothing, so all operands are checked here: one dtype, no gaps.

cuBLAS is column-major: a matrix that NumPy calls (n, k) is (k, n) to it. It is therefore asked for
out^T = op(b)^T op(a)^T, whose operands are b and a as they are in memory, and whose result has the layout of `out`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ... import backend
from ...backend import Array
from .launch import require_current

# 0 and 1 in host memory, where cuBLAS reads the factors alpha and beta
_FACTORS = {dtype: np.array([0, 1], dtype) for dtype in ("float32", "float64")}


def product(a: Array, b: Array, out: Array, add: bool = False, transposed: str = "NN") -> None:
    """out = op(a) op(b), or out += op(a) op(b), all 2-D; `transposed` has a "T" for each transposed operand."""
    a, b = backend.of(a).ascontiguousarray(a), backend.of(b).ascontiguousarray(b)
    rows, inner = a.shape if transposed[0] == "N" else a.shape[::-1]
    inner_of_b, columns = b.shape if transposed[1] == "N" else b.shape[::-1]
    if inner != inner_of_b or out.shape != (rows, columns):
        raise ValueError(f"no product {transposed} of {a.shape} and {b.shape} has the shape {out.shape}")
    _gemm(a, b, out, add, transposed)(rows, inner, 0, 0)


def products_of_rows(
    a: Array, b: Array, out: Array, add: bool = False, transposed: str = "N"
) -> Callable[[int, int, int], None]:
    """multiply(n, a_start, out_start): out[out_start:][:n] = (or +=) a[a_start:][:n] op(b).

    The arrays are checked here, once for all time steps; the caller guarantees that the rows exist.
    """
    b = backend.of(b).ascontiguousarray(b)
    inner, columns = b.shape if transposed == "N" else b.shape[::-1]
    if a.shape[1:] != (inner,) or out.shape[1:] != (columns,):
        raise ValueError(f"no product of rows {a.shape} with {b.shape} gives rows {out.shape}")
    gemm = _gemm(a, b, out, add, "N" + transposed)
    a_row, out_row = inner * a.itemsize, columns * out.itemsize

    def multiply(n: int, a_start: int, out_start: int) -> None:
        gemm(n, inner, a_start * a_row, out_start * out_row)

    return multiply


def add_column_sums(x: Array, out: Array) -> None:
    """out (D,) += the sum of the rows of x (N, D): a product with ones, which keeps the GPU busy at any shape."""
    product(backend.of(x).ones((1, len(x)), x.dtype), x, out.reshape(1, -1), add=True)


def _gemm(a: Array, b: Array, out: Array, add: bool, transposed: str) -> Callable[[int, int, int, int], None]:
    """gemm(rows, inner, bytes into a, bytes into out) on checked arrays."""
    import cupy

    for name, array in (("a", a), ("b", b), ("out", out)):
        if not backend.is_device(array):
            raise TypeError(f"the product's {name} must be a cupy array, got {type(array).__name__}")
        if array.dtype != out.dtype or array.dtype.name not in _FACTORS:
            raise TypeError(f"the product's {name} must be {out.dtype}, float32 or float64, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"the product's {name} must be C-contiguous, got {array.shape} with gaps or reordered")
    require_current("the product", a, b, out)
    call = cupy.cuda.cublas.sgemm if out.dtype == np.float32 else cupy.cuda.cublas.dgemm
    zero, one = _factors(out.dtype.name)
    turned_a, turned_b = (int(letter == "T") for letter in transposed)
    a_width, b_width, columns = a.shape[1], b.shape[1], out.shape[1]
    handle, a_start, b_start, out_start = cupy.cuda.get_cublas_handle(), a.data.ptr, b.data.ptr, out.data.ptr

    alive = a, b, out  # kept alive by gemm, which only has their addresses

    def gemm(rows: int, inner: int, a_bytes: int, out_bytes: int, alive: object = alive) -> None:
        first, second = a_start + a_bytes, out_start + out_bytes
        beta = one if add else zero
        call(
            *(handle, turned_b, turned_a, columns, rows, inner, one, b_start, b_width, first, a_width),
            *(beta, second, columns),
        )

    return gemm


@functools.cache
def _factors(dtype: str) -> tuple[int, int]:
    """The addresses of 0 and of 1."""
    start = _FACTORS[dtype].ctypes.data
    return start, start + _FACTORS[dtype].itemsize
