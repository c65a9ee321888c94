"""Compiles kernels for the CPU: NVRTC must accept the source, then g++ compiles the same text to a shared library."""

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
FLAGS = ["-std=c++17", "-O1", "-w", "-fPIC", "-ffp-contract=off"]
BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"  # on either side of void
KERNEL = re.compile(rf'(extern\s+"C"\s+)?__global__\s+{BOUNDS}void\s+{BOUNDS}(\w+)\s*\(')
DYNAMIC = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]")
BARRIERS = ("__syncthreads", "__syncwarp", "_sync(")


def install(compiler: ModuleType, driver: Path) -> None:
    """Make CuPy's compiler module also compile every source with g++; the results stay in the driver's folder."""
    with_nvrtc: Any = compiler._compile_using_nvrtc_no_warning
    include = Path(compiler.__file__ or "").parent.parent / "_core" / "include"

    def compile_kernel(source: str, *arguments: Any, **options: Any) -> tuple[bytes, Any]:
        if options.get("name_expressions") or (len(arguments) > 3 and arguments[3]):
            raise NotImplementedError("kernels that are templates are not emulated")
        _, mapping = with_nvrtc(source, *arguments, **options)
        return f"{PREFIX}{shared_library(source, include, driver)}\0".encode(), mapping

    compiler._compile_using_nvrtc_no_warning = compile_kernel  # type: ignore[attr-defined]


def shared_library(source: str, include: Path, driver: Path) -> Path:
    """The compiled form of all kernels in `source`."""
    found = KERNEL.findall(source)
    if not found or not all(external for external, _ in found):
        raise NotImplementedError('only kernels that are declared extern "C" __global__ void are emulated')
    barriers = "true" if any(word in source for word in BARRIERS) else "false"
    # the maximum for a block; the actual size is known only at launch
    text = DYNAMIC.sub(r"__shared__ \1 \2[49152 / sizeof(\1)]", source)
    text += "".join(f"\nEMULATED_KERNEL({name}, {barriers})" for _, name in found) + "\n"
    library = driver / "kernels" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        options = ["-shared", "-include", _precompiled_header(driver), f"-I{driver / 'device'}", f"-I{include}"]
        _compile(library, options, text)
    return library


def _precompiled_header(driver: Path) -> Path:
    """device_code.h, precompiled: reading it takes nearly all of a small kernel's compile time otherwise."""
    header = driver / "device" / "device_code.h"
    compiled = header.with_name("device_code.h.gch")
    if not compiled.exists():
        _compile(compiled, ["-x", "c++-header"], header.read_text(encoding="utf-8"))
    return header


def _compile(output: Path, options: list[object], text: str) -> None:
    """Compile `text` to `output`, which appears complete or not at all: several processes may do this at once."""
    with tempfile.TemporaryDirectory(dir=output.parent) as work:
        file, unfinished = Path(work) / "kernel.cpp", Path(work) / "compiled"
        file.write_text(text, encoding="utf-8")
        command = ["g++", *FLAGS, *map(str, options), str(file), "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise RuntimeError(f"g++ rejected a kernel that NVRTC accepted: {' / '.join(errors[:4])}")
        os.replace(unfinished, output)
