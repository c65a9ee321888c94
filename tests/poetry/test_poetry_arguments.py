"""Wrong arguments: exit code 2, one line that names what is wrong, and nothing done or left behind."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import cli
from corpus import download, tang
from learning import settings, training
from model import save_model

import pytest
from poetry_helpers import (
    SMALL,
    VOCABULARY,
    never,
    pseudo_poems,
    refused,
    run_program,
    small_model,
    tree,
    write_corpus,
)

BAD_NUMBERS = ["0", "-1", "1.5", "x", ""]
NOT_POSITIVE = ["0", "-1", "nan", "inf", "-inf", "x", ""]


def each(program: str, option: str, *values: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(program, (option, value)) for value in values]


WRONG = [
    *each("train", "--files", "59", *BAD_NUMBERS),
    *[case for name in ("epochs", "patience", "batch-size", "hidden-size", "embedding-size", "max-vocabulary")
      for case in each("train", f"--{name}", *BAD_NUMBERS)],
    *each("train", "--lr", *NOT_POSITIVE),
    *each("train", "--clip", *NOT_POSITIVE),
    *each("train", "--weight-decay", "-1", "nan", "inf", "x", ""),
    *each("train", "--dropout", "1", "1.5", "-0.1", "nan", "x"),
    *each("train", "--seed", "-1", "1.5", "x"),
    *each("train", "--optimizer", "rmsprop", "Adam", ""),
    *each("train", "--backend", "tpu", "jax"),
    *each("train", "--protocol", "mine"),
    *each("report", "--epochs", *BAD_NUMBERS),
    *each("report", "--seed", "-1", "x"),
    *each("report", "--backend", "tpu"),
    *each("generate", "--count", *BAD_NUMBERS),
    *each("generate", "--max-length", *BAD_NUMBERS),
    *each("generate", "--top-k", *BAD_NUMBERS),
    *each("generate", "--top-p", "0", "1.5", "-0.5", "nan", "inf", "x"),
    *each("generate", "--temperature", *NOT_POSITIVE),
    *each("generate", "--seed", "-1", "x"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, in which no program may download or train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    monkeypatch.setattr(training.Trainer, "fit", never("the training"))
    return tmp_path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may it look at the corpus."""
    for name in ("load", "read_text"):
        monkeypatch.setattr(tang, name, never("the corpus"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("program", "arguments"), WRONG, ids=[f"{name} {option}={value}" for name, (option, value) in WRONG]
)
def test_a_wrong_value(here: Path, program: str, arguments: tuple[str, ...]) -> None:
    option, value = arguments
    message = refused(run_program(program, f"{option}={value}"), option, repr(value))
    assert message.startswith(f"{program}.py: error: ")
    assert tree(here) == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("program", ["train", "generate", "report", "evaluate_verse"])
@pytest.mark.parametrize("arguments", [("--nonsense",), ("more",), ("--seed",), ("a\nb",), ("--seed=1\n2",)])
def test_what_no_program_knows(here: Path, program: str, arguments: tuple[str, ...]) -> None:
    refused(run_program(program, *arguments), arguments[0].split("\n")[0].split("=")[0])
    assert tree(here) == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--files", "3"),
        ("--text", "mine.txt"),
        ("--max-vocabulary", "3600"),
        ("--batch-size", "32"),
        ("--hidden-size", "8"),
        ("--embedding-size", "8"),
        ("--dropout", "0.1"),
        ("--clip", "2"),
        ("--weight-decay", "0.1"),
        ("--patience", "2"),
        ("--schedule", "one-cycle"),
        ("--optimizer", "sgd"),
        ("--recipe", "best"),
        ("--max-length", "64"),
        ("--min-count", "10"),
        ("--tied",),
    ],
)
def test_what_the_reports_protocol_fixes(here: Path, arguments: tuple[str, str]) -> None:
    refused(run_program("train", "--protocol", "report", *arguments), "--protocol report")
    assert tree(here) == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("arguments", [("--files", "3"), ("--text", "a"), ("--min-count", "3"), ("--max-length", "9")])
def test_what_the_reports_rows_fix(here: Path, arguments: tuple[str, str]) -> None:
    refused(run_program("train", "--protocol", "report-rows", *arguments), arguments[0], "--protocol report-rows")
    assert tree(here) == []


def test_a_recipe_replaces_defaults_and_nothing_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        return vars(settings.parse_arguments())

    default, best = parsed(), parsed("--recipe", "best")
    changed = {name for name in default if default[name] != best[name]} - {"recipe", "typed"}
    assert changed == settings.RECIPES["best"].keys()
    assert {name: best[name] for name in changed} == settings.RECIPES["best"]
    given = parsed("--recipe", "best", "--dropout", "0.1", "--files", "2", "--no-tied", "--lr", "1")
    assert (given["dropout"], given["files"], given["tied"], given["lr"]) == (0.1, 2, False, 1.0)
    assert parsed("--recipe", "best", "--optimizer", "sgd")["weight_decay"] is None
    assert parsed("--recipe", "best", "--weight-decay", "0")["weight_decay"] is None
    named = {"recipe": "default", "typed": ["--recipe=default"]}
    assert parsed("--recipe", "default") == default | named


@pytest.mark.usefixtures("at_once")
def test_weight_decay_is_adams_alone() -> None:
    refused(run_program("train", "--optimizer", "sgd", "--weight-decay", "0.1"), "--weight-decay", "adam alone", "sgd")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("option", ["--dropout", "--clip", "--patience"])
def test_what_the_protocol_fixes_is_not_overruled_in_silence(
    option: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The default recipe's own value, typed by hand, is not the protocol's either."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    default = getattr(settings.parse_arguments(), option.strip("-"))
    refused(run_program("train", "--protocol", "report", option, default), option, "--protocol report")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("train", ("--text", "a.txt", "--corpus", "b"), ["--text", "--corpus"]),
        ("train", ("--text", "a.txt", "--max-length", "64"), ["--text", "--max-length"]),
        ("train", ("--tied",), ["--tied", "--embedding-size", "256"]),
        ("train", ("--tied", "--embedding-size", "32", "--hidden-size", "16"), ["--tied", "--embedding-size", "16"]),
        ("train", ("--recipe", "best", "--hidden-size", "16"), ["--tied", "--embedding-size", "16"]),
        ("generate", ("--argmax", "--top-k", "3"), ["--argmax", "--top-k"]),
        ("generate", ("--argmax", "--top-p", "0.5"), ["--argmax", "--top-p"]),
        ("generate", ("--argmax", "--temperature", "2"), ["--argmax", "--temperature"]),
    ],
)
def test_what_does_not_go_together(program: str, arguments: tuple[str, ...], words: list[str]) -> None:
    refused(run_program(program, *arguments), *words)
    assert tree(Path()) == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("program", ["train", "report"])
def test_cupy_where_there_is_none(here: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    refused(run_program(program, "--backend", "cupy"), "'cupy'", "pip install")
    assert tree(here) == []


# --out


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("program", ["train", "report"])
def test_out_that_is_a_file_or_lies_under_one(here: Path, program: str) -> None:
    (here / "taken").write_text("甲", encoding="utf-8")
    for out in ("taken", "taken/deeper"):
        refused(run_program(program, "--out", out), f"--out {Path(out)} cannot be written")
    assert tree(here) == ["taken"] and (here / "taken").read_text(encoding="utf-8") == "甲"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("program", ["train", "report"])
def test_out_in_which_no_file_can_be_made(here: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    (here / "a").mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)  # chmod would not stop root
    refused(run_program(program, "--out", "a"), "--out a cannot be written", "Permission denied")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("program", ["train", "report"])
def test_out_that_holds_a_run(here: Path, program: str) -> None:
    (here / "a").mkdir()
    (here / "a" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    refused(run_program(program, "--out", "a"), "--out a", "holds a run")
    assert tree(here) == ["a", str(Path("a", "metrics.jsonl"))]


@pytest.mark.usefixtures("at_once")
@pytest.mark.skipif(sys.platform == "win32", reason="the limit is another")
def test_out_with_a_name_too_long(here: Path) -> None:
    refused(run_program("train", "--out", "a" * 300), "too long")


# The corpus and one's own text


def broken_corpora(here: Path) -> dict[str, tuple[Path, str]]:
    """Folder and what the message must name."""
    poems = pseudo_poems(40)
    (here / "empty").mkdir()
    (here / "file").write_text("[]", encoding="utf-8")
    cases = {name: write_corpus(here / name, poems) for name in ("json", "list", "bytes", "gap")}
    (cases["json"] / "poet.tang.3000.json").write_text('[{"paragraphs": ["甲', encoding="utf-8")
    (cases["list"] / "poet.tang.3000.json").write_text('{"甲": 1}', encoding="utf-8")
    (cases["bytes"] / "poet.tang.3000.json").write_bytes('["甲"]'.encode("gb18030"))
    (cases["gap"] / "poet.tang.3000.json").unlink()
    write_corpus(here / "few", tang.split(poems)[0][:5])  # all of them fall to the training part
    write_corpus(here / "none", [])
    return {
        "missing": (here / "missing", "poet.tang.0.json"),
        "file": (here / "file", "poet.tang.0.json"),
        "empty": (here / "empty", "poet.tang.0.json"),
        **{name: (folder, "poet.tang.3000.json") for name, folder in cases.items()},
        "few": (here / "few", "too few"),
        "none": (here / "none", "too few"),
    }


@pytest.mark.parametrize("case", ["missing", "file", "empty", "json", "list", "bytes", "gap", "few", "none"])
@pytest.mark.parametrize("program", ["train", "train --protocol report", "report"])
def test_a_corpus_that_cannot_be_used(here: Path, program: str, case: str) -> None:
    folder, words = broken_corpora(here)[case]
    name, *arguments = program.split()
    refused(run_program(name, *arguments, "--corpus", folder, "--out", "out"), words)


TEXTS = {
    "missing": (None, "cannot read"),
    "empty": (b"", "mine.txt is empty"),
    "blank": (b"\n  \n\t\n", "no usable line"),
    "latin": ("très\n".encode("latin-1"), "not UTF-8"),
    "utf-16": ("甲乙\n".encode("utf-16"), "not UTF-8"),
    "few": ("甲乙\n丙丁\n".encode(), "too few distinct poems: 1 / 0 / 1"),
    "the same": (
        "甲乙丙丁\n".encode() * 500,
        "too few distinct poems: 1 / 0 / 0 to train / validate / test, of 500 read",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_cannot_be_used(here: Path, case: str) -> None:
    content, words = TEXTS[case]
    if content is not None:
        (here / "mine.txt").write_bytes(content)
    refused(run_program("train", "--text", "mine.txt", "--out", "out"), words)


def test_a_text_that_is_a_folder(here: Path) -> None:
    (here / "mine").mkdir()
    refused(run_program("train", "--text", "mine", "--out", "out"), "mine")


@pytest.mark.parametrize(
    "arguments", [("--text", "missing"), ("--corpus", "missing"), ("--corpus", "few")], ids=" ".join
)
@pytest.mark.parametrize("out", [("--out", "deep/out"), ()], ids=["out", "default"])
def test_a_run_that_cannot_begin_leaves_no_folder(here: Path, arguments: tuple[str, str], out: Any) -> None:
    write_corpus(here / "few", tang.split(pseudo_poems(40))[0][:5])
    before = tree(here)
    refused(run_program("train", *arguments, *out))
    assert tree(here) == before


def test_a_folder_of_the_users_stays_even_if_the_run_could_not_begin(here: Path) -> None:
    (here / "mine").mkdir()
    refused(run_program("train", "--corpus", "missing", "--out", "mine"))
    assert tree(here) == ["mine"]


# Sizes that no machine has


@pytest.mark.parametrize("option", ["--hidden-size", "--embedding-size"])
@pytest.mark.parametrize("value", [10**15, 10**19, 10**40])
def test_a_size_beyond_all_memory_is_reported_in_one_line(here: Path, option: str, value: int) -> None:
    write_corpus(here / "corpus", pseudo_poems(100))
    outcome = run_program("train", "--corpus", "corpus", *SMALL, option, value, "--out", "out")
    assert outcome.code == 2 and ": error: " in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("option", ["--count", "--max-length", "--top-k", "--seed"])
def test_a_number_beyond_all_bounds_is_reported_in_one_line_or_taken(here: Path, option: str) -> None:
    save_model(here / "m", small_model(), VOCABULARY, max_length=5)
    outcome = run_program("generate", "--model", "m", "--start", "月", option, 10**40)
    assert outcome.code == 0 or refused(outcome)


# --help


@pytest.mark.parametrize("program", ["train", "generate", "report", "evaluate_verse"])
def test_help_reads_well(here: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    outcome = run_program(program, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: {program}.py ")
    assert "(default: numpy)" in outcome.out or program in ("generate", "evaluate_verse")
    assert "--seed SEED" in outcome.out
    assert tree(here) == []


HELP = {
    "train": ["adam 0.005", "(default: adam)", "(default: 8)", "(default: 256)", "(default: 128)", "runs/1"],
    "generate": ["(default: 1)", "newest under runs/", "simplified", "(default: 0.7)"],
    "report": ["(default: 30)", "runs/report-1", "(default: 0)"],
}


@pytest.mark.parametrize("program", HELP)
def test_help_states_the_defaults(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(run_program(program, "--help").out.split())
    assert [default for default in HELP[program] if default not in text] == []


@pytest.mark.parametrize("program", HELP)
def test_help_shows_no_default_where_there_is_none(program: str) -> None:
    text = " ".join(run_program(program, "--help").out.split())
    assert [word for word in ("(default: None)", "(default: False)", "(default: )") if word in text] == []


# Streams


def test_a_program_without_standard_streams_does_not_trip_over_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("stdout", "stderr"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)  # as after `>&-`, or under pythonw
            with pytest.raises(SystemExit) as ended:
                cli.run(lambda: print("甲"))
            if (opened := getattr(sys, stream)) is not None:
                opened.close()
        assert ended.value.code == 0


def test_the_machines_own_errors_are_one_line() -> None:
    messages = []
    for error in (OSError(28, "No space left\non device"), MemoryError(), cli.UsageError("two\n  lines")):

        def main(error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [os.path.join("somewhere", "x.py")])
            patch.setattr(cli, "note", messages.append)
            cli.run(main)
        assert ended.value.code == 2
    assert messages == [
        "x.py: error: [Errno 28] No space left on device",
        "x.py: error: MemoryError",
        "x.py: error: two lines",
    ]


def test_a_mistake_of_the_programs_own_is_not_hidden() -> None:
    def main() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        cli.run(main)
