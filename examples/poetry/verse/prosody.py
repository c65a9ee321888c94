"""The forms of regulated verse: how many lines of how many characters, and the tone of each place.

A line of five has one of four patterns, which have these names below:

    A 仄仄平平仄    B 平平仄仄平    C 平平平仄仄    D 仄仄仄平平

A line of seven puts the opposite of the first pair in front. The first and third places are free (中; in a line of
seven the first, third and fifth), except that B's first is level (孤平) and D's third oblique (三平尾); in a line of
seven these are the third and the fifth. Within a couplet the even places are opposed (對), between couplets they agree
(粘), even lines rhyme in a level tone, and the first line rhymes if it ends level. This leaves four ways through a
poem: see STARTS.
"""

from __future__ import annotations

from typing import NamedTuple

from verse.readings import LEVEL, OBLIQUE

FREE = "中"
PATTERNS = {"A": "中仄中平仄", "B": "平平中仄平", "C": "中平中仄仄", "D": "中仄仄平平"}
STARTS = ("AB", "CD", "DB", "BD")  # the first couplet
NEXT = {"B": "CD", "D": "AB"}  # the couplet that agrees with a couplet ending in B or D
OPPOSITE = {LEVEL: OBLIQUE, OBLIQUE: LEVEL}
COMMA, STOP = "，", "。"


class Form(NamedTuple):
    """A form of regulated verse."""

    name: str
    short: str
    lines: int
    width: int  # characters in a line

    @property
    def places(self) -> int:
        """Characters and marks in a poem."""
        return self.lines * (self.width + 1)

    def mark(self, line: int) -> str:
        """The mark that ends a line; lines count from 0."""
        return STOP if line % 2 else COMMA

    def templates(self) -> list[list[str]]:
        """The tones of every line, in each of the four ways through a poem."""
        return [[tone_pattern(kind, self.width) for kind in _kinds(start, self.lines)] for start in STARTS]


FORMS = (
    Form("五言絕句", "五絕", 4, 5),
    Form("七言絕句", "七絕", 4, 7),
    Form("五言律詩", "五律", 8, 5),
    Form("七言律詩", "七律", 8, 7),
)
FREE_NAMES = ("free", "自由")
_TRADITIONAL = str.maketrans("绝诗", "絕詩")


def find_form(name: str) -> Form | None:
    """The form with this name, full or short, in traditional or simplified characters; None for free verse."""
    name = name.strip()
    if name.lower() in FREE_NAMES:
        return None
    traditional = name.translate(_TRADITIONAL)
    for form in FORMS:
        if traditional in (form.name, form.short):
            return form
    raise ValueError(f"expected one of {', '.join(form.short for form in FORMS)} or free, got {name!r}")


def tone_pattern(kind: str, width: int) -> str:
    """The tones of one line, 中 where both are allowed."""
    five = PATTERNS[kind]
    return five if width == 5 else FREE + OPPOSITE[five[1]] + five


def _kinds(start: str, lines: int) -> str:
    kinds = start
    while len(kinds) < lines:
        kinds += NEXT[kinds[-1]]
    return kinds


def rhymes_at(template: list[str], line: int) -> bool:
    """Whether a line of a template rhymes: it does if it ends level."""
    return template[line].endswith(LEVEL)
