"""How long does it take to match the report's model, on its own poems?

    python benchmarks/time_to_perplexity.py

`torch` is the report's complete recipe in PyTorch: rows padded to 50, with pads that count in the loss; batches of 256
in corpus order; Adam at 0.005; until the test part's cross-entropy rises. Its seconds run to the end of its best epoch.
`minidl` trains the same model with the same optimizer and learning rate on the same poems, without pads, in shuffled
batches of 32 poems of similar length, the gradient clipped to 1, until the cross-entropy of the same test part's real
targets is at most --bar: 5.137 nats (perplexity 170), which a repeat of the report's experiment reached. Both evaluate
after every epoch, which their seconds include. Every turn is a complete run in a new process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import harness
import numpy as np
import poems
from processes import BenchmarkError, Ready, Side
from results import Question, footer, layout

BAR = 5.137  # nats per real target: characters 2 to n and the end
BATCH, LR, CLIP, MOST = 32, 0.005, 1.0, 6  # minidl's; at most MOST epochs


def main() -> None:
    parser = harness.parser(__doc__, rounds=2)
    poems.add_options(parser)
    parser.add_argument("--bar", type=float, default=BAR, help=f"nats that minidl must reach (default: {BAR})")
    args = parser.parse_args()
    question = Question("seconds", "seconds to the bar", more_is_better=False, peers=("torch",))
    sides = {"minidl": Side(build_minidl), "torch": Side(build_torch)}
    harness.run(sides, question, args, fresh=True, table=table)


def table(question: Question, result: Mapping[str, Any]) -> str:
    """A row for each side: its seconds, and the epochs and the loss it stopped at."""
    rows = [("", question.unit, "quartiles", "epochs", "nats", "perplexity")]
    for side, figures in result["figures"].items():
        low, high = result["spread"][side]
        loss = figures["loss"]
        cells = f"{figures['seconds']:.1f}", f"{low:.1f} to {high:.1f}", f"{figures['epochs']:.0f}"
        rows.append((side, *cells, f"{loss:.3f}", f"{np.exp(loss):.1f}"))
    return "\n".join([*layout(rows), *footer(question, result)])


def build_minidl(args: argparse.Namespace) -> Ready:
    found = poems.report_poems(args.corpus)
    from learning import protocol
    from learning.training import evaluate, train_step
    from model import PoemModel

    import minidl

    harness.hold(minidl, args)
    task = protocol.rows_task(found, BATCH)

    def turn() -> dict[str, float]:
        started, rng = time.perf_counter(), np.random.default_rng(0)
        model = PoemModel(len(task.vocabulary), protocol.EMBEDDING_SIZE, protocol.HIDDEN_SIZE, rng=rng)
        schedule = minidl.Constant(minidl.Adam(model.parameters(), LR))
        for epoch in range(MOST):
            for batch in task.train(rng):
                train_step(model, schedule, batch, CLIP)
            loss = evaluate(model, task.validation).loss
            if loss <= args.bar:
                return {"seconds": time.perf_counter() - started, "epochs": epoch + 1, "loss": loss}
        raise BenchmarkError(f"minidl reached {loss:.3f} nats after all {MOST} epochs, not {args.bar:g}")

    return Ready(turn)


def build_torch(args: argparse.Namespace) -> Ready:
    found = poems.report_poems(args.corpus)
    from learning import protocol

    import torch
    from side_torch_report import ReportModel, rows_of

    harness.hold(torch, args)
    task, rng = protocol.report_task(found), np.random.default_rng(0)  # which shuffles nothing here
    torch.manual_seed(0)

    def turn() -> dict[str, float]:
        started = time.perf_counter()
        model = ReportModel(len(task.vocabulary))
        train, test = ([rows_of(batch) for batch in part] for part in (task.train(rng), task.validation))
        best, lowest = {"seconds": 0.0, "epochs": 0, "loss": np.inf}, np.inf
        for epoch in range(protocol.EPOCHS):
            model.train_epoch(train)
            with_pads, loss = model.losses(test)
            if with_pads > lowest:
                break
            lowest = with_pads
            best = {"seconds": time.perf_counter() - started, "epochs": epoch + 1, "loss": loss}
        return best

    return Ready(turn)


if __name__ == "__main__":
    harness.main(main)
