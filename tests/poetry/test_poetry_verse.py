"""Writing poems: they end, begin as requested, never contain a special token, and do not depend on their neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from corpus.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary
from model import PoemModel
from verse.free_verse import MARKS, FreeVerse
from verse.writing import write_poems

import numpy as np
import pytest
from poetry_helpers import VOCABULARY, small_model

REPORTS = Vocabulary([END, UNKNOWN, PAD, "甲", "乙", "丙", "月"])  # the report's has no begin mark


class Scripted:
    """A model whose next logits are a function of the poem's place and the latest ids."""

    def __init__(self, vocabulary: Vocabulary, scores: Callable[[int, int], dict[str, float]]) -> None:
        self.vocabulary, self.scores = vocabulary, scores
        self.latest: list[list[str]] = []

    def next_logits(self, ids: np.ndarray, state: Any) -> tuple[np.ndarray, int]:
        place = 0 if state is None else state
        self.latest.append([self.vocabulary.tokens[index] for index in ids])
        logits = np.zeros((len(ids), len(self.vocabulary)), np.float32)
        for row, index in enumerate(ids):
            for token, score in self.scores(place, int(index)).items():
                logits[row, self.vocabulary.ids[token]] = score
        return logits, place + 1


def scripted(scores: Callable[[int, int], dict[str, float]], vocabulary: Vocabulary = VOCABULARY) -> Any:
    return Scripted(vocabulary, scores)


@pytest.mark.parametrize("argmax", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_poem_that_would_never_end_stops_at_the_cap(length: int, argmax: bool) -> None:
    model = scripted(lambda place, latest: {"甲": 50.0})
    assert write_poems(model, VOCABULARY, ["", "月"], length, argmax=argmax, rng=0) == [
        "甲" * length,
        ("月" + "甲" * length)[:length],
    ]


@pytest.mark.parametrize("argmax", [True, False])
def test_the_end_mark_ends_a_poem_and_is_not_written(argmax: bool) -> None:
    model = scripted(lambda place, latest: {END: 50.0} if place == 3 else {"乙": 50.0})
    assert write_poems(model, VOCABULARY, ["", "丁山"], 20, argmax=argmax, rng=0) == ["乙乙乙", "丁山乙"]
    assert len(model.latest) == 4, "no step is made once all poems have ended"


def test_a_poem_may_end_at_once() -> None:
    assert write_poems(scripted(lambda place, latest: {END: 50.0}), VOCABULARY, [""], 20, argmax=True) == [""]


def test_poems_of_different_lengths_end_each_on_its_own() -> None:
    # 日 is followed by the end, 月 by 山, which is followed by the end; the ended one stays as it was
    follows = {VOCABULARY.ids[a]: b for a, b in {"日": END, "月": "山", "山": END, END: "甲"}.items()}
    model = scripted(lambda place, latest: {follows[latest]: 50.0} if latest in follows else {})
    assert write_poems(model, VOCABULARY, ["日", "月", "日"], 20, argmax=True) == ["日", "月山", "日"]


def test_the_model_reads_begin_then_the_start_then_what_it_wrote() -> None:
    model = scripted(lambda place, latest: {"丙": 50.0})
    write_poems(model, VOCABULARY, ["日月", ""], 4, argmax=True)
    assert model.latest == [[BEGIN, BEGIN], ["日", "丙"], ["月", "丙"], ["丙", "丙"]]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, REPORTS])
def test_a_start_longer_than_the_cap_is_kept_whole_and_nothing_is_added(vocabulary: Vocabulary) -> None:
    model = scripted(lambda place, latest: {"甲": 50.0}, vocabulary)
    assert write_poems(model, vocabulary, ["月乙丙", "月"], 2, argmax=True) == ["月乙丙", "月甲"]


@pytest.mark.parametrize("argmax", [True, False])
def test_marks_are_never_written_even_if_the_model_wants_them(argmax: bool) -> None:
    for vocabulary, marks in ((VOCABULARY, (BEGIN, UNKNOWN)), (REPORTS, (UNKNOWN, PAD))):
        wanted = dict.fromkeys(marks, 50.0)
        poems = write_poems(
            scripted(lambda place, latest, wanted=wanted: wanted, vocabulary),  # type: ignore[misc]
            vocabulary,
            ["月"] * 30,
            20,
            argmax=argmax,
            temperature=1.0,
            rng=0,
        )
        assert all(poem.startswith("月") and not set(poem) & set("<>beginukowpad") for poem in poems)
        assert argmax or max(map(len, poems)) > 3


def test_a_model_without_a_begin_mark_begins_with_the_first_character() -> None:
    model = scripted(lambda place, latest: {END: 50.0} if place == 2 else {"丙": 50.0}, REPORTS)
    assert write_poems(model, REPORTS, ["月", "甲乙"], 20, argmax=True) == ["月丙丙", "甲乙丙"]
    assert model.latest == [["月", "甲"], ["丙", "乙"], ["丙", "丙"]], "no mark is fed"
    for starts in ([""], ["月", ""]):
        with pytest.raises(ValueError, match="needs a first character"):
            write_poems(model, REPORTS, starts, 20)


def test_a_model_without_a_begin_mark_keeps_a_cap_of_one() -> None:
    model = scripted(lambda place, latest: {"丙": 50.0}, REPORTS)
    assert write_poems(model, REPORTS, ["月"], 1, argmax=True) == ["月"]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, REPORTS])
def test_no_starts_no_poems(vocabulary: Vocabulary) -> None:
    assert write_poems(small_model(vocabulary), vocabulary, [], 20) == []


STARTS = ["月", "日山", "甲乙丙", "夜", "紅，", "丁"]


@pytest.mark.parametrize("seed", range(4))
def test_side_by_side_is_as_each_alone(seed: int) -> None:
    model = small_model(seed=seed)
    together = write_poems(model, VOCABULARY, STARTS, 12, argmax=True)
    alone = [write_poems(model, VOCABULARY, [start], 12, argmax=True)[0] for start in STARTS]
    assert together == alone
    assert all(poem.startswith(start) for poem, start in zip(together, STARTS, strict=True))
    assert all(len(poem) <= 12 for poem in together) and len(set(together)) == len(STARTS)


def test_argmax_is_the_likeliest_character_at_every_place() -> None:
    model = small_model(seed=1)
    (poem,) = write_poems(model, VOCABULARY, ["月"], 12, argmax=True)
    assert len(poem) > 3
    ids = [VOCABULARY.ids[BEGIN], *VOCABULARY.encode(poem)]
    state = None
    for place, index in enumerate(ids[:-1]):
        logits, state = model.next_logits(np.array([index], np.int32), state)
        allowed = [token for token in range(len(VOCABULARY)) if token not in (0, 2)]
        if place:
            assert ids[place + 1] == max(allowed, key=lambda token: logits[0, token])


def write(model: PoemModel, rng: Any, **options: Any) -> list[str]:
    return write_poems(model, VOCABULARY, [""] * 20, 12, rng=rng, **options)


def test_the_same_seed_writes_the_same_poems() -> None:
    model = small_model()
    assert write(model, 3) == write(model, 3) == write(model, np.random.default_rng(3))
    assert write(model, 3) != write(model, 4)
    assert len(set(write(model, 3))) > 10, "poems side by side are drawn apart"
    rng = np.random.default_rng(3)
    assert write(model, rng) != write(model, rng)
    assert write(model, None) != write(model, None)


def test_temperature_top_k_and_top_p_reach_the_sampler() -> None:
    model = small_model()
    plain = write_poems(model, VOCABULARY, ["月"], 12, argmax=True) * 20
    for options in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        assert write_poems(model, VOCABULARY, ["月"] * 20, 12, rng=0, **options) == plain  # type: ignore[arg-type]
    assert write_poems(model, VOCABULARY, ["月"] * 20, 12, rng=0, temperature=2.0) != plain
    assert write(model, 0, temperature=1.0) != write(model, 0, temperature=2.0)


def test_writing_changes_no_weight() -> None:
    model = small_model()
    before = {name: values.tobytes() for name, values in model.state_dict().items()}
    write(model, 0)
    assert {name: values.tobytes() for name, values in model.state_dict().items()} == before


# Free verse


def free(model: Any, *starts: str, length: int = 12, vocabulary: Vocabulary = VOCABULARY, **options: Any) -> list[str]:
    return write_poems(model, vocabulary, starts, length, rules=FreeVerse(vocabulary), **options)


@pytest.mark.parametrize("argmax", [True, False])
def test_no_mark_comes_first_or_after_a_mark_in_free_verse(argmax: bool) -> None:
    fond = scripted(lambda place, latest: {"。": 60.0, "，": 59.0, "甲": 40.0, "乙": 38.0 + place % 3, "丙": 39.0})
    without = write_poems(fond, VOCABULARY, ["", "月"], 12, argmax=argmax, rng=0)
    assert all("。。" in poem for poem in without), "left alone, the model writes them"
    for poem in free(fond, "", "月", "月。", argmax=argmax, rng=0):
        assert poem[0] not in MARKS and not re.search(f"[{MARKS}]{{2}}", poem), poem


def test_random_models_write_no_mark_where_it_has_nothing_to_mark() -> None:
    for seed in range(6):
        poems = free(small_model(seed=seed), *[""] * 40, length=30, rng=seed)
        assert [poem for poem in poems if not poem or poem[0] in MARKS or re.search(f"[{MARKS}]{{2}}", poem)] == []


def test_a_poem_of_free_verse_does_not_end_before_it_begins() -> None:
    model = scripted(lambda place, latest: {END: 50.0, "丙": 10.0})
    assert free(model, "", argmax=True) == ["丙"]


def test_marks_that_are_asked_for_stand_and_other_scripts_marks_may_follow_each_other() -> None:
    model = scripted(lambda place, latest: {"甲": 50.0 if place == 4 else 0.0, END: 40.0 if place > 4 else 0.0})
    assert free(model, "月。。，", argmax=True) == ["月。。，甲"]
    latin = Vocabulary([BEGIN, END, UNKNOWN, *"ab.?!"])
    dots = scripted(
        lambda place, latest: {"a": 50.0} if place == 0 else {".": 50.0} if place < 4 else {END: 50.0}, latin
    )
    assert free(dots, "", vocabulary=latin, argmax=True) == ["a..."]


def test_a_model_that_knows_nothing_but_marks_still_ends() -> None:
    marks = Vocabulary([BEGIN, END, UNKNOWN, "。", "，"])
    assert free(scripted(lambda place, latest: {"。": 9.0}, marks), "", vocabulary=marks, rng=0) == [""]
