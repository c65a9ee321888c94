"""Checks once, before any work is done, whether CuPy works here.

Each kind of failure has its own message, with the remedy. The check runs a first kernel and a first matrix product,
because CuPy only looks for the libraries that these need (NVRTC and cuBLAS) when they are used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

# Packages that contain a module called cupy. Only the second and third are CuPy 14 for an NVIDIA GPU from a wheel.
PACKAGES = ("cupy", "cupy-cuda12x", "cupy-cuda13x", "cupy-cuda11x")
PINS = {12: "'cupy-cuda12x[ctk]>=14,<15'", 13: "'cupy-cuda13x[ctk]>=14,<15'"}  # by CUDA's major version
DRIVERS = {12: "525", 13: "580"}  # the first driver that runs every program built for that CUDA
OLDEST_OF_CUDA_13 = 75  # compute capability 7.5, Turing
INSTALL = f"pip install {PINS[13]}, or {PINS[12]} if nvidia-smi shows a CUDA version below 13"
CACHE = "CUPY_CACHE_DIR must name a writable folder, where CuPy keeps compiled kernels"
EMULATOR = "CPU emulator (not a GPU)"  # the name of the device that tests/emulator provides
OUT_OF_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")

Value = TypeVar("Value")


class BackendError(RuntimeError):
    """The chosen backend cannot be used on this machine; the message says what to do."""


_usable: ModuleType | None = None  # the CuPy that passed the check


def usable_cupy() -> ModuleType:
    """The module `cupy`, checked once; BackendError if it does not work."""
    global _usable
    if _usable is None or sys.modules.get("cupy") is not _usable:
        _usable = _look()
    return _usable


def packages() -> dict[str, str]:
    """The installed packages that contain a module `cupy`: name and version."""
    from importlib import metadata  # slow to import, and only needed with CuPy

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def name(cupy: Any) -> str:
    """The name of the current GPU, or `EMULATOR`."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return str(properties["name"].decode())


def dotted(version: int) -> str:
    """A version of CUDA as people write it: 12040 as 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def uninstall() -> str:
    """The command that removes every package with a module `cupy`."""
    return f"pip uninstall --yes {' '.join(packages())}"


def reinstall() -> str:
    """The commands that replace the installed packages by one that works."""
    return f"{uninstall()}, then {INSTALL}" if packages() else f"remove it, then {INSTALL}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or in any of the ways that a GPU's libraries report it."""
    return isinstance(error, MemoryError) or any(code in str(error) for code in OUT_OF_MEMORY)


def gist(error: BaseException) -> str:
    """The first line of an error's message; CuPy wraps the reason for a failed import in a page of advice."""
    cause = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def _look() -> ModuleType:
    installed = list(packages())
    if len(installed) > 1:
        raise _error(f"finds {len(installed)} packages of CuPy that overwrite each other's files: {reinstall()}")
    cupy = _imported()
    _require_driver(cupy)
    _require_gpu(cupy)
    pin = PINS[_cuda(cupy)]
    ones = _try(lambda: cupy.ones((2, 2), np.float32), "first kernel cannot be compiled and run", pin)
    _try(lambda: (ones @ ones).get(), "first matrix product fails", pin)
    return cupy


def _error(message: str) -> BackendError:
    return BackendError(f"backend 'cupy' {message}")


def _imported() -> Any:
    try:
        cupy: Any = importlib.import_module("cupy")
    except Exception as error:  # a broken CUDA installation raises more than ImportError
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy" and not packages():
            raise _error(f"needs CuPy, which is not installed: {INSTALL}") from error
        if _is_of_a_file(error):  # CuPy creates its cache of compiled kernels on import
            raise _error(f"needs CuPy, which cannot be imported ({gist(error)}): {CACHE}") from error
        raise _error(f"needs CuPy, which cannot be imported ({gist(error)}): {reinstall()}") from error
    if not hasattr(cupy, "ndarray"):  # Python imports an empty folder without complaint
        folder = next(iter(cupy.__path__), "?")
        raise _error(f"needs CuPy, but finds only the folder {folder} without it: delete it, then {INSTALL}")
    if int(cupy.__version__.split(".")[0]) < 14:
        raise _error(f"needs CuPy 14, this is {cupy.__version__}: {reinstall()}")
    if _cuda(cupy) not in PINS:
        raise _error(f"needs CuPy for CUDA 12 or 13, this is for {_cuda(cupy)}: {reinstall()}")
    return cupy


def _require_driver(cupy: Any) -> None:
    driver = _try(cupy.cuda.runtime.driverGetVersion, "cannot query the driver version")
    if driver == 0:  # later calls would report "insufficient", as if there were one
        raise _error(
            "finds no NVIDIA driver: install one from https://www.nvidia.com/drivers, and start a container with "
            "--gpus all; nvidia-smi then shows the GPU"
        )
    has, wants = driver // 1000, _cuda(cupy)
    if has < wants:
        instead = f", or {uninstall()} and pip install {PINS[has]}" if has in PINS else ""
        raise _error(
            f"has a driver that is too old: CuPy is built for CUDA {wants}, the driver supports CUDA "
            f"{dotted(driver)}; install driver {DRIVERS[wants]} or later{instead}"
        )


def _require_gpu(cupy: Any) -> None:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "cudaErrorNoDevice" not in str(error):
            raise _error(f"cannot use the GPU, CuPy reports {gist(error)}; nvidia-smi must show the GPU") from error
        count = 0
    if count < 1:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = "nvidia-smi must show one" if hidden is None else f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r}"
        raise _error(f"needs an NVIDIA GPU, but the driver finds none: {remedy}")
    capability = int(_try(lambda: cupy.cuda.Device().compute_capability, "cannot query the GPU"))
    if _cuda(cupy) >= 13 and capability < OLDEST_OF_CUDA_13:
        raise _error(
            f"needs CUDA 12 for this GPU, whose compute capability {capability / 10:.1f} CUDA 13 no longer supports: "
            f"{uninstall()}, then pip install {PINS[12]}"
        )


def _cuda(cupy: Any) -> int:
    """The major version of the CUDA that this CuPy was built for."""
    return int(cupy.cuda.runtime.runtimeGetVersion() // 1000)


def _is_of_a_file(error: Exception) -> bool:
    """Whether the system refused a named file or folder; a library that fails to load has no name."""
    return isinstance(error, OSError) and error.filename is not None


def _try(action: Callable[[], Value], failure: str, pin: str = "") -> Value:
    """The result of `action`, or a BackendError with `failure` and the package that may be missing."""
    try:
        return action()
    except Exception as error:
        if is_out_of_memory(error):
            remedy = "the GPU's memory is full: stop the other programs that use it (nvidia-smi lists them)"
        elif _is_of_a_file(error):
            remedy = CACHE
        elif "cudaErrorDevicesUnavailable" in str(error):  # in exclusive mode, or disabled
            remedy = "stop the other programs that use the GPU (nvidia-smi lists them, and its compute mode)"
        else:
            remedy = f"pip install {pin} installs NVRTC and cuBLAS" if pin else "nvidia-smi must show the GPU"
        raise _error(f"is not usable, {failure} ({gist(error)}): {remedy}") from error
