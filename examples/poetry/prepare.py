"""Encode a corpus once for train.py --prepared; it may be larger than memory.

python examples/poetry/prepare.py --text big.txt --out big            a text, one poem or passage a line
python examples/poetry/prepare.py --files 58 --out tang               Tang poems, as train.py reads them

The text is read twice, a few MB at a time: once for the vocabulary, which is that of the training part, and once to be
encoded. Which part a line falls into is decided by its SHA-256, as in train.py, so that equal lines share a part.
prepared.py says what is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from common import cli
from common.atomic_files import new_folder, write_text
from common.progress import Progress
from corpus import tang, texts
from corpus.prepared import KIND, METADATA, PARTS, VERSION
from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary, code_points
from learning import settings

import numpy as np

CODE_POINTS = 0x110000  # of Unicode
AT_ONCE = 10_000  # Tang poems
FIRST, LAST = "\r", "\n"  # around each poem during encoding: no line of a text contains them


class Source(NamedTuple):
    """What is encoded: `poems()` yields it, some thousands at a time, with how much of `size` they were."""

    poems: Callable[[], Iterator[tuple[list[str], int]]]
    size: int
    unit: str


class Tally:
    """What is known about a part before it is encoded."""

    def __init__(self) -> None:
        self.poems = self.characters = self.longest = 0

    def add(self, poems: Sequence[str]) -> None:
        lengths = [len(poem) for poem in poems]
        self.poems += len(poems)
        self.characters += sum(lengths)
        self.longest = max([self.longest, *lengths])


class ArrayFile:
    """An .npy file of `count` numbers, written piece by piece. With a map, a full disk would kill the process."""

    def __init__(self, file: IO[bytes], largest: int, count: int) -> None:
        self.file, self.count, self.left, self.digest = file, count, count, hashlib.sha256()
        self.dtype = np.min_scalar_type(largest)
        head = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(self.file, head)

    def add(self, values: np.ndarray) -> None:
        content = values.astype(self.dtype).tobytes()
        self.left -= len(values)
        self.digest.update(content)
        self.file.write(content)

    def finish(self) -> dict[str, Any]:
        """The count and SHA-256 of its numbers; CorpusError if there were more or fewer than announced."""
        if self.left:
            raise tang.CorpusError("the text changed while it was read: the second pass had other poems")
        self.file.flush()
        os.fsync(self.file.fileno())  # some file systems report only here that they are full
        return {"count": self.count, "sha256": self.digest.hexdigest()}


def main() -> int:
    args = parse_arguments()
    if args.out.exists() or args.out.is_symlink():  # a dangling link exists too
        raise cli.UsageError(f"--out {args.out} already exists; choose another folder, or delete it")
    with cli.output_folder(args.out.parent):
        source = of_text(args.text, args.encoding or texts.UTF8) if args.text else of_the_tang(args)
        with Progress(total=2 * source.size, unit=source.unit, unit_scale=True, leave=False) as progress:
            prepare(source, args, progress)
    return 0


def prepare(source: Source, args: Namespace, progress: Progress) -> None:
    """Write the folder, and print a summary."""
    tallies = [Tally() for _ in PARTS]
    progress.set_description_str("counting", refresh=False)
    characters = count(training_texts(watched(source, progress), tallies))
    vocabulary = Vocabulary.of_counts(characters, (BEGIN, END, UNKNOWN), args.max_vocabulary, args.min_count)
    counts = " / ".join(f"{tally.poems:,}" for tally in tallies)
    if not all(tally.poems for tally in tallies):
        raise cli.UsageError(f"too few poems: {counts} to train / validate / test")
    progress.set_description_str("encoding", refresh=False)
    metadata = {
        "kind": KIND,
        "version": VERSION,
        "tokens": vocabulary.tokens,
        "max_length": max(tally.longest for tally in tallies),
        "settings": {name: getattr(args, name) for name in ("files", "max_length", "max_vocabulary", "min_count")},
    }
    with new_folder(args.out) as folder:
        metadata["parts"] = encode(watched(source, progress), vocabulary, tallies, folder)
        write_text(folder / METADATA, json.dumps(metadata, ensure_ascii=False, indent=1))
    size = sum(path.stat().st_size for path in args.out.iterdir())
    cli.note(f"{counts} poems to train / validate / test, {len(vocabulary):,} characters known")
    cli.note(f"{size / 1e6:,.1f} MB in {args.out}, for train.py --prepared {args.out}")


def of_text(path: Path, encoding: str) -> Source:
    def poems() -> Iterator[tuple[list[str], int]]:
        return ((list(texts.pieces(lines)), size) for lines, size in texts.text_lines(path, encoding))

    try:
        status = path.stat()
    except OSError as error:
        raise tang.CorpusError(f"cannot read {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise tang.CorpusError(f"cannot read {path} twice: it is no regular file")
    if status.st_size == 0:
        raise tang.CorpusError(f"{path} is empty")
    return Source(poems, status.st_size, "B")


def of_the_tang(args: Namespace) -> Source:
    """The Tang poems without duplicates, as in train.py; they fit into memory."""
    found = tang.load(args.corpus, args.files, max_length=args.max_length).poems
    cut = [found[at : at + AT_ONCE] for at in range(0, len(found), AT_ONCE)]
    return Source(lambda: ((poems, len(poems)) for poems in cut), len(found), " poems")


def watched(source: Source, progress: Progress) -> Iterator[list[str]]:
    for poems, size in source.poems():
        yield poems
        progress.update(size)


def training_texts(source: Iterable[list[str]], tallies: Sequence[Tally]) -> Iterator[str]:
    """The training part, many poems per string; updates the `tallies` of all parts."""
    for poems in source:
        parts = tang.split(poems)
        for tally, part in zip(tallies, parts, strict=True):
            tally.add(part)
        yield "".join(parts[0])


def count(texts: Iterable[str]) -> Counter[str]:
    """Counts of characters, in order of first appearance; ten times as fast as Counter alone."""
    counts = np.zeros(CODE_POINTS, np.int64)
    seen: dict[int, None] = {}
    for text in texts:
        codes = code_points(text)
        seen.update(dict.fromkeys(codes[counts[codes] == 0].tolist()))
        counts += np.bincount(codes, minlength=CODE_POINTS)
    return Counter({chr(code): int(counts[code]) for code in seen})


def encode(
    source: Iterable[list[str]], vocabulary: Vocabulary, tallies: Sequence[Tally], folder: Path
) -> dict[str, dict[str, Any]]:
    """Write the ids and lengths of every part; returns their counts."""
    table = table_of(vocabulary)
    with ExitStack() as stack:

        def array_file(name: str, largest: int, count: int) -> ArrayFile:
            return ArrayFile(stack.enter_context((folder / f"{name}.npy").open("xb")), largest, count)

        files = {
            name: {
                "ids": array_file(f"{name}.ids", len(vocabulary) - 1, tally.characters + 2 * tally.poems),
                "lengths": array_file(f"{name}.lengths", tally.longest + 1, tally.poems),
            }
            for name, tally in zip(PARTS, tallies, strict=True)
        }
        for poems in source:
            for part, into in zip(tang.split(poems), files.values(), strict=True):
                into["lengths"].add(np.array([len(poem) + 1 for poem in part]))
                text = "".join(f"{FIRST}{poem}{LAST}" for poem in part)
                into["ids"].add(table[code_points(text)])
        return {name: {kind: file.finish() for kind, file in into.items()} for name, into in files.items()}


def table_of(vocabulary: Vocabulary) -> np.ndarray:
    """The id of every Unicode code point (CODE_POINTS,)."""
    table = np.full(CODE_POINTS, vocabulary.ids[UNKNOWN], np.min_scalar_type(len(vocabulary) - 1))
    for token, index in vocabulary.ids.items():
        if index not in vocabulary.marks:
            table[ord(token)] = index
    table[ord(FIRST)], table[ord(LAST)] = vocabulary.ids[BEGIN], vocabulary.ids[END]
    return table


def parse_arguments() -> Namespace:
    parser = cli.Parser(
        "Encode poems once, for train.py --prepared. A text may be larger than memory; lines that come several times "
        "are kept several times."
    )
    settings.add_poems(settings.adder(parser))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the encoded poems")
    args = parser.parse_args()
    settings.check_poems(parser, args)
    for name in settings.POEMS:
        if getattr(args, name) is None and not (args.text and name in settings.TANG):
            setattr(args, name, settings.DEFAULTS.get(name))
    return args


if __name__ == "__main__":
    cli.run(main, tang.CorpusError)
