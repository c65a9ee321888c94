"""prepare.py: a text is read in pieces, counted and encoded, and its folder is whole or not there."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from common import atomic_files
from corpus import download, prepared, tang, texts
from corpus.download import CorpusError
from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary

import numpy as np
import prepare
import pytest
from poetry_helpers import PROGRAMS, Outcome, never, pseudo_poems, refused, run_program, tree, write_corpus

FILES = sorted([*(f"{part}.{kind}.npy" for part in prepared.PARTS for kind in ("ids", "lengths")), prepared.METADATA])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    return tmp_path


@pytest.fixture
def text(here: Path) -> Path:
    (here / "text").write_text("\n".join(pseudo_poems(300)), encoding="utf-8")
    return Path("text")


def run(*arguments: object) -> Outcome:
    return run_program("prepare", *arguments)


def one_error(outcome: Outcome, *words: str) -> None:
    """A bar may come before."""
    errors = [line for line in outcome.err.splitlines() if "prepare.py: error: " in line]
    assert outcome.code == 2 and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    assert [word for word in words if word not in errors[0]] == [], errors


# A text in pieces


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_lines_in_pieces_are_those_of_the_whole_text(here: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", chunk)
    rng = random.Random(chunk)
    for _ in range(60):
        ends = ["\n", "\r\n", "\r", "\x0b", "\u2028", "\n\n", " \n\u3000"]
        whole = "".join(rng.choice([*"甲a é\ufeff", *ends]) for _ in range(rng.randint(0, 80)))
        (here / "text").write_bytes(whole.encode("utf-8"))
        read = list(texts.text_lines(Path("text")))
        lines = [line for lines, _ in read for line in lines if line]
        expected = [line.strip() for line in whole.removeprefix("\ufeff").splitlines()]
        assert lines == [line for line in expected if line]
        assert sum(size for _, size in read) == len(whole.encode("utf-8"))


def test_bytes_that_are_no_text_are_reported_with_their_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", 8)
    (here / "text").write_bytes("甲\n乙\n丙丁\n".encode() * 3 + b"ab\xffc\n")
    with pytest.raises(CorpusError, match="text is not UTF-8: byte 47, in line 10; "):
        list(texts.text_lines(Path("text")))


def test_a_line_that_would_fill_the_memory_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", 64)
    monkeypatch.setattr(texts, "LONGEST_LINE", 200)
    (here / "text").write_text("甲\n乙\n" + "丙" * 1000 + "\n丁\n", encoding="utf-8")
    one_error(run("--text", "text", "--out", "big"), "text has more than 200 characters in line 3")
    assert tree(here) == ["text"]


def test_characters_are_counted_as_the_vocabulary_counts_them() -> None:
    rng = random.Random(0)
    some = ["".join(rng.choices("甲乙丙丁戊己😀a\0", k=rng.randint(0, 9))) for _ in range(50)]
    found, expected = prepare.count(some), Counter("".join(some))
    assert list(found.items()) == list(expected.items())
    marks = (BEGIN, END, UNKNOWN)
    assert Vocabulary.of_counts(found, marks, 5, 2).tokens == Vocabulary.build(some, marks, 5, 2).tokens


# What is written


def test_the_folder_and_what_is_said(text: Path) -> None:
    outcome = run("--text", text, "--out", "deep/big")
    assert outcome.code == 0 and outcome.out == "" and "Traceback" not in outcome.err
    assert sorted(path.name for path in Path("deep/big").iterdir()) == FILES
    sizes = [len(part) for part in tang.split(pseudo_poems(300))]
    assert f"{' / '.join(map(str, sizes))} poems to train / validate / test, 14 characters known\n" in outcome.err
    assert "MB in deep" in outcome.err and tree(Path(".")) == ["deep", *sorted(tree(Path("."))[1:])]
    ids, lengths = (np.load(f"deep/big/train.{kind}.npy") for kind in ("ids", "lengths"))
    assert ids.dtype == lengths.dtype == np.uint8 and (lengths == 11).all() and len(ids) == 12 * sizes[0]
    facts = json.loads(Path("deep/big/prepared.json").read_text(encoding="utf-8"))
    assert facts["settings"] == {"files": None, "max_length": None, "max_vocabulary": None, "min_count": 2}
    assert facts["parts"]["train"]["ids"]["count"] == len(ids)


def test_types_are_the_smallest_that_hold_all(here: Path) -> None:
    characters = [chr(0x4E00 + place) for place in range(300)]
    poems = [f"{character}{'甲' * (place % 199)}" for place, character in enumerate(characters * 3)]
    (here / "text").write_text("\n".join(poems), encoding="utf-8")
    assert run("--text", "text", "--min-count", 1, "--out", "big").code == 0
    assert np.load("big/train.ids.npy").dtype == np.uint16 and np.load("big/train.lengths.npy").dtype == np.uint8


def test_tang_poems_are_those_that_train_reads(here: Path) -> None:
    poems = pseudo_poems(300)
    write_corpus(here / "corpus", [*poems[:150], *poems[:150], *poems[150:], "甲" * 50])
    assert run("--corpus", "corpus", "--out", "big").code == 0
    found = prepared.load(Path("big"))
    assert [len(part.lengths) for part in found.parts] == [len(part) for part in tang.split(poems)]
    assert found.max_length == 10


def test_equal_lines_stay_as_often_as_they_come_and_share_a_part(here: Path) -> None:
    poems = pseudo_poems(100)
    (here / "text").write_text("\n".join(poems * 3), encoding="utf-8")
    assert run("--text", "text", "--out", "big").code == 0
    parts = prepared.load(Path("big")).parts
    assert [len(part.lengths) for part in parts] == [3 * len(part) for part in tang.split(poems)]


def test_the_same_text_gives_the_same_folder(text: Path) -> None:
    for out in ("a", "b"):
        assert run("--text", text, "--out", out).code == 0
    assert [(Path("a") / name).read_bytes() for name in FILES] == [(Path("b") / name).read_bytes() for name in FILES]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", 1 << 15)
    monkeypatch.setattr(prepare, "CODE_POINTS", 0x10000)
    peaks, sizes = [], []
    for times in (1, 50):
        (here / "text").write_text("\n".join(pseudo_poems(600) * times), encoding="utf-8")
        sizes.append((here / "text").stat().st_size)
        tracemalloc.start()
        assert run("--text", "text", "--out", f"{times}").code == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.2 * (sizes[1] - sizes[0]), (peaks, sizes)


# What cannot be prepared


def test_out_is_never_written_over(text: Path, here: Path) -> None:
    (here / "file").write_bytes(b"x")
    (here / "folder").mkdir()
    for out in ("file", "folder", "."):
        refused(run("--text", text, "--out", out), f"--out {out} already exists")
    refused(run("--text", text, "--out", "file/deeper"), "--out")
    refused(run("--text", text, "--out", "a" * 300), "a" * 300)
    assert tree(here) == ["file", "folder", "text"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("text is empty",)),
        (b"\n \n", ("too few",)),
        ("甲\n".encode(), ("too few",)),
        ("甲\n乙".encode()[:-1], ("text", "not UTF-8", "line 2")),
        (None, ("cannot read text",)),
    ],
)
def test_a_text_that_cannot_be_used_leaves_nothing(here: Path, content: bytes | None, words: tuple[str, ...]) -> None:
    if content is not None:
        (here / "text").write_bytes(content)
    before = tree(here)
    one_error(run("--text", "text", "--out", "new/big"), *words)
    assert tree(here) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_can_be_read_only_once_is_refused(here: Path) -> None:
    os.mkfifo(here / "pipe")
    refused(run("--text", "pipe", "--out", "big"), "cannot read pipe twice", "no regular file")
    refused(run("--text", ".", "--out", "big"), "no regular file")
    assert tree(here) == ["pipe"]


def test_out_that_is_a_link_to_nothing_is_refused_before_any_work(text: Path, here: Path) -> None:
    try:
        (here / "link").symlink_to("nowhere")
    except OSError:
        pytest.skip("this system makes no links")
    refused(run("--text", text, "--out", "link"), "--out link already exists")
    assert tree(here) == ["link", "text"]


def test_a_text_that_changes_while_it_is_read(text: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, poems = texts.text_lines, iter([pseudo_poems(300), pseudo_poems(200)])

    def changing(path: Path, encoding: str) -> Iterator[tuple[list[str], int]]:
        text.write_text("\n".join(next(poems)), encoding="utf-8")
        return lines(path, encoding)

    monkeypatch.setattr(texts, "text_lines", changing)
    one_error(run("--text", text, "--out", "big"), "the text changed while it was read")
    assert tree(here) == ["text"]


@pytest.mark.parametrize("option", ["--corpus", "--files", "--max-length"])
def test_options_of_the_tang_do_not_go_with_a_text(option: str) -> None:
    refused(run("--text", "t", "--out", "o", option, 9), "--text", option, "exclude each other")


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(text: Path, here: Path, size: int) -> None:
    resource = pytest.importorskip("resource", reason="a limit of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        outcome = run("--text", text, "--out", "new/big")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_error(outcome, "File too large", *([str(Path("new/big"))] if size else []))
    assert tree(here) == ["text"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_whatever_interrupts_the_writing_leaves_nothing(text: Path, here: Path, error: BaseException) -> None:
    with mock.patch.object(prepare.os, "fsync", side_effect=error):
        outcome = run("--text", text, "--out", "big")
    assert outcome.code == (2 if isinstance(error, OSError) else 130) and "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].endswith(
        "interrupted" if outcome.code == 130 else "No space left on device: 'big'"
    )
    assert tree(here) == ["text"]


def test_a_folder_that_came_meanwhile_stays(text: Path, here: Path) -> None:
    def occupy(*arguments: object) -> None:
        (here / "big").mkdir(exist_ok=True)
        (here / "big" / "mine").write_bytes(b"x")

    with mock.patch.object(prepare.os, "fsync", occupy):
        assert run("--text", text, "--out", "big").code == 2
    assert tree(here) == ["big", str(Path("big/mine")), "text"]


PROGRAM = """
import os, runpy, sys
sys.path.insert(0, sys.argv[1])
import prepare
def stop(*_):
    print("here", flush=True)
    sys.stdin.read()
prepare.os.fsync = stop
sys.argv = sys.argv[2:]
prepare.cli.run(prepare.main)
"""


def test_a_killed_process_leaves_no_folder_of_that_name_and_the_rest_is_swept(text: Path, here: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, PROGRAMS, "prepare.py", "--text", text, "--out", "big"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(list(map(str, words)), **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"here\n" or os.name == "nt"
        process.kill()
    left = [path for path in here.iterdir() if path.is_dir()]
    assert len(left) == 1 and left[0].name.endswith(".tmpdir")
    assert run("--text", text, "--out", "one").code == 0 and left[0].exists(), "it might still be at work"
    (here / ".mine.tmpdir").mkdir()  # only looks like one
    (here / ".mine.tmpdir" / "file").write_bytes(b"x")
    old = time.time() - atomic_files.STALE_SECONDS - 1
    for path in (*left[0].iterdir(), left[0], here / ".mine.tmpdir" / "file", here / ".mine.tmpdir"):
        os.utime(path, (old, old))
    assert run("--text", text, "--out", "big").code == 0
    assert sorted(path.name for path in here.iterdir()) == [".mine.tmpdir", "big", "one", "text"]
    assert tree(here / ".mine.tmpdir") == ["file"]
