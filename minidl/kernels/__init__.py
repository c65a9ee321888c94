"""What makes the layers fast: cpu for NumPy, cuda for CuPy. Both compute the equations in the layers."""

from __future__ import annotations

import importlib
from typing import Any


def load_cuda(subject: str) -> Any:
    """The CUDA kernels of a subject such as "lstm", loaded when the first CuPy array arrives."""
    return importlib.import_module(f"{__name__}.cuda.{subject}")
