"""How probable texts are under the model: at temperature 1, with nothing forbidden."""

from __future__ import annotations

from collections.abc import Sequence

from corpus.vocabulary import BEGIN, END, Vocabulary
from model import PoemModel

import numpy as np

import minidl


def log_probabilities(model: PoemModel, vocabulary: Vocabulary, poems: Sequence[str]) -> list[np.ndarray]:
    """The log-probability of every character of each poem and of its end, (len(poem) + 1,).

    A character outside the vocabulary gets the unknown mark's. The first is NaN for a model without a begin mark, which
    does not predict it.
    """
    end = vocabulary.ids[END]
    targets = np.full((len(poems), max(map(len, poems)) + 1), end, np.int32)  # padded with end marks, which are dropped
    for row, poem in zip(targets, poems, strict=True):
        row[: len(poem)] = vocabulary.encode(poem)
    found = np.full(targets.shape, np.nan)
    latest, state = np.full(len(poems), vocabulary.ids.get(BEGIN, end), np.int32), None
    for place, wanted in enumerate(targets.T):
        if place or BEGIN in vocabulary:
            logits, state = model.next_logits(latest, state)
            scores = minidl.to_host(logits).astype(np.float64)
            scores -= scores.max(axis=1, keepdims=True)
            found[:, place] = scores[np.arange(len(poems)), wanted] - np.log(np.exp(scores).sum(axis=1))
        latest = np.ascontiguousarray(wanted)
    return [row[: len(poem) + 1] for row, poem in zip(found, poems, strict=True)]
