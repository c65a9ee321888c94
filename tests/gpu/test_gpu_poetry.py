"""The poetry programs with --backend cupy end as they do on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corpus.tasks import Batch
from model import PoemModel

import numpy as np
import pytest
from agreement import agree
from poetry_helpers import SMALL, jsonl, pseudo_poems, run_program, write_corpus
from twins import twins

import minidl

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("poetry") / "corpus", pseudo_poems(150))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what a clock measured."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "chars_per_second")}
        for line in jsonl(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("optimizer", ["adam", "adadelta"])
def test_a_training_run_ends_with_the_same_metrics(optimizer: str, corpus_folder: Path, tmp_path: Path) -> None:
    found = []
    for backend in ("numpy", "cupy"):
        outcome = run_program(
            *("train", "--corpus", corpus_folder, *SMALL, "--epochs", 3, "--optimizer", optimizer),
            *("--schedule", "one-cycle", "--lr", 0.02, "--backend", backend, "--out", tmp_path / backend),
        )
        assert outcome.code == 0, outcome.err
        found.append((lines_of(tmp_path / backend), outcome.out))
    (expected, poems), (got, poems_there) = found
    assert len(got) == len(expected) == 4 and got[-1].keys() == expected[-1].keys()
    for line, wanted in zip(got, expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-5)
    assert poems_there == poems

    written = run_program("generate", "--model", tmp_path / "cupy" / "model.safetensors", "--start", "日")
    assert written.code == 0 and written.out.startswith("日"), "a model from the device is a model of the host"


def test_training_with_pads_as_the_report_did() -> None:
    host, device = twins(PoemModel, 12, 5, 6)
    rng = np.random.default_rng(0)
    real = np.arange(18) % 3 > 0
    batch = Batch(rng.integers(0, 12, 18), rng.integers(0, 12, 18), minidl.Packing([3] * 6), real)
    for evaluate in (False, True):
        nats = [model.nats(batch) if evaluate else model.forward_backward(batch, 0) for model in (host, device)]
        for got, expected in zip(nats[1], nats[0], strict=True):
            agree("PoemModel nats", got, expected, dtype="float32")
    for p, q in zip(device.parameters(), host.parameters(), strict=True):
        agree("PoemModel gradients", p.grad, q.grad)


def test_poems_are_written_on_the_device() -> None:
    from verse.writing import write_poems

    from poetry_helpers import VOCABULARY

    host, device = twins(PoemModel, len(VOCABULARY), 6, 8)
    poems = [write_poems(model, VOCABULARY, ["日", "山", ""], 10, rng=3) for model in (host, device)]
    assert poems[0] == poems[1] and minidl.backend.is_device(device.head.weight.data)
