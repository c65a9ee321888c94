"""Work arrays in reused memory, because fresh large arrays are slow.

The system provides new memory page by page, at the first touch of each page, and takes it back when an array dies. In
a training step, which needs the same sizes every time, that can cost as much as the arithmetic. So the memory of a
large array goes to a pool when the last array that views it dies, and the next array of similar size reuses it. An
array belongs to the caller for as long as the caller keeps it or a view of it.

Every array starts on a cache line: vector instructions that straddle two lines take up to twice as long. On a GPU,
CuPy's own pool does all this.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable

import numpy as np

from ... import backend
from ...backend import Array
from . import cuts

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """An uninitialized array with the library and dtype of `like`."""
    if backend.is_device(like):
        return backend.of(like).empty(shape, like.dtype)
    nbytes = math.prod(shape) * like.dtype.itemsize
    memory = own_memory(nbytes) if nbytes < cuts.POOLED_BYTES else _pool.lend(nbytes)
    return memory.view(like.dtype).reshape(shape)


def with_ones(x: Array) -> Array:
    """[x 1] (n, D + 1): x (n, D) and a column of ones, whose weight is a bias."""
    x1 = empty((len(x), x.shape[1] + 1), x)
    x1[:, :-1] = x
    x1[:, -1] = 1
    return x1


def own_memory(nbytes: int) -> np.ndarray:
    """Memory that starts on a cache line, outside the pool."""
    return _aligned(np.empty(nbytes + ALIGNMENT, np.uint8), nbytes)


def release() -> None:
    """Return the unused memory of the pool to the system."""
    _pool.release()


class _Loan:
    """The base of all arrays that view a block. It dies with the last of them."""

    def __init__(self, memory: np.ndarray) -> None:
        self.__array_interface__ = memory.__array_interface__


class _Watch(weakref.ref[_Loan]):
    """Notices the end of a loan, and keeps its block until then."""

    block: np.ndarray


class _Pool:
    """Blocks of memory: those in use, keyed by their loan's watch, and the free ones."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.used: dict[int, _Watch] = {}
        self.returned: list[_Watch] = []  # appended to when a loan ends, which can be at any point
        self.free: list[np.ndarray] = []

    def lend(self, nbytes: int) -> np.ndarray:
        with self.lock:
            self._collect()
            block = self._take(nbytes)
            loan = _Loan(_aligned(block, nbytes))
            # append is implemented in C: in a Python callback Ctrl-C could get lost
            watch = _Watch(loan, self.returned.append)
            watch.block = block
            self.used[id(watch)] = watch
        return np.asarray(loan)

    def release(self) -> None:
        with self.lock:
            self._collect()
            self.free.clear()

    def _collect(self) -> None:
        while self.returned:
            watch = self.returned.pop()
            self.free.append(self.used.pop(id(watch)).block)

    def _take(self, nbytes: int) -> np.ndarray:
        place = self._closest(lambda size: nbytes <= size <= 2 * nbytes, -1)
        if place is not None:
            return self.free.pop(place)
        # Sizes vary with the lengths of the sequences. A larger block replaces a smaller one, so there are
        # never more blocks of about one size than were in use at the same time.
        place = self._closest(lambda size: nbytes < 2 * size <= 2 * nbytes, +1)
        if place is not None:
            del self.free[place]
        return np.empty(nbytes + ALIGNMENT, np.uint8)

    def _closest(self, fits: Callable[[int], bool], direction: int) -> int | None:
        """The place of the smallest (direction -1) or largest (+1) free block whose size in use `fits`."""
        places = [place for place, block in enumerate(self.free) if fits(block.nbytes - ALIGNMENT)]
        return max(places, key=lambda place: direction * self.free[place].nbytes, default=None)


_pool = _Pool()


def _aligned(block: np.ndarray, nbytes: int) -> np.ndarray:
    skip = -block.ctypes.data % ALIGNMENT
    return block[skip : skip + nbytes]


if hasattr(os, "register_at_fork"):  # another thread may hold the lock when a process forks
    os.register_at_fork(after_in_child=lambda: setattr(_pool, "lock", threading.Lock()))
