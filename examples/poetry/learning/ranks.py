"""Training by several processes, called ranks, which mpiexec starts and which share the work of every batch.

Every rank has the whole model, draws the same batches and computes its shard of each batch's poems. Per step one
all-reduce sums the flat gradient buffer, and another one two numbers for the loss; then every rank makes the same
optimizer step. N ranks therefore follow the same trajectory as one, up to floating-point summation order. Only the
first rank reads the corpus (a prepared one is mapped by all), writes and prints.

A rank that fails reports it in one line and aborts all the others, which would otherwise wait forever.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from common import cli
from corpus.tasks import Batch

import numpy as np
from threadpoolctl import threadpool_limits

import minidl
from minidl.kernels.cpu.threads import usable_cores
from minidl.parameter import flat_views

T = TypeVar("T")
PATIENCE = 0.3, 0.02, 3.0  # seconds that rank r waits for others to report: first + r * second, at most third


class SingleProcess:
    """A single process, whose shard is everything."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def broadcast(self, make: Callable[[], T]) -> T:
        """The first rank's result of `make`, on every rank."""
        return make()

    def shard_batch(self, batch: Batch) -> Batch | None:
        """This rank's shard of a batch, or None if it is empty."""
        return batch

    def shard(self, values: Iterable[T]) -> Iterable[T]:
        """This rank's shard of `values`: every `size`-th one."""
        return values

    def all_reduce_gradients(self, params: Sequence[minidl.Parameter]) -> None:
        """Replace every parameter's gradient by its sum over all ranks."""

    def all_reduce(self, values: Sequence[Any]) -> Sequence[Any]:
        """The sums over all ranks of a few numbers; ints stay ints."""
        return values

    def broadcast_parameters(self, params: Sequence[minidl.Parameter]) -> None:
        """Copy the first rank's parameters to every rank."""

    def choose_gpu(self) -> None:
        """Give each of a machine's ranks its own GPU, as far as there are enough."""

    def leave(self, code: int, message: str) -> NoReturn:
        """End the program as `cli.leave` does."""
        cli.leave(code, message)


SINGLE_PROCESS = current = SingleProcess()


def start() -> SingleProcess:
    """This process as one of several; UsageError if MPI is not available."""
    global current
    current = group = Distributed()  # set first: any failure from here on has to end all ranks
    group.set_up()
    return group


def leave(code: int, message: str) -> NoReturn:
    """End the program, and with it all ranks if it failed."""
    current.leave(code, message)


class Distributed(SingleProcess):
    """One of several processes that MPI started."""

    def __init__(self) -> None:
        cli.require("mpi4py", "distributed")
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # the package is installed, an MPI library is not
            raise cli.UsageError(f"--distributed needs an MPI library: {' '.join(str(error).split())}") from error
        self.mpi, self.comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.stderr = sys.stderr

    def set_up(self) -> None:
        """Only the first rank prints and handles Ctrl-C, uncaught errors end all ranks, and cores are shared."""
        sys.excepthook = self._hook
        self.node = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)  # the ranks on this machine
        if not self.first:
            sys.stdout, sys.stderr = (open(os.devnull, "w", encoding="utf-8") for _ in range(2))  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank saves, and then ends all
        self._share_cores()

    def _share_cores(self) -> None:
        """Use one thread per core of this rank, or its fraction of cores that it shares with others."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        sharing = sum(not cores.isdisjoint(theirs) for theirs in self.node.allgather(cores))
        threads = max(1, usable_cores() // sharing)
        minidl.set_num_threads(threads)
        threadpool_limits(threads, "blas")

    def choose_gpu(self) -> None:
        cupy = minidl.backend.get("cupy")
        cupy.cuda.Device(self.node.rank % cupy.cuda.runtime.getDeviceCount()).use()

    def broadcast(self, make: Callable[[], T]) -> T:
        made = make() if self.first else None
        return self._communicate(lambda: self.comm.bcast(made))

    def shard_batch(self, batch: Batch) -> Batch | None:
        return shard_batch(batch, self.rank, self.size)

    def shard(self, values: Iterable[T]) -> Iterable[T]:
        return itertools.islice(values, self.rank, None, self.size)

    def all_reduce_gradients(self, params: Sequence[minidl.Parameter]) -> None:
        for view in flat_views(params):  # one, once an optimizer has them
            # On a GPU through host memory, which works with an MPI without GPU support.
            summed = minidl.to_host(view.grad)
            self._communicate(partial(self.comm.Allreduce, self.mpi.IN_PLACE, summed))
            if summed is not view.grad:
                view.grad[...] = minidl.backend.of(view.grad).asarray(summed)

    def all_reduce(self, values: Sequence[Any]) -> Sequence[Any]:
        summed = np.array([float(minidl.to_host(value)) for value in values])
        self._communicate(lambda: self.comm.Allreduce(self.mpi.IN_PLACE, summed))
        return [int(s) if isinstance(v, int) else s for v, s in zip(values, summed.tolist(), strict=True)]

    def broadcast_parameters(self, params: Sequence[minidl.Parameter]) -> None:
        for view in flat_views(params):
            values = np.array(minidl.to_host(view.data))
            self._communicate(partial(self.comm.Bcast, values))
            view.data[...] = minidl.backend.of(view.data).asarray(values)

    def _communicate(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except self.mpi.Exception as error:
            raise ConnectionError(f"another rank cannot be reached ({error})") from error

    def leave(self, code: int, message: str) -> NoReturn:
        if code == 0 or self.size == 1:
            cli.leave(code, message)
        if not self.first:  # the first may be about to report the same
            start, step, most = PATIENCE
            time.sleep(min(start + step * self.rank, most))
            message = message and f"rank {self.rank}: {message}"
        try:
            with contextlib.suppress(OSError):  # the reader may be gone
                # One write: otherwise mpiexec's own message could split the line.
                self.stderr.write(f"{message}\n" if message else "")
                self.stderr.flush()
        finally:
            self.comm.Abort(code)
            os._exit(code)  # MPICH's MPI_Abort returns; a regular exit would wait for the other ranks

    def _hook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Handle an uncaught exception, a bug in the program."""
        self.leave(1, "".join(traceback.format_exception(kind, error, trace)).rstrip())


def shard_batch(batch: Batch, rank: int, size: int) -> Batch | None:
    """Every `size`-th sequence of a batch, starting with the `rank`-th: long and short ones in equal shares."""
    sizes = np.asarray(batch.packing.batch_sizes)
    column = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # the sequence of each row
    rows = np.flatnonzero(column % size == rank)
    if not len(rows):
        return None
    alive = (sizes - rank + size - 1) // size  # sequences rank, rank + size, ... below the batch size
    real = None if batch.real is None else batch.real[rows]
    packing = minidl.Packing(alive[alive > 0].tolist(), rows=rows)
    return Batch(batch.inputs[rows], batch.targets[rows], packing, real, len(column))
