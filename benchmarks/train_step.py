"""How long does a training step take, in minidl, PyTorch and JAX, and how much of it is matrix products?

    python benchmarks/train_step.py                  the report's size; --model char and --model word are smaller
    python benchmarks/train_step.py --check          only compare the sides' losses

All sides do the same rectangular work in float32: the same weights, random ids and sizes, Adam or SGD, no dropout and
no clipping. `torch` is eager PyTorch with default settings; `torch-tuned` also makes glibc keep freed memory (only on
Linux); `jax` is compiled; `floor` is the step's matrix products and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import SupportsFloat

import harness
import sizes
from processes import Ready, Side
from results import FLOOR, Question, Ratio

KEEP_MEMORY = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(4 * 2**30))


def main() -> None:
    parser = harness.parser(__doc__, rounds=10)
    sizes.add_options(parser)
    parser.add_argument("--check", action="store_true", help="compare the sides' first losses, time nothing")
    args = parser.parse_args()
    sides = {
        "minidl": Side(build_minidl),
        "torch": Side(build_torch),
        "torch-tuned": Side(build_torch, KEEP_MEMORY),
        "jax": Side(build_jax, {"JAX_PLATFORMS": "cpu"}),
        FLOOR: Side(build_floor, harness.blas_threads(args.threads)),
    }
    if sys.platform != "linux":
        del sides["torch-tuned"]
    if args.threads:
        del sides["jax"]  # JAX has no such setting
    if args.check:
        args.rounds = 0
    ratios = {"ratio_tuned": Ratio("torch-tuned", "minidl"), "share_of_floor": Ratio(FLOOR, "minidl")}
    question = Question("seconds", "seconds a step", more_is_better=False, peers=("torch", "jax"), ratios=ratios)
    harness.run(sides, question, args)


def ready(step: Callable[[], SupportsFloat]) -> Ready:
    """Two warm-up steps, whose losses must be the same on all sides; the second has updated weights."""
    losses = [float(step()), float(step())]
    return Ready(lambda: {"seconds": harness.median_seconds(step)}, losses)


def build_minidl(args: argparse.Namespace) -> Ready:
    import side_minidl

    import minidl

    harness.hold(minidl, args)
    return ready(side_minidl.training_step(sizes.chosen(args)))


def build_torch(args: argparse.Namespace) -> Ready:
    import side_torch
    import torch

    harness.hold(torch, args)
    return ready(side_torch.training_step(sizes.chosen(args)))


def build_jax(args: argparse.Namespace) -> Ready:
    import side_jax

    return ready(side_jax.training_step(sizes.chosen(args)))


def build_floor(args: argparse.Namespace) -> Ready:
    import side_floor

    parts = side_floor.products(sizes.chosen(args)).values()

    def step() -> None:
        for part in parts:
            part.run()

    step()
    return Ready(lambda: {"seconds": harness.median_seconds(step)})


if __name__ == "__main__":
    harness.main(main)
