"""The real CuPy on the CPU: a Python that has it, the modes it runs in, and a count of the device calls.

    subprocess.run([emulator.python(), "program.py"], env=emulator.environment("guarded"))

and in such a program:

    with emulator.trace() as calls:
        y, cache = layer.forward(x)
    print(calls.launches, calls.products, calls.syncs)

It is built on first use, which takes about a minute; README.md says how it works and what it can show.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import emulator_build as build
from emulator_build import Unavailable

__all__ = ["MODES", "Calls", "Unavailable", "environment", "is_here", "python", "run", "trace"]

MODES = {
    "plain": "runs work at once and in order",
    "reversed": "runs the last block and thread first: reveals results that depend on thread order",
    "deferred": "runs work only when the host waits: reveals values read too early",
    "guarded": "puts arrays between guard pages, filled with NaN: reveals reads out of bounds or of unwritten memory",
    "idle": "counts kernels and products without running them: shows the host's cost of a step",
}


@functools.cache
def _folders() -> tuple[Path, Path]:
    environment = build.environment_folder()
    return environment, build.driver_folder(environment)


def python() -> str:
    """The Python to run. Raises Unavailable if the emulator cannot be built."""
    return str(build.python_of(_folders()[0]))


def environment(mode: str = "plain") -> dict[str, str]:
    """The environment variables to run it with: this process's, with the emulator's own variables replaced."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    driver = _folders()[1]
    path = [build.HERE / "start", build.HERE, build.ROOT]  # ROOT: minidl from the same checkout
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "MINIDL_EMULATOR": str(driver),
        "MINIDL_EMULATOR_MODE": mode,
        "CUPY_CACHE_DIR": str(driver / "kernels"),
        "CUPY_ACCELERATORS": "",  # CUB and cuTENSOR are precompiled for GPUs
        "OPENBLAS_NUM_THREADS": "1",
    }


def run(*arguments: object, mode: str = "plain", timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the emulator's Python with these arguments and capture its output."""
    command = [python(), *map(str, arguments)]
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, env=environment(mode), timeout=timeout, check=False, **options)  # type: ignore[call-overload]


def is_here() -> bool:
    """Whether this process runs on the emulator."""
    return bool(os.environ.get("MINIDL_EMULATOR"))


@dataclass
class Calls:
    """The device calls within a `trace`. All fields but the last are in the order of `Call` in driver/emulator.h."""

    launches: int = 0  # kernels
    products: int = 0  # cuBLAS
    copies_to_device: int = 0
    copies_to_host: int = 0
    copies_on_device: int = 0
    fills: int = 0
    syncs: int = 0  # waits of the host
    allocations: int = 0  # memory from the driver; reuse within CuPy's pool is not counted
    host_allocations: int = 0  # pinned memory
    record: list[str] = field(default_factory=list)  # every call in order, such as "product: 4x8x3"

    @property
    def device_calls(self) -> int:
        """The work queued on the device: kernels, products, and copies and fills of its own memory."""
        return self.launches + self.products + self.copies_on_device + self.fills


@contextlib.contextmanager
def trace() -> Iterator[Calls]:
    """Count the device calls of the block; the numbers are set when it ends. Blocks do not nest."""
    if not is_here():
        raise RuntimeError("nothing can be counted here: this Python was not started with emulator.environment()")
    driver = ctypes.CDLL(str(Path(os.environ["MINIDL_EMULATOR"]) / "lib" / "libcuda.so.1"))
    driver.emulator_record.restype, driver.emulator_count.restype = ctypes.c_char_p, ctypes.c_long
    calls = Calls()
    driver.emulator_reset(True)
    try:
        yield calls
    finally:
        for number, counted in enumerate(fields(Calls)[:-1]):
            setattr(calls, counted.name, driver.emulator_count(number))
        calls.record = driver.emulator_record().decode().splitlines()
        driver.emulator_reset(False)
