"""A corpus larger than memory: its encoded poems in mapped files written by prepare.py, read a mix at a time.

For each part a folder has `<part>.ids.npy`, every poem as begin, c1 ... cn, end, and `<part>.lengths.npy`, n + 1 for
each poem. `prepared.json` has the vocabulary, the longest poem, and each part's poem and id counts and SHA-256 hashes.

An epoch is shuffled by blocks of about a thousand consecutive poems, which fill complete batches. The blocks are
shuffled; MIX of them at a time are read into memory, and their poems shuffled into batches of similar lengths. The
poems after the last complete block are in the last mix. So only one batch can be short, a batch's number determines its
mix, and each mix has its own generator: an epoch can start at any batch without reading earlier mixes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

from corpus.download import CorpusError
from corpus.tasks import Batch, Rows, Task
from corpus.vocabulary import BEGIN, END, Vocabulary

import numpy as np

METADATA = "prepared.json"
KIND, VERSION = "prepared poems", 1
PARTS = ("train", "validation", "test")
BLOCK = 1024  # poems, rounded up to complete batches
MIX = 32  # blocks in memory at a time: 33,000 poems of 50 characters are 4 MB


class Part(NamedTuple):
    """The poems of a part, as stored in the files."""

    ids: np.ndarray  # (the sum of lengths + 1,), mapped
    lengths: np.ndarray  # (poems,): targets per poem, its characters and the end; mapped
    path: Path  # of the ids file, for messages
    vocabulary: Vocabulary


class Mixed(Rows):
    """The poems of some blocks, in memory."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids, self.lengths = ids, lengths
        self.starts = np.cumsum(lengths + 1) - (lengths + 1)


class Batches(Sequence[Batch]):
    """A part's batches, built on demand."""

    def __init__(self, part: Part, batch_size: int) -> None:
        self.part, self.batch_size = part, batch_size
        self.block = batch_size * math.ceil(BLOCK / batch_size)  # poems
        blocks = (part.lengths[at : at + self.block] for at in range(0, len(part.lengths), self.block))
        sizes = np.fromiter((block.sum(dtype=np.int64) + len(block) for block in blocks), np.int64)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])  # where each block's ids start, and the end
        if self.starts[-1] != len(part.ids) or part.lengths.max() >= len(part.ids):  # sums may overflow
            raise damaged(part.path, f"it has {len(part.ids):,} ids, but the lengths require {self.starts[-1]:,}")

    def __len__(self) -> int:
        return math.ceil(len(self.part.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.walk(np.arange(len(self.starts) - 1), None)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return next(self.walk(np.arange(len(self.starts) - 1), None, range(len(self))[index]))

    def shuffled(self, rng: np.random.Generator, start: int = 0) -> Iterator[Batch]:
        """One epoch's batches from batch `start` on; two draws of `rng` determine all of it."""
        order = np.arange(len(self.starts) - 1)
        whole = len(self.part.lengths) // self.block
        order[:whole] = rng.permutation(whole)
        return self.walk(order, int(rng.integers(2**63)), start)

    def walk(self, order: np.ndarray, seed: int | None, start: int = 0) -> Iterator[Batch]:
        """The batches of the blocks in this order, mix by mix, from batch `start` on."""
        per_mix = MIX * self.block // self.batch_size
        for number in range(start // per_mix, math.ceil(len(order) / MIX)):
            rng = np.random.default_rng(0 if seed is None else [seed, number])
            mixed = self.read(order[number * MIX : (number + 1) * MIX])
            yield from mixed.batches(self.batch_size, rng, max(0, start - number * per_mix))

    def read(self, blocks: np.ndarray) -> Mixed:
        """The poems of these blocks; CorpusError if they are not what prepare.py writes."""
        part = self.part
        ids = np.concatenate([part.ids[self.starts[block] : self.starts[block + 1]] for block in blocks])
        lengths = [part.lengths[block * self.block : (block + 1) * self.block] for block in blocks]
        mixed = Mixed(ids, np.concatenate(lengths).astype(np.int64))
        known, ends = part.vocabulary.ids, mixed.starts + mixed.lengths
        if mixed.lengths.min() < 2 or (ids[mixed.starts] != known[BEGIN]).any() or (ids[ends] != known[END]).any():
            raise damaged(part.path, "its poems do not begin and end where the lengths say")
        if ids.max() >= len(known):
            raise damaged(part.path, f"it has id {ids.max()}, but the vocabulary has {len(known)} entries")
        return mixed


class Prepared(NamedTuple):
    """The contents of a folder."""

    vocabulary: Vocabulary
    parts: list[Part]  # as PARTS
    max_length: int
    digest: str  # over the vocabulary and all poems in order

    def task(self, batch_size: int) -> Task:
        """A Task whose batches are built on demand."""
        train, validation = (Batches(part, batch_size) for part in self.parts[:2])
        return Task(
            vocabulary=self.vocabulary,
            train=train.shuffled,
            steps=len(train),
            validation=validation,
            test=Batches(self.parts[2], 1),  # one by one, for the standard error
            max_length=self.max_length,
        )


def load(folder: Path) -> Prepared:
    """What prepare.py wrote into `folder`; CorpusError, in one line, for anything else."""
    path = folder / METADATA
    try:
        content = path.read_bytes()
        metadata = json.loads(content)
        if metadata["kind"] != KIND or metadata["version"] != VERSION:
            raise ValueError(
                f"it is {metadata['kind']!r} of version {metadata['version']!r}, not {KIND!r} of {VERSION}"
            )
        if not isinstance(metadata["tokens"], list):
            raise TypeError(f"its tokens must be a list, got {type(metadata['tokens']).__name__}")
        vocabulary, longest = Vocabulary(metadata["tokens"]), metadata["max_length"]
        if BEGIN not in vocabulary or not isinstance(longest, int) or longest < 1:
            raise ValueError(f"it must have a {BEGIN} token and a positive max_length, got max_length {longest!r}")
        parts = []
        for name in PARTS:
            sizes = metadata["parts"][name]
            ids, lengths = (_mapped(folder / f"{name}.{kind}.npy", sizes[kind]) for kind in ("ids", "lengths"))
            parts.append(Part(ids, lengths, folder / f"{name}.ids.npy", vocabulary))
    except OSError as error:
        raise CorpusError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())[:300]
        raise damaged(path, f"it has no {fault}" if isinstance(error, KeyError) else fault) from None
    return Prepared(vocabulary, parts, longest, hashlib.sha256(content).hexdigest())


def _mapped(path: Path, metadata: dict[str, Any]) -> np.ndarray:
    """The mapped array; CorpusError if the file has the wrong size."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also accept a zip file, and leave it open
    except (ValueError, OverflowError, TokenError) as error:  # TokenError: a truncated header
        raise damaged(path, str(error)) from None
    if array.dtype.kind != "u" or array.shape != (metadata["count"],) or not len(array):
        raise damaged(path, f"it has {array.dtype} of shape {array.shape}, not {metadata['count']} unsigned integers")
    if path.stat().st_size != array.offset + array.nbytes:
        raise damaged(path, f"it has {path.stat().st_size:,} bytes, not {array.offset + array.nbytes:,}")
    return np.asarray(array)  # the memmap subclass makes every slice slower


def damaged(path: Path, fault: str) -> CorpusError:
    return CorpusError(f"{path} is not what prepare.py writes: {fault}; run prepare.py again")
