"""Compares device values with NumPy's and records the largest difference."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import relative_error

import minidl

# From equal inputs to equal outputs, relative to the largest value. Only rounding may differ.
LIMITS = {"float32": 1e-5, "float64": 1e-13}

_largest: dict[tuple[str, str], float] = {}


def agree(subject: str, got: Any, expected: Any, name: str = "", dtype: str | None = None) -> None:
    """`got`, on the device, is `expected`. Noted as a difference of `subject`."""
    got, expected = minidl.to_host(got), np.asarray(expected)
    assert np.isfinite(expected).all(), f"{subject}: {name} is no value to compare with"
    dtype = dtype or got.dtype.name
    error = relative_error(got, expected)
    key = (subject, dtype)
    _largest[key] = max(_largest.get(key, 0.0), error if error == error else np.inf)
    assert error < LIMITS[dtype], f"{subject}: {name} differs by {error:.1e} of its largest value"


def summary() -> list[str]:
    return [f"{subject:32} {dtype}  {error:.1e}" for (subject, dtype), error in sorted(_largest.items())]
