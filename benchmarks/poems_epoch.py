"""How many characters a second does training process on the real poems, which vary in length?

    python benchmarks/poems_epoch.py

The default recipe of examples/poetry/train.py on the first 8 files, without dropout and clipping: batches of 256 poems
of similar length, Adam. A turn is one epoch. Only the poems' characters and end marks count, the same number on all
sides; pads are work, but do not count. `torch-padded` pads within a batch, `torch-packed` packs, and `torch-rows` pads
to 50, as does the report that the project grew from.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import harness
import numpy as np
import poems
from processes import Ready, Side
from results import Question, Ratio

if TYPE_CHECKING:
    from corpus.tasks import Rows

WAYS = ("torch-padded", "torch-packed", "torch-rows")


def main() -> None:
    parser = harness.parser(__doc__, rounds=5)
    poems.add_options(parser)
    parser.add_argument("--batches", type=harness.whole, help="batches per turn (default: a full epoch)")
    args = parser.parse_args()
    sides = {way: Side(functools.partial(build_torch, way=way)) for way in WAYS}
    question = Question(
        "rate",
        "characters a second",
        more_is_better=True,
        peers=("torch-padded", "torch-packed"),
        ours_on_top=True,
        ratios={"ratio_rows": Ratio("minidl", "torch-rows")},
    )
    harness.run({"minidl": Side(build_minidl), **sides}, question, args)


def build_minidl(args: argparse.Namespace) -> Ready:
    rows, size = poems.training_rows(args.corpus, files=8)
    from model import PoemModel

    from side_minidl import set_weights

    import minidl

    harness.hold(minidl, args)
    model = PoemModel(size.vocabulary, size.embedding, size.hidden)
    set_weights(model, size)
    optimizer = minidl.Adam(model.parameters(), size.lr)

    def step(picked: np.ndarray) -> float:
        batch = rows.batch(picked)
        optimizer.zero_grad()
        nats = model.forward_backward(batch, optimizer.steps)
        optimizer.step()
        return float(nats.real) / len(batch.targets)

    return ready(step, rows, args.batches)


def build_torch(args: argparse.Namespace, way: str) -> Ready:
    rows, size = poems.training_rows(args.corpus, files=8)
    import side_torch_poems
    import torch

    harness.hold(torch, args)
    return ready(side_torch_poems.training_step(way, rows, size), rows, args.batches, agree=way != "torch-rows")


def ready(step: Callable[[np.ndarray], float], rows: Rows, batches: int | None, agree: bool = True) -> Ready:
    """All sides draw the same batches and must have the same losses, except for the rows whose pads count."""
    import minidl

    epochs = itertools.count()

    def draw() -> list[np.ndarray]:
        return minidl.bucketed_batches(rows.lengths, poems.BATCH, next(epochs))[:batches]

    def turn() -> dict[str, float]:
        drawn = draw()
        started = time.perf_counter()
        for picked in drawn:
            step(picked)
        seconds = time.perf_counter() - started
        targets = sum(int(rows.lengths[picked].sum()) for picked in drawn)
        return {"rate": targets / seconds, "seconds": seconds, "targets": targets}

    losses = [step(picked) for picked in draw()[:3]]
    return Ready(turn, losses if agree else ())


if __name__ == "__main__":
    harness.main(main)
