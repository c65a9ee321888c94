"""An index of the lines in the training corpus: hashes stored beside the model, without the text itself.

An entry has 64 bits: 48 of a hash over the line without its last character, then 16 of that character. The sorted
entries answer two questions: is this line in the corpus, and which characters would complete a line of the corpus. A
hash collision can only forbid too much, never too little.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError

from common.atomic_files import write_bytes
from corpus.vocabulary import code_points

import numpy as np

FILE = "lines.npy"  # beside model.safetensors
ENDS = "，。？！；：、…,.?!;:"  # characters that end a line
LINE = re.compile(f"[^{re.escape(ENDS)}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_STIR = np.uint64(0xD6E8FEB86659FD93)
_LOW = np.uint64(0xFFFF)


class LineIndex:
    """The lines of a corpus as sorted entries."""

    def __init__(self, entries: np.ndarray) -> None:
        if entries.ndim != 1 or entries.dtype != np.uint64 or (entries[1:] < entries[:-1]).any():
            raise ValueError(f"an index of lines must be sorted uint64, got {entries.dtype} of shape {entries.shape}")
        self.entries = entries

    @classmethod
    def build(cls, poems: Iterable[str]) -> LineIndex:
        """The index of all lines of `poems`."""
        by_length: dict[int, list[str]] = {}
        for poem in poems:
            for line in LINE.findall(poem):
                by_length.setdefault(len(line), []).append(line)
        entries = [np.zeros(0, np.uint64)]
        for length, lines in by_length.items():
            codes = codes_of("".join(lines)).reshape(-1, length)
            before = begin(len(lines))
            for column in codes.T[:-1]:
                before = extend(before, column)
            entries.append(_key(before) | (codes[:, -1] & _LOW))
        return cls(np.unique(np.concatenate(entries)))

    @classmethod
    def load(cls, path: Path) -> LineIndex:
        """The index that `save` wrote; ValueError for anything else."""
        try:
            with path.open("rb") as file:
                return cls(np.lib.format.read_array(file))
        except (ValueError, OverflowError, MemoryError, TokenError) as error:  # all but ValueError: a malformed header
            raise ValueError(f"{path}: not an index of lines ({str(error).splitlines()[0]})") from None

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        np.save(content, self.entries, allow_pickle=False)
        write_bytes(path, content.getvalue())

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, line: str) -> bool:
        before = begin(1)
        *first, last = codes_of(line)
        for code in first:
            before = extend(before, code)
        return bool(self.holds(before, np.array([last]))[0])

    def copied(self, poem: str) -> list[str]:
        """The lines of a poem that are in the index."""
        return [line for line in LINE.findall(poem) if line in self]

    def holds(self, before: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Which lines are in the index, given hashes `before` (B,) and the code of the last character `last` (B,)."""
        wanted = _key(before) | (last & _LOW)
        places = np.minimum(np.searchsorted(self.entries, wanted), len(self.entries) - 1)
        return self.entries[places] == wanted if len(self.entries) else np.zeros(len(wanted), bool)

    def forbid_endings(self, allowed: np.ndarray, before: np.ndarray, codes: np.ndarray) -> None:
        """Clear in `allowed` (B, V) the tokens of `codes` (V,) that would complete a line of the index."""
        keys = _key(before)
        first = np.searchsorted(self.entries, keys)
        last = np.searchsorted(self.entries, keys | _LOW, side="right")
        for row in np.flatnonzero(first < last):
            allowed[row] &= ~np.isin(codes & _LOW, self.entries[first[row] : last[row]] & _LOW)


def begin(rows: int) -> np.ndarray:
    """The hash of the empty line, for each row."""
    return np.zeros(rows, np.uint64)


def extend(before: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The hashes of lines extended by one character each; overflow is intended."""
    return (before + codes + np.uint64(1)) * _FACTOR


def codes_of(text: str) -> np.ndarray:
    """The code points of a text, (len(text),)."""
    return code_points(text).astype(np.uint64)


def token_codes(tokens: Iterable[str]) -> np.ndarray:
    """The code points of a vocabulary's tokens (V,); a mark such as <end> becomes 0, which no character has."""
    return np.array([ord(token) if len(token) == 1 else 0 for token in tokens], np.uint64)


def _key(before: np.ndarray) -> np.ndarray:
    stirred = before ^ (before >> np.uint64(29))
    return (stirred * _STIR) & ~_LOW
