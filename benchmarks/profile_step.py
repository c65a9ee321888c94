"""Where does the time of one minidl training step go?

    python benchmarks/profile_step.py --model report

Each part of the step beside its matrix products, which are timed in a separate process; the embedding and the optimizer
have none. The last column is what could be gained if everything but the products were free.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import harness
import sizes
from processes import Ready, Side
from results import FLOOR, Question, Ratio, footer, layout

PARTS = ("embedding forward", "LSTM forward", "head and loss", "LSTM backward", "embedding backward", "optimizer")
STEP = "step"
SECONDS, LEAST = 1.0, 3  # a turn lasts at least this long and has at least this many steps


def main() -> None:
    parser = harness.parser(__doc__, rounds=10)
    sizes.add_options(parser)
    args = parser.parse_args()
    if args.sides and "minidl" not in args.sides.split(","):
        parser.error("--sides must name minidl: its step is the one that is profiled")
    sides = {"minidl": Side(build_minidl), FLOOR: Side(build_floor, harness.blas_threads(args.threads))}
    shares = {"share_of_floor": Ratio(FLOOR, "minidl")}
    question = Question(STEP, "seconds a step", more_is_better=False, peers=(), ratios=shares)
    harness.run(sides, question, args, table=table)


class Stopwatch:
    """Seconds by part, for each of several steps."""

    def __init__(self) -> None:
        self.begin()
        self.steps: list[dict[str, float]] = []
        self.total = 0.0

    def begin(self) -> None:
        self.started = self.latest = time.perf_counter()
        self.parts = dict.fromkeys(PARTS, 0.0)

    def mark(self, part: str) -> None:
        """`part` has just ended."""
        now = time.perf_counter()
        self.parts[part] += now - self.latest
        self.latest = now

    def end(self) -> None:
        self.steps.append({**self.parts, STEP: self.latest - self.started})
        self.total += self.steps[-1][STEP]

    def medians(self) -> dict[str, float]:
        """Medians over the steps since the last call."""
        steps, self.steps, self.total = self.steps, [], 0.0
        return {part: statistics.median(step[part] for step in steps) for part in (*PARTS, STEP)}

    def enough(self) -> bool:
        return len(self.steps) >= LEAST and self.total >= SECONDS


def build_minidl(args: argparse.Namespace) -> Ready:
    import side_minidl

    import minidl

    harness.hold(minidl, args)
    watch = Stopwatch()
    step = side_minidl.training_step(sizes.chosen(args), watch.mark)
    step()

    def turn() -> dict[str, float]:
        while not watch.enough():
            watch.begin()
            step()
            watch.end()
        return watch.medians()

    turn()
    return Ready(turn)


def build_floor(args: argparse.Namespace) -> Ready:
    import side_floor

    watch, products = Stopwatch(), side_floor.products(sizes.chosen(args))

    def turn() -> dict[str, float]:
        while not watch.enough():
            watch.begin()
            for part, product in products.items():
                product.run()
                watch.mark(part)
            watch.end()
        return watch.medians()

    turn()
    return Ready(turn)


def table(question: Question, result: Mapping[str, Any]) -> str:
    """A row for each part: its time, its share of the step, its products' time, and the rest."""
    figures = result["figures"]
    ours, floor = figures["minidl"], figures.get(FLOOR, {})
    rows = [("", "seconds", "of the step", "its products", "the rest")]
    for part in (*PARTS, STEP):
        seconds, least = ours[part], floor.get(part, 0.0)
        products = f"{least:.4f}" if least else "-"
        rows.append((part, f"{seconds:.4f}", f"{seconds / ours[STEP]:.1%}", products, f"{seconds - least:.4f}"))
    return "\n".join([*layout(rows), *footer(question, result)])


if __name__ == "__main__":
    harness.main(main)
