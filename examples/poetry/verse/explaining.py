"""What the model predicted at each place of a poem, found by reading it again, and what the rules forbade there."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from corpus.vocabulary import BEGIN, END, Vocabulary
from model import PoemModel, State
from verse.poets import Referee

import numpy as np

import minidl

RUNNERS = 5
NAMES = {END: "(end)", BEGIN: "(begin)", "<unknown>": "(unknown)", "<pad>": "(pad)"}


class Runner(NamedTuple):
    """An alternative character for a place."""

    character: str
    probability: float
    allowed: bool


class Thought(NamedTuple):
    """One place of a poem; probabilities are the model's own, at temperature 1 and before anything is forbidden."""

    character: str
    probability: float
    rank: int  # 1 for the model's first choice
    runners: list[Runner]  # the likeliest alternatives
    forbidden: float  # the share of the model's probability that the rules forbade
    rule: str


def thoughts(model: PoemModel, vocabulary: Vocabulary, poem: str, referee: Referee) -> list[Thought]:
    """A thought for each character of the poem, and for its end."""
    found: list[Thought] = []
    state: State | None = None
    latest = vocabulary.ids.get(BEGIN)
    for token in [*vocabulary.encode(poem).tolist(), vocabulary.ids[END]]:
        allowed, rule = referee.allowed()
        if latest is not None:  # None: the first character, in a model without a begin mark
            logits, state = model.next_logits(np.array([latest], np.int32), state)
            found.append(_thought(vocabulary, minidl.to_host(logits)[0], token, allowed, rule))
        if token != vocabulary.ids[END]:
            referee.read(token)
        latest = token
    return found


def _thought(vocabulary: Vocabulary, logits: np.ndarray, token: int, allowed: np.ndarray, rule: str) -> Thought:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")
    runners = [Runner(_name(vocabulary, other), float(shares[other]), bool(allowed[other])) for other in order]
    return Thought(
        _name(vocabulary, token),
        float(shares[token]),
        int(np.flatnonzero(order == token)[0]) + 1,
        [runner for runner, other in zip(runners, order[: RUNNERS + 1], strict=False) if other != token][:RUNNERS],
        float(shares[~allowed].sum()),
        rule,
    )


def _name(vocabulary: Vocabulary, token: int) -> str:
    return _named(vocabulary.tokens[token])


def _named(token: str) -> str:
    return "(space)" if token.isspace() else NAMES.get(token, token)


def converted(found: Sequence[Thought], poem: str, convert: Callable[[str], str]) -> list[Thought]:
    """The thoughts in another script. `poem` is the converted poem: a conversion can depend on nearby characters."""
    names = [*map(_named, poem), *(thought.character for thought in found[-1:])]
    return [
        thought._replace(
            character=name,
            runners=[runner._replace(character=convert(runner.character)) for runner in thought.runners],
            rule=convert(thought.rule),
        )
        for name, thought in zip(names[-len(found) :], found, strict=True)  # the first character may have no thought
    ]


def table(found: Sequence[Thought]) -> str:
    """The thoughts as a text table; an x marks a runner-up that the rules forbade."""
    rows = [("", "probability", "rank", "rule", "forbidden", "the likeliest others (x: forbidden)")]
    for thought in found:
        others = "  ".join(
            f"{'' if other.allowed else 'x'}{other.character} {other.probability:.1%}" for other in thought.runners
        )
        rank, forbidden = str(thought.rank), f"{thought.forbidden:.0%}"
        rows.append((thought.character, f"{thought.probability:.2%}", rank, thought.rule, forbidden, others))
    widths = [max(_width(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines) + "\n"


def _width(text: str) -> int:
    """The width in terminal columns: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
