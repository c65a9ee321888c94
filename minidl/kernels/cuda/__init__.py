"""CUDA kernels for what would take many launches as plain expressions. Loaded only for CuPy arrays."""

from __future__ import annotations

import importlib
from typing import Any

SUBJECTS = ("dropout", "embedding", "lstm", "optimizers", "softmax")  # one module each


def sources(*rules: Any) -> dict[str, str]:
    """The complete CUDA source of every kernel, by "name dtype", such as "lstm_forward float32"; needs no GPU.

    `rules` are the kernels of optimizers, as their `kernel()` returns them.
    """
    modules = [importlib.import_module(f"{__name__}.{subject}") for subject in SUBJECTS]
    kernels = [*(kernel for module in modules for kernel in module.KERNELS), *rules]
    return {f"{kernel.name} {dtype}": kernel.source(dtype) for kernel in kernels for dtype in ("float32", "float64")}
