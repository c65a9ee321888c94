"""Helpers shared by the tests of examples/poetry: pseudo-poems, a tiny corpus, and the programs as functions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import runpy
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from corpus.tasks import Task
from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from learning.training import Trainer, TrainingState
from model import PoemModel

import numpy as np
import pytest

import minidl
from minidl import optimizers
from minidl.backend import Rng
from minidl.schedules import Schedule

PROGRAMS = Path(__file__).parents[2] / "examples" / "poetry"
CHARACTERS = "甲乙丙丁日月山夜紅"  # two of the report's seven first characters, 湖 and 海, are missing
VOCABULARY = Vocabulary([BEGIN, END, UNKNOWN, *CHARACTERS, "，", "。"])
EPOCH_FIELDS = [
    *("epoch", "train_loss", "validation_loss", "validation_perplexity"),
    *("seconds", "chars_per_second"),
]
CLOCK = ("seconds", "chars_per_second")
SMALL = ("--hidden-size", "8", "--embedding-size", "6", "--batch-size", "32")


class Outcome(NamedTuple):
    """A program's exit code and output."""

    code: int
    out: str
    err: str


def pseudo_poems(count: int, seed: int = 0) -> list[str]:
    """Distinct meaningless lines of ten characters."""
    rng = random.Random(seed)
    poems: dict[str, None] = {}
    while len(poems) < count:
        first, second = ("".join(rng.choices(CHARACTERS, k=4)) for _ in range(2))
        poems[f"{first}，{second}。"] = None
    return list(poems)


def poems_of_lengths(count: int, longest: int = 30) -> list[str]:
    """Distinct pseudo-poems of 4 to `longest` characters."""
    rng = random.Random(0)
    return list(dict.fromkeys("".join(rng.choices(CHARACTERS, k=rng.randint(4, longest))) for _ in range(count)))


def prepared_folder(poems: Iterable[str], out: str = "big", *options: object) -> Path:
    """The folder that prepare.py writes for `poems`, in the current directory."""
    Path("text").write_text("\n".join(poems), encoding="utf-8")
    outcome = run_program("prepare", "--text", "text", "--out", out, *options)
    assert outcome.code == 0, outcome
    return Path(out)


def write_corpus(folder: Path, poems: Sequence[str], files: int = 8) -> Path:
    """Write `poems`, in order, as the first `files` files of the corpus."""
    folder.mkdir(parents=True)
    size = -(-len(poems) // files)
    for number in range(files):
        part = poems[number * size : (number + 1) * size]
        entries = [{"author": "甲", "title": "乙", "paragraphs": [poem]} for poem in part]
        text = json.dumps(entries, ensure_ascii=False)
        (folder / f"poet.tang.{number * 1000}.json").write_text(text, encoding="utf-8")
    return folder


def small_model(vocabulary: Vocabulary = VOCABULARY, dropout: float = 0.0, seed: int = 0, layers: int = 1) -> PoemModel:
    """Embedding 6, hidden 8, and logits that differ clearly from each other."""
    model = PoemModel(len(vocabulary), 6, 8, dropout, layers=layers, rng=seed)
    model.head.weight.data[...] *= 4
    return model


def fit(
    model: PoemModel,
    schedule: Schedule,
    task: Task,
    *,
    epochs: int,
    patience: int,
    rng: Rng = None,
    state: TrainingState | None = None,
    **settings: Any,
) -> Iterator[tuple[dict[str, float], bool]]:
    """Train as train.py does, but without its files."""
    state = state or TrainingState(np.random.default_rng(rng), model.state_dict())
    return Trainer(model, schedule, task, state, **settings).fit(epochs, patience)


def run_program(name: str, *arguments: object) -> Outcome:
    """Run the program in this process as from a shell; its streams start as ASCII and must end as UTF-8.

    If PYTHONIOENCODING is set, they use that encoding throughout.
    """
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding or "ascii", errors or "strict") for _ in range(2)]
    path = PROGRAMS / f"{name}.py"
    with (
        mock.patch.object(sys, "argv", [str(path), *map(str, arguments)]),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(path), run_name="__main__")
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding or "utf-8") for stream in streams)  # type: ignore[attr-defined]
    return Outcome(int(ended.value.code or 0), out, err)


def refused(outcome: Outcome, *words: str) -> str:
    """The message of a program that refused an argument: exit code 2 and one line on stderr."""
    assert outcome.code == 2 and outcome.out == "", outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and outcome.err.endswith("\n"), f"not one line: {outcome.err}"
    assert ": error: " in lines[0]
    assert [word for word in words if word not in lines[0]] == [], f"not named: {outcome.err}"
    return lines[0]


def never(what: str) -> Callable[..., Any]:
    """A function that must not be called."""

    def called(*arguments: object, **options: object) -> Any:
        pytest.fail(f"{what} was reached")

    return called


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, which must be a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR", f"{path.name} is no PNG"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def jsonl(path: Path) -> list[dict[str, Any]]:
    """One object per line; NaN and Infinity are not valid JSON."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=never("a number that is not finite")) for line in lines]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, by the textbook formula."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def weights(model: minidl.Layer) -> bytes:
    """The bytes of all weights."""
    return b"".join(parameter.data.tobytes() for parameter in model.parameters())


def tree(folder: Path) -> list[str]:
    """The paths of everything in `folder`, recursively."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def results(folder: Path | str) -> tuple[Any, ...]:
    """The run's results without anything that depends on a clock."""
    tensors, facts = minidl.load(Path(folder) / "model.safetensors")
    lines = [{n: v for n, v in line.items() if n not in CLOCK} for line in jsonl(Path(folder) / "metrics.jsonl")]
    bits = {name: tensor.tobytes() for name, tensor in tensors.items()}
    return bits, facts["epoch"], lines, (Path(folder) / "poems.txt").read_bytes(), position(folder)


def position(folder: Path | str) -> tuple[Any, ...]:
    """The run's position in training: the bytes of its checkpoint, its generator and its partial sums."""
    tensors, facts = minidl.load(Path(folder) / "checkpoint.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, facts["rng"], facts["sums"]


class Killed(BaseException):
    """Nothing catches it or cleans up after it."""


@contextlib.contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """The program ends abruptly once it has taken `steps` steps."""
    step, made = optimizers.Optimizer.step, []

    def counted(self: optimizers.Optimizer) -> None:
        if len(made) == steps:
            raise Killed
        made.append(step(self))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optimizers.Optimizer, "step", counted)
        yield


def alone_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the empty `folder` the current directory; nothing is downloaded or drawn."""
    from common import figures  # matplotlib is slow to import
    from corpus import download

    monkeypatch.chdir(folder)
    monkeypatch.setattr(download, "cached", never("the download"))
    for name in ("draw_curves", "draw_poems"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    return folder
