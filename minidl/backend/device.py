"""Whether CuPy can work here, looked at once and before any work is done.

Every way in which it cannot has a message of its own, with its remedy. A first kernel and a first matrix product are
part of it, because the libraries that these need (NVRTC and cuBLAS) are only looked for when they are used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

# Packages that all hold a module called cupy. Only the second and third are CuPy 14 for an NVIDIA GPU from a wheel.
PACKAGES = ("cupy", "cupy-cuda12x", "cupy-cuda13x", "cupy-cuda11x")
PINS = {12: "'cupy-cuda12x[ctk]>=14,<15'", 13: "'cupy-cuda13x[ctk]>=14,<15'"}  # by CUDA's major version
DRIVERS = {12: "525", 13: "580"}  # the first driver that runs every program made for that CUDA
OLDEST_OF_CUDA_13 = 75  # compute capability 7.5, Turing
INSTALL = f"pip install {PINS[13]}, or {PINS[12]} if nvidia-smi shows a CUDA version below 13"
CACHE = "CUPY_CACHE_DIR must name a folder that can be written, where CuPy keeps compiled kernels"
EMULATOR = "CPU emulator (not a GPU)"  # the name of the device that tests/emulator pretends to be
OUT_OF_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")

Value = TypeVar("Value")


class BackendError(RuntimeError):
    """The chosen backend cannot be used on this machine; the message says what to do."""


_usable: ModuleType | None = None  # the CuPy that has passed


def usable_cupy() -> ModuleType:
    """The module `cupy`, known to work; BackendError if it does not."""
    global _usable
    if _usable is None or sys.modules.get("cupy") is not _usable:
        _usable = _look()
    return _usable


def packages() -> dict[str, str]:
    """The installed packages that hold a module `cupy`: name and version."""
    from importlib import metadata  # slow to import, and wanted only where CuPy is

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def name(cupy: Any) -> str:
    """The name of the GPU at work, or `EMULATOR`."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return str(properties["name"].decode())


def dotted(version: int) -> str:
    """A version of CUDA as people write it: 12040 as 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def uninstall() -> str:
    """The command that removes every package that holds a module `cupy`."""
    return f"pip uninstall --yes {' '.join(packages())}"


def reinstall() -> str:
    """What puts one right package in the place of those that are there."""
    return f"{uninstall()}, then {INSTALL}" if packages() else f"remove it, then {INSTALL}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or in one of the ways in which a GPU's libraries tell it."""
    return isinstance(error, MemoryError) or any(code in str(error) for code in OUT_OF_MEMORY)


def gist(error: BaseException) -> str:
    """The first line of what an error says; CuPy wraps the reason of a failed import into a page of advice."""
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
        if _is_of_a_file(error):  # CuPy makes its cache of compiled kernels as it is imported
            raise _error(f"needs CuPy, which cannot be imported ({gist(error)}): {CACHE}") from error
        raise _error(f"needs CuPy, which cannot be imported ({gist(error)}): {reinstall()}") from error
    if not hasattr(cupy, "ndarray"):  # a folder is enough for Python to import something
        folder = next(iter(cupy.__path__), "?")
        raise _error(f"needs CuPy, but in its place is the folder {folder} without one: delete it, then {INSTALL}")
    if int(cupy.__version__.split(".")[0]) < 14:
        raise _error(f"needs CuPy 14, this is {cupy.__version__}: {reinstall()}")
    if _cuda(cupy) not in PINS:
        raise _error(f"needs CuPy for CUDA 12 or 13, this is for {_cuda(cupy)}: {reinstall()}")
    return cupy


def _require_driver(cupy: Any) -> None:
    driver = _try(cupy.cuda.runtime.driverGetVersion, "cannot ask for the driver's version")
    if driver == 0:  # later calls would say "insufficient", which sounds as if there were one
        raise _error(
            "finds no NVIDIA driver: install one from https://www.nvidia.com/drivers, and start a container with "
            "--gpus all; nvidia-smi then shows the GPU"
        )
    has, wants = driver // 1000, _cuda(cupy)
    if has < wants:
        instead = f", or {uninstall()} and pip install {PINS[has]}" if has in PINS else ""
        raise _error(
            f"has a driver that is too old: CuPy is built for CUDA {wants}, the driver knows CUDA "
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
        raise _error(f"needs an NVIDIA GPU, and the driver sees none: {remedy}")
    capability = int(_try(lambda: cupy.cuda.Device().compute_capability, "cannot ask what the GPU is"))
    if _cuda(cupy) >= 13 and capability < OLDEST_OF_CUDA_13:
        raise _error(
            f"needs CUDA 12 for this GPU, whose compute capability {capability / 10:.1f} CUDA 13 has left behind: "
            f"{uninstall()}, then pip install {PINS[12]}"
        )


def _cuda(cupy: Any) -> int:
    """The major version of the CUDA that this CuPy was built for."""
    return int(cupy.cuda.runtime.runtimeGetVersion() // 1000)


def _is_of_a_file(error: Exception) -> bool:
    """Whether the system refused a file or folder by name; a library that cannot be loaded has none."""
    return isinstance(error, OSError) and error.filename is not None


def _try(action: Callable[[], Value], failure: str, pin: str = "") -> Value:
    """What `action` gives; else a BackendError that begins with `failure`, with the package that has what may lack."""
    try:
        return action()
    except Exception as error:
        if is_out_of_memory(error):
            remedy = "the GPU's memory is full: end what else uses it, nvidia-smi shows it"
        elif _is_of_a_file(error):
            remedy = CACHE
        elif "cudaErrorDevicesUnavailable" in str(error):  # held in the exclusive mode, or shut off
            remedy = "end what else uses the GPU, nvidia-smi shows it and its compute mode"
        else:
            remedy = f"pip install {pin} brings NVRTC and cuBLAS" if pin else "nvidia-smi must show the GPU"
        raise _error(f"is not usable, {failure} ({gist(error)}): {remedy}") from error
