"""Forms, patterns and readings: what the decoder knows of regulated verse, and the judge that shares none of it."""

from __future__ import annotations

import itertools

from verse.judging import judge
from verse.plans import find_rhyme
from verse.prosody import FORMS, find_form, tone_pattern
from verse.readings import is_character, level_groups, readings_of, rhymes, table, tones

import pytest
from verse_helpers import VERSES

# Made-up lines that mean little. Tones: 仄仄平平仄 平平仄仄平 平平平仄仄 仄仄仄平平 with one rhyme, 東.
A, B, C, D = "夜月山花落", "秋風白日紅", "天山春水落", "草草夜來風"
GOOD = f"{A}，{B}。{C}，日落水天空。"
SEVEN = {"A": "春風" + A, "B": "白日" + B, "C": "夜雪" + C, "D": "山花" + D}


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("五絕", "五絕"),
        ("五绝", "五絕"),
        ("五言絕句", "五絕"),
        ("五言绝句", "五絕"),
        ("七絕", "七絕"),
        ("七言绝句", "七絕"),
        ("五律", "五律"),
        ("五言律诗", "五律"),
        (" 七言律詩 ", "七律"),
        ("七律", "七律"),
    ],
)
def test_forms_have_full_short_and_simplified_names(name: str, short: str) -> None:
    form = find_form(name)
    assert form is not None and form.short == short


def test_free_verse_is_no_form() -> None:
    assert find_form("free") is find_form("Free") is find_form("自由") is None
    for wrong in ("八股", "", "五", "五絕句"):
        with pytest.raises(ValueError, match="五絕, 七絕, 五律, 七律 or free"):
            find_form(wrong)


def test_the_patterns_are_those_of_the_rules() -> None:
    """中 is free: the first and third, but 孤平 and 三平尾."""
    assert [tone_pattern(kind, 5) for kind in "ABCD"] == ["中仄中平仄", "平平中仄平", "中平中仄仄", "中仄仄平平"]
    assert [tone_pattern(kind, 7) for kind in "ABCD"] == [
        *("中平中仄中平仄", "中仄平平中仄平", "中仄中平中仄仄", "中平中仄仄平平")
    ]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_couplets_are_opposed_and_stick_together(form: object) -> None:
    assert form in FORMS
    for way in form.templates():  # type: ignore[attr-defined]
        assert len(way) == form.lines  # type: ignore[attr-defined]
        for place in range(1, form.width - 1, 2):  # type: ignore[attr-defined]
            column = [line[place] for line in way]
            assert set(column) == {"平", "仄"}
            assert all(first != second for first, second in zip(column[::2], column[1::2], strict=True))
            assert all(before == after for before, after in zip(column[1::2], column[2::2], strict=False))
        assert all(line[-1] == "平" for line in way[1::2]) and all(line[-1] == "仄" for line in way[2::2])


def test_readings_of_single_characters() -> None:
    assert tones("東") == {"平"} and tones("月") == {"仄"} and tones("看") == {"平", "仄"} and tones("，") == set()
    assert rhymes("東") == {"上平聲一東"} and rhymes("月") == set() and rhymes("看") == {"上平聲十四寒"}
    assert len(level_groups()) == 30 and level_groups()[0] == "上平聲一東" and level_groups()[-1] == "下平聲十五咸"
    assert len({group for groups in table().values() for group in groups}) == 106
    assert not [character for character in table() if character.isascii()]


@pytest.mark.parametrize(("variant", "form"), ["溪谿", "迴回", "疎疏", "啼蹄", "劒劍", "爲為", "牀床", "跡積"])
def test_variants_have_the_readings_of_the_usual_form(variant: str, form: str) -> None:
    assert table()[variant] == table()[form]


def test_sounds_of_a_vocabulary() -> None:
    found = readings_of(VERSES.tokens)
    ids = VERSES.ids
    assert not found.characters[[ids["<begin>"], ids["，"], ids["。"]]].any()
    assert found.characters[ids["蟋"]] and not found.level[ids["蟋"]] and not found.oblique[ids["蟋"]]
    assert found.level[ids["看"]] and found.oblique[ids["看"]]
    assert found.rhymes[0, ids["風"]] and found.rhymes[:, ids["月"]].sum() == 0
    assert is_character("月") and not is_character("囗") and not is_character("a") and not is_character("月日")


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("東", "上平聲一東"),
        ("一東", "上平聲一東"),
        ("上平聲一東", "上平聲一東"),
        ("先", "下平聲一先"),
        ("公", "上平聲一東"),
        ("月落", None),
        ("月", None),
        ("蟋", None),
        ("風", "上平聲一東"),
        ("逢", None),
        ("", None),
    ],
)
def test_rhymes_by_name_or_by_a_character(text: str, group: str | None) -> None:
    if group is not None:
        assert find_rhyme(text) == group
    else:
        with pytest.raises(ValueError):
            find_rhyme(text)


# The judge


def test_the_judge_knows_a_good_poem() -> None:
    assert judge(GOOD) == ("五絕", True, True, True, False) and judge(GOOD).kept
    for start, second in ("AB", "CD", "DB", "BD"):
        lines = [SEVEN[start], SEVEN[second]]
        other = "CD" if second == "B" else "AB"
        lines += [SEVEN[other[0]].replace("春", "秋"), "山來夜雪草來同" if other[1] == "D" else "白日山來月白同"]
        poem = "".join(f"{line}{mark}" for line, mark in zip(lines, "，。，。", strict=True))
        assert judge(poem).shape == "七絕" and judge(poem).rhyme and judge(poem).tones, poem


def test_the_judge_takes_only_regulated_successions() -> None:
    """Of all successions of the four patterns only four are regulated."""
    lines = {"A": A, "B": B, "C": C, "D": D}
    good = [
        "".join(kinds)
        for kinds in itertools.product("ABCD", repeat=4)
        if judge("".join(f"{lines[kind]}{mark}" for kind, mark in zip(kinds, "，。，。", strict=True))).tones
    ]
    assert good == ["ABCD", "BDAB", "CDAB", "DBCD"]


@pytest.mark.parametrize(
    ("poem", "broken"),
    [
        (GOOD.replace("秋風白日紅", "月風白日紅"), "tones"),  # 孤平
        (GOOD.replace("日落水天空", "日落山天空"), "tones"),  # 三平尾
        (GOOD.replace("秋風白日紅", "秋月白日紅"), "tones"),
        (GOOD.replace("空", "香"), "rhyme"),
        (GOOD.replace("空", "月"), "rhyme"),
        (GOOD.replace("，", "？", 1), "marks"),
        (GOOD[:-1], "marks"),
        (GOOD.replace("月", "月月"), "shape"),
        (f"{A}，{B}。{A}，{B}。", "repeats"),
        (GOOD.replace("風", "蟋"), "tones"),  # unknown where the tone matters
    ],
)
def test_the_judge_sees_what_is_broken(poem: str, broken: str) -> None:
    verdict = judge(poem)
    assert bool(getattr(verdict, broken)) == (broken == "repeats") and not verdict.kept


def test_the_judge_lets_free_places_be() -> None:
    assert judge(GOOD.replace("夜月山花落", "蟋月白花落")).kept
