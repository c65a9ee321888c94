"""Several cores for the work inside a layer.

NumPy releases the interpreter lock while it computes, so plain threads suffice. A layer cuts its work into tasks that
write to different places; partial sums are added in the order of the tasks. So a result depends on the number of
threads, which determines the cuts, but never on which thread is faster.

While tasks run, BLAS is limited to one thread: its own threads would compete with these for the cores, and keep
spinning for a while after each product.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import OpenBLASController, ThreadpoolController

T = TypeVar("T")
Outcome = tuple[Any, Exception | None]  # a task's result, or what it raised


def set_num_threads(n: int) -> None:
    """Use up to `n` threads, at least 1, from now on. The default is the number of cores this process may use.

    It waits for running work to finish, so do not call it from within a task.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _team.resize(int(n))


def get_num_threads() -> int:
    """The maximum number of threads that a layer uses."""
    return _team.size


def cores_for(work: float, least: float) -> int:
    """How many parts to cut `work` into: one per thread, or fewer if a part would be smaller than `least`."""
    return int(max(1, min(_team.size, work // least)))


def split(length: int, parts: int) -> list[slice]:
    """range(length) in `parts` nearly equal slices, or fewer if it is shorter."""
    parts = max(1, min(parts, length))
    cuts = [length * part // parts for part in range(parts + 1)]
    return [slice(*cut) for cut in itertools.pairwise(cuts)]


def over(length: int, task: Callable[[slice], T], workers: int, pieces: int = 1) -> list[T]:
    """task(part) for at least `pieces` parts of range(length), shared by `workers` threads."""
    return run([partial(task, part) for part in split(length, max(workers, pieces))], workers)


def run(tasks: Sequence[Callable[[], T]], parts: int | None = None) -> list[T]:
    """Call all `tasks` on the threads, or on `parts` of them; returns the results in order.

    If tasks raise, the first error in their order is raised once all have ended.
    """
    with _blas:
        parts = min(_team.size, len(tasks), parts or len(tasks))
        if parts <= 1 or not _team.lock.acquire(blocking=False):
            # lock taken: a call from within a task, or from another user thread; the cuts stay the same
            return [task() for task in tasks]
        try:
            return _team.run(tasks, parts)
        finally:
            _team.lock.release()


class _Team:
    """The calling thread and size - 1 workers, started when they are first needed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()  # held while the workers are busy
        self.workers: ThreadPoolExecutor | None = None

    def resize(self, size: int) -> None:
        with self.lock:
            if self.workers is not None:
                self.workers.shutdown()
            self.size, self.workers = size, None

    def run(self, tasks: Sequence[Callable[[], T]], parts: int) -> list[T]:
        if self.workers is None:
            self.workers = ThreadPoolExecutor(self.size - 1, thread_name_prefix="minidl")
        errors = {"call": np.geterrcall(), **np.geterr()}  # NumPy's error settings are per thread
        futures: list[Future[list[Outcome]]] = []
        try:
            for part in range(1, parts):
                futures.append(self.workers.submit(_outcomes, tasks[part::parts], errors))
            outcomes = [_outcomes(tasks[::parts], errors)]
        except BaseException:  # Ctrl-C, or no thread could start: no task may run when the caller continues
            self.workers.shutdown(cancel_futures=True)
            self.workers = None
            raise
        _wait(futures)
        outcomes += [future.result() for future in futures]
        results = []
        for index in range(len(tasks)):
            result, error = outcomes[index % parts][index // parts]
            if error is not None:
                raise error
            results.append(result)
        return results


def _outcomes(tasks: Sequence[Callable[[], Any]], errors: Any) -> list[Outcome]:
    """(result, None) of each task, up to the first that raises: (None, error)."""
    found: list[Outcome] = []
    with np.errstate(**errors):
        for task in tasks:
            try:
                found.append((task(), None))
            except Exception as error:
                return [*found, (None, error)]
    return found


def _wait(futures: Sequence[Future[Any]]) -> None:
    try:
        wait(futures)
    except BaseException:  # Ctrl-C: wait until the running tasks end
        wait(futures)
        raise


class _Blas:
    """Limits BLAS to one thread from the first entry to the last exit, in any threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entered = 0
        self.controller: ThreadpoolController | None = None
        self.limits: Any = None

    def __enter__(self) -> None:
        with self.lock:
            self.entered += 1
            if self.entered == 1:
                if self.controller is None:
                    self.controller = ThreadpoolController()
                _take_over()
                self.limits = self.controller.limit(limits=1, user_api="blas")

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.entered -= 1
            if self.entered == 0:
                _take_over()
                self.limits.restore_original_limits()
                _take_over()  # leaves control to the next user


def _take_over() -> None:
    """Let this thread set the limit: threadpoolctl 3.8 and later only accepts the first living thread that did."""
    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


def usable_cores() -> int:
    """The number of cores that this process may use, by its affinity and its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


_team = _Team(usable_cores())
_blas = _Blas()


def _after_fork_in_child() -> None:
    """A forked child has none of its parent's threads."""
    global _team, _blas
    _team = _Team(_team.size)
    if _blas.entered and _blas.limits is not None:
        _blas.limits.restore_original_limits()
    _blas = _Blas()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
