"""How much memory do training steps need, in minidl and in PyTorch?

    python benchmarks/memory.py --model report

The peak resident memory of a process that trains a few steps, above its memory after all imports and before the model
is built. Every turn is a new process. Less is better: here the ratio is minidl's memory divided by PyTorch's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import sizes
from processes import Ready, Side
from results import Question

STEPS = 4
MEBIBYTE = 2**20


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    sizes.add_options(parser)
    args = parser.parse_args()
    sides = {"minidl": Side(build_minidl), "torch": Side(build_torch)}
    question = Question("peak", "MiB above the start", more_is_better=False, peers=("torch",), ours_on_top=True)
    harness.run(sides, question, args, fresh=True)


def build_minidl(args: argparse.Namespace) -> Ready:
    import side_minidl

    import minidl

    harness.hold(minidl, args)
    return Ready(lambda: peak_of(lambda: side_minidl.training_step(sizes.chosen(args))))


def build_torch(args: argparse.Namespace) -> Ready:
    import side_torch
    import torch

    harness.hold(torch, args)
    return Ready(lambda: peak_of(lambda: side_torch.training_step(sizes.chosen(args))))


def peak_of(build: Callable[[], Callable[[], float]]) -> dict[str, float]:
    """The peak while a model is built and trained for some steps."""
    start = now()
    step = build()
    for _ in range(STEPS):
        step()
    return {"peak": peak() - start}


def now() -> float:
    """Resident MiB, or the peak so far where only that is known."""
    return status("VmRSS") if sys.platform == "linux" else peak()


def peak() -> float:
    """The peak resident MiB so far."""
    if sys.platform == "linux":
        return status("VmHWM")
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / MEBIBYTE
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE


def status(name: str, process: int | str = "self") -> float:
    """A field of Linux's /proc/PROCESS/status, converted from KiB to MiB; 0 if the process has ended."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0) * 1024 / MEBIBYTE


if __name__ == "__main__":
    harness.main(main)
