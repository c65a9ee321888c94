"""Which array library: NumPy on the host, CuPy on a GPU.

A name ("numpy" or "cupy") decides where new arrays are made; from then on the array itself decides (`of`).
There is no global choice of library. What the two libraries do differently is here, one function per operation. By
convention `xp` is the library of the arrays in use.
"""

from __future__ import annotations

import sys
import weakref
from types import ModuleType
from typing import Any

import numpy as np

from . import device
from .device import BackendError as BackendError
from .device import is_out_of_memory as is_out_of_memory

Array = Any  # numpy.ndarray or cupy.ndarray: one code path serves both
Rng = int | np.random.Generator | None  # where random numbers come from: a seed, a generator, or fresh entropy


def get(name: str) -> ModuleType:
    """The array library called `name`: "numpy" or "cupy".

    Raises ValueError for any other name, and BackendError if CuPy is missing or does not work (see `device`).
    There is no silent fall-back to the host.
    """
    if name == "numpy":
        return np
    if name != "cupy":
        raise ValueError(f"backend must be 'numpy' or 'cupy', got {name!r}")
    return device.usable_cupy()


def of(array: Array) -> ModuleType:
    """The library that made `array`: numpy, or cupy for a CuPy array."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    if is_device(array):
        return sys.modules["cupy"]
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}")


def is_device(value: object) -> bool:
    """Whether `value` is a CuPy array (always False if CuPy was never imported)."""
    # () if "cupy" is the empty folder that an uninstalled CuPy left behind
    return isinstance(value, getattr(sys.modules.get("cupy"), "ndarray", ()))


def require_same(**arrays: Array) -> ModuleType:
    """The library that all `arrays` (name=array) share; raises a TypeError that names two that differ."""
    (first, value), *others = arrays.items()
    xp = of(value)
    for name, other in others:
        if of(other) is not xp:
            raise TypeError(
                f"{name} is a {of(other).__name__} array but {first} is a {xp.__name__} array; "
                "move one with minidl.to_host or minidl.to_backend"
            )
    return xp


def to_backend(values: Array, name: str) -> Array:
    """`values` as an array of the library called `name`; one upload or download if it has to move."""
    if name == "numpy":
        return to_host(values)
    return get(name).asarray(values if is_device(values) else to_host(values))


def to_host(array: Array) -> np.ndarray:
    """`array` as a NumPy array; TypeError for anything but numbers.

    For a CuPy array this waits for the GPU, so errors detected there are also raised here: FloatingPointError if an
    optimizer met a gradient that was not finite (see `optimizers`).
    """
    if not is_device(array):
        try:
            host = np.asarray(array)
        except ValueError:  # a list of lists of different lengths
            host = np.asarray(None)
        if host.dtype.kind not in "biufc":
            raise TypeError(f"expected an array of numbers, got {type(array).__name__} of {host.dtype}")
        return host
    host = array.get()
    for watcher in list(_watchers):
        watcher.raise_found()
    return host


_watchers: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(watcher: Any) -> None:
    """Have `watcher.raise_found()` called whenever `to_host` reads a value from the device.

    Meant for objects with an error flag on the device, which the host checks when it has to wait anyway.
    """
    _watchers.add(watcher)


def generator(rng: Rng) -> np.random.Generator:
    """A NumPy Generator from a seed, a Generator (returned as it is) or None (fresh entropy).

    Random numbers are always drawn on the host: the same seed gives the same model on both backends.
    """
    if isinstance(rng, bool) or not (rng is None or isinstance(rng, (int, np.integer, np.random.Generator))):
        raise TypeError(f"rng must be None, an int seed or a numpy.random.Generator, got {type(rng).__name__}")
    if isinstance(rng, (int, np.integer)) and rng < 0:
        raise ValueError(f"rng must be a seed of at least 0, got {rng}")
    return np.random.default_rng(rng)
