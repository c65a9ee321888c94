"""train.py --prepared: the poems that prepare.py encoded, from mapped files, as they would be from memory."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cli
import corpus
import download
import figures
import numpy as np
import prepared
import protocol
import pytest
import resuming
import wishes
from download import CorpusError
from model import Batch
from poetry_helpers import (
    CHARACTERS,
    SMALL,
    VOCABULARY,
    jsonl,
    killed_after,
    never,
    pseudo_poems,
    refused,
    results,
    run_program,
    small_model,
)
from tasks import Task, packed_task
from training import held_out_figures
from vocabulary import Vocabulary

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


def poems_of_lengths(count: int, longest: int = 30) -> list[str]:
    rng = random.Random(0)
    return list(dict.fromkeys("".join(rng.choices(CHARACTERS, k=rng.randint(4, longest))) for _ in range(count)))


def prepare(poems: Iterable[str], out: str = "big", *options: object) -> Path:
    Path("text").write_text("\n".join(poems), encoding="utf-8")
    outcome = run_program("prepare", "--text", "text", "--out", out, *options)
    assert outcome.code == 0, outcome
    return Path(out)


def decoded(batches: Iterable[Batch], vocabulary: Vocabulary) -> list[str]:
    """The poems of all batches, from their targets."""
    poems = []
    for batch in batches:
        ends = np.cumsum(batch.batch_sizes)
        steps = [batch.targets[end - size : end] for end, size in zip(ends, batch.batch_sizes, strict=True)]
        poems += [vocabulary.decode([step[row] for step in steps if row < len(step)]) for row in range(len(steps[0]))]
    return poems


def bits(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    return [(batch.inputs.tobytes(), batch.targets.tobytes(), batch.batch_sizes) for batch in batches]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# The poems


@pytest.mark.parametrize("batch_size", [1, 7, 32, 256, 5000])
def test_every_poem_comes_once_in_full_batches(batch_size: int) -> None:
    poems = poems_of_lengths(900)
    task = prepared.load(prepare(poems, "big", "--min-count", 1)).task(batch_size)
    parts = corpus.split(poems)
    for batches, part in zip((list(task.train(rng())), task.validation, task.test), parts, strict=True):
        assert Counter(decoded(batches, task.vocabulary)) == Counter(part)
    sizes = sorted((batch.batch_sizes[0] for batch in task.train(rng())), reverse=True)
    assert task.steps == len(sizes) == -(-len(parts[0]) // batch_size)
    assert set(sizes[:-1]) <= {batch_size} and sum(sizes) == len(parts[0])
    assert [batch.batch_sizes[0] for batch in task.test] == [1] * len(parts[2])


def test_vocabulary_and_held_out_batches_are_those_of_the_run_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MIX", 1000)  # so that one holds all
    poems = [poem + "罕" * (place < 2) for place, poem in enumerate(poems_of_lengths(700))]
    parts = corpus.split(poems)
    ours = prepared.load(prepare(poems, "big", "--min-count", 3, "--max-vocabulary", 9)).task(32)
    theirs = packed_task(parts, Vocabulary.build(parts[0], most=9, least=3), 32)
    assert ours.vocabulary.tokens == theirs.vocabulary.tokens and len(ours.vocabulary) == 12
    assert ours.max_length == theirs.max_length == max(map(len, poems)) and ours.steps == theirs.steps
    assert bits(ours.validation) == bits(theirs.validation)
    model = small_model(ours.vocabulary)
    assert held_out_figures(model, ours) == pytest.approx(held_out_figures(model, theirs), rel=1e-9)


def test_lines_are_cut_and_parts_chosen_as_for_a_run_in_memory() -> None:
    lines = [*pseudo_poems(60), "甲乙丙" * 150, "  丁丁 "]
    task = prepared.load(prepare(lines)).task(8)
    batches = [*task.train(rng()), *task.validation, *task.test]
    expected = [*pseudo_poems(60), *corpus.pieces(["甲乙丙" * 150]), "丁丁"]
    assert Counter(decoded(batches, task.vocabulary)) == Counter(expected)
    assert task.max_length == corpus.MAX_PIECE == 200


def test_held_out_batches_can_be_asked_for_by_number() -> None:
    validation = prepared.load(prepare(pseudo_poems(2000))).task(8).validation
    whole = bits(validation)
    assert len(whole) == len(validation) > 6 and bits([validation[3], validation[-1]]) == [whole[3], whole[-1]]
    assert bits(validation[2:5]) == whole[2:5]
    with pytest.raises(IndexError):
        validation[len(validation)]


# Their order


def test_the_order_is_the_generators_and_another_each_epoch() -> None:
    task = prepared.load(prepare(pseudo_poems(600))).task(8)
    generator = rng()
    first, second = bits(task.train(generator)), bits(task.train(generator))
    assert first == bits(task.train(rng())) != bits(task.train(rng(1)))
    assert first != second and len(first) == len(second) == task.steps


def test_poems_of_blocks_that_lie_apart_are_mixed() -> None:
    """The first mix has poems of three blocks, drawn from all of the part."""
    poems = corpus.split(pseudo_poems(600))[0]
    task = prepared.load(prepare(pseudo_poems(600))).task(10)
    first = decoded(list(task.train(rng()))[:6], task.vocabulary)
    blocks = {poems.index(poem) // 20 for poem in first}
    assert len(first) == 60 and len(blocks) == 3 and max(blocks) - min(blocks) > 5
    assert {poems.index(poem) // 20 for poem in first[:20]} == blocks


def test_no_two_mixes_are_shuffled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = prepared.load(prepare(pseudo_poems(600))).task(10), []
    batches = prepared.Mixed.batches

    def watched(self: prepared.Mixed, size: int, rng: np.random.Generator, start: int = 0) -> Any:
        seen.append(rng.bit_generator.state["state"]["state"])
        return batches(self, size, rng, start)

    monkeypatch.setattr(prepared.Mixed, "batches", watched)
    assert len(list(task.train(rng()))) == task.steps and len(set(seen)) == len(seen) > 5


TASKS: dict[str, Callable[[], Task]] = {
    "prepared": lambda: prepared.load(prepare(poems_of_lengths(600))).task(8),
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
    task = prepared.load(prepare(pseudo_poems(600))).task(10)
    read, blocks = prepared.Batches.read, []
    monkeypatch.setattr(prepared.Batches, "read", lambda self, some: blocks.append(len(some)) or read(self, some))
    next(iter(task.train(rng(), 30)))
    assert blocks == [3]
    blocks.clear()
    assert len(list(task.train(rng(), 30))) == task.steps - 30 and sum(blocks) == -(-task.steps // 2) - 15


# The run


def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_the_whole_one() -> None:
    prepare(poems_of_lengths(600))
    steps = prepared.load(Path("big")).task(32).steps
    assert run_program("train", "--prepared", "big", *OPTIONS, "--out", "whole").code == 0
    with killed_after(steps + 11):
        run_program("train", "--prepared", "big", *OPTIONS, "--out", "cut", "--checkpoint-every", 3)
    checkpoint = resuming.read(Path("cut"))
    assert checkpoint is not None and checkpoint.steps > steps + 8 and len(jsonl(Path("cut/metrics.jsonl"))) == 1
    shutil.move("big", "elsewhere")
    assert run_program("train", "--prepared", "elsewhere", "--resume", "--out", "cut").code == 0
    assert results("cut") == results("whole")


def test_other_poems_are_not_resumed() -> None:
    prepare(poems_of_lengths(600))
    with killed_after(3):
        run_program("train", "--prepared", "big", *OPTIONS, "--out", "cut", "--checkpoint-every", 1)
    prepare(poems_of_lengths(601), "other")
    outcome = run_program("train", "--prepared", "other", "--resume", "--out", "cut")
    assert outcome.code == 2 and "it was trained on other poems than are at hand" in outcome.err


def test_its_model_knows_no_lines_and_says_so() -> None:
    prepare(poems_of_lengths(600))
    outcome = run_program("train", "--prepared", "big", "--epochs", 1, *SMALL, "--out", "run")
    assert outcome.code == 0 and " poems to train / validate / test, from big\n" in outcome.err
    assert not Path("run/lines.npy").exists()
    model = ("--model", "run/model.safetensors")
    assert run_program("generate", *model).code == 0
    refused(run_program("generate", *model, "--no-copy"), "--no-copy needs the lines", "prepare.py keeps none")
    refused(run_program("shrink", "run", "--out", "small"), "not trained on the Tang poems")
    with pytest.raises(cli.UsageError, match="--no-copy"):
        wishes.line_index(Path("run/model.safetensors"), {"arguments": {"prepared": ""}})


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
    prepare(poems_of_lengths(600))
    sizes = ("--epochs", 1, "--hidden-size", 8, "--embedding-size", 8, "--out", "run")
    assert run_program("train", "--prepared", "big", "--recipe", "best", *sizes).code == 0
    arguments = resuming.read(Path("run")).facts["arguments"]  # type: ignore[union-attr]
    assert arguments["batch_size"] == 128 and arguments["min_count"] is arguments["files"] is None


# Memory


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "BLOCK", 256)
    peaks, sizes = [], []
    for times in (1, 50):
        folder = prepare(pseudo_poems(4000) * times, f"{times}")
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


# Folders that are something else


def facts_with(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / prepared.FACTS).read_text(encoding="utf-8"))
        facts.update(changed)
        (folder / prepared.FACTS).write_text(json.dumps(facts), encoding="utf-8")

    return change


def content(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length]) and None


def array(name: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, values)


def ids_with(place: int, value: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        ids = np.load(folder / "train.ids.npy")
        ids[place] = value
        np.save(folder / "train.ids.npy", ids)

    return change


def without_an_end(folder: Path) -> None:
    lengths = np.load(folder / "train.lengths.npy")
    ids_with(int(lengths[0]), 5)(folder)


def swapped(folder: Path) -> None:
    """Two poems of different lengths."""
    lengths = np.load(folder / "train.lengths.npy")
    place = np.flatnonzero(np.diff(lengths.astype(int)))[0]
    lengths[[place, place + 1]] = lengths[[place + 1, place]]
    np.save(folder / "train.lengths.npy", lengths)


def huge_lengths(folder: Path) -> None:
    """Whose sum is what it was, modulo 2^64."""
    lengths = np.load(folder / "train.lengths.npy").astype(np.uint64)
    rest = lengths[:3].sum()
    lengths[:3] = 2**63 - 1, 2**63 - 1, rest + np.uint64(2)
    np.save(folder / "train.lengths.npy", lengths)


def no_poems(folder: Path) -> None:
    facts = json.loads((folder / prepared.FACTS).read_text(encoding="utf-8"))
    for kind in ("ids", "lengths"):
        np.save(folder / f"train.{kind}.npy", np.zeros(0, np.uint8))
        facts["parts"]["train"][kind]["count"] = 0
    (folder / prepared.FACTS).write_text(json.dumps(facts), encoding="utf-8")


def zipped(folder: Path) -> None:
    np.savez(folder / "a.npz", a=np.ones(3))
    (folder / "a.npz").replace(folder / "train.ids.npy")


def npy(shape: str) -> bytes:
    """The head of an .npy file that promises this shape."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "prepared.json"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_bytes(b""))[0], "prepared.json"),
    "no facts": (lambda folder: (folder / prepared.FACTS).unlink(), "prepared.json"),
    "no JSON": (content(prepared.FACTS, b"{"), "prepared.json"),
    "not UTF-8": (content(prepared.FACTS, b'{"kind": "\xff"}'), "prepared.json"),
    "deep": (content(prepared.FACTS, b"[" * 100_000), "prepared.json"),
    "a list": (content(prepared.FACTS, b"[]"), "prepared.json"),
    "empty": (content(prepared.FACTS, b"{}"), "no 'kind' in it"),
    "another kind": (facts_with(kind="poem run"), "'poem run'"),
    "another version": (facts_with(version=2), "of version 2"),
    "no tokens": (facts_with(tokens=[]), "vocabulary"),
    "tokens of another kind": (facts_with(tokens=7), "prepared.json"),
    "no beginning": (facts_with(tokens=["<end>", "<unknown>"]), "<begin> must be known"),
    "no length": (facts_with(max_length=0), "the longest poem is 0"),
    "no parts": (facts_with(parts={}), "no 'train' in it"),
    "parts of another kind": (facts_with(parts=[1, 2, 3]), "prepared.json"),
    "no ids": (lambda folder: (folder / "test.ids.npy").unlink(), "test.ids.npy"),
    "no lengths": (lambda folder: (folder / "validation.lengths.npy").unlink(), "validation.lengths.npy"),
    "ids cut short": (cut("train.ids.npy", 2000), "train.ids.npy"),
    "empty ids": (cut("train.ids.npy", 0), "train.ids.npy"),
    "half a header": (cut("train.ids.npy", 40), "train.ids.npy"),
    "lengths cut short": (cut("train.lengths.npy", 200), "train.lengths.npy"),
    "NULs": (content("test.ids.npy", bytes(4096)), "test.ids.npy"),
    "fewer ids": (array("train.ids.npy", np.zeros(9, np.uint8)), "train.ids.npy"),
    "floats": (array("train.lengths.npy", np.ones(540)), "train.lengths.npy"),
    "two axes": (array("test.ids.npy", np.zeros((2, 3), np.uint8)), "test.ids.npy"),
    "objects": (lambda folder: np.save(folder / "test.ids.npy", np.array([{}])), "test.ids.npy"),
    "an id beyond the vocabulary": (ids_with(1, 200), "id 200"),
    "a poem without its beginning": (ids_with(0, 5), "do not begin and end"),
    "a poem without its end": (without_an_end, "do not begin and end"),
    "lengths that wrap around": (huge_lengths, "the lengths ask for"),
    "no poems": (no_poems, "train.ids.npy"),
    "tokens as an object": (facts_with(tokens=dict.fromkeys(["<begin>", "<end>", "<unknown>"], 1)), "no list but dict"),
    "a zip file": (zipped, "train.ids.npy"),
    "more ids than there are numbers for": (content("train.ids.npy", npy(f"({10**30},)")), "train.ids.npy"),
    "other lengths": (swapped, "do not begin and end"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_what_prepare_writes(fault: str) -> None:
    change, named = FAULTS[fault]
    prepare(poems_of_lengths(600))
    change(Path("big"))
    with pytest.raises(CorpusError) as caught:
        list(prepared.load(Path("big")).task(8).train(rng()))
    assert named in str(caught.value) and len(str(caught.value).splitlines()) == 1
    outcome = run_program("train", "--prepared", "big", *OPTIONS)
    errors = [line for line in outcome.err.splitlines() if ": error: " in line]
    assert outcome.code == 2 and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    assert named in errors[0]


def test_more_bytes_than_there_should_be() -> None:
    folder = prepare(poems_of_lengths(600))
    with (folder / "train.ids.npy").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CorpusError, match=r"train\.ids\.npy is not what prepare\.py writes: it has [\d,]+ bytes, not"):
        prepared.load(folder)


def test_lengths_that_ask_for_other_ids() -> None:
    folder = prepare(poems_of_lengths(600))
    lengths = np.load(folder / "train.lengths.npy")
    lengths[0] += 1
    np.save(folder / "train.lengths.npy", lengths)
    with pytest.raises(CorpusError, match="and the lengths ask for"):
        prepared.load(folder).task(8)
