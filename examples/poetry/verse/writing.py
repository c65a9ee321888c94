"""Writing poems with a trained model, one character at a time."""

from __future__ import annotations

from collections.abc import Sequence

from corpus.vocabulary import BEGIN, END, Vocabulary
from model import PoemModel, State
from verse.free_verse import FreeVerse

import numpy as np

import minidl
from minidl.backend import Rng

STARTS = "日紅山夜湖海月"  # the report's seven
TEMPERATURE = 0.7  # below 1 is plainer and safer, above 1 wilder


def write_poems(
    model: PoemModel,
    vocabulary: Vocabulary,
    starts: Sequence[str],
    max_length: int,
    *,
    argmax: bool = False,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = None,
    rules: FreeVerse | None = None,
    rng: Rng = None,
) -> list[str]:
    """One poem for each of `starts` (the text it begins with, possibly empty), all written side by side.

    A poem ends at the end mark or at `max_length` characters. With `argmax` the likeliest character is taken at every
    place, otherwise one is sampled (see minidl.sample); `rules` may forbid some. A start's characters must be in the
    vocabulary.
    """
    rng = np.random.default_rng(rng)
    end = vocabulary.ids[END]
    never = [mark for mark in vocabulary.marks if mark != end]
    forced = [vocabulary.encode(start) for start in starts]
    poems: list[list[int]] = [[] for _ in starts]
    state: State | None = None
    latest = np.full(len(starts), vocabulary.ids.get(BEGIN, end), np.int32)
    if BEGIN not in vocabulary:  # such a model (the report's) starts from the first character
        if not all(starts):
            raise ValueError("this model needs a first character to start from")
        latest = np.array([ids[0] for ids in forced], np.int32)
        poems = [[int(ids[0])] for ids in forced]
    limits = [max(max_length, len(start)) for start in starts]
    alive = np.array([len(poem) < limit for poem, limit in zip(poems, limits, strict=True)], bool)
    while alive.any():
        logits, state = model.next_logits(latest, state)
        scores = minidl.to_host(logits)
        scores[:, never] = -np.inf
        if rules is not None:
            rules.forbid(scores, poems, limits)
        chosen = scores.argmax(axis=1) if argmax else minidl.sample(scores, temperature, top_k, top_p, rng)
        for row in np.flatnonzero(alive):
            place = len(poems[row])
            token = int(forced[row][place] if place < len(forced[row]) else chosen[row])
            latest[row] = token
            if token != end:
                poems[row].append(token)
            alive[row] = token != end and len(poems[row]) < limits[row]
    written = [vocabulary.decode(poem) for poem in poems]
    return written if rules is None else [rules.finished(*pair) for pair in zip(written, starts, strict=True)]
