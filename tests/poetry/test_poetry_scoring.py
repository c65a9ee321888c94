"""The log-probability of texts, place by place."""

from __future__ import annotations

from corpus.tasks import Batch
from corpus.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary
from verse.scoring import log_probabilities

import numpy as np
import pytest
from poetry_helpers import VOCABULARY, log_softmax, small_model

import minidl

POEMS = ["甲乙，丙丁。", "日", "", "月山夜紅月山夜紅，"]


def test_it_is_what_the_model_says_step_by_step() -> None:
    model = small_model()
    for poem, found in zip(POEMS, log_probabilities(model, VOCABULARY, POEMS), strict=True):
        ids, state = [VOCABULARY.ids[BEGIN], *VOCABULARY.encode(poem), VOCABULARY.ids[END]], None
        assert found.shape == (len(poem) + 1,)
        for place, value in enumerate(found):
            logits, state = model.next_logits(np.array([ids[place]], np.int32), state)
            assert value == pytest.approx(log_softmax(logits)[0, ids[place + 1]], abs=1e-5)


def test_together_it_is_the_loss() -> None:
    model = small_model()
    rows = [[VOCABULARY.ids[BEGIN], *VOCABULARY.encode(poem), VOCABULARY.ids[END]] for poem in POEMS]
    inputs, targets = (minidl.pack([row[part] for row in rows]) for part in (slice(None, -1), slice(1, None)))
    nats = model.nats(Batch(inputs.data, targets.data, minidl.Packing(inputs.batch_sizes))).real
    assert sum(found.sum() for found in log_probabilities(model, VOCABULARY, POEMS)) == pytest.approx(-nats, rel=1e-5)


def test_a_model_without_a_mark_to_begin_with_says_nothing_of_the_first_character() -> None:
    vocabulary = Vocabulary([END, UNKNOWN, PAD, *VOCABULARY.tokens[3:]])
    (found,) = log_probabilities(small_model(vocabulary), vocabulary, ["甲乙丙"])
    assert np.isnan(found).tolist() == [True, False, False, False]
