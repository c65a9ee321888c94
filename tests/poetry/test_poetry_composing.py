"""Composing: the model proposes, the rules forbid, and the candidates are weighed."""

from __future__ import annotations

from typing import Any

from corpus.line_index import LineIndex
from corpus.vocabulary import END, UNKNOWN, Vocabulary
from model import PoemModel
from verse.composing import Choice, _resampled, compose
from verse.judging import judge
from verse.plans import Impossible, Plan, plan
from verse.prosody import FORMS, Form
from verse.readings import readings_of
from verse.scoring import log_probabilities

import numpy as np
import pytest
from verse_helpers import EAST, VERSES, verse_model

FIVE = FORMS[0]
SOUNDS = readings_of(VERSES.tokens)
MODEL = verse_model()
PLAIN = Choice()


def asked(form: Form = FIVE, **wishes: Any) -> Plan:
    return plan(form, VERSES.tokens, SOUNDS, **wishes)


def written(wanted: Plan, count: int = 4, choice: Choice = PLAIN, model: PoemModel = MODEL, **how: Any) -> list[str]:
    return [poem.text for poem in compose(model, VERSES, SOUNDS, wanted, count, choice=choice, **{"rng": 0, **how})]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize(
    "choice",
    [PLAIN, *(Choice(temperature=t) for t in (1e-9, 9)), Choice(top_k=1), Choice(top_p=0.1), Choice(argmax=True)],
    ids=["plain", "cold", "hot", "top-k", "top-p", "argmax"],
)
def test_every_poem_keeps_its_form_however_it_is_drawn(form: Form, choice: Choice) -> None:
    poems = written(asked(form), choice=choice)
    assert len(poems) == 4
    assert all(judge(poem).kept and judge(poem).shape == form.short for poem in poems), poems
    assert not choice.argmax or len(set(poems)) == 1


def test_the_same_seed_writes_the_same() -> None:
    assert written(asked(), rng=3) == written(asked(), rng=3) != written(asked(), rng=4)


def test_wishes_are_met() -> None:
    assert all(poem.startswith("山花") for poem in written(asked(start="山花")))
    assert all("秋" in poem for poem in written(asked(keyword="秋")))
    poems = written(asked(FORMS[1], rhyme="上平聲一東", keyword="白日"))
    assert all("白日" in poem and poem[-2] in EAST for poem in poems)
    assert all(poem[::6] == "山花天人" for poem in written(asked(acrostic="山花天人")))


def test_the_log_probability_is_the_models() -> None:
    poems = compose(MODEL, VERSES, SOUNDS, asked(), 3, choice=Choice(temperature=0.5), rng=0)
    found = log_probabilities(MODEL, VERSES, [poem.text for poem in poems])
    assert [poem.log_probability for poem in poems] == pytest.approx([row.sum() for row in found], rel=1e-4)


def test_more_candidates_are_more_probable() -> None:
    def mean(candidates: int) -> float:
        poems = compose(MODEL, VERSES, SOUNDS, asked(), 40, choice=PLAIN, candidates=candidates, rng=0)
        return float(np.mean([poem.log_probability for poem in poems]))

    assert mean(1) < mean(4) < mean(32)


def test_a_model_without_a_mark_to_begin_with_begins_with_what_is_asked_for() -> None:
    vocabulary = Vocabulary([END, UNKNOWN, *VERSES.tokens[3:]])
    found = readings_of(vocabulary.tokens)
    wanted = plan(FIVE, vocabulary.tokens, found, start="山")
    poems = compose(verse_model(vocabulary), vocabulary, found, wanted, 3, choice=PLAIN, rng=0)
    assert all(poem.text[0] == "山" and judge(poem.text).kept for poem in poems)


def test_lines_of_the_corpus_are_avoided_or_forbidden() -> None:
    plain = written(asked(), 20)
    index = LineIndex.build(plain)
    assert sum(bool(index.copied(poem)) for poem in written(asked(), 20, index=index)) < 20
    assert not any(index.copied(poem) for poem in written(asked(), 20, index=index, no_copy=True))
    assert all(judge(poem).kept for poem in written(asked(), 20, index=index, no_copy=True))


def test_a_line_that_can_only_be_a_copy_is_reported() -> None:
    ending = "東"
    tokens = [token for token in VERSES.tokens if token not in EAST or token in "東風"]
    vocabulary = Vocabulary([token for token in tokens if token not in "陽光香長霜鄉牀山花天秋春心人來流看過思望"])
    found = readings_of(vocabulary.tokens)
    wanted = plan(FIVE, vocabulary.tokens, found, start="夜月風風落，風風日日")
    index = LineIndex.build([f"風風日日{ending}", "風風日日風"])
    poems = compose(verse_model(vocabulary), vocabulary, found, wanted, 2, choice=PLAIN, index=index, rng=0)
    assert all(index.copied(poem.text) for poem in poems), "avoided only if there is another"
    with pytest.raises(Impossible, match="--no-copy"):
        compose(verse_model(vocabulary), vocabulary, found, wanted, 2, choice=PLAIN, index=index, no_copy=True)


def test_candidates_are_drawn_in_proportion_to_their_weights() -> None:
    weights = np.log(np.array([[1, 2, 5, 0], [0, 0, 0, 7]]) + 0.0, where=np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool),
                     out=np.full((2, 4), -np.inf))  # fmt: skip
    counts = np.zeros(8)
    for seed in range(400):
        rows = _resampled(weights.ravel(), 4, np.random.default_rng(seed))
        assert (rows[:4] < 4).all() and (rows[4:] == 7).all()
        counts += np.bincount(rows, minlength=8)
    assert counts[:4] / 400 == pytest.approx(4 * np.array([1, 2, 5, 0]) / 8, abs=0.1)
    lost = _resampled(np.full(4, -np.inf), 4, np.random.default_rng(0))
    assert sorted(lost) == [0, 1, 2, 3]


def test_the_candidates_come_out_as_the_models_own_poems_of_that_form_would() -> None:
    """A model that writes a level and an oblique beginning equally often, but continues well only after one of them."""
    few = Vocabulary([*VERSES.tokens[:3], *"東風月日水中", "，", "。"])
    good, bad = few.ids["月"], few.ids["風"]

    class Scripted(PoemModel):
        def next_logits(self, ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
            """State: how many characters there are, and whether the first one was the bad one."""
            place, spoilt = (np.zeros((len(ids), 1)), np.zeros((len(ids), 1))) if state is None else state
            spoilt = np.where(place == 1, (ids == bad)[:, None], spoilt)
            logits = np.zeros((len(ids), len(few)), np.float32)
            logits[:, [good, bad]] += np.where(place == 0, 9, 0).astype(np.float32)
            logits[:, few.ids[END]] += np.where(spoilt[:, 0], 6, 0)  # forbidden, so that little is allowed
            return logits, (place + 1, spoilt)

    model = Scripted(len(few), 2, 2, rng=0)
    found = readings_of(few.tokens)
    wanted = plan(FIVE, few.tokens, found)
    poems = compose(model, few, found, wanted, 60, choice=PLAIN, candidates=16, rng=0)
    assert sum(poem.text[0] == "月" for poem in poems) > 55
