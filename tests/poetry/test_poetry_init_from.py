"""train.py --init-from: a run that begins with a model's weights, under other settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi_helpers import distributed, with_mpi
from poetry_helpers import (
    SMALL,
    Outcome,
    alone_in,
    jsonl,
    killed_after,
    pseudo_poems,
    refused,
    results,
    run_program,
    tree,
    write_corpus,
)

import minidl


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return alone_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("poetry") / "corpus", pseudo_poems(300))


@pytest.fixture
def first(here: Path, corpus_folder: Path) -> Path:
    """A model after two epochs."""
    assert train(corpus_folder, "--epochs", 2, "--out", "first").code == 0
    return here / "first" / "model.safetensors"


def train(corpus_folder: Path, *arguments: object) -> Outcome:
    return run_program("train", "--corpus", corpus_folder, *SMALL, "--seed", 5, *arguments)


def losses(folder: str) -> list[float]:
    return [line["validation_loss"] for line in jsonl(Path(folder) / "metrics.jsonl")[:-1]]


def test_a_run_begins_with_the_models_weights(first: Path, corpus_folder: Path) -> None:
    """At a rate of almost nothing it keeps their loss, whatever its dropout and schedule."""
    other = ("--dropout", 0.6, "--schedule", "one-cycle", "--batch-size", 16, "--epochs", 1, "--lr", 1e-9)
    assert train(corpus_folder, *other, "--init-from", first, "--out", "again").code == 0
    assert losses("again")[0] == pytest.approx(losses("first")[1], rel=1e-5)
    before, after = (minidl.load(path)[0] for path in (first, Path("again/model.safetensors")))
    assert all(abs(before[name] - after[name]).max() < 1e-6 for name in before)


def test_it_learns_on(first: Path, corpus_folder: Path) -> None:
    assert train(corpus_folder, "--epochs", 2, "--init-from", first, "--out", "again").code == 0
    assert losses("again")[1] < losses("first")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hidden-size", 9), ("first/model.safetensors", "hidden_size 8, here 9")),
        (("--layers", 2, "--hidden-size", 9), ("hidden_size 8, here 9", "layers 1, here 2")),
        (("--min-count", 10**6), ("first/model.safetensors", "has a different vocabulary", "14", "3")),
        (("--init-from", "nowhere"), ("nowhere", "cannot be read")),
        (("--init-from", "first/checkpoint.safetensors"), ("not a poem model",)),
    ],
)
def test_what_does_not_fit_is_refused(
    first: Path, corpus_folder: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    given = ("--corpus", corpus_folder, *SMALL, "--init-from", "first/model.safetensors", "--out", "again")
    outcome = run_program("train", *given, *arguments)
    assert outcome.code == 2 and outcome.err.splitlines()[-1].startswith("train.py: error: ")
    assert [word for word in words if word not in outcome.err.splitlines()[-1]] == []
    assert not any(path.startswith("again") for path in tree(Path(".")))


@pytest.mark.slow
def test_a_run_continues_without_the_model_that_it_began_with(first: Path, corpus_folder: Path) -> None:
    options = ("--init-from", first, "--epochs", 2)
    assert train(corpus_folder, *options, "--out", "whole").code == 0
    with killed_after(12):
        train(corpus_folder, *options, "--out", "cut", "--checkpoint-every", 4)
    first.unlink()
    assert run_program("train", "--resume", "--out", "cut").code == 0
    assert results("cut") == results("whole")


@pytest.mark.slow
@with_mpi
def test_all_ranks_begin_with_it(first: Path, corpus_folder: Path, here: Path) -> None:
    arguments = ["--corpus", str(corpus_folder), *SMALL, "--init-from", str(first), "--epochs", "1", "--lr", "1e-9"]
    assert distributed(2, here / "two", *arguments, "--out", "run").code == 0
    loss = jsonl(here / "two" / "run" / "metrics.jsonl")[0]["validation_loss"]
    assert loss == pytest.approx(losses("first")[1], rel=1e-5)


def test_a_model_that_is_no_file_is_reported_in_one_line(corpus_folder: Path) -> None:
    outcome = train(corpus_folder, "--init-from", ".", "--out", "again")
    assert outcome.code == 2 and "is a directory" in outcome.err.splitlines()[-1] and tree(Path(".")) == []


@pytest.mark.parametrize("protocol", ["report", "report-rows"])
def test_no_option_for_the_reports_protocols(corpus_folder: Path, protocol: str) -> None:
    given = ("--corpus", corpus_folder, "--protocol", protocol, "--init-from", "a", "--out", "again")
    refused(run_program("train", *given), "--init-from and --protocol exclude each other")
    assert tree(Path(".")) == []
