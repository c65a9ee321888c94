"""Vocabulary: which characters get an id, in which order, and poems as ids and back."""

from __future__ import annotations

from corpus.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary

import numpy as np
import pytest

POEMS = ["丁甲乙。", "甲乙丙。", "甲丁月。"]  # 甲 3, 。 3, 丁 2, 乙 2 and 丙, 月 once


def test_the_order_is_marks_then_falling_frequency_then_first_seen() -> None:
    assert Vocabulary.build(POEMS).tokens == [BEGIN, END, UNKNOWN, "甲", "。", "丁", "乙"]


def test_the_marks_stand_as_they_are_given() -> None:
    vocabulary = Vocabulary.build(POEMS, marks=(END, UNKNOWN, PAD))
    assert vocabulary.tokens == [END, UNKNOWN, PAD, "甲", "。", "丁", "乙"]
    assert vocabulary.marks == [0, 1, 2] and BEGIN not in vocabulary and PAD in vocabulary
    assert Vocabulary.build(POEMS).marks == [0, 1, 2]


def test_a_character_seen_once_is_unknown() -> None:
    vocabulary = Vocabulary.build(POEMS)
    assert "丙" not in vocabulary and "月" not in vocabulary and "甲" in vocabulary
    assert vocabulary.encode("甲丙丙龘乙").tolist() == [3, 2, 2, 2, 6]
    assert len(vocabulary) == 7


def test_the_most_frequent_characters_alone_are_kept_and_marks_do_not_count() -> None:
    everything = Vocabulary.build(POEMS).tokens
    for most in range(1, 4):
        assert Vocabulary.build(POEMS, most=most).tokens == everything[: 3 + most], "ties: first seen"
    assert Vocabulary.build(POEMS, marks=(END, UNKNOWN), most=1).tokens == [END, UNKNOWN, "甲"]
    counts = {"三": 3, "二": 2, "一": 1}
    texts = [character * count for character, count in counts.items()]
    for least, known in ((1, "三二一"), (2, "三二"), (3, "三"), (4, "")):
        assert Vocabulary.build(texts, least=least).tokens[3:] == list(known)
    assert Vocabulary.build(POEMS, most=2).encode("甲。丁丙").tolist() == [3, 4, 2, 2]


@pytest.mark.parametrize("most", [None, 4, 5, 10**40])
def test_a_bound_that_nothing_exceeds_changes_nothing(most: int | None) -> None:
    assert Vocabulary.build(POEMS, most=most).tokens == Vocabulary.build(POEMS).tokens, "丙 and 月 stay out"


def test_a_character_twice_in_one_poem_counts_twice() -> None:
    assert Vocabulary.build(["月月日"]).tokens[3:] == ["月"]


def test_encode_and_decode_are_each_others_inverse() -> None:
    vocabulary = Vocabulary.build(POEMS)
    ids = vocabulary.encode("丁甲乙。")
    assert ids.dtype == np.int32 and ids.shape == (4,)
    assert vocabulary.decode(ids) == "丁甲乙。"
    assert vocabulary.encode("").shape == (0,) and vocabulary.encode("").dtype == np.int32
    assert vocabulary.decode([]) == ""


def test_decode_stops_at_the_end_mark() -> None:
    assert Vocabulary.build(POEMS).decode([3, 4, 1, 5, 1, 6]) == "甲。"


def test_a_saved_list_of_tokens_gives_the_same_ids() -> None:
    vocabulary = Vocabulary.build(POEMS)
    again = Vocabulary(vocabulary.tokens)
    assert again.ids == vocabulary.ids and again.marks == vocabulary.marks
    again.tokens.append("月")
    assert "月" not in vocabulary.tokens, "the list was not copied"


@pytest.mark.parametrize(
    "tokens",
    [[], [END, "甲"], [UNKNOWN, "甲"], [END, UNKNOWN, "甲", "甲"], [END, END, UNKNOWN], "甲乙"],
    ids=["empty", "no unknown", "no end", "twice", "end twice", "a str"],
)
def test_a_list_that_is_no_vocabulary_is_refused(tokens: list[str]) -> None:
    with pytest.raises(ValueError, match="tokens must be unique and include <end> and <unknown>"):
        Vocabulary(tokens)


@pytest.mark.parametrize("token", ["", "山水", "<Pad>"])
def test_a_token_that_is_no_mark_and_no_character_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="marks or single characters, got"):
        Vocabulary([END, UNKNOWN, "甲", token])


def test_a_corpus_in_which_nothing_comes_twice_leaves_the_marks() -> None:
    assert Vocabulary.build(["甲乙", "丙"]).tokens == [BEGIN, END, UNKNOWN]
