"""train.py --prepared: the poems that prepare.py encoded, from mapped files, as they would be from memory."""

from __future__ import annotations

import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import cli, figures
from corpus import download, prepared, tang, texts
from corpus.tasks import Batch, Task, packed_task
from corpus.vocabulary import Vocabulary
from learning import protocol, run_checkpoint
from learning.settings import DEFAULTS, RECIPES
from learning.training import held_out_figures
from verse import request

import numpy as np
import pytest
from poetry_helpers import (
    SMALL,
    VOCABULARY,
    jsonl,
    killed_after,
    never,
    poems_of_lengths,
    prepared_folder,
    pseudo_poems,
    refused,
    results,
    run_program,
    small_model,
)

OPTIONS = ("--epochs", 3, "--seed", 5, *SMALL)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; nothing is downloaded or drawn; blocks are small, so that there are some."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    monkeypatch.setattr(prepared, "BLOCK", 20)
    monkeypatch.setattr(prepared, "MIX", 3)
    for name in ("draw_curves", "draw_poems"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    return tmp_path


def decoded(batches: Iterable[Batch], vocabulary: Vocabulary) -> list[str]:
    """The poems of all batches, from their targets."""
    poems = []
    for batch in batches:
        ends = np.cumsum(batch.packing.batch_sizes)
        steps = [batch.targets[end - size : end] for end, size in zip(ends, batch.packing.batch_sizes, strict=True)]
        poems += [vocabulary.decode([step[row] for step in steps if row < len(step)]) for row in range(len(steps[0]))]
    return poems


def bits(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    return [(batch.inputs.tobytes(), batch.targets.tobytes(), list(batch.packing.batch_sizes)) for batch in batches]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# The poems


@pytest.mark.parametrize("batch_size", [1, 7, 32, 256, 5000])
def test_every_poem_comes_once_in_full_batches(batch_size: int) -> None:
    poems = poems_of_lengths(900)
    task = prepared.load(prepared_folder(poems, "big", "--min-count", 1)).task(batch_size)
    parts = tang.split(poems)
    for batches, part in zip((list(task.train(rng())), task.validation, task.test), parts, strict=True):
        assert Counter(decoded(batches, task.vocabulary)) == Counter(part)
    sizes = sorted((batch.packing.batch_sizes[0] for batch in task.train(rng())), reverse=True)
    assert task.steps == len(sizes) == -(-len(parts[0]) // batch_size)
    assert set(sizes[:-1]) <= {batch_size} and sum(sizes) == len(parts[0])
    assert [batch.packing.batch_sizes[0] for batch in task.test] == [1] * len(parts[2])


def test_vocabulary_and_held_out_batches_are_those_of_the_run_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MIX", 1000)  # so that one holds all
    poems = [poem + "罕" * (place < 2) for place, poem in enumerate(poems_of_lengths(700))]
    parts = tang.split(poems)
    ours = prepared.load(prepared_folder(poems, "big", "--min-count", 3, "--max-vocabulary", 9)).task(32)
    theirs = packed_task(parts, Vocabulary.build(parts[0], most=9, least=3), 32)
    assert ours.vocabulary.tokens == theirs.vocabulary.tokens and len(ours.vocabulary) == 12
    assert ours.max_length == theirs.max_length == max(map(len, poems)) and ours.steps == theirs.steps
    assert bits(ours.validation) == bits(theirs.validation)
    model = small_model(ours.vocabulary)
    assert held_out_figures(model, ours) == pytest.approx(held_out_figures(model, theirs), rel=1e-9)


def test_lines_are_cut_and_parts_chosen_as_for_a_run_in_memory() -> None:
    lines = [*pseudo_poems(60), "甲乙丙" * 150, "  丁丁 "]
    task = prepared.load(prepared_folder(lines)).task(8)
    batches = [*task.train(rng()), *task.validation, *task.test]
    expected = [*pseudo_poems(60), *texts.pieces(["甲乙丙" * 150]), "丁丁"]
    assert Counter(decoded(batches, task.vocabulary)) == Counter(expected)
    assert task.max_length == texts.MAX_PIECE == 200


def test_held_out_batches_can_be_asked_for_by_number() -> None:
    validation = prepared.load(prepared_folder(pseudo_poems(2000))).task(8).validation
    whole = bits(validation)
    assert len(whole) == len(validation) > 6 and bits([validation[3], validation[-1]]) == [whole[3], whole[-1]]
    assert bits(validation[2:5]) == whole[2:5]
    with pytest.raises(IndexError):
        validation[len(validation)]


# Their order


def test_the_order_is_the_generators_and_another_each_epoch() -> None:
    task = prepared.load(prepared_folder(pseudo_poems(600))).task(8)
    generator = rng()
    first, second = bits(task.train(generator)), bits(task.train(generator))
    assert first == bits(task.train(rng())) != bits(task.train(rng(1)))
    assert first != second and len(first) == len(second) == task.steps


def test_poems_of_blocks_that_lie_apart_are_mixed() -> None:
    """The first mix has poems of three blocks, drawn from all of the part."""
    poems = tang.split(pseudo_poems(600))[0]
    task = prepared.load(prepared_folder(pseudo_poems(600))).task(10)
    first = decoded(list(task.train(rng()))[:6], task.vocabulary)
    blocks = {poems.index(poem) // 20 for poem in first}
    assert len(first) == 60 and len(blocks) == 3 and max(blocks) - min(blocks) > 5
    assert {poems.index(poem) // 20 for poem in first[:20]} == blocks


def test_no_two_mixes_are_shuffled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = prepared.load(prepared_folder(pseudo_poems(600))).task(10), []
    batches = prepared.Mixed.batches

    def watched(self: prepared.Mixed, size: int, rng: np.random.Generator, start: int = 0) -> Any:
        seen.append(rng.bit_generator.state["state"]["state"])
        return batches(self, size, rng, start)

    monkeypatch.setattr(prepared.Mixed, "batches", watched)
    assert len(list(task.train(rng()))) == task.steps and len(set(seen)) == len(seen) > 5


TASKS: dict[str, Callable[[], Task]] = {
    "prepared": lambda: prepared.load(prepared_folder(poems_of_lengths(600))).task(8),
    "packed": lambda: packed_task([poems_of_lengths(90)] * 3, VOCABULARY, 8),
    "report": lambda: protocol.report_task(pseudo_poems(60), batch_size=8, width=16),
    "rows": lambda: protocol.rows_task(pseudo_poems(600), 32, width=16),
}


@pytest.mark.parametrize("name", TASKS)
def test_an_epoch_may_begin_at_any_batch(name: str) -> None:
    task = TASKS[name]()
    generator = rng()
    whole, after = bits(task.train(generator)), generator.bit_generator.state
    assert task.steps == len(whole) > 5
    for start in range(task.steps + 1):
        generator = rng()
        assert bits(task.train(generator, start)) == whole[start:], start
        assert generator.bit_generator.state == after


def test_what_lies_before_the_first_batch_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    task = prepared.load(prepared_folder(pseudo_poems(600))).task(10)
    read, blocks = prepared.Batches.read, []
    monkeypatch.setattr(prepared.Batches, "read", lambda self, some: blocks.append(len(some)) or read(self, some))
    next(iter(task.train(rng(), 30)))
    assert blocks == [3]
    blocks.clear()
    assert len(list(task.train(rng(), 30))) == task.steps - 30 and sum(blocks) == -(-task.steps // 2) - 15


# The run


def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_the_whole_one() -> None:
    prepared_folder(poems_of_lengths(600))
    steps = prepared.load(Path("big")).task(32).steps
    assert run_program("train", "--prepared", "big", *OPTIONS, "--out", "whole").code == 0
    with killed_after(steps + 11):
        run_program("train", "--prepared", "big", *OPTIONS, "--out", "cut", "--checkpoint-every", 3)
    checkpoint = run_checkpoint.read(Path("cut"))
    assert checkpoint is not None and checkpoint.steps > steps + 8 and len(jsonl(Path("cut/metrics.jsonl"))) == 1
    shutil.move("big", "elsewhere")
    assert run_program("train", "--prepared", "elsewhere", "--resume", "--out", "cut").code == 0
    assert results("cut") == results("whole")


def test_other_poems_are_not_resumed() -> None:
    prepared_folder(poems_of_lengths(600))
    with killed_after(3):
        run_program("train", "--prepared", "big", *OPTIONS, "--out", "cut", "--checkpoint-every", 1)
    prepared_folder(poems_of_lengths(601), "other")
    outcome = run_program("train", "--prepared", "other", "--resume", "--out", "cut")
    assert outcome.code == 2 and "it was trained on different poems" in outcome.err


def test_its_model_knows_no_lines_and_says_so() -> None:
    prepared_folder(poems_of_lengths(600))
    outcome = run_program("train", "--prepared", "big", "--epochs", 1, *SMALL, "--out", "run")
    assert outcome.code == 0 and " poems to train / validate / test, from big\n" in outcome.err
    assert not Path("run/lines.npy").exists()
    model = ("--model", "run/model.safetensors")
    assert run_program("generate", *model).code == 0
    refused(run_program("generate", *model, "--no-copy"), "--no-copy needs the lines", "prepare.py keeps none")
    refused(run_program("shrink", "run", "--out", "small"), "not trained on the Tang poems")
    with pytest.raises(cli.UsageError, match="--no-copy"):
        request.line_index(Path("run/model.safetensors"), {"arguments": {"prepared": ""}})


@pytest.mark.parametrize(
    "option",
    [
        *(("--text", "text"), ("--corpus", "c"), ("--files", "8"), ("--max-length", "49"), ("--min-count", "2")),
        *(("--max-vocabulary", "9"), ("--protocol", "report"), ("--protocol", "report-rows")),
    ],
)
def test_what_the_folder_decides_is_not_asked_for_again(option: tuple[str, str]) -> None:
    refused(run_program("train", "--prepared", "big", *option), "--prepared", option[0], "exclude each other")


def test_recipes_set_what_the_folder_does_not_decide() -> None:
    prepared_folder(poems_of_lengths(600))
    sizes = ("--epochs", 1, "--hidden-size", 8, "--embedding-size", 8, "--out", "run")
    assert run_program("train", "--prepared", "big", "--recipe", "best", *sizes).code == 0
    arguments = run_checkpoint.read(Path("run")).metadata["arguments"]  # type: ignore[union-attr]
    assert arguments["batch_size"] == RECIPES["best"]["batch_size"] != DEFAULTS["batch_size"]
    assert arguments["min_count"] is arguments["files"] is None


# Memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "BLOCK", 256)
    peaks, sizes = [], []
    for times in (1, 50):
        folder = prepared_folder(pseudo_poems(4000) * times, f"{times}")
        sizes.append((folder / "train.ids.npy").stat().st_size)
        tracemalloc.start()
        task = prepared.load(folder).task(64)
        for batches in (task.train(rng()), task.train(rng(), task.steps - 1), task.validation):
            for _ in batches:
                pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sizes[1] - sizes[0] > 2e6 and peaks[1] - peaks[0] < 0.03 * (sizes[1] - sizes[0]), (peaks, sizes)


def test_test_figures_of_equal_poems_have_no_error() -> None:
    figures = held_out_figures(small_model(), packed_task([["甲"], ["甲"], ["甲乙丙丁日月"] * 3], VOCABULARY, 2))
    assert figures["test_loss_error"] == pytest.approx(0, abs=1e-6)
