"""train.py --distributed: N ranks end where one does, and none hangs when another fails. Needs MPI's mpiexec."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import cli
from corpus import tang
from corpus.tasks import Batch, Rows
from learning import ranks

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi_helpers import apart, distributed, options, own_lines, start, weights, with_mpi
from poetry_helpers import (
    PROGRAMS,
    VOCABULARY,
    jsonl,
    pseudo_poems,
    refused,
    run_program,
    small_model,
    tree,
)

CLOCK = ("seconds", "chars_per_second")


# Shares of a batch


def batch_of(lengths: list[int]) -> Batch:
    rng = np.random.default_rng(0)
    poems = ["".join(rng.choice(VOCABULARY.tokens[3:], length)) for length in lengths]
    return Rows(poems, VOCABULARY).batch(np.arange(len(poems)))


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), size=st.integers(1, 7))
def test_the_shares_of_a_batch_are_its_sequences_each_once(lengths: list[int], size: int) -> None:
    whole = batch_of(lengths)
    parts = [ranks.shard_batch(whole, rank, size) for rank in range(size)]
    assert [part is None for part in parts] == [rank >= len(lengths) for rank in range(size)]
    rows = np.concatenate([part.packing.rows for part in parts if part is not None])  # type: ignore[misc]
    assert sorted(rows.tolist()) == list(range(len(whole.inputs)))
    sequences = sequences_of(whole)
    for rank, part in enumerate(parts):
        if part is not None:
            assert part.total == len(whole.inputs)
            assert sequences_of(part) == sequences[rank::size]
            assert whole.inputs[part.packing.rows].tolist() == part.inputs.tolist()


def sequences_of(batch: Batch) -> list[list[tuple[int, int]]]:
    """(input, target) along each sequence, by walking the batch sizes."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(batch.packing.batch_sizes[0])]
    pairs = iter(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True))
    for size in batch.packing.batch_sizes:
        for column in range(size):
            found[column].append(next(pairs))
    assert next(pairs, None) is None
    return found


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("pads", [False, True])
def test_the_gradients_of_shares_add_up_to_the_whole_batchs(size: int, pads: bool) -> None:
    """With the same dropout masks."""
    whole = batch_of([9, 4, 4, 1, 6])
    if pads:
        whole = whole._replace(real=np.arange(len(whole.targets)) % 3 > 0)
    model = small_model(dropout=0.4, layers=2)
    nats = model.forward_backward(whole, 5)
    expected = [parameter.grad.copy() for parameter in model.parameters()]
    summed = [0.0, 0.0]
    for parameter in model.parameters():
        parameter.grad[...] = 0
    for rank in range(size):
        part = ranks.shard_batch(whole, rank, size)
        if part is not None:
            mine = model.forward_backward(part, 5)
            summed = [summed[0] + mine.real, summed[1] + mine.pads]
    assert summed == pytest.approx(list(nats), rel=1e-5)
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.grad, grad, rtol=1e-4, atol=1e-6 * abs(grad).max())


# Runs


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """299 lines, of which 265 train: in batches of 33 the last one is of a single line."""
    path = tmp_path_factory.mktemp("ranks") / "poems.txt"
    path.write_text("\n".join(pseudo_poems(299)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the run that one process makes, by the optimizer's name."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made[name])
                assert run_program("train", *options(text, "--optimizer", name)).code == 0
        return made[name]

    return run


def lines(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in jsonl(folder / "run" / "metrics.jsonl")
    ]


@with_mpi
@pytest.mark.parametrize(("name", "most"), [("sgd", 1e-5), pytest.param("adam", 1e-3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_end_with_the_weights_of_one_process(
    size: int, name: str, most: float, alone: Any, text: Path, tmp_path: Path
) -> None:
    outcome = distributed(size, tmp_path, *options(text, "--optimizer", name))
    assert outcome.code == 0, outcome.err
    expected = alone(name)
    assert apart(weights(expected), weights(tmp_path)) < most
    for line, other in zip(lines(tmp_path), lines(expected), strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    assert tree(tmp_path / "run") == [path for path in tree(expected / "run") if not path.endswith(".png")]
    assert outcome.err.count("poems to train") == outcome.err.count("test ") == 1
    assert len(outcome.out.splitlines()) == 7, "only the first rank writes poems"


@pytest.mark.slow
@with_mpi
def test_one_rank_is_one_process_bit_for_bit(alone: Any, text: Path, tmp_path: Path) -> None:
    assert distributed(1, tmp_path, *options(text, "--optimizer", "adam")).code == 0
    assert apart(weights(alone("adam")), weights(tmp_path)) == 0 and lines(alone("adam")) == lines(tmp_path)


@pytest.mark.slow
@with_mpi
def test_gradients_on_a_device_are_summed_too(alone: Any, text: Path, tmp_path: Path) -> None:
    outcome = distributed(2, tmp_path, *options(text, "--optimizer", "adam", "--backend", "cupy"), what="device")
    assert outcome.code == 0, outcome.err
    assert apart(weights(alone("adam")), weights(tmp_path)) < 1e-3


@pytest.mark.slow
@with_mpi
def test_all_ranks_stop_early_together(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = options(text, "--optimizer", "adam", "--lr", 0.5, "--epochs", 20, "--patience", 1)
    assert run_program("train", *arguments).code == 0
    assert distributed(3, tmp_path / "three", *arguments).code == 0
    epochs = len(lines(tmp_path)) - 1  # and the test figures
    assert len(lines(tmp_path / "three")) - 1 == epochs < 20


@pytest.mark.slow
@with_mpi
def test_ranks_train_from_mapped_files(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_program("prepare", "--text", text, "--out", "big").code == 0
    arguments = ["--prepared", str(tmp_path / "big"), *options(text, "--optimizer", "sgd")[2:]]
    assert run_program("train", *arguments).code == 0
    assert distributed(2, tmp_path / "two", *arguments).code == 0
    assert apart(weights(tmp_path), weights(tmp_path / "two")) < 1e-5


@pytest.mark.slow
@with_mpi
def test_other_mapped_files_at_another_rank_are_refused(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that has kept an old folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_text("\n".join(pseudo_poems(299, seed=1)), encoding="utf-8")
    assert run_program("prepare", "--text", text, "--out", "big").code == 0
    assert run_program("prepare", "--text", "other", "--out", "astray/big").code == 0
    outcome = distributed(2, tmp_path, "--prepared", "big", *options(text)[2:], what="astray", rank=1)
    (line,) = own_lines(outcome)
    assert outcome.code == 2 and line == "rank 1: train.py: error: big has different poems here than on the first rank"


# Going on


@pytest.mark.slow
@with_mpi
def test_a_run_continues_with_any_number_of_ranks(alone: Any, text: Path, tmp_path: Path) -> None:
    """With as many as before bit for bit, with others as near as ranks are to one process."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = options(text, "--optimizer", "adam", "--checkpoint-every", 2)
    assert distributed(2, whole, *arguments).code == 0
    assert distributed(2, cut, *arguments, what="kill", rank=1, step=13).code != 0  # in the second epoch
    for size in (2, 1, 4):
        again = tmp_path / str(size)
        (again / "run").mkdir(parents=True)
        checkpoint = (cut / "run" / "checkpoint.safetensors").read_bytes()
        (again / "run" / "checkpoint.safetensors").write_bytes(checkpoint)
        outcome = distributed(size, again, "--resume", "--out", "run")
        assert outcome.code == 0 and "resuming from step 12, after 1 complete epochs" in outcome.err
        assert (f"ranks was 2, now {size}: the last digits" in outcome.err) is (size != 2)
        assert (apart(weights(whole), weights(again)) == 0) is (size == 2)
        assert apart(weights(whole), weights(again)) < 1e-3
        assert (lines(whole) == lines(again)) is (size == 2)


# Failing


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--lr", "none"), "argument --lr"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
        (("--dropout", "0", "--lr", "1e30"), "diverged"),
        (("--backend", "cupy"), "CuPy"),
    ],
    ids=lambda wrong: str(wrong[-1]),
)
def test_what_every_rank_finds_wrong_is_said_once(
    wrong: tuple[str, ...], words: str, text: Path, tmp_path: Path
) -> None:
    outcome = distributed(3, tmp_path, *options(text, *wrong))
    assert outcome.code == 2, outcome.err
    (line,) = own_lines(outcome)
    assert line.startswith("train.py: error: ") and words in line and "Traceback" not in outcome.err


@pytest.mark.slow
@with_mpi
def test_a_folder_that_holds_a_run_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    outcome = distributed(2, tmp_path, *options(text))
    assert outcome.code == 2 and "already holds a run" in own_lines(outcome)[0] and len(own_lines(outcome)) == 1


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_rank_that_fails_ends_all_with_one_message(rank: int, text: Path, tmp_path: Path) -> None:
    outcome = distributed(3, tmp_path, *options(text), what="error", rank=rank, step=4)
    assert outcome.code == 2, outcome.err
    (line,) = own_lines(outcome)
    assert line == f"{f'rank {rank}: ' if rank else ''}train.py: error: the disk of rank {rank} is gone"


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("what", "said"), [("early", 1), ("mute", 0), ("unread", 0)])
def test_a_rank_that_ends_early_or_unheard_ends_all(
    what: str, said: int, rank: int, text: Path, tmp_path: Path
) -> None:
    outcome = distributed(2, tmp_path, *options(text), what=what, rank=rank, step=4)
    assert outcome.code in (2, cli.UNREAD) and len(own_lines(outcome)) == said, outcome.err


@pytest.mark.slow
@with_mpi
def test_a_bug_at_one_rank_ends_all_with_its_traceback(text: Path, tmp_path: Path) -> None:
    outcome = distributed(3, tmp_path, *options(text), what="bug", rank=2, step=4)
    assert (
        outcome.code == 1 and outcome.err.count("Traceback") == 1 and "AssertionError: a fault of rank 2" in outcome.err
    )


@pytest.mark.slow
@with_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all(rank: int, text: Path, tmp_path: Path) -> None:
    outcome = distributed(2, tmp_path, *options(text), what="kill", rank=rank, step=12)
    assert outcome.code != 0 and own_lines(outcome) == []
    assert "checkpoint.safetensors" in tree(tmp_path / "run")


@pytest.mark.slow
@with_mpi
def test_help_ends_all_ranks(tmp_path: Path) -> None:
    outcome = start(2, str(PROGRAMS / "train.py"), "--distributed", "--help", folder=tmp_path)
    assert outcome.code == 0 and outcome.out.count("usage:") == 1


def test_without_mpi_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    refused(run_program("train", "--distributed"), "mpi4py is not installed", "pip install -e '.[distributed]'")


@with_mpi
@pytest.mark.slow
def test_ranks_whose_share_of_the_held_out_parts_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of 60 characters, of which the test part has one and the validation part fits into one batch."""
    lines = ["".join(pseudo_poems(6, seed)) for seed in range(400)]
    train, validation, test = tang.split(lines)
    text = tmp_path / "long.txt"
    text.write_text("\n".join([*train[:60], *validation[:2], *test[:1]]), encoding="utf-8")
    outcome = distributed(3, tmp_path, *options(text))
    assert outcome.code == 0 and "60 / 2 / 1 poems" in outcome.err, outcome
    monkeypatch.chdir(tmp_path)
    assert run_program("train", *options(text, "--out", "one")).code == 0
    *_, together = jsonl(tmp_path / "run" / "metrics.jsonl")
    *_, one = jsonl(tmp_path / "one" / "metrics.jsonl")
    assert together == pytest.approx(one, rel=1e-3) and together["test_targets"] == 61
