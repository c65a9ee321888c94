"""A run's checkpoint: everything that `train.py --resume` needs to continue as if nothing had happened.

`checkpoint.safetensors` in the run's folder contains, as tensors, the weights, the state of the optimizer and the
schedule, the best epoch's weights, and the sums over the steps of the current epoch; and as JSON the arguments, the
metrics so far, the generator before the epoch's shuffle, a hash of the poems, and the machine. Batches and dropout
masks are functions of these. It is saved after every epoch, every --checkpoint-every steps, and on Ctrl-C.
"""

from __future__ import annotations

import hashlib
import math
import platform
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import CHECKPOINT
from learning import ranks
from learning.training import RunningLoss, TrainingState
from model import PoemModel

import numpy as np
from threadpoolctl import threadpool_info

import minidl
from minidl.schedules import Schedule

KIND = "poem run"
METADATA = {"arguments": dict, "typed": list, "poems": str, "lines": list, "rng": dict, "sums": dict, "machine": dict}
SUMS = ("batches", "targets", "places", "poems")


class Checkpoint(NamedTuple):
    """The contents of the file."""

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]

    @property
    def steps(self) -> int:
        """The number of steps that the run has made."""
        return int(self.tensors["schedule.steps"])


def read(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint, or None; CheckpointError if the file is damaged or something else."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    tensors, metadata = minidl.load(path)
    steps = tensors.get("schedule.steps", np.zeros(1))
    whole = metadata.get("kind") == KIND and all(
        isinstance(metadata.get(name), kind) for name, kind in METADATA.items()
    )
    if not whole or not all(isinstance(word, str) for word in metadata["typed"]) or steps.shape != ():
        raise minidl.CheckpointError(f"{path}: a checkpoint, but not from a run of train.py")
    return Checkpoint(path, tensors, metadata)


def restore(checkpoint: Checkpoint, model: PoemModel, schedule: Schedule, poems: str) -> TrainingState:
    """Restore `model` and `schedule`; CheckpointError, and nothing changes, if the checkpoint does not fit.

    `poems` is the hash by `hash_of` of the current poems.
    """
    path, tensors, metadata = checkpoint
    before = model.state_dict(), schedule.optimizer.state_dict(), schedule.state_dict()
    try:
        if metadata["poems"] != poems:
            raise ValueError("it was trained on different poems")
        best = _part(tensors, "best.")
        model.load_state_dict(best)  # as a check; they are restored at the end of the run
        model.load_state_dict(_part(tensors, "model."))
        schedule.optimizer.load_state_dict(_part(tensors, "optimizer."))
        schedule.load_state_dict(_part(tensors, "schedule."))
        rng, mean = np.random.default_rng(), RunningLoss()
        rng.bit_generator.state = metadata["rng"]
        mean.real_nats, mean.pad_nats = map(float, tensors["sums.nats"])
        for name in SUMS:
            setattr(mean, name, int(metadata["sums"][name]))
        state = TrainingState(rng, best, list(metadata["lines"]), mean, float(metadata["seconds"]))
        if state.best_epoch > 0 and not all(map(math.isfinite, state.lines[-1].values())):
            raise ValueError("its metrics are not finite")
        return state
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        model.load_state_dict(before[0])
        schedule.optimizer.load_state_dict(before[1])
        schedule.load_state_dict(before[2])
        raise minidl.CheckpointError(f"{path}: cannot be resumed ({' '.join(str(error).split())})") from error


def save(
    path: Path,
    model: PoemModel,
    schedule: Schedule,
    state: TrainingState,
    arguments: dict[str, Any],
    typed: list[str],
    poems: str,
) -> None:
    """Save the run's state, with its `arguments` and which of them were `typed`."""
    mean = state.running
    parts = {
        "model.": model.state_dict(),
        "optimizer.": schedule.optimizer.state_dict(),
        "schedule.": schedule.state_dict(),
        "best.": state.best_weights,
        "sums.": {"nats": np.array([float(minidl.to_host(nats)) for nats in (mean.real_nats, mean.pad_nats)])},
    }
    metadata = {
        "kind": KIND,
        "arguments": arguments,
        "typed": typed,
        "poems": poems,
        "lines": state.lines,
        "rng": state.rng.bit_generator.state,
        "sums": {name: getattr(mean, name) for name in SUMS},
        "seconds": state.seconds,
        "machine": machine(),
    }
    minidl.save(
        path, {first + name: tensor for first, part in parts.items() for name, tensor in part.items()}, metadata
    )


def machine() -> dict[str, str]:
    """What the last bits of a result depend on, apart from the program and its arguments."""
    blas = [info for info in threadpool_info() if info["user_api"] == "blas"]
    return {
        "minidl": minidl.__version__,
        "NumPy": np.__version__,
        "BLAS": ", ".join(
            " ".join(str(info.get(key)) for key in ("internal_api", "version", "architecture")) for info in blas
        ),
        "processor": platform.machine(),
        "threads": str(minidl.get_num_threads()),
        "ranks": str(ranks.current.size),
    }


def changes(checkpoint: Checkpoint) -> list[str]:
    """Descriptions of what differs from when the run was saved."""
    before, now = checkpoint.metadata["machine"], machine()
    return [
        f"{name} was {before[name]}, now {value}" for name, value in now.items() if before.get(name, value) != value
    ]


def hash_of(parts: Iterable[Iterable[str]]) -> str:
    """SHA-256 over all poems of all parts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        for poem in part:
            digest.update(poem.encode("utf-8") + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def _part(tensors: dict[str, np.ndarray], first: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(first): tensor for name, tensor in tensors.items() if name.startswith(first)}


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C only makes the yielded function return True; a second Ctrl-C interrupts immediately."""
    asked = threading.Event()

    def ask(signum: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.getsignal(signal.SIGINT)
    listen = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if listen:  # not if it is ignored, as in a background process
        signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        if listen:
            signal.signal(signal.SIGINT, before)
