"""Bad input to the programs: exit code 2, one line on stderr that names it, and no file more or less than before."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from common import atomic_files
from corpus import download, line_index, tang
from model import save_model
from verse import explaining_picture

import numpy as np
import pytest
from poetry_helpers import PROGRAMS, never, pseudo_poems, refused, run_program, tree, write_corpus
from verse_helpers import VERSES, verse_model

import minidl

ROOT = PROGRAMS.parent.parent
NAMES = ["train", "prepare", "generate", "report", "evaluate_verse", "shrink", "export"]
NEEDED = {  # what a program cannot do without
    "shrink": ["run", "--out", "small"],
    "export": ["--out", "a.onnx"],
    "prepare": ["--out", "big"],
}
NO_NUMBERS = ["", " ", "x", "nan", "inf", "-inf", "-1", "1e999", "0x1", "1,5", "1 2", "1\n2", "½", "\udcff"]
NO_WORDS = ["", "x", "ADAM", "numpy ", "五言", "\udcff"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    return tmp_path


# Options: the rows come from the parsers themselves


def options(program: str) -> list[argparse.Action]:
    """What a program's own parser knows."""
    found: list[argparse.Action] = []

    def noted(parser: argparse.ArgumentParser) -> argparse.Namespace:
        found.extend(parser._actions)
        raise SystemExit

    with mock.patch.object(argparse.ArgumentParser, "parse_args", noted), contextlib.suppress(SystemExit):
        importlib.import_module(program).parse_arguments()
    return [action for action in found if action.option_strings and action.dest != "help"]


def junk(action: argparse.Action) -> list[str]:
    """Values that the option must refuse; nothing of one that takes any text or path."""
    if action.choices:
        return NO_WORDS
    if action.nargs == 0:
        return ["", "1", "yes"]
    maker = getattr(action.type, "__qualname__", "")
    if maker.startswith(("whole.", "real.")):
        return NO_NUMBERS
    by_maker = {
        "form": NO_WORDS,
        "rhyme": NO_WORDS,
        "characters": ["", " ", "\udcff"],
        "word": ["", " ", "春 月", "\udcff"],
        "text": ["\udcff"],
        "encoding": ["", "x", "hex", "rot13", "undefined", "utf-8\0", "\udcff"],
    }
    return by_maker.get(maker, [])


OPTIONS = [
    (program, action.option_strings[0], value)
    for program in NAMES
    for action in options(program)
    for value in [*junk(action), *([None] if action.nargs is None else [])]
]


def test_every_option_has_bad_values_or_is_a_path() -> None:
    empty = [action for program in NAMES for action in options(program) if not junk(action)]
    assert empty and {action.type for action in empty} == {Path}


@pytest.mark.parametrize("program", NAMES)
def test_a_value_that_an_option_does_not_take(here: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = importlib.import_module(program).parse_arguments
    rows = [(option, value) for name, option, value in OPTIONS if name == program]
    assert len(rows) >= 2
    for option, value in rows:
        given = [option] if value is None else [f"{option}={value}"]
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *NEEDED.get(program, []), *given])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            parse()
            pytest.fail(f"{given} was taken")
        told = err.getvalue()
        assert ended.value.code == 2 and out.getvalue() == "", (option, value)
        assert told.startswith(f"{program}.py: error: ") and told.count("\n") == 1 and option in told, (option, told)
    assert tree(here) == []


# Files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a run of train.py on it, and a model that writes verse."""
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "corpus", pseudo_poems(200))
    sizes = ("--epochs", 1, "--hidden-size", 8, "--embedding-size", 8, "--batch-size", 32, "--max-length", 60)
    outcome = run_program("train", "--corpus", folder / "corpus", *sizes, "--out", folder / "run")
    assert outcome.code == 0, outcome.err
    (folder / "verse").mkdir()
    save_model(folder / "verse" / "model.safetensors", verse_model(), VERSES, max_length=24)
    line_index.LineIndex.build(pseudo_poems(50)).save(folder / "verse" / line_index.FILE)
    return folder


def using(program: str, model: Path, trained: Path) -> list[object]:
    """The arguments with which a program reads a model."""
    corpus_folder = ["--corpus", trained / "corpus"]
    return {
        "generate": ["--model", model, "--seed", 1],
        "evaluate_verse": ["--model", model, *corpus_folder, "--files", 8, "--count", 1, "--out", "out"],
        "shrink": [model.parent, *corpus_folder, "--out", "out"],
        "export": ["--model", model, "--out", "poem.onnx"],
    }[program]


def contents(kind: str, good: bytes) -> bytes | None:
    """Of a file that is something else than what it should be; None where there is none."""
    half = good[: len(good) // 2]
    changed = good[:-1] + bytes([good[-1] ^ 1])
    found: dict[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "NULs": bytes(4096),
        "half": half,
        "changed": changed,
    }
    return {
        **found,
        "text": b"hello\n",
        "UTF-16": "甲乙".encode("utf-16"),
        "JSON": b"[]",
        "bytes": bytes(range(256)) * 9,
    }[kind]


KINDS = ["missing", "empty", "NULs", "half", "changed", "text", "UTF-16", "JSON", "bytes"]


@pytest.mark.parametrize("kind", [*KINDS, "folder", "another kind", "no tokens"])
@pytest.mark.parametrize("program", ["generate", "evaluate_verse", "shrink", "export"])
def test_a_model_that_is_none(here: Path, trained: Path, program: str, kind: str) -> None:
    model = here / "m" / "model.safetensors"
    model.parent.mkdir()
    if kind == "folder":
        model.mkdir()
    elif kind == "another kind":
        minidl.save(model, {"w": np.ones(3)}, {"tokens": ["甲"]})
    elif kind == "no tokens":
        tensors, metadata = minidl.load(trained / "run" / "model.safetensors")
        minidl.save(model, tensors, {name: value for name, value in metadata.items() if name != "tokens"})
    else:
        content = contents(kind, (trained / "run" / "model.safetensors").read_bytes())
        if content is not None:
            model.write_bytes(content)
    before = tree(here)
    refused(run_program(program, *using(program, model, trained)), "model.safetensors")
    assert tree(here) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_lines_that_is_none(here: Path, trained: Path, kind: str) -> None:
    """generate.py does without, unless it is asked not to copy; a model is not shrunk without it."""
    (here / "m").mkdir()
    for name in ("model.safetensors", line_index.FILE):
        (here / "m" / name).write_bytes((trained / "run" / name).read_bytes())
    content = contents(kind, (trained / "run" / line_index.FILE).read_bytes())
    (here / "m" / line_index.FILE).unlink()
    if content is not None:
        (here / "m" / line_index.FILE).write_bytes(content)
    before = tree(here)
    model = here / "m" / "model.safetensors"
    assert run_program("generate", *using("generate", model, trained)).code == 0
    if kind == "changed":  # the last entry alone: it is still an index, if another one
        return
    refused(run_program("shrink", *using("shrink", model, trained)), line_index.FILE)
    if kind != "missing":
        refused(run_program("generate", *using("generate", model, trained), "--no-copy"), line_index.FILE, "--no-copy")
    assert tree(here) == before


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind not in ("changed", "JSON")), "folder", "object"])
@pytest.mark.parametrize("program", ["evaluate_verse", "shrink"])
def test_a_corpus_file_that_is_none(here: Path, trained: Path, program: str, kind: str) -> None:
    write_corpus(here / "corpus", pseudo_poems(200))
    file = here / "corpus" / "poet.tang.3000.json"
    content = b'{"a": 1}' if kind == "object" else contents(kind, file.read_bytes()) if kind != "folder" else None
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    before = tree(here)
    model = trained / ("run" if program == "shrink" else "verse") / "model.safetensors"
    arguments = [here / "corpus" if a == trained / "corpus" else a for a in using(program, model, trained)]
    refused(run_program(program, *arguments), "poet.tang.3000.json")
    assert tree(here) == before


@pytest.mark.parametrize("program", ["evaluate_verse", "shrink"])
def test_out_that_cannot_be_a_folder(here: Path, trained: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "taken").write_bytes(b"x")
    model = trained / "run" / "model.safetensors"
    for out in ("taken", "taken/deeper", "a" * 300):
        arguments = [out if a == "out" else a for a in using(program, model, trained)]
        refused(run_program(program, *arguments), f"--out {Path(out)} cannot be written")

    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)  # chmod would not stop root
    refused(run_program(program, *using(program, model, trained)), "--out out cannot be written", "Permission denied")
    assert tree(here) == ["taken"]


def test_a_model_is_not_shrunk_onto_itself(trained: Path) -> None:
    before = (trained / "run" / "model.safetensors").read_bytes()
    refused(
        run_program("shrink", trained / "run", "--out", trained / "run", "--corpus", trained / "corpus"), "holds a run"
    )
    assert (trained / "run" / "model.safetensors").read_bytes() == before


def test_poems_that_stand_there_and_are_no_text_are_written_again(here: Path) -> None:
    from evaluate_verse import kept_in

    for content in (b"\xff\xfe\n", "甲\n".encode("utf-16"), b"", bytes(9)):
        (here / "poems.txt").write_bytes(content)
        assert kept_in(here / "poems.txt", 1, lambda count: ["甲"] * count) == ["甲"]
        assert (here / "poems.txt").read_text(encoding="utf-8") == "甲\n"


# A full disk, and Ctrl-C while a file is written


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to make a file longer than this, as a full disk would."""
    resource = pytest.importorskip("resource", reason="a limit of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_error(outcome: Any, *words: str) -> None:
    """Notes of progress may come before."""
    errors = [line for line in outcome.err.splitlines() if ": error: " in line]
    assert outcome.code == 2 and "Traceback" not in outcome.err, outcome
    assert len(errors) == 1 and outcome.err.endswith(f"{errors[0]}\n"), outcome.err
    assert [word for word in words if word not in errors[0]] == [], errors


PICTURE = ("--count", 1, "--start", "春", "--explain", "poem.png")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_full_disk_leaves_no_half_picture(here: Path, trained: Path, size: int) -> None:
    with files_up_to(size):
        outcome = run_program("generate", "--model", trained / "verse" / "model.safetensors", *PICTURE)
    assert outcome.code == 2 and "poem.png" in outcome.err and len(outcome.err.splitlines()) == 1, outcome
    assert tree(here) == []


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_leaves_no_half_model(here: Path, trained: Path, size: int) -> None:
    with files_up_to(size):
        outcome = run_program("shrink", *using("shrink", trained / "run" / "model.safetensors", trained))
    one_error(outcome)
    assert tree(here) == []


def test_a_small_model_without_its_lines_does_not_stay(
    here: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(line_index, "write_bytes", full)
    one_error(run_program("shrink", *using("shrink", trained / "run" / "model.safetensors", trained)), "No space left")
    assert tree(here) == []


@pytest.mark.parametrize("name", ["poem.onnx", "poem.safetensors"])
@pytest.mark.parametrize("size", [0, 1000])
def test_a_full_disk_leaves_the_old_export(here: Path, trained: Path, name: str, size: int) -> None:
    (here / name).write_bytes(b"old")
    with files_up_to(size):
        outcome = run_program("export", "--model", trained / "run" / "model.safetensors", "--out", name)
    refused(outcome, name)
    assert tree(here) == [name] and (here / name).read_bytes() == b"old"


WHOLE = ["checkpoint.safetensors", "lines.npy", "metrics.jsonl", "model.safetensors"]


@pytest.mark.parametrize(("size", "whole"), [(0, []), (18_000, WHOLE)])
def test_a_full_disk_leaves_no_half_run(here: Path, trained: Path, size: int, whole: list[str]) -> None:
    sizes = ("--epochs", 1, "--hidden-size", 4, "--embedding-size", 4, "--batch-size", 64)
    with files_up_to(size):
        outcome = run_program("train", "--corpus", trained / "corpus", *sizes, "--out", "out")
    one_error(outcome)
    assert tree(here) == (["out", *(str(Path("out", name)) for name in whole)] if whole else [])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_what_is_not_written_to_its_end_leaves_what_was_there(here: Path, error: BaseException) -> None:
    """By every call that can fail on the way."""
    for call in ("fsync", "replace"):
        (here / "a.txt").write_bytes(b"old")
        with mock.patch.object(atomic_files.os, call, side_effect=error), pytest.raises(type(error)) as caught:
            atomic_files.write_text(Path("a.txt"), "new")
        assert isinstance(error, KeyboardInterrupt) or "a.txt" in str(caught.value)
        assert tree(here) == ["a.txt"] and (here / "a.txt").read_bytes() == b"old"


@pytest.mark.parametrize("program", ["generate", "evaluate_verse", "shrink", "export"])
def test_ctrl_c_while_a_file_is_written(
    here: Path, trained: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    model = trained / ("run" if program == "shrink" else "verse") / "model.safetensors"
    monkeypatch.setattr(atomic_files.os, "fsync", interrupted)
    outcome = run_program(program, *using(program, model, trained), *(PICTURE if program == "generate" else ()))
    assert outcome.code == 130 and outcome.err.splitlines()[-1] == "interrupted", outcome
    assert "Traceback" not in outcome.err and tree(here) == []


@pytest.mark.parametrize("module", ["common/figures", "verse/explaining_picture", "verse/verse_figure"])
def test_no_picture_is_saved_past_the_helper(module: str) -> None:
    assert "savefig" not in (PROGRAMS / f"{module}.py").read_text(encoding="utf-8")
    assert explaining_picture.save_figure is atomic_files.save_figure


# Streams, arguments and environments as only a process of its own has them

posix = pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX")


def shell(line: str, here: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`line` in a shell that fails as the first part of a pipe does; $PY runs this Python."""
    variables = {"PATH": os.environ["PATH"], "PY": sys.executable, "PYTHONPATH": str(ROOT), "P": str(PROGRAMS)}
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(
        command, cwd=here, env={**variables, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


EVERY = {
    **{name: f'"$PY" "$P/{name}.py" --help' for name in NAMES},
    "backend": '"$PY" -m minidl.backend --help',
    "sweep": '"$PY" "$P/../../benchmarks/sweep.py" --help',
}


@posix
@pytest.mark.parametrize(
    "program", ["generate", *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY if name != "generate")]
)
def test_help_into_a_pipe_that_is_closed_or_a_disk_that_is_full(here: Path, program: str) -> None:
    done = shell(f"{EVERY[program]} | true; echo ${{PIPESTATUS[0]}}", here)
    assert (done.stdout, done.stderr) == ("0\n", "")
    if Path("/dev/full").exists():
        done = shell(f"{EVERY[program]} > /dev/full", here)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and ": error: " in done.stderr, done
    assert tree(here) == []


@posix
def test_poems_into_a_pipe_that_is_closed_or_a_disk_that_is_full(here: Path, trained: Path) -> None:
    write = f'"$PY" "$P/generate.py" --model "{trained / "verse" / "model.safetensors"}" --seed 1 --count 300'
    done = shell(f"{write} | head -n 1; echo ${{PIPESTATUS[0]}}", here)
    assert done.stdout.splitlines()[1:] == ["0"] and done.stderr == "", done
    done = shell(f"{write} >&-", here)
    assert (done.returncode, done.stderr) == (0, "")
    if Path("/dev/full").exists():
        for stream in (">", "> /dev/full 2>"):  # and where there is no room for the message either
            done = shell(f"{write} {stream} /dev/full", here)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == (stream == ">"), done
    assert tree(here) == []


@posix
def test_bytes_that_are_no_text_and_a_bare_environment(here: Path, trained: Path) -> None:
    generate = f'"$PY" "$P/generate.py" --model "{trained / "verse" / "model.safetensors"}"'
    for arguments in ("--start $'\\xff'", "--form $'\\xff'", "--keyword $'\\xc3('"):
        done = shell(f"{generate} {arguments}", here, LC_ALL="C")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "UTF-8" in done.stderr, done
    done = shell('"$PY" "$P/generate.py" --model $\'\\xff\'', here, LC_ALL="C")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
    done = shell(f"{generate} --start 春 --seed 1", here, LC_ALL="C")  # and HOME is unset
    assert done.returncode == 0 and done.stdout.startswith("春") and done.stderr == "", done
    assert tree(here) == []


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "minidl.backend", "nonsense"],
        ["benchmarks/train_step.py", "--rounds", "x"],
        ["benchmarks/sweep.py", "nonsense"],
        ["benchmarks/device_calls.py", "--nonsense"],
        ["benchmarks/plots.py", "missing.json"],
        ["benchmarks/generate.py", "--count", "0"],
        ["benchmarks/mapped.py", "--gigabytes", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_to_the_other_programs(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1 and ": error: " in done.stderr, done.stderr


def test_the_corpus_is_not_looked_at_before_the_arguments_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tang, "load", never("the corpus"))
    for program in ("evaluate_verse", "shrink"):
        refused(run_program(program, "--nonsense"))


def test_the_backends_page_is_written_whatever_the_console_lacks() -> None:
    command = [sys.executable, "-m", "minidl.backend", "紙"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (
        2,
        b"minidl.backend: error: takes no arguments, got '?'" + os.linesep.encode(),
    )
