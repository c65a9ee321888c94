"""examples/char_lstm.py: it learns, carries its state, and runs unchanged on a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import device_double
import numpy as np
import pytest
from helpers import relative_error

import minidl

PROGRAM = Path(__file__).parents[2] / "examples" / "char_lstm.py"
LINE = re.compile(r"epoch (\d+): training ([\d.]+), validation ([\d.]+) nats/char, [\d.]+ s")


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("char_lstm", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False)


def small(example: Any, backend: str = "numpy", dropout: float = 0.0) -> Any:
    return example.CharLSTM(7, 8, dropout, backend, np.random.default_rng(0))


def text(length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 7, length).astype(np.int32)


def test_it_has_at_most_a_hundred_lines_and_needs_numpy_and_minidl_alone() -> None:
    source = PROGRAM.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 100
    packages = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) - sys.stdlib_module_names
    assert packages == {"numpy", "minidl"}


@pytest.mark.slow
def test_it_learns_a_text_and_shows_samples_of_it(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the moon rises over the river é\n" * 300, encoding="utf-8")
    sizes = ("--hidden-size", 64, "--batch-size", 16, "--steps", 32)
    done = run(path, "--epochs", 4, *sizes, "--lr", 0.02, "--dropout", 0)
    assert done.returncode == 0 and done.stderr == ""
    losses = [(float(found[2]), float(found[3])) for found in LINE.finditer(done.stdout)]
    assert len(losses) == 4
    assert losses[0][0] > 0.5 and max(losses[-1]) < 0.1, "it repeats itself, and is soon known"
    assert "the moon rises over the river é\n" in done.stdout.split("epoch 4")[1]


def test_chunks_are_all_of_the_text_and_each_target_is_the_next_character(example: Any) -> None:
    ids = np.arange(32, dtype=np.int32)
    read = [(x.data, y.data) for x, y in example.chunks(ids, 3, 4, "numpy")]
    assert [len(x) for x, _ in read] == [12, 12, 6], "10 characters of each of 3 streams"
    streams = np.concatenate([x.reshape(-1, 3) for x, _ in read]).T
    np.testing.assert_array_equal(streams.ravel(), np.arange(30))
    assert all((y == x + 1).all() for x, y in read)


def test_chunks_with_carried_state_are_one_long_chunk(example: Any) -> None:
    model, ids = small(example), text(41)
    ((x, y),) = example.chunks(ids, 2, 20, "numpy")
    whole, end = model.loss(x, y, None)
    parts, state = [], None
    for x, y in example.chunks(ids, 2, 5, "numpy"):
        loss, state = model.loss(x, y, state)
        parts.append(float(loss))
    assert np.mean(parts) == pytest.approx(float(whole), rel=1e-6)
    assert max(relative_error(a, b) for a, b in zip(state, end, strict=True)) < 1e-5


def test_training_and_validation_agree_without_dropout_and_the_gradient_is_the_loss_slope(example: Any) -> None:
    model, ids = small(example), text(41)
    ((x, y),) = example.chunks(ids, 2, 20, "numpy")
    x = x._replace(step=0)
    start = [np.full((2, 8), value, np.float32) for value in (0.1, -0.2)]
    loss, _ = model.forward_backward(x, y, start)
    assert float(loss) == pytest.approx(float(model.loss(x, y, start)[0]), rel=1e-6)
    params = model.parameters()
    slope = sum(float(np.sum(p.grad.astype(float) ** 2)) for p in params)
    for p in params:
        p.data[...] -= np.float32(1e-2) * p.grad
    assert float(loss) - float(model.loss(x, y, start)[0]) == pytest.approx(1e-2 * slope, rel=0.05)


def test_it_runs_on_a_gpu_unchanged(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device_double.install(monkeypatch)
    ids, losses = text(200), {}
    for backend in ("numpy", "cupy"):
        model, state, losses[backend] = small(example, backend, dropout=0.3), None, []
        optimizer = minidl.AdamW(model.parameters(), 0.01)
        for step, (x, y) in enumerate(example.chunks(ids, 4, 10, backend)):
            loss, state = model.forward_backward(x._replace(step=step), y, state)
            optimizer.step()
            optimizer.zero_grad()
            losses[backend].append(float(loss))
        written = list(model.write(y.data[-1:], [part[-1:] for part in state], 5, np.random.default_rng(0)))
        assert len(written) == 5 and all(0 <= id < 7 for id in written)
    assert losses["cupy"] == pytest.approx(losses["numpy"], rel=1e-4)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, (), ["No such file"]),
        ("abc", (), ["3 characters", "128 streams"]),
        (b"\xff\xfe", (), ["utf-8"]),
        ("abc" * 999, ("--steps", 0), ["chunks of 0"]),
        ("abc" * 999, ("--lr", -1), ["lr", "-1"]),
        ("abc" * 999, ("--hidden-size", 0), ["hidden_size", "0"]),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, content: Any, options: tuple[Any, ...], words: list[str]) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run(path, *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("char_lstm.py: error: ") and all(word in last for word in words), last
