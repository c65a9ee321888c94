"""How probable texts are in the model: at temperature 1, with nothing forbidden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from model import PoemModel
from vocabulary import BEGIN, END, Vocabulary

import minidl

ROWS = 512  # of logits made at once


def log_probabilities(model: PoemModel, vocabulary: Vocabulary, poems: Sequence[str]) -> list[np.ndarray]:
    """The log-probability of every character of each poem and of its end, (len(poem) + 1,).

    A character that the model never met has that of the unknown mark. The first one of a model that has no mark to
    begin with is NaN, for such a model cannot say.
    """
    begin, end = vocabulary.ids.get(BEGIN), vocabulary.ids[END]
    rows = [np.append(vocabulary.encode(poem), end) for poem in poems]
    first = [] if begin is None else [begin]
    inputs = minidl.pack([[*first, *row[:-1]] for row in rows])
    h, _ = model.lstm(model.embedding(inputs.data), inputs.batch_sizes)
    targets = minidl.pack([row[1 - len(first) :] for row in rows]).data
    found = np.empty(len(targets))
    for start in range(0, len(targets), ROWS):
        part = slice(start, start + ROWS)
        logits = minidl.to_host(model.head.logits(h[part])).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        found[part] = logits[np.arange(len(logits)), targets[part]] - np.log(np.exp(logits).sum(axis=1))
    missing = np.full(1 - len(first), np.nan)
    return [np.concatenate([missing, row[:, 0]]) for row in minidl.unpack(inputs._replace(data=found[:, None]))]
