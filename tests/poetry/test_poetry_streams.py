"""What the programs write, whatever encoding PYTHONIOENCODING names: nothing is lost but single characters."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

from common import cli
from corpus import download
from corpus.line_index import FILE, LineIndex
from model import save_model

import pytest
from poetry_helpers import PROGRAMS, SMALL, never, pseudo_poems, run_program, write_corpus
from verse_helpers import VERSES, verse_model

POEMS = [f"{first}天山花春，心人來流風。" for first in "東光香霜月水雪草鳥雨"]
LEGACY = pytest.mark.parametrize("wanted", ["cp936", "cp950", "ascii", "cp936:strict", "ascii:surrogateescape"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of eight files, a text, and a model with the lines that it knows."""
    folder = tmp_path_factory.mktemp("streams")
    write_corpus(folder / "corpus", pseudo_poems(200))
    (folder / "text").write_text("\n".join(pseudo_poems(200)), encoding="utf-8")
    (folder / "verse").mkdir()
    facts = {"max_length": 24, "arguments": {"text": None, "protocol": None, "files": 8, "max_length": 24}}
    save_model(folder / "verse" / "model.safetensors", verse_model(), VERSES, **facts)
    LineIndex.build(POEMS).save(folder / "verse" / FILE)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    return tmp_path


def lacking(text: str, wanted: str) -> str:
    """`text` as it comes out of a stream that lacks some of it."""
    encoding = wanted.partition(":")[0]
    return text.encode(encoding, "replace").decode(encoding)


@LEGACY
def test_a_poem_comes_in_the_encoding_that_was_asked_for(
    folder: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = (
        "--model",
        folder / "verse" / "model.safetensors",
        "--seed",
        3,
        "--count",
        2,
        "--form",
        "五絕",
        "--explain",
    )
    plain = run_program("generate", *write)
    assert plain.code == 0 and "probability" in plain.out
    monkeypatch.setenv("PYTHONIOENCODING", wanted)
    assert run_program("generate", *write) == (0, lacking(plain.out, wanted), "")
    refused = run_program("generate", *write, "--start", "龘")
    assert refused.code == 2 and refused.err == lacking(
        "generate.py: error: --start has 龘, which the model never saw; try other characters\n", wanted
    )


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        *(("ascii", "?"), ("ascii:strict", "?"), ("ascii:backslashreplace", "\\u8757"), ("ascii:ignore", "")),
        *((":ignore", "蝗"), ("", "蝗"), (None, "蝗")),
    ],
)
def test_a_character_that_the_encoding_lacks_is_replaced_as_it_says(
    wanted: str | None, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if wanted is not None:
        monkeypatch.setenv("PYTHONIOENCODING", wanted)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.reconfigure(**cli.stream_options())
    stream.write("蝗")
    stream.flush()
    assert stream.buffer.getvalue().decode("utf-8") == written  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", ["cp936", "cp950", "ascii"])
@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [
        ("train", ("--text", "紙"), 2),
        ("train", ("--optimizer", "紙"), 2),
        ("prepare", ("--text", "{f}/text", "--out", "紙"), 0),
        ("prepare", ("--text", "紙", "--out", "o"), 2),
        ("generate", ("--model", "紙"), 2),
        ("generate", ("--help",), 0),
        ("evaluate_verse", ("--model", "紙"), 2),
        ("shrink", ("紙", "--out", "o"), 2),
        ("export", ("--model", "{f}/verse/model.safetensors", "--out", "紙.safetensors"), 0),
        ("export", ("--model", "紙", "--out", "o.safetensors"), 2),
        ("report", ("--corpus", "紙"), 2),
    ],
)
def test_every_program_says_what_it_says_in_any_encoding(
    folder: Path, wanted: str, program: str, arguments: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tuple(part.format(f=folder) for part in arguments)
    plain = run_program(program, *arguments)
    assert plain.code == code and any(ord(character) > 0x7F for character in plain.out + plain.err), plain
    shutil.rmtree("紙", ignore_errors=True)
    monkeypatch.setenv("PYTHONIOENCODING", wanted)
    assert run_program(program, *arguments) == (code, lacking(plain.out, wanted), lacking(plain.err, wanted))


@pytest.mark.parametrize("wanted", ["cp936", "cp950", "ascii"])
def test_a_run_of_training_in_any_encoding(folder: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--text", folder / "text", *SMALL, "--epochs", 1, "--out")
    plain = run_program("train", *arguments, "a")
    monkeypatch.setenv("PYTHONIOENCODING", wanted)
    outcome = run_program("train", *arguments, "紙")
    assert (outcome.code, outcome.out) == (0, lacking(plain.out, wanted))
    assert f"into {lacking('紙', wanted)}" in outcome.err
    assert Path("紙/poems.txt").read_text(encoding="utf-8") == plain.out


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["cp936", "cp950", "ascii"])
def test_the_long_programs_end_well_in_any_encoding(folder: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", wanted)
    model = ("--model", folder / "verse" / "model.safetensors", "--corpus", folder / "corpus", "--files", 8)
    outcome = run_program("evaluate_verse", *model, "--count", 2, "--out", "verse")
    assert outcome.code == 0 and lacking("五絕", wanted) in outcome.out, outcome
    assert "五絕" in Path("verse/verse.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("wanted", ["cp936", "ascii", "utf-16"])
def test_a_process_of_its_own_writes_what_python_would(folder: Path, wanted: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": wanted}
    command = [
        sys.executable,
        PROGRAMS / "generate.py",
        "--model",
        folder / "verse" / "model.safetensors",
        "--seed",
        "3",
    ]
    plain = run_program("generate", *command[2:])
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False)
    assert (done.returncode, done.stderr.decode(wanted)) == (0, "")
    assert done.stdout.decode(wanted) == lacking(plain.out, wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is told in another way there")
def test_a_reader_that_goes_away_is_no_error_in_any_encoding(folder: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "cp936"}
    command = [sys.executable, PROGRAMS / "generate.py", "--model", folder / "verse" / "model.safetensors"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command, "--count", "9"], stdout=write, stderr=subprocess.PIPE, timeout=120, env=environment, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
