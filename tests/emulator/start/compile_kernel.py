"""Kernels for the CPU: NVRTC must accept the source, then g++ makes a shared library of the same text."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "MINIDL_EMULATOR:"  # what driver/kernels.cpp looks for
DEVICE = Path(__file__).resolve().parent.parent / "device"
# __launch_bounds__ may stand on either side of void
KERNEL = re.compile(r'(extern\s+"C"\s+)?__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')
DYNAMIC = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]")
BARRIERS = ("__syncthreads", "__syncwarp", "_sync(")


def install(compiler: ModuleType, folder: Path) -> None:
    """Have CuPy's compiler module put its results through g++ as well, and keep them in `folder`."""
    with_nvrtc: Any = compiler._compile_using_nvrtc_no_warning  # type: ignore[attr-defined]

    def compile_kernel(source: str, *arguments: Any, **options: Any) -> tuple[bytes, Any]:
        if options.get("name_expressions") or (len(arguments) > 3 and arguments[3]):
            raise NotImplementedError("kernels that are templates are not emulated")
        _, mapping = with_nvrtc(source, *arguments, **options)
        include = Path(compiler.__file__ or "").parent.parent / "_core" / "include"
        return f"{PREFIX}{shared_library(source, include, folder)}\0".encode(), mapping

    compiler._compile_using_nvrtc_no_warning = compile_kernel  # type: ignore[attr-defined]


def shared_library(source: str, include: Path, folder: Path) -> Path:
    """The compiled form of all kernels in `source`."""
    found = KERNEL.findall(source)
    if not found or not all(external for external, _ in found):
        raise NotImplementedError('the emulator runs kernels that are declared extern "C" __global__ void, and these alone')
    barriers = "true" if any(word in source for word in BARRIERS) else "false"
    # as much as a block may have; its size is known at the launch alone
    text = DYNAMIC.sub(r"__shared__ \1 \2[49152 / sizeof(\1)]", source)
    text += "".join(f"\nEMULATED_KERNEL({name}, {barriers})" for _, name in found) + "\n"
    library = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as work:
        file, unfinished = Path(work) / "kernel.cpp", Path(work) / "kernel.so"
        file.write_text(text, encoding="utf-8")
        command = ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-ffp-contract=off", "-o", unfinished]
        command += ["-include", DEVICE / "device_code.h", f"-I{DEVICE}", f"-I{include}", file]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise RuntimeError(f"g++ refused a kernel that NVRTC took: {' / '.join(errors[:4])}")
        os.replace(unfinished, library)
    return library
