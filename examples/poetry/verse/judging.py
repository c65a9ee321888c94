"""Does a poem keep the rules of regulated verse? Judged by the textbook rules, for evaluate_verse.py.

Only the two tables are shared with the code that writes the poems (prosody.py, readings.py, plans.py, rules.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

SHAPES = {(4, 5): "五絕", (4, 7): "七絕", (8, 5): "五律", (8, 7): "七律"}
LINES = ("仄仄平平仄", "平平仄仄平", "平平平仄仄", "仄仄仄平平")
ALL_LEVEL = 30  # the level groups come first in the table


class Verdict(NamedTuple):
    """Which rules a poem keeps."""

    shape: str  # the form with its number and length of lines, "" if none
    marks: bool  # its lines end in ， and 。 in turn, and it has no other marks
    rhyme: bool  # its even lines rhyme in one level group, and so does a first line that can only be level
    tones: bool  # some choice of readings follows one of the patterns throughout
    repeats: bool  # a line occurs twice

    @property
    def kept(self) -> bool:
        return bool(self.shape) and self.marks and self.rhyme and self.tones and not self.repeats


def judge(poem: str) -> Verdict:
    lines = [line for line in re.split("[，。？！；：、]", poem) if line]
    widths = {len(line) for line in lines}
    shape = SHAPES.get((len(lines), widths.pop()), "") if len(widths) == 1 else ""
    marks = poem == "".join(line + "，。"[number % 2] for number, line in enumerate(lines))
    repeats = len(set(lines)) < len(lines)
    if not shape:
        return Verdict(shape, marks, False, False, repeats)
    return Verdict(shape, marks, _rhymes(lines), _follows(lines, 0, None), repeats)


def _rhymes(lines: list[str]) -> bool:
    """Whether the even lines rhyme in one level group, and the first line too if its last character is only level."""
    endings = [line[-1] for line in lines[1::2]]
    if all(group < ALL_LEVEL for group in _table()[lines[0][-1]]) and _table()[lines[0][-1]]:
        endings.append(lines[0][-1])
    common = set(range(ALL_LEVEL))
    for character in endings:
        common &= set(_table()[character])
    return bool(common)


def _follows(lines: list[str], number: int, before: str | None) -> bool:
    """Whether patterns can be assigned to the lines from `number` on, after a line with the pattern `before`."""
    if number == len(lines):
        return True
    for pattern in LINES:
        ends_level = pattern[4] == "平"
        if (number % 2 and not ends_level) or (number % 2 == 0 and number > 0 and ends_level):
            continue  # even lines end level; of the others only the first may
        if before is not None:
            opposed = [pattern[place] != before[place] for place in (1, 3)]
            if opposed != [bool(number % 2)] * 2:  # 對 within a couplet, 粘 between couplets
                continue
        if _has(lines[number], pattern) and _follows(lines, number + 1, pattern):
            return True
    return False


@lru_cache(2**16)
def _has(line: str, pattern: str) -> bool:
    """Whether a line of five or seven can be read in this pattern; seven puts 仄仄 before 平平 and vice versa."""
    free = {0, 2}
    if pattern == "平平仄仄平":
        free.remove(0)  # 孤平
    if pattern == "仄仄仄平平":
        free.remove(2)  # 三平尾
    if len(line) == 7:
        pattern = ("平平" if pattern[1] == "仄" else "仄仄") + pattern
        free = {0, *(place + 2 for place in free)}
    return all(place in free or pattern[place] in _sound(line[place]) for place in range(len(line)))


def _sound(character: str) -> str:
    return "".join("平" if group < ALL_LEVEL else "仄" for group in _table()[character])


@cache
def _table() -> dict[str, list[int]]:
    """Every character's group numbers; an unknown character has none."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(_rows("pingshui.txt")):
        for character in row.split()[2]:
            found[character].append(number)
    for pair in " ".join(_rows("variants.txt")).split():
        found[pair[0]] = found[pair[0]] or found[pair[1]]
    return found


def _rows(name: str) -> list[str]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return [row for row in text.split("\n") if row and row[0] != "#"]
