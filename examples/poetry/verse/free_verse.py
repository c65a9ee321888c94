"""Free verse: no form, a few bans, and optionally a keyword.

No poem begins with a mark, has two marks in a row, or repeats a line; optionally, none copies a line of the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from corpus.line_index import ENDS, LineIndex, begin, codes_of, extend, token_codes
from corpus.vocabulary import END, Vocabulary

import numpy as np

MARKS = "，。？！；：、"  # Chinese punctuation; other marks may follow each other, as in "..." or "?!"


class FreeVerse:
    """Forbids tokens in the poems that `write_poems` writes side by side."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        index: LineIndex | None = None,
        keyword: str = "",
        spots: Sequence[int] = (),
    ) -> None:
        """With `index`, no line may be in it; in poem n `keyword` begins at character spots[n] or earlier."""
        self.tokens, self.ids, self.end = vocabulary.tokens, vocabulary.ids, vocabulary.ids[END]
        self.index, self.keyword, self.spots = index, keyword, spots
        self.codes = token_codes(self.tokens)
        self.ends = np.array([token == END or token in ENDS for token in self.tokens], bool)
        self.marks = np.array([token in MARKS for token in self.tokens], bool)

    def forbid(self, scores: np.ndarray, poems: Sequence[list[int]], limits: Sequence[int]) -> None:
        """Set forbidden next tokens to -inf in `scores` (B, V); each poem is cut at its limit of characters."""
        for row, (poem, limit) in enumerate(zip(poems, limits, strict=True)):
            text = "".join(self.tokens[token] for token in poem)
            if self.keyword and self.keyword not in text:
                scores[row, self.end] = -np.inf
                at = len(text) - self.spots[row]
                if 0 <= at < len(self.keyword) and text.endswith(self.keyword[:at]):
                    wanted = self.ids[self.keyword[at]]
                    scores[row, np.arange(len(self.tokens)) != wanted] = -np.inf
                    continue
            if no_mark_after(text):
                scores[row, self.marks] = -np.inf
            if not text:
                scores[row, self.end] = -np.inf
            *before, latest = split_lines(text)
            if self._stands(before, latest):
                scores[row, self.ends] = -np.inf
            if len(poem) == limit - 1:
                self._forbid_endings(scores[row], before, latest)
            if not np.isfinite(scores[row]).any():
                scores[row, self.end] = 0.0  # `finished` removes the line

    def finished(self, poem: str, start: str) -> str:
        """The poem that began with `start`, without its last line if that is forbidden."""
        *before, latest = split_lines(poem)
        cut = len(poem) - len(latest)
        return poem[:cut] if self._stands(before, latest) and cut >= len(start) else poem

    def _stands(self, before: Sequence[str], line: str) -> bool:
        """Whether a line is already in the poem, or in the index."""
        return bool(line) and (line in before or (self.index is not None and line in self.index))

    def _forbid_endings(self, scores: np.ndarray, before: Sequence[str], latest: str) -> None:
        """At a poem's last place, forbid the tokens that would complete a forbidden line."""
        for line in before:
            if len(line) == len(latest) + 1 and line.startswith(latest):
                scores[self.ids[line[-1]]] = -np.inf
        if self.index is not None:
            hashes, allowed = begin(1), np.ones((1, len(scores)), bool)
            for code in codes_of(latest):
                hashes = extend(hashes, code)
            self.index.forbid_endings(allowed, hashes, self.codes)
            scores[~allowed[0]] = -np.inf


def no_mark_after(text: str) -> bool:
    """Whether no mark may come next: at the beginning, and after a mark."""
    return not text or text[-1] in MARKS


def split_lines(poem: str) -> list[str]:
    """The poem's lines, the last one empty if the poem ends in a mark."""
    return re.split(f"[{re.escape(ENDS)}]", poem)
