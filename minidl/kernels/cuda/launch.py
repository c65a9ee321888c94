"""Launching a CUDA kernel.

CuPy's RawKernel checks none of its arguments: an array of the wrong dtype, a view with gaps or a Python float (a
double) is read as if it were what the kernel expects. So every argument is checked or converted here, according to the
kernel's own signature.

In a kernel `real` is float or double, depending on its arrays. The threads of a block sum in shared memory by halves,
always in the same order, so the same input gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ... import backend, checks
from ...backend import Array

THREADS = 256  # per block; kernels use the same name

_REAL = {"float32": "float", "float64": "double"}
_FIXED = {"int": np.int32, "unsigned": np.uint32, "long long": np.int64, "float": np.float32, "double": np.float64}


class _Parameter(NamedTuple):
    name: str
    type: str  # without const and *
    pointer: bool


class Kernel:
    """One kernel, compiled at its first launch for each device and dtype.

        SCALE = Kernel('extern "C" __global__ void scale(real* x, long long size, real factor) { ... }')
        SCALE.on(x)(blocks(x.size), x.size, 0.5)

    `on` checks the arrays once, so that a loop over time steps need not. Arrays come first in the signature, numbers
    after them. None is a null pointer.
    """

    def __init__(self, source: str) -> None:
        found = re.search(r"__global__ void (\w+)\(([^)]*)\)", re.sub(r"//.*", "", source))
        assert found, "a kernel has a signature"
        self.name = found[1]
        self._template = source
        parameters = [_parameter(text) for text in found[2].split(",")]
        self.arrays = [parameter for parameter in parameters if parameter.pointer]
        self.numbers = [parameter for parameter in parameters if not parameter.pointer]
        assert parameters == self.arrays + self.numbers, f"{self.name}: arrays come before numbers"
        self._compiled: dict[str, Any] = {}

    def source(self, dtype: str) -> str:
        """The CUDA source with `real` as the C type of `dtype`."""
        return f"#define THREADS {THREADS}\ntypedef {_REAL[dtype]} real;\n{self._template}"

    def on(self, *arrays: Array | None) -> Callable[..., None]:
        """launch(blocks, *numbers) on these arrays; TypeError or ValueError if the kernel would misread one."""
        assert len(arrays) == len(self.arrays), f"{self.name} takes {len(self.arrays)} arrays, got {len(arrays)}"
        dtype = next(a.dtype for a, p in zip(arrays, self.arrays, strict=True) if p.type == "real" and a is not None)
        checks.float_dtype(dtype, self.name)
        types = {**_FIXED, "real": dtype.type}
        for array, parameter in zip(arrays, self.arrays, strict=True):
            self._check(array, parameter, np.dtype(types[parameter.type]))
        require_current(self.name, *arrays)
        pointers = tuple(np.uintp(0) if array is None else array for array in arrays)
        converters = [types[parameter.type] for parameter in self.numbers]
        compiled = self._compile(dtype.name)

        def launch(blocks: int, *numbers: float) -> None:
            values = [convert(number) for convert, number in zip(converters, numbers, strict=True)]
            compiled((blocks,), (THREADS,), (*pointers, *values))

        return launch

    def _check(self, array: Array | None, parameter: _Parameter, dtype: np.dtype) -> None:
        name = f"{self.name}: {parameter.name}"
        if array is None:
            return
        if not backend.is_device(array):
            raise TypeError(f"{name} must be a cupy array, got {type(array).__name__}")
        if array.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous, got {array.shape} with gaps or in another order")

    def _compile(self, dtype: str) -> Any:
        if dtype not in self._compiled:
            import cupy

            self._compiled[dtype] = cupy.RawKernel(self.source(dtype), self.name)  # it keeps one per device
        return self._compiled[dtype]


def _parameter(text: str) -> _Parameter:
    declared, name = text.replace("*", " * ").strip().rsplit(maxsplit=1)
    words = declared.replace("const", "").split()
    pointer = words[-1] == "*"
    return _Parameter(name, " ".join(words[:-1] if pointer else words), pointer)


def blocks(threads: int) -> int:
    """The number of blocks for that many threads."""
    return -(-threads // THREADS)


def require_current(name: str, *arrays: Array | None) -> None:
    """ValueError for an array that is not on the current GPU, where its address would be meaningless."""
    import cupy

    here = cupy.cuda.runtime.getDevice()
    for array in arrays:
        if array is not None and array.data.device_id != here and array.size:
            there = array.data.device_id
            raise ValueError(
                f"{name} got an array on GPU {there} while GPU {here} is current: "
                f"work within `with cupy.cuda.Device({there}):`"
            )


def shaped(name: str, array: Array, *shape: int) -> Array:
    """`array` made contiguous, with its shape checked: a kernel would read past its end."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return backend.of(array).ascontiguousarray(array)


def int32(ids: Array) -> Array:
    """`ids` as kernels expect them; ids from `pack` already are."""
    return backend.of(ids).ascontiguousarray(ids if ids.dtype == np.int32 else ids.astype(np.int32))
