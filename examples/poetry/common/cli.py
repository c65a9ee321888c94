"""Shared by the command lines of all programs: argument types, one-line errors, UTF-8, folders for results."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from common import extras  # noqa: F401 (first: it reports missing packages in one line)
from common.atomic_files import write_text

import minidl

RUNS = Path("runs")
PRETRAINED = Path(__file__).parents[1] / "pretrained" / "model.safetensors"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"  # train.py's state of the run
TAKEN = "already holds a run; choose another folder"
BEGUN = (
    f"holds a run that has just started, or was killed in its first epoch; choose another, or delete {METRICS} there"
)
UNREAD = 141  # the shell's exit code for a process ended by SIGPIPE
NEVER_FAIL = ("backslashreplace", "ignore", "namereplace", "xmlcharrefreplace")  # error handlers of codecs
RESUME_HINT = "; train.py --resume continues it"


class UsageError(Exception):
    """The user's request cannot be carried out; the message is one line."""


def require(package: str, extra: str) -> None:
    """UsageError, with the remedy, if an optional package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{package} is not installed; in the repository's folder: pip install -e '.[{extra}]'")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows all defaults other than None, False and empty text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default is None or action.default is False or action.default == ""
        return action.help if none else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Shows defaults in --help, and reports an invalid argument in one line."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=Formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low`, at most `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"expected a whole number, {span}, got {text!r}")
        return value

    return convert


def text(value: str) -> str:
    """An argparse type: UTF-8 text, even if the locale decoded its bytes as something else."""
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError("expected text in UTF-8") from None


def real(test: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """An argparse type: a finite number that passes `test`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not test(value):
            raise argparse.ArgumentTypeError(f"expected a finite number {expected}, got {text!r}")
        return value

    return convert


positive = real(lambda value: value > 0, "above 0")


@contextlib.contextmanager
def results_folder(path: Path, resume: bool = False) -> Iterator[Path]:
    """`output_folder` for a run; UsageError if it already holds one.

    To `resume`, it may hold a run with a checkpoint, or neither checkpoint nor metrics.
    """
    with contextlib.suppress(OSError):  # reported by `output_folder`
        metrics = (path / METRICS).stat().st_size if (path / METRICS).exists() else None
        checkpoint = (path / CHECKPOINT).exists()
        if resume and metrics and not checkpoint:
            raise UsageError(f"--out {path} holds a run without a checkpoint to resume; choose another folder")
        if not resume and (checkpoint or metrics is not None):
            raise UsageError(f"--out {path} {TAKEN if metrics else BEGUN}{RESUME_HINT if checkpoint else ''}")
    with output_folder(path):
        yield path


@contextlib.contextmanager
def output_folder(path: Path, option: str = "--out") -> Iterator[Path]:
    """Create `path`, the value of `option`, and check that it is writable; UsageError if not.

    Folders that had to be created are removed again if they stay empty.
    """
    new: list[Path] = []
    try:
        try:
            new += [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UsageError(f"{option} {path} cannot be written: {error.strerror or error}") from error
        yield path
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def memory_advice(remedy: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory, on the host or a GPU, into a UsageError with a remedy and what was saved."""
    try:
        yield
    except Exception as error:
        if not minidl.backend.is_out_of_memory(error):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise UsageError(f"out of memory ({lines[0]}); {remedy}; {kept()}") from error


def next_run(prefix: str = "") -> Path:
    """The first of runs/1, runs/2, ... (or runs/<prefix>1, ...) without a run."""
    number = 1
    while any((RUNS / f"{prefix}{number}" / name).exists() for name in (METRICS, CHECKPOINT)):
        number += 1
    return RUNS / f"{prefix}{number}"


def newest_run() -> Path:
    """The run under runs/ whose checkpoint was saved last, or else the first folder without a run."""
    found = sorted(RUNS.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else next_run()


def newest_model() -> Path:
    """The model under runs/ that was trained last, or else the pretrained one."""
    found = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found and not PRETRAINED.exists():
        raise UsageError(f"no model under {RUNS.resolve()}: train one with train.py, or name one with --model")
    model = found[-1] if found else PRETRAINED
    note(f"the model is {model}")
    return model


@contextlib.contextmanager
def metrics_file(
    folder: Path, lines: Iterable[Mapping[str, object]] | None = None
) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """A function that appends a JSON object as a line to the folder's metrics, flushed immediately.

    The file marks the folder as taken, and is removed again if nothing was written. The `lines` of a resumed run
    replace whatever was in the file.
    """
    if lines is not None:
        write_text(folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in lines))
    try:
        file = (folder / METRICS).open("x" if lines is None else "a", encoding="utf-8")
    except FileExistsError as error:
        raise UsageError(f"--out {folder} {BEGUN}") from error
    try:
        with file:
            yield lambda values: print(json.dumps(values), file=file, flush=True)
    finally:
        if (folder / METRICS).stat().st_size == 0:
            (folder / METRICS).unlink()


def note(text: str) -> None:
    """Print a line for the user on standard error; standard output is for poems."""
    print(text, file=sys.stderr, flush=True)


def leave(code: int, message: str = "") -> NoReturn:
    """Print `message`, if there is one, and end the program; a closed pipe (UNREAD) is not an error."""
    if message:
        with contextlib.suppress(OSError):  # the disk may be full
            note(message)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # leaves nothing to flush at exit
    sys.exit(0 if code == UNREAD else code)


def stream_options() -> dict[str, str]:
    """Options for the streams: UTF-8, or the encoding that PYTHONIOENCODING names.

    A character that it lacks becomes ?, or what the variable specifies; it never raises, which could lose a poem.
    """
    wanted = "" if sys.flags.ignore_environment else os.environ.get("PYTHONIOENCODING", "")
    encoding, _, errors = wanted.partition(":")
    options = {"errors": errors if errors in NEVER_FAIL else "replace"}
    return options if encoding else {"encoding": "utf-8", **options}


def run(
    main: Callable[[], int | None], *errors: type[Exception], leave: Callable[[int, str], NoReturn] = leave
) -> NoReturn:
    """Call `main` as a program: exit code 2 and one line for a UsageError, one of `errors`, or a system error.

    Both streams are UTF-8 on every platform, unless PYTHONIOENCODING says otherwise. Ctrl-C exits with 130, and a
    closed pipe (`| head`) is not an error. `leave` ends the program.
    """
    expected: tuple[type[Exception], ...] = (UsageError, minidl.BackendError, minidl.CheckpointError)
    expected += (OSError, MemoryError, *errors)
    for name in ("stdout", "stderr"):  # None after `>&-`, or under pythonw
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    options = stream_options()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(**options)  # type: ignore[union-attr]
    message = ""
    try:
        try:
            code = main() or 0
        except SystemExit as ended:  # from --help, whose text must still be flushed, or an invalid argument
            code = int(ended.code or 0)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except BrokenPipeError:
        code = UNREAD
    except expected as error:
        what = " ".join(str(error).split()) or type(error).__name__
        code, message = 2, f"{Path(sys.argv[0]).name}: error: {what}"
    leave(code, message)
