"""The training task: poems as ids, in batches of packed rows, in three parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

from corpus.vocabulary import BEGIN, END, Vocabulary

import numpy as np

import minidl

MAX_LENGTH = 49  # characters in a poem, as in the report


class Batch(NamedTuple):
    """Poems as packed rows: the id at each place, and the id to predict there."""

    inputs: np.ndarray  # (N,)
    targets: np.ndarray  # (N,)
    packing: minidl.Packing
    real: np.ndarray | None = None  # (N,): False where the target is a pad; None if there are no pads
    total: int | None = None  # rows of the batch that this is a part of; None if it is complete


class Epoch(Protocol):
    """One epoch's batches as a function of the generator, from batch `start` on; earlier ones are not built.

    The generator ends in the same state however many are skipped.
    """

    def __call__(self, rng: np.random.Generator, start: int = 0) -> Iterable[Batch]: ...


class Task(NamedTuple):
    """A vocabulary, and the batches of each part of the corpus."""

    vocabulary: Vocabulary
    train: Epoch
    steps: int  # batches per epoch
    validation: Sequence[Batch]
    test: Sequence[Batch]
    max_length: int  # characters of the longest poem


class Joined(Collection[str]):
    """Poems joined in one string, which is smaller than a list and does not fragment memory."""

    def __init__(self, poems: Iterable[str]) -> None:
        poems = list(poems)
        self.text = "".join(poems)
        self.bounds = np.cumsum([0, *map(len, poems)])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[str]:
        return (self.text[start:end] for start, end in pairwise(self.bounds))

    def __contains__(self, poem: object) -> bool:
        return any(poem == mine for mine in self)


class Rows:
    """Encoded poems in one flat array of small ints, each as begin, c1 ... cn, end."""

    def __init__(self, poems: Collection[str], vocabulary: Vocabulary) -> None:
        begin, end = vocabulary.ids[BEGIN], vocabulary.ids[END]
        self.lengths = np.array([len(poem) + 1 for poem in poems])  # targets: the characters and the end
        self.starts = np.cumsum(self.lengths + 1) - (self.lengths + 1)
        self.ids = np.empty(int(self.lengths.sum()) + len(poems), np.min_scalar_type(len(vocabulary) - 1))
        for poem, start in zip(poems, self.starts, strict=True):
            self.ids[start : start + len(poem) + 2] = [begin, *vocabulary.encode(poem), end]

    def batch(self, picked: np.ndarray) -> Batch:
        """The poems `picked`, packed: input begin, c1 ... cn and target c1 ... cn, end."""
        starts, lengths = self.starts[picked], self.lengths[picked]
        inputs, targets = (minidl.pack_rows(self.ids, first, lengths) for first in (starts, starts + 1))
        return Batch(inputs.data, targets.data, minidl.Packing(inputs.batch_sizes.tolist()))

    def batches(self, batch_size: int, rng: np.random.Generator | int, start: int = 0) -> Iterator[Batch]:
        """All poems once, in shuffled batches of similar lengths, from batch `start` on."""
        return map(self.batch, minidl.bucketed_batches(self.lengths, batch_size, rng)[start:])


def packed_task(parts: Sequence[Collection[str]], vocabulary: Vocabulary, batch_size: int) -> Task:
    """A Task from (train, validation, test) poems, without pads."""
    train, validation, test = rows = [Rows(part, vocabulary) for part in parts]
    return Task(
        vocabulary=vocabulary,
        train=partial(train.batches, batch_size),
        steps=math.ceil(len(train.lengths) / batch_size),
        validation=list(validation.batches(batch_size, 0)),
        test=[test.batch(np.array([poem])) for poem in range(len(test.lengths))],  # one by one, for the standard error
        max_length=max(int(part.lengths.max()) for part in rows) - 1,
    )
