"""Rules as masks: whatever is drawn from them keeps the form, and nothing is ever left without a way on."""

from __future__ import annotations

import itertools

from corpus.line_index import LineIndex
from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from verse.judging import judge
from verse.plans import Impossible, Plan, plan
from verse.prosody import FORMS, Form
from verse.readings import level_groups, readings_of, rhymes, tones
from verse.rules import Rules

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verse_helpers import BOTH, CHARACTERS, EAST, MARKS, OBLIQUE, OTHERS, SUN, UNREAD, VERSES

FIVE = FORMS[0]


def walk(asked: Plan, vocabulary: Vocabulary, seed: int, rows: int = 4, index: LineIndex | None = None) -> list[str]:
    """Poems drawn from what the rules allow, every token as likely as the others."""
    rng = np.random.default_rng(seed)
    spots = rng.integers(len(asked.spots), size=rows) if asked.spots else np.full(rows, -1)
    rules = Rules(asked, vocabulary, readings_of(vocabulary.tokens), spots, index)
    poems = [""] * rows
    for line, column in itertools.product(range(asked.form.lines), range(asked.form.width)):
        allowed = rules.allowed((line, column))
        assert allowed.any(axis=1).all(), f"nothing may stand at {line}, {column} after {poems}"
        tokens = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        rules.advance((line, column), tokens)
        poems = [poem + vocabulary.tokens[token] for poem, token in zip(poems, tokens, strict=True)]
        if column == asked.form.width - 1:
            poems = [poem + asked.form.mark(line) for poem in poems]
            rules.end_line()
            kept = rng.integers(rows, size=rows)
            rules.keep(kept)
            poems = [poems[row] for row in kept]
    return poems


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Few characters, so that endings are scarce."""
    some = [draw(st.lists(st.sampled_from(part), unique=True, max_size=6)) for part in (EAST, SUN, OTHERS, BOTH)]
    oblique = draw(st.lists(st.sampled_from(OBLIQUE), unique=True, max_size=6))
    return Vocabulary([BEGIN, END, UNKNOWN, *dict.fromkeys(itertools.chain(*some, oblique, UNREAD)), *MARKS])


def endings_exist(vocabulary: Vocabulary, form: Form) -> bool:
    """By trying all: whether all lines can end in different characters, by the rules of rhyme and tone."""
    known = [character for character in vocabulary.tokens if character in CHARACTERS]
    for group, first in itertools.product(level_groups(), (True, False)):
        wanted = [
            {c for c in known if (group in rhymes(c) if line % 2 or (first and not line) else "仄" in tones(c))}
            for line in range(form.lines)
        ]
        if _matching(wanted):
            return True
    return False


def _matching(wanted: list[set[str]]) -> bool:
    """Whether every set can give an element of its own; by augmenting paths."""
    owner: dict[str, int] = {}

    def find(line: int, seen: set[str]) -> bool:
        for character in wanted[line] - seen:
            seen.add(character)
            if character not in owner or find(owner[character], seen):
                owner[character] = line
                return True
        return False

    return all(find(line, set()) for line in range(len(wanted)))


@given(vocabularies(), st.sampled_from(FORMS), st.integers(0, 99))
def test_whatever_is_drawn_keeps_the_form_and_there_always_is_something(
    vocabulary: Vocabulary, form: Form, seed: int
) -> None:
    try:
        asked = plan(form, vocabulary.tokens, readings_of(vocabulary.tokens))
    except Impossible:
        assert not endings_exist(vocabulary, form)
        return
    assert endings_exist(vocabulary, form)
    for poem in walk(asked, vocabulary, seed):
        assert judge(poem).kept and judge(poem).shape == form.short, (poem, judge(poem))


@given(
    st.sampled_from(FORMS),
    st.text(CHARACTERS, max_size=12),
    st.text(CHARACTERS, min_size=8, max_size=8) | st.just(""),
    st.sampled_from(["上平聲一東", "下平聲七陽", None]),
    st.text(CHARACTERS, max_size=2),
    st.integers(0, 99),
)
def test_wishes_are_met_or_refused(
    form: Form, start: str, acrostic: str, rhyme: str | None, keyword: str, seed: int
) -> None:
    acrostic = acrostic[: form.lines]
    try:
        asked = plan(
            form,
            VERSES.tokens,
            readings_of(VERSES.tokens),
            start=start,
            acrostic=acrostic,
            rhyme=rhyme,
            keyword=keyword,
        )
    except Impossible as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        return
    for poem in walk(asked, VERSES, seed):
        lines = poem.replace("，", "。").split("。")[:-1]
        assert judge(poem).kept, (poem, judge(poem))
        assert "".join(lines).startswith(start)
        assert not acrostic or "".join(line[0] for line in lines) == acrostic
        assert not rhyme or all(rhyme in rhymes(line[-1]) for line in lines[1::2])
        assert keyword in poem


def test_plain_wishes_are_not_refused() -> None:
    """The property above would hold if everything were refused."""
    for form, (name, value) in itertools.product(
        FORMS, [("start", "山"), ("rhyme", "上平聲一東"), ("keyword", "秋"), ("keyword", "白日")]
    ):
        assert plan(form, VERSES.tokens, readings_of(VERSES.tokens), **{name: value}).ways  # type: ignore[arg-type]
    for name, value in (("start", "夜月山花落，秋"), ("acrostic", "山花天人")):
        assert plan(FIVE, VERSES.tokens, readings_of(VERSES.tokens), **{name: value}).ways  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "characters",
    [
        "香霜望月",  # 望 may rhyme, or fill an oblique place, but does not fit everywhere
        "香望月日",
        "東風中香望月日",  # 望 must not take from 陽 what only 東 can spare
        "東中香霜過思望看",
        "東風香霜思看",
        "香望過夜歌多",
    ],
)
@pytest.mark.parametrize("form", FORMS[:2], ids=lambda form: form.name)
def test_scarce_endings_are_left_for_the_lines_to_come(form: Form, characters: str) -> None:
    vocabulary = Vocabulary([BEGIN, END, UNKNOWN, *characters, *MARKS])
    asked = plan(form, vocabulary.tokens, readings_of(vocabulary.tokens))
    for seed in range(30):
        assert all(judge(poem).kept for poem in walk(asked, vocabulary, seed, 8))


def test_an_ending_that_is_asked_for_is_not_there_for_another_line() -> None:
    few, more = (Vocabulary([BEGIN, END, UNKNOWN, *"東紅山花落", *other, *MARKS]) for other in ("", "月"))
    with pytest.raises(Impossible, match="too few"):
        plan(FIVE, few.tokens, readings_of(few.tokens), start="落落山花落")
    asked = plan(FIVE, more.tokens, readings_of(more.tokens), start="落落山花落")
    assert all(judge(poem).kept for poem in walk(asked, more, 0, 8))


def test_a_keyword_that_is_already_is_not_put_there_again() -> None:
    asked = plan(FIVE, VERSES.tokens, readings_of(VERSES.tokens), keyword="秋")
    line, column = next(place for place, _ in asked.spots if place[0] == 2)
    spot = [place for place, _ in asked.spots].index((line, column))
    for first, again in (("秋", False), ("山", True)):
        rules = Rules(asked, VERSES, readings_of(VERSES.tokens), np.array([spot]))
        for at, character in enumerate(first + "月山花落"):
            rules.advance((0, at), np.array([VERSES.ids[character]]))
        rules.end_line()
        assert (rules.forced((line, column))[0] >= 0) == again


def test_a_keyword_that_is_a_whole_line_is_put_there() -> None:
    asked = plan(FIVE, VERSES.tokens, readings_of(VERSES.tokens), keyword="夜月山花落")
    assert all("夜月山花落，" in poem for poem in walk(asked, VERSES, 0))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"start": "月月月月月"}, "月 (--start; only 仄)"),
        ({"start": "夜月山花落，夜月山花落"}, "夜月山花落 is asked for twice"),
        ({"start": "夜月山花落落"}, "no tone pattern"),
        ({"start": "山山山山山" * 5}, "longer than a poem"),
        ({"start": "夜月，"}, "after 2 characters"),
        ({"start": "，"}, "--start has ，"),
        ({"start": "夜月山花落。"}, "--start has 。"),
        ({"start": "夜月？"}, "Chinese character"),
        ({"acrostic": "山花天"}, "--acrostic needs 4"),
        ({"acrostic": "山花天？"}, "--acrostic has ？"),
        ({"acrostic": "月月月月"}, "月 (--acrostic; only 仄)"),
        ({"start": "山", "acrostic": "花花天人"}, "--start and --acrostic"),
        ({"rhyme": "上平聲三江"}, "上平聲三江"),
        ({"start": "天山春水落，日落水天香", "rhyme": "上平聲一東"}, "香 (--start) does not rhyme in 上平聲一東"),
        ({"keyword": "月月月月"}, "--keyword 月月月月 (月 仄、月 仄"),
        ({"keyword": "山山山山山山"}, "1 to 5"),
        ({"keyword": "山，"}, "--keyword"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(wish: dict[str, str], words: str) -> None:
    with pytest.raises(Impossible) as refusal:
        plan(FIVE, VERSES.tokens, readings_of(VERSES.tokens), **wish)  # type: ignore[arg-type]
    assert words in str(refusal.value)


def test_a_model_without_the_marks_is_reported_so() -> None:
    tokens = [token for token in VERSES.tokens if token != "。"]
    with pytest.raises(Impossible, match="the mark 。"):
        plan(FIVE, tokens, readings_of(tokens))


def test_no_line_of_the_corpus_is_completed() -> None:
    """All lines in a small world but those that end in one of few characters."""
    vocabulary = Vocabulary([BEGIN, END, UNKNOWN, *"東風中空月日水雪", *MARKS])
    asked = plan(FIVE, vocabulary.tokens, readings_of(vocabulary.tokens))
    every = ["".join(line) for line in itertools.product("東風月日水雪", repeat=5)]
    index = LineIndex.build(line for line in every if line[-1] in "風雪" or line[0] in "月水")
    poems = walk(asked, vocabulary, 0, 8, index)
    assert all(judge(poem).kept and not index.copied(poem) for poem in poems)
    assert any(index.copied(poem) for seed in range(3) for poem in walk(asked, vocabulary, seed, 8))
    whole = plan(FIVE, vocabulary.tokens, readings_of(vocabulary.tokens), start="東日中風水", index=index)
    assert whole.ways
    with pytest.raises(Impossible, match="no-copy"):
        plan(
            FIVE,
            vocabulary.tokens,
            readings_of(vocabulary.tokens),
            start="月日中風水",
            index=LineIndex.build(["月日中風水"]),
        )


def test_a_character_comes_a_third_time_only_if_there_is_no_other() -> None:
    asked = plan(FORMS[3], VERSES.tokens, readings_of(VERSES.tokens))
    for poem in walk(asked, VERSES, 1, 8):
        ends = [line[-1] for line in poem.replace("，", "。").split("。")[:-1]]
        inside = [character for line in poem.replace("，", "。").split("。") for character in line[:-1]]
        assert max(inside.count(character) + ends.count(character) for character in inside) <= 3
        assert max(inside.count(character) for character in inside) <= 2
