"""What the tests of verse share: a vocabulary of real characters, and lines that a model never saw."""

from __future__ import annotations

from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from model import PoemModel

from poetry_helpers import small_model

# Some of 東 and 陽 to rhyme in, some that are oblique alone, some that may be both, and one without any reading.
EAST = "東風中空紅通同公功宮蟲窮"
SUN = "陽光香長霜鄉牀"
OTHERS = "山花天秋春心人來流"
OBLIQUE = "月日水雪草鳥雨落白夜夏影坐臥"
BOTH = "看過思望"
UNREAD = "蟋"
CHARACTERS = EAST + SUN + OTHERS + OBLIQUE + BOTH + UNREAD
MARKS = "，。？"
VERSES = Vocabulary([BEGIN, END, UNKNOWN, *CHARACTERS, *MARKS])


def verse_model(vocabulary: Vocabulary = VERSES, seed: int = 0) -> PoemModel:
    """Random weights, and no liking for the end of the poem."""
    return small_model(vocabulary, seed=seed)
