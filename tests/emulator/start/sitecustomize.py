"""Runs at the start of any Python with this folder on PYTHONPATH: puts the emulator underneath the real CuPy.

Nothing is loaded before the program imports CuPy. See README.md.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

DRIVER = Path(os.environ.get("MINIDL_EMULATOR", ""))  # made by emulator_build.driver_folder
RUNTIME = "cupy_backends.cuda.api.runtime"


def load_libraries() -> None:
    """Load the libraries before CuPy's extensions need them; globally, so that kernels find the driver as well."""
    for name in ("libcuda.so.1", "libcublasLt.so.12", "libcublas.so.12"):
        ctypes.CDLL(str(DRIVER / "lib" / name), mode=ctypes.RTLD_GLOBAL)


def compile_for_the_cpu(compiler: ModuleType) -> None:
    import compile_kernel

    compile_kernel.install(compiler, DRIVER)


def settle(cupy: ModuleType) -> None:
    if os.environ.get("CUPY_ACCELERATORS"):
        raise RuntimeError("CUPY_ACCELERATORS must be empty on the emulator: CUB's kernels are precompiled")
    if os.environ.get("MINIDL_EMULATOR_MODE") == "guarded":
        cupy.cuda.set_allocator(None)  # no pool: every array gets its own block between guard pages

    def refused(*arguments: object, **options: object) -> Any:
        raise NotImplementedError("precompiled device code cannot run on the emulator")

    # These contain their own CUDA runtime and kernels, and would silently return garbage.
    cupy.random.default_rng = cupy.random.Generator = refused


AFTER: dict[str, Callable[[ModuleType], None]] = {"cupy.cuda.compiler": compile_for_the_cpu, "cupy": settle}


class Loader(importlib.abc.Loader):
    """Loads a module as usual, then calls its function in AFTER."""

    def __init__(self, loader: importlib.abc.Loader, after: Callable[[ModuleType], None]) -> None:
        self.loader, self.after = loader, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.after(module)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "cupy":
            load_libraries()
        if name == RUNTIME:
            file = DRIVER / "ext" / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"
            return importlib.util.spec_from_file_location(name, file)
        if name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader, AFTER[name])
        return spec


if DRIVER.name:
    sys.meta_path.insert(0, Finder())
