"""The poems that the language model is trained on: their source, and which text is kept.

The Tang files of https://github.com/chinese-poetry/chinese-poetry are 58 JSON files in traditional
characters, `全唐诗/poet.tang.N.json` with N = 0, 1000, ... 57000.  Each is a list of entries: objects with
`author`, `title`, `paragraphs` (a list of str, usually one couplet each) and more.  The project is under
the MIT licence, Copyright (c) 2016 JackeyGao; the Tang poems are in the public domain.  See download.py for
how they are fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from corpus import download
from corpus.download import CorpusError
from corpus.texts import UTF8, text_lines

# Brackets contain editors' notes and variants; the box is a lost character; half a surrogate pair, which a JSON escape
# can smuggle in, is not a character and could not be encoded again.
_NOISE = re.compile(r"[\s□\ud800-\udfff]")
_OPENING = re.compile(r"[（\[「{]")
_CLOSING = {"（": "）", "[": "]", "「": "」", "{": "}"}


class Corpus(NamedTuple):
    """The poems in corpus order; counts of entries `read`, `kept`, and skipped by reason."""

    poems: list[str]
    counts: dict[str, int]

    @property
    def summary(self) -> str:
        """The counts in words."""
        words = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.counts.items() if count]
        return f"of {', '.join(words)}"


def load(
    directory: Path | None = None,
    files: int = 8,
    *,
    max_length: int | None = 49,
    unique: bool = True,
    progress: bool = True,
) -> Corpus:
    """Find (or download) and read the first `files` files."""
    return read(find(directory, files, progress=progress), max_length=max_length, unique=unique)


def find(directory: Path | None, files: int, *, progress: bool = True) -> list[Path]:
    """The first `files` files in numeric order.  A `directory` is the user's own copy, used without checksums
    or downloads; otherwise files missing from the cache folder are downloaded."""
    if not 1 <= files <= len(download.NAMES):
        raise CorpusError(f"the corpus has 1 to {len(download.NAMES)} files, not {files}")
    names = download.NAMES[:files]
    return download.cached(names, progress=progress) if directory is None else _find_in(directory, names)


def _find_in(directory: Path, names: list[str]) -> list[Path]:
    layouts = (directory, directory / download.FOLDER, directory / download.PACKAGE_FOLDER)
    folder = next((layout for layout in layouts if any(layout.glob("poet.tang.*.json"))), directory)
    for name in names:
        if not (folder / name).is_file():
            raise CorpusError(f"no {name} in the corpus folder {folder} ({len(names)} files needed)")
    return [folder / name for name in names]


def read(paths: Iterable[Path], *, max_length: int | None = None, unique: bool = True) -> Corpus:
    """The cleaned poems of 1 to `max_length` characters; if `unique`, only the first of exact duplicates."""
    return _select((text for path in paths for text in _texts(path)), max_length, unique)


def _texts(path: Path) -> Iterator[str | None]:
    """The cleaned text of each entry of one file, None for an entry without a list of str `paragraphs`."""
    try:
        entries = json.loads(_decode(path))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise CorpusError(f"{path} is not a list of poems: line 1, column 1 starts something else")
    for entry in entries:
        paragraphs = entry.get("paragraphs") if isinstance(entry, dict) else None
        if isinstance(paragraphs, list) and all(isinstance(part, str) for part in paragraphs):
            yield clean(paragraphs)
        else:
            yield None


def clean(paragraphs: Iterable[str]) -> str:
    """The poem as one string without white space, lost characters, and text in （） [] 「」 or {}.

    A span ends at the first closing bracket of its kind, in a later paragraph if need be; an unmatched bracket
    is kept.
    """
    text = "".join(paragraphs)
    last = {opening: text.rfind(closing) for opening, closing in _CLOSING.items()}
    kept, start = [], 0
    for found in _OPENING.finditer(text):
        # `last` avoids futile searches: a file of opening brackets would take quadratic time
        if start <= found.start() < last[found[0]]:
            kept.append(text[start : found.start()])
            start = text.index(_CLOSING[found[0]], found.end()) + 1
    return _NOISE.sub("", "".join([*kept, text[start:]]))


def read_text(path: Path, encoding: str = UTF8, *, max_length: int | None = None, unique: bool = True) -> Corpus:
    """The user's own poems or prose, one per line, stripped of surrounding white space."""
    lines = (line for lines, _ in text_lines(path, encoding) for line in lines)
    corpus = _select(lines, max_length, unique)
    if not corpus.counts["read"]:
        raise CorpusError(f"{path} is empty")
    if not corpus.poems:
        raise CorpusError(f"{path} has no usable line, {corpus.summary}")
    return corpus


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise CorpusError(f"{path} is not UTF-8: byte {error.start}, in line {line}") from None


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
    """Train, validation and test (90/5/5) by each text's SHA-256, so a poem's part depends on nothing else."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for poem in poems:
        share = int.from_bytes(hashlib.sha256(poem.encode("utf-8")).digest()[:8], "big") / 2**64
        parts[0 if share < 0.90 else 1 if share < 0.95 else 2].append(poem)
    return parts
