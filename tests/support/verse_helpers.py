"""Helpers shared by the verse tests: a vocabulary of real characters, and an untrained model."""

from __future__ import annotations

from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from model import PoemModel

from poetry_helpers import small_model

# Some that rhyme with 東 or 陽, some only oblique, some level or oblique, and one without a reading.
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
    """A model with random weights, which does not favour the end of a poem."""
    return small_model(vocabulary, seed=seed)
