"""Do the speed and memory of training stay flat when the corpus grows from 8 files to all 58?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --files 8,16,32,58 --json > scaling.json     for plots.py

Only minidl, with a vocabulary of at most --max-vocabulary characters and the corpus, Rows and model of examples/poetry.
A turn trains a fixed number of steps. Memory is the peak resident memory so far, reading the corpus included, above
that after all imports, less the encoded corpus itself. `ratio` is the characters a second with the most files divided
by those with the fewest, `ratio_memory` the same for the memory: 1 is flat. A few files may have fewer characters than
that (8 have 3,485): a smaller --max-vocabulary makes the vocabularies equal.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import harness
import memory
import numpy as np
import poems
from processes import Ready, Side
from results import Question, Ratio, footer, layout


def main() -> None:
    parser = harness.parser(__doc__, rounds=5)
    poems.add_options(parser)
    parser.add_argument("--files", type=harness.numbers, default=[8, 58], metavar="N,N", help="corpus sizes (8,58)")
    parser.add_argument("--max-vocabulary", type=harness.whole, default=3600, help="characters at most (default: 3600)")
    parser.add_argument("--steps", type=harness.whole, default=17, help="training steps per turn (default: 17)")
    args = parser.parse_args()
    sides = {f"{files} files": Side(functools.partial(build, files=files)) for files in args.files}
    fewest, most = (f"{pick(args.files)} files" for pick in (min, max))
    question = Question(
        "rate",
        "characters a second",
        more_is_better=True,
        peers=(fewest,),
        ours=most,
        ours_on_top=True,
        ratios={"ratio_memory": Ratio(most, fewest, "memory")},
    )
    harness.run(sides, question, args, table=table)


def build(args: argparse.Namespace, files: int) -> Ready:
    from model import PoemModel

    import side_minidl

    import minidl

    harness.hold(minidl, args)
    poems.import_all()
    start = memory.now()
    rows, size = poems.training_rows(args.corpus, files, args.max_vocabulary)
    model = PoemModel(size.vocabulary, size.embedding, size.hidden)
    side_minidl.set_weights(model, size)
    optimizer = minidl.Adam(model.parameters(), size.lr)

    def batches() -> Iterator[np.ndarray]:
        for epoch in itertools.count():
            yield from minidl.bucketed_batches(rows.lengths, poems.BATCH, epoch)

    endless = batches()

    def train(picked: np.ndarray) -> None:
        batch = rows.batch(picked)
        optimizer.zero_grad()
        model.forward_backward(batch, optimizer.steps)
        optimizer.step()

    def turn() -> dict[str, float]:
        drawn = list(itertools.islice(endless, args.steps))
        started = time.perf_counter()
        for picked in drawn:
            train(picked)
        seconds = time.perf_counter() - started
        characters, corpus = int(rows.lengths.sum()), rows.ids.nbytes / memory.MEBIBYTE
        rate = sum(int(rows.lengths[picked].sum()) for picked in drawn) / seconds
        return {
            "rate": rate,
            "memory": memory.peak() - start - corpus,
            "corpus": corpus,
            "characters": characters,
            "seconds_an_epoch": characters / rate,
            "vocabulary": size.vocabulary,
        }

    train(np.argsort(rows.lengths)[-poems.BATCH :])  # the longest poems, so that memory peaks before the first turn
    return Ready(turn)


def table(question: Question, result: Mapping[str, Any]) -> str:
    """A row for each corpus."""
    rows = [("", "characters", "corpus (MiB)", "vocabulary", "characters a second", "seconds an epoch", "memory (MiB)")]
    for side, figures in result["figures"].items():
        counts = (f"{figures['characters']:,}", f"{figures['corpus']:.1f}", f"{figures['vocabulary']:,}")
        speeds = (f"{figures['rate']:,.0f}", f"{figures['seconds_an_epoch']:.1f}", f"{figures['memory']:.0f}")
        rows.append((side, *counts, *speeds))
    return "\n".join([*layout(rows), *footer(question, result)])


if __name__ == "__main__":
    harness.main(main)
