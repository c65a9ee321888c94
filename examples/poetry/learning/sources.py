"""The training data of a run: the Tang poems, a text, the report's rows, or a folder from prepare.py."""

from __future__ import annotations

import gc
from argparse import Namespace
from typing import NamedTuple

from common import cli
from corpus import prepared, tang, texts
from corpus.line_index import LineIndex
from corpus.tasks import MAX_LENGTH, Joined, Task, packed_task
from corpus.vocabulary import Vocabulary
from learning import protocol, run_checkpoint
from learning.ranks import SINGLE_PROCESS, SingleProcess


class Data(NamedTuple):
    """The training data of a run."""

    task: Task
    lines: LineIndex | None  # of all its poems; None if there may be too many, or another rank writes it
    poems: str  # a hash of all poems


def data_of(args: Namespace, group: SingleProcess) -> Data:
    if args.prepared:
        return prepared_data(args, group)
    return report_data(args, group) if args.protocol else default_data(args, group)


def default_data(args: Namespace, group: SingleProcess = SINGLE_PROCESS) -> Data:
    """Poems without duplicates, split by their SHA-256; the vocabulary comes from the training part."""
    parts = group.broadcast(lambda: read_parts(args))
    index = LineIndex.build(poem for part in parts for poem in part) if group.first else None  # which writes it
    gc.collect()  # return the strings' memory to the system before long-lived data fragments it
    vocabulary = Vocabulary.build(parts[0], most=args.max_vocabulary, least=args.min_count)
    return Data(packed_task(parts, vocabulary, args.batch_size), index, run_checkpoint.hash_of(parts))


def read_parts(args: Namespace) -> list[Joined]:
    """The training, validation and test poems; all other strings of the corpus are freed."""
    if args.text:
        found = tang.read_text(args.text, args.encoding or texts.UTF8)
        poems = list(dict.fromkeys(texts.pieces(found.poems)))
    else:
        found = tang.load(args.corpus, args.files, max_length=args.max_length)
        poems = found.poems
    parts = tang.split(poems)
    sizes = " / ".join(f"{len(part):,}" for part in parts)
    if not all(parts):
        raise cli.UsageError(f"too few distinct poems: {sizes} to train / validate / test, {found.summary}")
    cli.note(f"{sizes} poems to train / validate / test, {found.summary}")
    return [Joined(part) for part in parts]


def report_data(args: Namespace, group: SingleProcess) -> Data:
    found = group.broadcast(lambda: tang.load(args.corpus, args.files, max_length=MAX_LENGTH, unique=False))
    if args.protocol == "report":
        task = protocol.report_task(found.poems)
    else:
        task = protocol.rows_task(found.poems, args.batch_size)
    cli.note(f"{len(found.poems):,} poems in the report's order, {found.summary}")
    index = LineIndex.build(found.poems) if group.first else None
    return Data(task, index, run_checkpoint.hash_of([found.poems]))


def prepared_data(args: Namespace, group: SingleProcess) -> Data:
    found = prepared.load(args.prepared)  # every rank maps its own machine's copy
    if found.digest != group.broadcast(lambda: found.digest):
        raise tang.CorpusError(f"{args.prepared} has different poems here than on the first rank")
    counts = " / ".join(f"{len(part.lengths):,}" for part in found.parts)
    cli.note(f"{counts} poems to train / validate / test, from {args.prepared}")
    return Data(found.task(args.batch_size), None, found.digest)
