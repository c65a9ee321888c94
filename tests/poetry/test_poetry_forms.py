"""generate.py with its forms and wishes, as a user runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import cli
from corpus.line_index import FILE, LINE, LineIndex
from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from model import save_model
from verse import explaining, request
from verse.explaining import Runner, Thought
from verse.free_verse import MARKS
from verse.judging import judge
from verse.prosody import FORMS

import pytest
from evaluate_verse import mean_log_probability, share
from poetry_helpers import Outcome, png_size, refused, run_program, write_corpus
from verse_helpers import EAST, VERSES, verse_model

MADE_UP = ["夜月山花落，秋風白日紅。", "白日看人坐，空山夜雨中。"]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file in the folder that the test works in."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.safetensors", verse_model(), VERSES, max_length=24)
    return tmp_path / "m.safetensors"


def generate(*arguments: object) -> Outcome:
    return run_program("generate", "--model", "m.safetensors", *arguments)


def poems(*arguments: object) -> list[str]:
    outcome = generate("--seed", 0, *arguments)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome.out[:-1].split("\n")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_forms(form: object) -> None:
    for name in (form.name, form.short):  # type: ignore[attr-defined]
        written = poems("--form", name, "--count", 5)
        assert len(written) == 5 and all(judge(poem).kept for poem in written)
        assert {judge(poem).shape for poem in written} == {form.short}  # type: ignore[attr-defined]


def test_simplified_wishes_are_those_in_traditional_characters() -> None:
    assert poems("--form", "五绝", "--rhyme", "东", "--start", "红") == poems(
        *("--form", "五絕", "--rhyme", "東", "--start", "紅")
    )
    assert poems("--form", "五言绝句", "--acrostic", "来花风人")[0][::6] == "來花風人"
    assert "過" in poems("--form", "七绝", "--keyword", "过")[0]


def test_wishes_together() -> None:
    for poem in poems("--form", "七律", "--rhyme", "一東", "--keyword", "秋", "--start", "春", "--count", 3):
        assert poem[0] == "春" and "秋" in poem and poem[-2] in EAST and judge(poem).kept


def test_marks_may_be_those_of_a_western_keyboard() -> None:
    assert poems("--form", "五絕", "--start", "夜月山花落,") == poems("--form", "五絕", "--start", "夜月山花落")


def test_script() -> None:
    traditional = poems("--form", "七律", "--count", 4)
    simplified = poems("--form", "七律", "--count", 4, "--script", "simplified")
    assert (
        "".join(simplified) != "".join(traditional)
        and poems(*("--form", "七律", "--count", 4, "--script", "traditional")) == traditional
    )
    pairs = dict(zip("".join(traditional), "".join(simplified), strict=True))
    assert pairs["風"] == "风" and pairs["月"] == "月"


def test_free_verse_by_name_is_what_there_is_without_a_form() -> None:
    assert poems("--form", "free", "--count", 5) == poems("--count", 5)


def test_free_verse_has_a_keyword_and_no_line_twice() -> None:
    for poem in poems("--count", 30, "--keyword", "秋風", "--max-length", 30):
        lines = LINE.findall(poem)
        assert "秋風" in poem and len(poem) <= 30 and len(set(lines)) == len(lines)
    assert all(poem.startswith("山") for poem in poems("--count", 3, "--keyword", "秋", "--start", "山"))
    assert "秋" in poems("--start", "秋", "--keyword", "秋", "--max-length", 1)[0]


def test_no_copy_in_free_verse() -> None:
    before = poems("--count", 40, "--max-length", 5)
    LineIndex.build(before).save(Path(FILE))
    index = LineIndex.load(Path(FILE))
    after = poems("--count", 40, "--max-length", 5, "--no-copy")
    assert [line for poem in after for line in index.copied(poem)] == []
    assert sum(len(poem) == 5 for poem in after) > 30, "what would complete a line is forbidden, not cut off"


def test_free_verse_avoids_copies_where_the_index_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = ["夜月", "山花", "春水", "夜月", "夜月", "夜月"]
    monkeypatch.setattr("verse.writing.write_poems", lambda *a, **k: pairs)
    assert poems("--count", 3) == pairs, "one for each without an index"
    LineIndex.build(["夜月"]).save(Path(FILE))
    assert poems("--count", 3) == ["山花", "春水", "夜月"]


def test_no_copy_reads_the_corpus_once(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", MADE_UP * 8)
    arguments = {"corpus": str(corpus), "files": 8, "text": None}
    save_model(tmp_path / "m.safetensors", verse_model(), VERSES, max_length=24, arguments=arguments)
    outcome = generate("--form", "五絕", "--no-copy", "--seed", 0)
    assert outcome.code == 0 and outcome.err == f"--no-copy reads the corpus once, for {FILE}\n"
    assert len(LineIndex.load(tmp_path / FILE)) == 4
    assert generate("--form", "五絕", "--no-copy", "--seed", 0) == (0, outcome.out, "")
    refused(generate("--form", "五絕", "--no-copy", "--start", MADE_UP[0][:7]), "夜月山花落", "--no-copy")
    refused(generate("--no-copy", "--start", MADE_UP[0][:7]), "夜月山花落", "--no-copy")


def test_no_copy_of_ones_own_text(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(MADE_UP), encoding="utf-8")
    facts = {"max_length": 24, "arguments": {"text": "mine.txt"}}
    save_model(tmp_path / "m.safetensors", verse_model(), VERSES, **facts)
    assert generate("--no-copy", "--seed", 0).code == 0
    assert "夜月山花落" in LineIndex.load(tmp_path / FILE)


def test_no_copy_without_the_corpus_or_with_a_damaged_index(tmp_path: Path) -> None:
    facts = {"max_length": 24, "arguments": {"text": "gone.txt"}}
    save_model(tmp_path / "m.safetensors", verse_model(), VERSES, **facts)
    assert "gone.txt" in generate("--no-copy").err.splitlines()[-1] and generate("--no-copy").code == 2
    (tmp_path / FILE).write_bytes(b"damaged")
    refused(generate("--no-copy"), FILE, "not an index of lines", "delete it")
    assert generate("--seed", 0).code == 0, "without --no-copy it is not needed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--form", "八股"), ["--form", "八股", "五絕, 七絕, 五律, 七律 or free"]),
        (("--form", ""), ["--form"]),
        (("--form", "五絕", "--rhyme", "月"), ["--rhyme", "月 is 仄"]),
        (("--form", "五絕", "--rhyme", "xyz"), ["--rhyme", "'xyz'"]),
        (("--form", "五絕", "--rhyme", ""), ["--rhyme"]),
        (("--form", "五絕", "--rhyme", "逢"), ["--rhyme", "more than one", "東, 冬, 江"]),
        (("--form", "五絕", "--rhyme", "江"), ["too few", "上平聲三江", "五絕"]),
        (("--rhyme", "東"), ["--rhyme", "--form"]),
        (("--acrostic", "山花天人"), ["--acrostic", "--form"]),
        (("--form", "free", "--rhyme", "東"), ["--rhyme", "--form"]),
        (("--form", "五絕", "--acrostic", "山花"), ["--acrostic", "4", "got 2"]),
        (("--form", "七律", "--acrostic", "山花天人"), ["--acrostic", "8", "got 4"]),
        (("--form", "五絕", "--acrostic", "月月月月"), ["月", "--acrostic", "line 2"]),
        (("--form", "五絕", "--acrostic", "龘花天人"), ["--acrostic", "龘"]),
        (("--form", "五絕", "--acrostic", " "), ["--acrostic"]),
        (("--form", "五絕", "--keyword", "龘"), ["--keyword", "龘"]),
        (("--form", "五絕", "--keyword", ""), ["--keyword", "one word, got none"]),
        (("--keyword", "秋 山"), ["--keyword", "one word, got 秋 and 山"]),
        (("--keyword", "，秋"), ["--keyword", "without punctuation", "，秋"]),
        (("--keyword", "秋."), ["--keyword", "without punctuation", "秋。"]),
        (("--form", "五絕", "--keyword", "山山山山山山"), ["--keyword", "1 to 5"]),
        (("--keyword", "山山山山山山", "--max-length", 3), ["--keyword", "--max-length"]),
        (("--form", "五絕", "--max-length", 20), ["--max-length", "五絕"]),
        (("--form", "五絕", "--start", "月" * 21), ["--start", "longer"]),
        (("--form", "五絕", "--start", "山，"), ["--start", "，"]),
        (("--form", "五絕", "--start", "山", "--acrostic", "花花天人"), ["--start", "--acrostic", "山", "花"]),
        (("--script", "latin"), ["--script", "traditional"]),
        (("--explain", "poem.gif"), ["--explain", ".png"]),
        (("--explain", "none/poem.png"), ["--explain", "none"]),
        (("--explain", "poem.png", "--count", 2), ["--explain", "--count 2"]),
        (("--form", os.fsdecode(b"\xff")), ["--form"]),
        (("--form", "五絕", "--rhyme", os.fsdecode(b"\xff")), ["--rhyme"]),
        (("--form", "五絕", "--keyword", os.fsdecode(b"\xff")), ["--keyword"]),
    ],
)
def test_what_makes_no_sense_is_reported_in_one_line(arguments: tuple[object, ...], words: list[str]) -> None:
    refused(generate(*arguments), *words)


# What the model thought


def test_explain_prints_a_line_for_every_place() -> None:
    poem, *lines = poems("--form", "五絕", "--rhyme", "東", "--keyword", "秋", "--explain")
    assert lines[0].split()[:4] == ["probability", "rank", "rule", "forbidden"]
    assert "".join(line.split()[0] for line in lines[1:25]) == poem and lines[25].startswith("(end)")
    assert "rhyme 東" in lines[poem.index("。")] and "asked for" in lines[1 + poem.index("秋")]
    shares = [line.split()[1] for line in lines[1:26]]
    assert all(0 <= float(share.rstrip("%")) <= 100 for share in shares)
    mark = lines[24].split()
    assert mark[3:7] == ["end", "of", "the", "line"] and "x" in lines[24], "others were forbidden where the mark stands"
    assert float(mark[1].rstrip("%")) + float(mark[7].rstrip("%")) == pytest.approx(100, abs=0.6)


@pytest.mark.parametrize(
    "arguments", [(), ("--keyword", "秋"), ("--start", "山，", "--max-length", 4), ("--form", "七律")]
)
def test_explain_follows_every_way_of_writing(arguments: tuple[object, ...]) -> None:
    poem, *lines = poems(*arguments, "--explain")
    assert "".join(line.split()[0] for line in lines[1 : len(poem) + 1]) == poem


@pytest.mark.parametrize("form", [(), ("--form", "五絕", "--rhyme", "東")])
def test_explain_is_in_the_script_of_the_poem(form: tuple[str, ...]) -> None:
    poem, *lines = poems(*form, "--explain", "--seed", 2)
    simplified, *theirs = poems(*form, "--explain", "--seed", 2, "--script", "simplified")
    assert simplified == request.convert(poem, "t2s") != poem
    assert "".join(line.split()[0] for line in theirs[1 : len(poem) + 1]) == simplified
    assert [line.split()[1:] for line in theirs[1:]] == [request.convert(line, "t2s").split()[1:] for line in lines[1:]]
    assert not form or "rhyme 东" in "\n".join(theirs)


def test_a_character_is_converted_as_in_the_poem_and_not_by_itself() -> None:
    runners = [Runner("東", 0.1, True)]
    found = [Thought(character, 0.5, 1, runners, 0.0, "") for character in [*"乾坤", "(end)"]]
    converted = explaining.converted(found, request.convert("乾坤", "t2s"), lambda text: request.convert(text, "t2s"))
    assert [thought.character for thought in converted] == ["乾", "坤", "(end)"]
    assert converted[0].runners[0].character == "东"


def test_explain_shows_where_free_verse_has_no_mark() -> None:
    poem, *lines = poems("--explain", "--seed", 4)
    rules = [line.split()[3] if "no mark" in line else "" for line in lines[1 : len(poem) + 2]]
    assert [rule == "no" for rule in rules] == [True, *(character in MARKS for character in poem)]
    assert "，" in poem or "。" in poem


def test_explain_draws_a_picture(tmp_path: Path) -> None:
    (poem,) = poems("--form", "五絕", "--explain", "poem.png")
    width, height = png_size(tmp_path / "poem.png")
    assert judge(poem).kept and width > 500 and height > 800


# The evaluation


def test_the_evaluation_in_small(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", MADE_UP * 8)
    LineIndex.build(MADE_UP).save(tmp_path / FILE)
    arguments = ("--model", "m.safetensors", "--corpus", corpus, "--files", 8, "--count", 6, "--out", "verse")
    outcome = run_program("evaluate_verse", *arguments)
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "verse" / "verse.json").read_text(encoding="utf-8"))
    assert outcome.out == (tmp_path / "verse" / "verse.md").read_text(encoding="utf-8")
    assert len(outcome.out.splitlines()) == len(rows) + 2
    for row in rows:
        if row["what"].startswith("written") and row["form"] != "free":
            assert (row["poems"], row["kept"], row["repeats"]) == (6, 1, 0)
            assert row["log_probability"] < 0 and 0 < row["characters"] <= 1
        if row["what"] == "written, --no-copy":
            assert row["copied"] == 0
    assert png_size(tmp_path / "verse" / "verse.png")[0] > 800
    again = run_program("evaluate_verse", *arguments)
    assert "writing" in outcome.err and again.err == "", "poems that are there are not written again"


def test_a_model_that_knows_nothing_but_marks_is_reported_of() -> None:
    marks = Vocabulary([BEGIN, END, UNKNOWN, *"，。"])
    save_model("marks.safetensors", verse_model(marks), marks, max_length=9)
    refused(run_program("generate", "--model", "marks.safetensors"), "nothing can be written", "only marks")


def test_an_evaluation_of_a_model_that_knows_no_marks_is_reported_in_one_line(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", MADE_UP * 8)
    letters = Vocabulary([BEGIN, END, UNKNOWN, *"abc"])
    save_model("letters.safetensors", verse_model(letters), letters, max_length=9)
    LineIndex.build(MADE_UP).save(tmp_path / FILE)
    outcome = run_program(
        *("evaluate_verse", "--model", "letters.safetensors", "--corpus", "corpus", "--files", 8, "--count", 2)
    )
    assert outcome.code == 2 and "Traceback" not in outcome.err and "needs the mark" in outcome.err.splitlines()[-1]


def test_the_first_place_of_a_model_without_marks_is_not_the_end() -> None:
    letters = Vocabulary([BEGIN, END, UNKNOWN, *"abc"])
    save_model("letters.safetensors", verse_model(letters), letters, max_length=9)
    outcome = run_program("generate", "--model", "letters.safetensors", "--explain", "--seed", 1)
    assert "not the end" in outcome.out.splitlines()[2] and "no mark" not in outcome.out


def test_poems_of_marks_alone_have_no_figures() -> None:
    writer: Any = SimpleNamespace(model=verse_model(), vocabulary=VERSES)
    assert mean_log_probability([""], writer) is mean_log_probability(["。，", ""], writer) is share([]) is None
    assert (mean_log_probability(["。，", "山"], writer) or 0) < 0 and share([True, False]) == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", "0"),
        ("--temperature", "0"),
        ("--files", "59"),
        ("--seed", "x"),
        ("--model", "none.safetensors"),
        ("--model", "m.safetensors", "--corpus", "none"),
        (),
    ],
)
def test_the_evaluation_says_what_is_wrong_in_one_line(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "PRETRAINED", Path("none.safetensors"))
    LineIndex.build(MADE_UP).save(Path(FILE))
    refused(run_program("evaluate_verse", *arguments))
