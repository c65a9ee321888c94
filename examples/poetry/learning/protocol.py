"""The report's own experiment, repeated exactly, including pads in the loss.

The first 8 files with their duplicates, in their order; rows of 50: input c1 ... c(n-1), end, pads and target
c2 ... cn, end, pads; batches of 256, never shuffled; the first nine tenths of the batches train, the rest is the
test part, which also decides when to stop; no clipping. So its figures are not a fair test: the metrics also contain
the cross-entropy over real targets only, beside the report's.

`rows_task` has the same poems, targets and parts for other recipes: without pads, and with shuffled batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from common.cli import UsageError
from corpus.tasks import MAX_LENGTH, Batch, Task
from corpus.vocabulary import END, PAD, UNKNOWN, Vocabulary

import numpy as np

import minidl

FILES, WIDTH, BATCH_SIZE, EMBEDDING_SIZE, HIDDEN_SIZE = 8, 50, 256, 128, 256
DATA = {"files": FILES, "max_length": MAX_LENGTH, "max_vocabulary": None, "min_count": 2}
SETTINGS = {
    **DATA,
    "schedule": "constant",
    "patience": 1,  # stop at the first epoch that is worse than the one before
    "batch_size": BATCH_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "embedding_size": EMBEDDING_SIZE,
    "layers": 1,
    "dropout": 0.0,
    "tied": False,
    "clip": None,
    "weight_decay": None,
}
PROTOCOLS: dict[str, dict[str, Any]] = {"report": SETTINGS, "report-rows": DATA}  # the settings that each one fixes
LEARNING_RATES = {"adam": 0.005, "adagrad": 0.01, "adadelta": 0.5}
EPOCHS = 30

# The report's curves, test cross-entropy by epoch, read off its figures to about 0.02, as far as each curve goes.
_EPOCHS = (1, 2, 4, 6, 8, 10, 12, 13, 14, 20, 30)
REPORTED = {
    "adam": dict(zip(_EPOCHS, (5.35, 5.10, 4.81, 4.61, 4.49, 4.41, 4.38, 4.37, 4.37), strict=False)),
    "adagrad": dict(zip(_EPOCHS, (5.26, 5.03, 4.89, 4.82, 4.76, 4.71, 4.67, 4.66, 4.64, 4.56, 4.475), strict=True)),
    "adadelta": dict(zip(_EPOCHS, (7.00, 6.87, 6.52, 5.89, 5.60, 5.42, 5.31, 5.38), strict=False)),
}
# The report's seven poems (its appendix), written by argmax.
POEMS = (
    "日暮銅雀閣，山川上月華。",
    "紅萼競燃春苑曙，春風吹雪寒山。",
    "山中有餘，何處是鄉。何言嶠隔，不敢寧。",
    "夜久星回凜，三秋月照春。",
    "湖上春風吹，長安得知名。",
    "海岳臨丹壑，仙閣涌南薰。",
    "月皎傍風送，山風照安思。",
)


def report_task(poems: Sequence[str], batch_size: int = BATCH_SIZE, width: int = WIDTH) -> Task:
    """The report's batches of `poems`; UsageError if they do not fill one batch for each of the two parts."""
    vocabulary, rows, train = _rows(poems, batch_size, width)
    pad = vocabulary.ids[PAD]

    def cut(first: int, last: int) -> list[Batch]:
        starts = range(first, last, batch_size)
        return [_batch(rows[:, start : min(start + batch_size, last)], pad) for start in starts]

    train_batches, test_batches = cut(0, train), cut(train, len(poems))
    return Task(
        vocabulary=vocabulary,
        train=lambda rng, start=0: train_batches[start:],
        steps=len(train_batches),
        validation=test_batches,  # the report's test part also decides when to stop
        test=test_batches,
        max_length=max(map(len, poems)),
    )


def rows_task(poems: Sequence[str], batch_size: int, width: int = WIDTH) -> Task:
    """The same rows in the same parts, without pads; training batches are shuffled and of similar lengths."""
    vocabulary, rows, train = _rows(poems, BATCH_SIZE, width)
    lengths = (rows[1] != vocabulary.ids[PAD]).sum(axis=1)

    def batch(picked: np.ndarray) -> Batch:
        inputs, targets = (minidl.pack_rows(part.reshape(-1), picked * width, lengths[picked]) for part in rows)
        return Batch(inputs.data, targets.data, minidl.Packing(inputs.batch_sizes.tolist()))

    test = [batch(np.array([row])) for row in range(train, len(poems))]
    return Task(
        vocabulary=vocabulary,
        train=lambda rng, start=0: map(batch, minidl.bucketed_batches(lengths[:train], batch_size, rng)[start:]),
        steps=math.ceil(train / batch_size),
        validation=[batch(train + picked) for picked in minidl.bucketed_batches(lengths[train:], batch_size, 0)],
        test=test,
        max_length=max(map(len, poems)),
    )


def _rows(poems: Sequence[str], batch_size: int, width: int) -> tuple[Vocabulary, np.ndarray, int]:
    """(vocabulary, inputs and targets (2, poems, width), number of training poems)."""
    vocabulary = Vocabulary.build(poems, marks=(END, UNKNOWN, PAD))
    rows = np.full((2, len(poems), width), vocabulary.ids[PAD], np.int32)
    for row, poem in enumerate(poems):
        ids = vocabulary.encode(poem)
        rows[0, row, : len(ids)] = [*ids[:-1], vocabulary.ids[END]]
        rows[1, row, : len(ids)] = [*ids[1:], vocabulary.ids[END]]
    train = int(0.9 * len(poems) / batch_size) * batch_size
    if not 0 < train < len(poems):
        raise UsageError(f"{len(poems)} poems are too few for the report's split into batches of {batch_size}")
    return vocabulary, rows, train


def _batch(rows: np.ndarray, pad: int) -> Batch:
    """Rows (2, B, T) as one time-major batch of full-length sequences."""
    inputs, targets = (part.T.reshape(-1) for part in rows)
    return Batch(inputs, targets, minidl.Packing([rows.shape[1]] * rows.shape[2]), targets != pad)
