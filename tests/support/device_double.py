"""A double of CuPy on top of NumPy, to test the rules for device code without a GPU.

`install(monkeypatch)` puts it in `sys.modules` as "cupy". It has only the functions that minidl calls: an
AttributeError or an unknown keyword means that minidl calls something new, which has to be looked up in CuPy's
reference and added here. It is strict where CuPy is:

- host and device arrays do not mix, and only `.get()` converts to a NumPy array;
- reductions return 0-d device arrays; ufuncs take `out` but not `where`;
- float(), int(), bool(), get(), printing and indexing by a mask make the host wait, which is recorded in `syncs`;
- an out-of-range index array silently wraps around;
- arithmetic never warns; new memory is not zeroed (here it is NaN, so that reads of it show);
- a kernel is identified by name and computed by device_kernels; its arguments must match its signature: contiguous
  arrays of the declared dtype and NumPy scalars of exactly the declared type, since CuPy checks none of this;
- everything that would reach the device is recorded in `calls`;
- each thread has its own current device and stream, so another thread's work would go to the wrong ones: only the
  thread that installed the double may touch an array.
"""

from __future__ import annotations

import ctypes
import operator
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import device_kernels
import numpy as np
import pytest

from minidl import backend

syncs: list[str] = []  # what made the host wait, in order
addresses: set[tuple[int, int]] = set()  # (start, end) of the memory whose address an array has given out
calls: list[str] = []  # what reached the device, in order: kernels, products, "upload", and the rest
owner: list[int] = []  # the thread whose current device this is


class ndarray:
    """Replaces cupy.ndarray. `_host` is the NumPy array that serves as device memory."""

    __array_ufunc__ = None  # makes `numpy_array + device_array` call our operator, which refuses
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        self._memory = host

    @property
    def _host(self) -> np.ndarray:
        if threading.get_ident() not in owner:
            raise RuntimeError("a device array is used in a thread with a different current device and stream")
        return self._memory

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: _Memory(self))
    dtype = property(lambda self: self._host.dtype)
    itemsize = property(lambda self: self._host.itemsize)
    T = property(lambda self: ndarray(self._host.T))

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        """Views along the first axis."""
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[index] for index in range(len(self)))

    # what makes the host wait

    def get(self) -> np.ndarray:
        syncs.append("get")
        return self._host.copy()

    def __float__(self) -> float:
        syncs.append("float")
        return float(self._host)

    def __int__(self) -> int:
        syncs.append("int")
        return int(self._host)

    def __bool__(self) -> bool:
        syncs.append("bool")
        return bool(self._host)

    def __repr__(self) -> str:
        syncs.append("repr")
        return f"device {self._host!r}"

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    # what does not

    def copy(self) -> ndarray:
        calls.append("copy")
        return ndarray(self._host.copy())

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._host.reshape(*shape))

    def transpose(self, *axes: int) -> ndarray:
        return ndarray(self._host.transpose(*axes))

    def astype(self, dtype: Any) -> ndarray:
        calls.append("astype")
        return ndarray(self._host.astype(dtype))

    def sum(
        self, axis: int | None = None, dtype: Any = None, out: ndarray | None = None, keepdims: bool = False
    ) -> ndarray:
        calls.append("sum")
        result = _device(self._host.sum(axis=axis, dtype=dtype, keepdims=keepdims))
        return result if out is None else _into(out, result, "Out shape is mismatched")

    def max(self, axis: int | None = None, keepdims: bool = False) -> ndarray:
        calls.append("max")
        return _device(self._host.max(axis=axis, keepdims=keepdims))

    def all(self) -> ndarray:
        calls.append("all")
        return _device(self._host.all())

    def __getitem__(self, key: Any) -> ndarray:
        if any(isinstance(part, ndarray) for part in (key if isinstance(key, tuple) else (key,))):
            calls.append("take")
        return _device(self._host[self._key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        calls.append("fill")
        self._host[self._key(key)] = _host(value)

    def _key(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        if not any(isinstance(part, ndarray) for part in parts):
            if any(isinstance(part, (np.ndarray, list)) for part in parts):
                raise TypeError("a host index would be uploaded on every use")
            return key
        indices = []
        for axis, part in enumerate(parts):
            if not isinstance(part, ndarray):
                raise NotImplementedError("the double supports index arrays only from the first axis on")
            if part.dtype == bool:
                syncs.append("mask")
                indices.append(part._host)
            else:
                indices.append(part._host % self.shape[axis])
        return tuple(indices)


class _Memory:
    """Replaces cupy.cuda.MemoryPointer."""

    device_id = 0

    def __init__(self, array: ndarray) -> None:
        self.array = array

    @property
    def ptr(self) -> int:
        start = self.array._host.ctypes.data
        addresses.add((start, start + self.array.nbytes))
        return start

    def memset_async(self, value: int, size: int) -> None:
        calls.append("memset")
        assert self.array._host.flags.c_contiguous and size == self.array.nbytes
        self.array._host.reshape(-1).view(np.uint8)[...] = value


def _device(result: Any) -> ndarray:
    return ndarray(np.asarray(result))


def _into(out: ndarray, result: ndarray, message: str) -> ndarray:
    """`out`, filled with `result`, which must have the same shape."""
    if out.shape != result.shape:
        raise ValueError(message)
    out._host[...] = result._host
    return out


def _host(value: Any) -> Any:
    """The NumPy value behind an operand; host arrays are refused, scalars are not."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, (np.ndarray, list, tuple)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)

    def method(self: ndarray, *others: Any) -> ndarray:
        calls.append(name)
        with np.errstate(all="ignore"):
            return _device(function(self._host, *(_host(other) for other in others)))

    return method


def _reflected(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)

    def method(self: ndarray, other: Any) -> ndarray:
        calls.append(name)
        with np.errstate(all="ignore"):
            return _device(function(_host(other), self._host))

    return method


def _in_place(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)

    def method(self: ndarray, other: Any) -> ndarray:
        calls.append(name)
        with np.errstate(all="ignore"):
            function(self._host, _host(other))
        return self

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor", "lshift", "rshift", "matmul"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _reflected(f"__{_name}__"))
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _ufunc(name: str) -> Callable[..., ndarray]:
    function = getattr(np, name)

    def call(*operands: Any, out: ndarray | None = None) -> ndarray:
        if not any(isinstance(operand, ndarray) for operand in operands):
            raise TypeError(f"{name} needs a device array, got only host values: {operands}")
        calls.append(name)
        with np.errstate(all="ignore"):
            if out is None:
                return _device(function(*map(_host, operands)))
            function(*map(_host, operands), out=out._host)
            return out

    return call


def asarray(values: Any, dtype: Any = None) -> ndarray:
    if isinstance(values, ndarray):
        return values if dtype in (None, values.dtype) else values.astype(dtype)
    calls.append("upload")
    return ndarray(np.array(values, dtype))  # an upload, which the host need not wait for


def ascontiguousarray(array: ndarray) -> ndarray:
    if not isinstance(array, ndarray):
        raise TypeError(f"Unsupported type {type(array)}")
    if array._host.flags.c_contiguous:
        return array
    calls.append("copy")
    return ndarray(np.ascontiguousarray(array._host))


def array(values: ndarray, order: str) -> ndarray:
    assert isinstance(values, ndarray)
    calls.append("copy")
    return ndarray(np.array(values._host, order=order))  # type: ignore[call-overload]


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    calls.append("memset")
    return ndarray(np.zeros(shape, dtype))


def ones(shape: Any, dtype: Any = float) -> ndarray:
    calls.append("fill")
    return ndarray(np.ones(shape, dtype))


def zeros_like(array: ndarray) -> ndarray:
    calls.append("memset")
    return ndarray(np.zeros_like(_host(array)))


def empty(shape: Any, dtype: Any = float) -> ndarray:
    new = np.empty(shape, dtype)
    new.fill(np.nan if new.dtype.kind == "f" else 113)
    return ndarray(new)


def empty_like(array: ndarray) -> ndarray:
    return empty(array.shape, array.dtype)


def arange(stop: int, dtype: Any = None) -> ndarray:
    return ndarray(np.arange(stop, dtype=dtype))


def stack(arrays: Sequence[ndarray]) -> ndarray:
    calls.append("stack")
    return ndarray(np.stack([_host(array) for array in arrays]))


def copyto(target: ndarray, source: Any, where: ndarray | None = None) -> None:
    calls.append("copyto")
    np.copyto(target._host, _host(source), where=True if where is None else _host(where))


def _matrix(pointer: int, rows: int, columns: int, width: int, dtype: type) -> np.ndarray:
    """The (rows, columns) matrix at an address that an array has given out, with rows `width` numbers apart."""
    itemsize = np.dtype(dtype).itemsize
    size = ((rows - 1) * width + columns) * itemsize
    assert width >= columns and any(start <= pointer and pointer + size <= end for start, end in addresses)
    numbers = np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(numbers, (rows, columns), (width * itemsize, itemsize), writeable=True)


def _gemm(dtype: type, number: Any) -> Callable[..., None]:
    """cuBLAS's sgemm or dgemm: C = alpha op(A) op(B) + beta C, with column-major matrices."""

    def gemm(
        handle: str, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int, A: int, lda: int, B: int, ldb: int,
        beta: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        assert handle == "cublas" and {turn_a, turn_b} <= {0, 1}
        calls.append("product")
        left = _matrix(A, m, k, lda, dtype) if turn_a else _matrix(A, k, m, lda, dtype).T
        right = _matrix(B, k, n, ldb, dtype) if turn_b else _matrix(B, n, k, ldb, dtype).T
        out = _matrix(C, n, m, ldc, dtype).T
        times, kept = (number.from_address(pointer).value for pointer in (alpha, beta))
        with np.errstate(all="ignore"):  # with beta = 0 C is not read
            out[...] = times * (left @ right) + (kept * out if kept else 0)

    return gemm


class RawKernel:
    """cupy.RawKernel, for the kernels of device_kernels."""

    types = types.MappingProxyType(
        {"int": np.int32, "unsigned": np.uint32, "long long": np.int64, "float": np.float32, "double": np.float64}
    )

    def __init__(self, code: str, name: str) -> None:
        self.formula, self.name = getattr(device_kernels, name), name
        code = re.sub(r"//.*", "", code)
        (real,) = re.findall(r"typedef (\w+) real;", code)
        (listed,) = re.findall(r'extern "C" __global__ void ' + name + r"\(([^)]*)\)", code)
        declared = [re.sub(r"\breal\b", real, parameter).split() for parameter in listed.split(",")]
        self.parameters = [" ".join(words[:-1]).replace("const ", "") for words in declared]

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        assert block == (device_kernels.THREADS,) and 1 <= grid[0] < 2**31
        calls.append(self.name)
        given = [self._argument(value, declared) for value, declared in zip(args, self.parameters, strict=True)]
        with np.errstate(all="ignore"):
            self.formula(grid[0], *given)

    def _argument(self, value: Any, declared: str) -> Any:
        expected = self.types[declared.rstrip("*")]
        if not declared.endswith("*"):
            assert type(value) is expected, f"{self.name}: {declared} from a {type(value)}"
            return value
        if isinstance(value, np.uintp):
            assert value == 0
            return None
        assert isinstance(value, ndarray) and value.dtype == expected and value.flags.c_contiguous, self.name
        return value._host


def install(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Install the double as `sys.modules["cupy"]` until the test ends; returns the module."""
    syncs.clear()
    calls.clear()
    addresses.clear()
    owner[:] = [threading.get_ident()]
    # An optimizer left over from a failed test may still report an error; keep it from the next test.
    monkeypatch.setattr(backend, "_watchers", weakref.WeakSet())
    cupy = types.ModuleType("cupy")
    ufuncs = [
        "tanh",
        "exp",
        "log",
        "sqrt",
        "abs",
        "isfinite",
        "add",
        "subtract",
        "multiply",
        "divide",
        "minimum",
        "maximum",
    ]
    for name in ufuncs:
        setattr(cupy, name, _ufunc(name))
    functions = (
        *(array, asarray, ascontiguousarray, RawKernel, zeros, zeros_like, ones, empty, empty_like, arange),
        *(stack, copyto),
    )
    for thing in (ndarray, *functions):
        setattr(cupy, thing.__name__, thing)
    cupy.float64 = np.float64  # type: ignore[attr-defined]
    cupy.__version__ = "14.2.0"  # type: ignore[attr-defined]
    runtime = types.SimpleNamespace(
        driverGetVersion=lambda: 12090, runtimeGetVersion=lambda: 12090, getDeviceCount=lambda: 1, getDevice=lambda: 0
    )
    runtime.getDeviceProperties = lambda _: {"name": b"a double of a GPU"}
    device = types.SimpleNamespace(id=0, compute_capability="80", mem_info=(3 * 2**30, 4 * 2**30), use=lambda: None)
    cublas = types.SimpleNamespace(sgemm=_gemm(np.float32, ctypes.c_float), dgemm=_gemm(np.float64, ctypes.c_double))
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        runtime=runtime, Device=lambda number=0: device, cublas=cublas, get_cublas_handle=lambda: "cublas"
    )
    cupy.syncs = syncs  # type: ignore[attr-defined]
    cupy.calls = calls  # type: ignore[attr-defined]
    monkeypatch.setattr(backend.device, "_usable", cupy)  # already checked: the check itself makes calls and waits
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy
