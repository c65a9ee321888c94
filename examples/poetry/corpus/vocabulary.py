"""Vocabulary: characters and marks as ids, and poems as sequences of ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

BEGIN, END, UNKNOWN, PAD = "<begin>", "<end>", "<unknown>", "<pad>"


class Vocabulary:
    """Tokens in order of their ids: first some of the four marks above, then single characters."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if not all(isinstance(token, str) for token in self.tokens):
            raise TypeError("vocabulary tokens must be strings")
        if len(self.ids) != len(self.tokens) or not {END, UNKNOWN} <= self.ids.keys():
            raise ValueError(f"vocabulary tokens must be unique and include {END} and {UNKNOWN}")
        marks = (BEGIN, END, UNKNOWN, PAD)
        for token in self.tokens:
            if len(token) != 1 and token not in marks:
                raise ValueError(f"vocabulary tokens must be marks or single characters, got {token[:20]!r}")
        self.marks = [self.ids[mark] for mark in marks if mark in self.ids]

    @classmethod
    def build(
        cls,
        poems: Iterable[str],
        marks: Sequence[str] = (BEGIN, END, UNKNOWN),
        most: int | None = None,
        least: int = 2,
    ) -> Vocabulary:
        """`marks`, then at most `most` characters: those seen at least `least` times, the most frequent first.

        Ties are in order of first appearance.
        """
        counts: Counter[str] = Counter()
        for poem in poems:
            counts.update(poem)
        return cls.of_counts(counts, marks, most, least)

    @classmethod
    def of_counts(cls, counts: Counter[str], marks: Sequence[str], most: int | None, least: int) -> Vocabulary:
        """Like `build`, from counted characters in order of first appearance."""
        return cls([*marks, *[character for character, count in counts.most_common() if count >= least][:most]])

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, character: object) -> bool:
        return character in self.ids

    def encode(self, poem: str) -> np.ndarray:
        """Ids (len(poem),) as int32; a character that is not in the vocabulary becomes the unknown mark."""
        unknown = self.ids[UNKNOWN]
        return np.array([self.ids.get(character, unknown) for character in poem], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of `ids` up to the end mark."""
        text = []
        for index in ids:
            if index == self.ids[END]:
                break
            text.append(self.tokens[index])
        return "".join(text)


def code_points(text: str) -> np.ndarray:
    """The code points of a text, (len(text),) 32-bit integers."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
