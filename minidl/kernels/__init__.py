"""CUDA kernels for what plain expressions would make many launches of. Loaded only where an array is CuPy's."""

from __future__ import annotations

import importlib

SUBJECTS = ("dropout", "embedding", "lstm", "optimizers", "softmax")  # one module each


def sources() -> dict[str, str]:
    """The complete CUDA source of every kernel, by "name dtype", as "lstm_forward float32"; needs no GPU."""
    modules = [importlib.import_module(f"{__name__}.{subject}") for subject in SUBJECTS]
    kernels = [kernel for module in modules for kernel in module.KERNELS]
    return {f"{kernel.name} {dtype}": kernel.source(dtype) for kernel in kernels for dtype in ("float32", "float64")}
