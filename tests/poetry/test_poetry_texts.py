"""A text in another encoding is read if that is named, and refused with what it looks like if not."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

from corpus import download, texts
from corpus.download import CorpusError
from corpus.line_index import FILE, LineIndex
from corpus.texts import UTF8, text_lines

import pytest
from poetry_helpers import SMALL, jsonl, never, pseudo_poems, refused, results, run_program, tree

TANG = "\n".join(f"第{n}首：白日依山盡，黃河入海流。欲窮千里目，更上一層樓。" for n in "一二三四五六七八九") + "\n"
SIMPLIFIED = (
    "\n".join(f"第{n}首：白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" for n in "一二三四五六七八九") + "\n"
)
JAPANESE = "祇園精舎の鐘の声、諸行無常の響きあり。\n沙羅双樹の花の色、盛者必衰の理をあらはす。\n" * 5
FRENCH = "Les sanglots longs des violons de l’automne blessent mon cœur d’une langueur monotone, à l’été.\n" * 9
ENGLISH = "The quick brown fox jumps over the lazy dog, again and again.\n" * 9


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; nothing can be downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    return tmp_path


def lines_of(content: bytes, encoding: str = UTF8) -> list[str]:
    Path("text").write_bytes(content)
    return [line for lines, _ in text_lines(Path("text"), encoding) for line in lines]


def told(content: bytes, encoding: str = UTF8) -> str:
    with pytest.raises(CorpusError) as error:
        lines_of(content, encoding)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((TANG, name) for name in ("utf-8", "gb18030", "gbk", "big5", "utf-16", "utf-16-le", "utf-16-be", "utf-32")),
        *((FRENCH, name) for name in ("cp1252", "utf-8", "utf-7")),
        (ENGLISH, "ascii"),
        (SIMPLIFIED, "hz"),
    ],
)
def test_a_named_encoding_is_read_in_pieces(
    text: str, encoding: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "CHUNK", chunk)
    content = text.encode(encoding)
    assert [line for line in lines_of(content, encoding) if line] == text.splitlines()
    assert sum(size for _, size in text_lines(Path("text"), encoding)) == len(content)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf_8"])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_mark_at_the_beginning_is_no_part_of_the_text(
    encoding: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "CHUNK", chunk)
    assert [line for line in lines_of("\ufeff甲\n\ufeff乙".encode(), encoding) if line] == ["甲", "\ufeff乙"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SIMPLIFIED.encode("gbk"), ["byte 0, in line 1", "looks like gb18030: try --encoding gb18030"]),
        (TANG.encode("big5"), ["byte 0, in line 1", "looks like big5: try --encoding big5"]),
        (TANG.encode("utf-16"), ["byte 0", "looks like utf-16: try --encoding utf-16"]),
        (TANG.encode("utf-32"), ["byte 0", "looks like utf-32: try --encoding utf-32"]),
        (ENGLISH.encode("utf-16-le"), ["not text in UTF-8", "NULs", "try --encoding utf-16-le"]),
        (FRENCH.encode("cp1252"), ["byte 35, in line 1", "try --encoding cp1252"]),
        ((ENGLISH * 200 + FRENCH).encode("cp1252"), ["in line 1801", "try --encoding cp1252"]),
        (gzip.compress(TANG.encode()), ["looks like gzip: unpack it first"]),
        (b"PK\x03\x04\xff\xff", ["zip", "save it as plain text"]),
        (TANG.encode() + b"\xff\n", ["in line 10", "no other encoding fits: the file may be damaged there"]),
        (TANG.encode()[:-2], ["in line 9", "damaged there"]),
        (bytes(range(254, 127, -1)) * 40, ["byte 0", "not UTF-8"]),
        ((ENGLISH * 200 + TANG).encode("big5"), ["in line 1801", "looks like big5: try --encoding big5"]),
        ("Käse\n".encode("cp1252"), ["byte 1, in line 1; it may be "]),
    ],
    ids=range(14),
)
def test_what_is_not_utf_8_is_refused_with_what_it_looks_like(content: bytes, words: list[str]) -> None:
    message = told(content)
    assert message.startswith("text is not ") and [word for word in words if word not in message] == [], message
    if "try --encoding " in message:
        name = message.rpartition(" ")[2]
        assert list(filter(None, lines_of(content, name))) == content.decode(name).removeprefix("\ufeff").splitlines()


@pytest.mark.parametrize(
    ("content", "encoding", "words"),
    [
        (TANG.encode("big5"), "ascii", ["not ascii: byte 0, in line 1", "try --encoding big5"]),
        (ENGLISH.encode() + TANG.encode(), "ascii", ["not ascii", "in line 10", "try --encoding UTF-8"]),
        (TANG.encode("utf-16-be"), "utf-16", ["not utf-16: byte 176, in line 1", "try --encoding utf-16-be"]),
        (TANG.encode("utf-16") + b"\x00", "utf-16", ["not utf-16", "in line 10", "damaged there"]),
        (b"a+2AA-b", "utf-7", ["not text in utf-7", "unpaired surrogates"]),
    ],
)
def test_a_wrong_name_is_refused_with_the_place(content: bytes, encoding: str, words: list[str]) -> None:
    message = told(content, encoding)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_place_is_right_however_the_text_is_cut(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", chunk)
    content = "\ufeff甲\n乙\n丙丁\n".encode()
    assert f"byte {len(content) + 3}, in line 4" in told(content + "戊".encode() + b"\xff")
    content = "甲\n乙\n\u0a0d\u0d0a\n".encode("utf-16-le")  # the bytes of line ends within characters
    assert f"byte {len(content)}, in line 4" in told(content + b"\x00\xdc", "utf-16-le")


LEGACY = [("gbk", SIMPLIFIED), ("big5", TANG), ("shift_jis", JAPANESE), ("euc_jp", JAPANESE)]


@pytest.mark.parametrize(("encoding", "text"), LEGACY)
@pytest.mark.parametrize("prefix", [b"", b"\n", b"x\n", (ENGLISH * 40).encode(), (ENGLISH * 40).encode() + b"\n"])
def test_a_long_text_is_known_wherever_the_sample_is_cut(encoding: str, text: str, prefix: bytes) -> None:
    long = text * (80_000 // len(text))
    for content in (prefix + long.encode(encoding), prefix + long.replace("\n", "").encode(encoding)):
        name = told(content).rpartition(" ")[2]
        assert content.decode(name) == content.decode(encoding), name


@pytest.mark.parametrize(("encoding", "text"), LEGACY)
def test_a_damaged_text_in_another_encoding_is_known_too(encoding: str, text: str) -> None:
    content = bytearray((text * 20).encode(encoding))
    for damaged in (content[:-2], content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :]):
        message = told(bytes(damaged))
        name = message.rpartition(" ")[2]
        assert bytes(content).decode(name) == bytes(content).decode(encoding), message
        if name != "cp932":  # which takes any byte for something
            assert "damaged there" in told(bytes(damaged), name)


def test_ascii_by_a_wrong_name_is_no_damage() -> None:
    assert told(ENGLISH.encode() + b"x", "utf-16").endswith("it may be UTF-8: try --encoding UTF-8")
    assert "cp1252" in told(b"".join([ENGLISH.encode(), b"it\x92s fine\n"]))


def test_lines_may_end_as_on_an_old_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", 16)
    monkeypatch.setattr(texts, "LONGEST_LINE", 100)
    assert [line for line in lines_of(TANG.replace("\n", "\r").encode()) if line] == TANG.splitlines()
    assert [line for line in lines_of(TANG.replace("\n", "\r\n").encode()) if line] == TANG.splitlines()


def test_a_stray_nul_is_no_reason_to_refuse_a_text() -> None:
    assert lines_of((ENGLISH + "a\0b\n").encode())[9] == "a\0b"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_the_place_is_reported_of_a_pipe_too() -> None:
    os.mkfifo("pipe")
    content = ENGLISH.encode() * 2000 + b"\xff\n"
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(content))
    writer.start()
    with pytest.raises(CorpusError, match=f"byte {len(content) - 2}, in line 18001"):
        list(text_lines(Path("pipe")))
    writer.join()


def test_an_encoding_that_this_python_lacks_is_reported() -> None:
    Path("text").write_bytes(b"a\n")
    with pytest.raises(CorpusError, match="text: this Python does not know the encoding elsewhere"):
        list(text_lines(Path("text"), "elsewhere"))


def test_a_run_and_its_resumption_read_the_encoding_and_copies_are_known(here: Path) -> None:
    poems = pseudo_poems(200, seed=1)
    (here / "big5.txt").write_bytes("\n".join(poems).encode("big5"))
    (here / "utf-8.txt").write_bytes("\n".join(poems).encode())
    one = run_program("train", "--text", "utf-8.txt", *SMALL, "--epochs", 2, "--out", "one")
    other = run_program("train", "--text", "big5.txt", "--encoding", "big5", *SMALL, "--epochs", 2, "--out", "other")
    assert one.code == other.code == 0, other.err
    assert results("one")[0] == results("other")[0] and one.out == other.out
    again = run_program("train", "--resume", "--out", "other")
    assert again.code == 0 and "resuming from step" in again.err
    (here / "other" / "lines.npy").unlink()
    model = here / "other" / "model.safetensors"
    outcome = run_program("generate", "--model", model, "--no-copy", "--seed", 1)
    assert outcome.code == 0 and "reads the corpus once" in outcome.err
    assert LineIndex.load(here / "other" / FILE).entries.tolist() == LineIndex.build(poems).entries.tolist()
    moved = run_program("train", "--resume", "--out", "other", "--text", "utf-8.txt", "--encoding", "utf-8")
    assert moved.code == 0, moved.err


def test_prepare_reads_the_encoding(here: Path) -> None:
    (here / "gbk.txt").write_bytes("\n".join(pseudo_poems(200)).encode("gb18030"))
    refused_first = run_program("prepare", "--text", "gbk.txt", "--out", "big")
    assert refused_first.code == 2 and "try --encoding gb18030" in refused_first.err and tree(here) == ["gbk.txt"]
    assert run_program("prepare", "--text", "gbk.txt", "--encoding", "gb18030", "--out", "big").code == 0
    assert "紅" in json.loads((here / "big" / "prepared.json").read_text(encoding="utf-8"))["tokens"]


@pytest.mark.parametrize("program", [("train",), ("prepare", "--out", "o")])
def test_an_encoding_goes_with_a_text_alone(program: tuple[str, ...]) -> None:
    name, *rest = program
    refused(run_program(name, *rest, "--encoding", "gbk"), "--encoding", "--text")
    if name == "train":
        refused(run_program(name, "--encoding", "gbk", "--text", "t", "--prepared", "p"), "exclude each other")


# A text of long lines alone: no held-out piece is short


@pytest.mark.parametrize(
    "text",
    ["\n".join("".join(pseudo_poems(6, seed)) for seed in range(200)), "".join(pseudo_poems(10_000))],
    ids=["lines of 60", "one line of 100,000"],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_text_without_short_pieces_ends_well(here: Path, text: str, prepared: bool) -> None:
    (here / "long.txt").write_text(text, encoding="utf-8")
    source = ("--text", "long.txt")
    if prepared:
        assert run_program("prepare", *source, "--out", "big").code == 0
        source = ("--prepared", "big")
    outcome = run_program("train", *source, *SMALL, "--epochs", 1, "--out", "a")
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome.err
    *_, last = jsonl(here / "a" / "metrics.jsonl")
    assert "test_loss" in last and not any(name.startswith("short") for name in last)
    assert {"curves.png", "poems.png", "poems.txt"} <= set(tree(here / "a"))
    again = run_program("train", "--resume", "--out", "a")
    assert again.code == 0, again.err
    if not prepared:
        written = Path("a", FILE).read_bytes()
        Path("a", FILE).unlink()
        assert run_program("generate", "--model", "a/model.safetensors", "--no-copy", "--seed", 1).code == 0
        assert Path("a", FILE).read_bytes() == written, "of the pieces that were learned"
