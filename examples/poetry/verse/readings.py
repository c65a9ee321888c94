"""How characters sound in classical verse: level or oblique (平仄), and in which groups of the 平水韻 they rhyme.

The table is pingshui.txt; variants.txt maps characters that it lacks to another form that it has. A character with
several readings keeps them all: any that fits is allowed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
LEVEL, OBLIQUE = "平", "仄"
LEVEL_TONES = ("上平聲", "下平聲")
LOST = "囗"  # the corpus's placeholder for a lost character


class Readings(NamedTuple):
    """How each of V tokens can be read; a token without a known reading is False in all but `characters`."""

    characters: np.ndarray  # (V,): it is a Chinese character
    level: np.ndarray  # (V,)
    oblique: np.ndarray  # (V,)
    rhymes: np.ndarray  # (30, V): it has a reading in this level group


@cache
def table() -> dict[str, tuple[str, ...]]:
    """The groups of every character that has a reading, such as "上平聲一東"."""
    found: dict[str, list[str]] = {}
    for line in _lines("pingshui.txt"):
        tone, name, characters = line.split()
        for character in characters:
            found.setdefault(character, []).append(tone + name)
    readings = {character: tuple(groups) for character, groups in found.items()}
    for line in _lines("variants.txt"):
        for pair in line.split():
            readings.setdefault(pair[0], readings[pair[1]])
    return readings


@cache
def level_groups() -> tuple[str, ...]:
    """The thirty groups that regulated verse rhymes in, in the table's order."""
    named = ("".join(line.split()[:2]) for line in _lines("pingshui.txt"))
    return tuple(group for group in named if is_level(group))


def is_level(group: str) -> bool:
    return group.startswith(LEVEL_TONES)


def tones(character: str) -> set[str]:
    """The tones that a character may have: 平, 仄, both, or none if the table lacks it."""
    return {LEVEL if is_level(group) else OBLIQUE for group in table().get(character, ())}


def rhymes(character: str) -> set[str]:
    """The level groups in which a character has a reading."""
    return {group for group in table().get(character, ()) if is_level(group)}


def is_character(token: str) -> bool:
    return len(token) == 1 and unicodedata.category(token) == "Lo" and token != LOST


def readings_of(tokens: Sequence[str]) -> Readings:
    """The readings of a vocabulary's tokens as arrays."""
    groups = level_groups()
    rows = {group: row for row, group in enumerate(groups)}
    found = Readings(
        characters=np.array([is_character(token) for token in tokens], bool),
        level=np.zeros(len(tokens), bool),
        oblique=np.zeros(len(tokens), bool),
        rhymes=np.zeros((len(groups), len(tokens)), bool),
    )
    for place, token in enumerate(tokens):
        for group in table().get(token, ()):
            if is_level(group):
                found.level[place] = found.rhymes[rows[group], place] = True
            else:
                found.oblique[place] = True
    return found


def _lines(name: str) -> Iterable[str]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return (line for line in lines if not line.startswith("#"))
