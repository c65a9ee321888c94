"""The poems that the language model is trained on: where they come from, and what is kept of them.

The Tang files of https://github.com/chinese-poetry/chinese-poetry are 58 JSON files in traditional
characters, `全唐诗/poet.tang.N.json` with N = 0, 1000, ... 57000.  Each is a list of entries: objects with
`author`, `title`, `paragraphs` (a list of str, most often one couplet each) and more.  The project is under
the MIT licence, Copyright (c) 2016 JackeyGao; the Tang poems are in the public domain.  See download.py for
how they come here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import download
from download import CorpusError

# In brackets are editors' notes and variants; the box is a lost character; half a surrogate pair, which a
# JSON escape can smuggle in, is no character and could not be encoded again.
_NOISE = re.compile(r"[\s□\ud800-\udfff]")
_OPENING = re.compile(r"[（\[「{]")
_CLOSING = {"（": "）", "[": "]", "「": "」", "{": "}"}

MAX_PIECE = 200  # longer lines of a text are cut, since a batch takes as many steps as its longest
CHUNK = 4 << 20  # bytes of a text that are read at a time
LONGEST_LINE = 16 << 20  # bytes


class Corpus(NamedTuple):
    """The poems in corpus order; how many entries were `read` and `kept`, or skipped for which reason."""

    poems: list[str]
    counts: dict[str, int]


def load(
    directory: Path | None = None,
    files: int = 8,
    *,
    max_length: int | None = 49,
    unique: bool = True,
    progress: bool = True,
) -> Corpus:
    """Finds (or downloads) and reads the first `files` files."""
    return read(find(directory, files, progress=progress), max_length=max_length, unique=unique)


def find(directory: Path | None, files: int, *, progress: bool = True) -> list[Path]:
    """The first `files` files in numeric order.  A `directory` is the user's own copy: no checksum there, no
    download; else what the cache folder lacks is downloaded."""
    if not 1 <= files <= len(download.NAMES):
        raise CorpusError(f"the corpus has 1 to {len(download.NAMES)} files, not {files}")
    names = download.NAMES[:files]
    return download.cached(names, progress=progress) if directory is None else _find_in(directory, names)


def _find_in(directory: Path, names: list[str]) -> list[Path]:
    layouts = (directory, directory / download.FOLDER, directory / download.PACKAGE_FOLDER)
    folder = next((layout for layout in layouts if any(layout.glob("poet.tang.*.json"))), directory)
    for name in names:
        if not (folder / name).is_file():
            raise CorpusError(f"no {name} in the corpus folder {folder} ({len(names)} files are needed)")
    return [folder / name for name in names]


def read(paths: Iterable[Path], *, max_length: int | None = None, unique: bool = True) -> Corpus:
    """The cleaned poems of 1 to `max_length` characters; of exact duplicates only the first if `unique`."""
    return _select((text for path in paths for text in _texts(path)), max_length, unique)


def _texts(path: Path) -> Iterator[str | None]:
    """The cleaned text of each entry of one file, None for an entry without a list of str `paragraphs`."""
    try:
        entries = json.loads(_decode(path))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise CorpusError(f"{path} is not a list of poems: line 1, column 1 begins something else")
    for entry in entries:
        paragraphs = entry.get("paragraphs") if isinstance(entry, dict) else None
        if isinstance(paragraphs, list) and all(isinstance(part, str) for part in paragraphs):
            yield clean(paragraphs)
        else:
            yield None


def clean(paragraphs: Iterable[str]) -> str:
    """The poem as one string without white space, lost characters, and what stands in （） [] 「」 or {}.

    A span ends at the first closing bracket of its kind, in a later paragraph if need be; a bracket without
    its partner stays.
    """
    text = "".join(paragraphs)
    last = {opening: text.rfind(closing) for opening, closing in _CLOSING.items()}
    kept, start = [], 0
    for found in _OPENING.finditer(text):
        # nothing is looked for in vain: a file of opening brackets would take the square of its length in time
        if start <= found.start() < last[found[0]]:
            kept.append(text[start : found.start()])
            start = text.index(_CLOSING[found[0]], found.end()) + 1
    return _NOISE.sub("", "".join([*kept, text[start:]]))


def read_text(path: Path, *, max_length: int | None = None, unique: bool = True) -> Corpus:
    """One's own poems or prose, one a line, as they are but for white space at the ends; UTF-8."""
    corpus = _select((line for lines, _ in text_lines(path) for line in lines), max_length, unique)
    if not corpus.poems:
        skipped = ", ".join(f"{number} {reason}" for reason, number in corpus.counts.items())
        raise CorpusError(f"{path} has no line that can be used ({skipped})")
    return corpus


def text_lines(path: Path) -> Iterator[tuple[list[str], int]]:
    """The lines of a UTF-8 text without white space at their ends, some thousand at a time, and their bytes.

    Never the whole text is in memory; a line of more than LONGEST_LINE bytes is a CorpusError.
    """
    byte, line, rest = 0, 1, b""
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                whole, end, rest = (rest + data).rpartition(b"\n")
                if len(rest) > LONGEST_LINE:
                    number = line + whole.count(b"\n") + len(end)
                    raise CorpusError(
                        f"{path} has more than {LONGEST_LINE:,} bytes in line {number}; a poem is expected"
                    )
                yield _lines_of(path, whole, byte, line), len(whole + end)
                byte, line = byte + len(whole + end), line + whole.count(b"\n") + len(end)
        yield _lines_of(path, rest, byte, line), len(rest)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None


def _lines_of(path: Path, data: bytes, byte: int, line: int) -> list[str]:
    """Of a part of the text that begins at this byte and line."""
    text = _decoded(path, data, byte, line)
    return list(map(str.strip, (text if byte else text.removeprefix("\ufeff")).splitlines()))


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """What is learned of a text's lines: each, cut where it is longer than MAX_PIECE characters."""
    return (line[at : at + MAX_PIECE] for line in lines for at in range(0, len(line), MAX_PIECE))


def _decode(path: Path) -> str:
    try:
        return _decoded(path, path.read_bytes()).removeprefix("\ufeff")
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None


def _decoded(path: Path, data: bytes, byte: int = 0, line: int = 1) -> str:
    """A part of the file that begins at this byte and line."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise CorpusError(f"{path} is not UTF-8: byte {byte + error.start}, in line {line}") from None


def _select(texts: Iterable[str | None], max_length: int | None, unique: bool) -> Corpus:
    poems: list[str] = []
    seen: set[str] = set()
    counts = dict.fromkeys(("read", "kept", "no_paragraphs", "empty", "too_long", "duplicate"), 0)
    for text in texts:
        if text is None:
            verdict = "no_paragraphs"
        elif not text:
            verdict = "empty"
        elif max_length is not None and len(text) > max_length:
            verdict = "too_long"
        elif unique and text in seen:
            verdict = "duplicate"
        else:
            verdict = "kept"
            poems.append(text)
            seen.add(text)
        counts["read"] += 1
        counts[verdict] += 1
    return Corpus(poems, counts)


def split(poems: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Train, validation and test (90/5/5) by each text's SHA-256: a poem's part depends on nothing else."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for poem in poems:
        share = int.from_bytes(hashlib.sha256(poem.encode("utf-8")).digest()[:8], "big") / 2**64
        parts[0 if share < 0.90 else 1 if share < 0.95 else 2].append(poem)
    return parts
