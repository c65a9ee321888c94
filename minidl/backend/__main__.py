"""python -m minidl.backend: reports what is installed, NumPy and CuPy, and whether a GPU gives correct results.

Exit code 0 if CuPy works, 1 with one line that says why not. NumPy always works.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from ..kernels.cpu.threads import get_num_threads, usable_cores
from . import BackendError, device, get


def main() -> int:
    """Print the report; returns the exit code."""
    blas = [f"{found['internal_api']} {found['version']}" for found in threadpool_info() if found["user_api"] == "blas"]
    print(f"NumPy   {np.__version__} with {', '.join(blas) or 'an unnamed BLAS'}")
    print(f"threads {get_num_threads()}, of {usable_cores()} cores that this process may use")
    try:
        report_cupy()
    except BackendError as error:
        print(end="", flush=True)  # keeps the lines in order if both streams go to one place
        print(f"minidl.backend: error: {error}", file=sys.stderr)
        return 1
    return 0


def report_cupy() -> None:
    """Print what is known about CuPy and the GPU, line by line."""
    installed = ", ".join(f"{version} ({name})" for name, version in device.packages().items())
    print(f"CuPy    {installed or 'no package of that name is installed'}", flush=True)
    started = time.perf_counter()
    cupy = get("cupy")
    seconds = time.perf_counter() - started
    print("\n".join(facts(cupy)))
    check(cupy)
    print(f"check   a first kernel and matrix product are correct, after {seconds:.1f} s")


def facts(cupy: Any) -> list[str]:
    """Lines that describe CUDA, the driver and the GPU."""
    runtime, gpu = cupy.cuda.runtime, cupy.cuda.Device()
    free, total = (size / 2**30 for size in gpu.mem_info)
    capability = int(gpu.compute_capability) / 10
    lines = [
        f"CUDA    {device.dotted(runtime.runtimeGetVersion())}; the driver supports up to "
        f"{device.dotted(runtime.driverGetVersion())}",
        f"device  {gpu.id} of {runtime.getDeviceCount()}: {device.name(cupy)}, compute capability {capability:.1f}, "
        f"{free:.1f} of {total:.1f} GiB free",
    ]
    if device.name(cupy) == device.EMULATOR:
        lines.append("note    this is not a GPU: CuPy runs on a CPU emulator")
    return lines


def check(cupy: Any) -> None:
    """Compare a kernel and a matrix product with NumPy; BackendError if they differ."""
    host = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    x = cupy.asarray(host)
    for what, got, expected in (
        ("kernel", x * 2 + 1, host * 2 + 1),
        ("matrix product", x @ x.T, host @ host.T),
    ):
        if not np.allclose(got.get(), expected, rtol=1e-5):
            raise BackendError(f"backend 'cupy' gives wrong results for a first {what}: {device.reinstall()}")


def program() -> int:
    """Run `main` from the command line: its exit code, or 2 if it cannot run; a closed pipe is not an error."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None under pythonw; a path may have characters that the console lacks
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        if sys.argv[1:] in (["-h"], ["--help"]):
            print(__doc__, end="", flush=True)
            return 0
        if sys.argv[1:]:
            print(f"minidl.backend: error: takes no arguments, got {sys.argv[1]!r}", file=sys.stderr)
            return 2
        code = main()
        print(end="", flush=True)
        return code
    except BrokenPipeError:
        code = 0
    except OSError as error:
        print(f"minidl.backend: error: {error}", file=sys.stderr)
        code = 2
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # leaves nothing to flush at exit
    return code


if __name__ == "__main__":
    sys.exit(program())
