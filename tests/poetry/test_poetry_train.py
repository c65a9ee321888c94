"""train.py as a user runs it, on a tiny corpus: what it writes, where, and how it ends."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import cli
from corpus import download, tang, tasks
from corpus.vocabulary import Vocabulary
from learning import run_checkpoint, training
from learning.settings import parse_arguments
from learning.sources import default_data
from model import load_model

import numpy as np
import pytest
from poetry_helpers import (
    EPOCH_FIELDS,
    PROGRAMS,
    SMALL,
    Outcome,
    jsonl,
    never,
    png_size,
    pseudo_poems,
    refused,
    run_program,
    tree,
    write_corpus,
)
from train import main

import minidl

TEST = ["test_loss", "test_perplexity", "test_targets", "vocabulary_size", "unknown_rate"]
ERRORS = ["test_loss_error", "test_perplexity_error"]
STARTS = "日紅山夜湖海月"
MISSING = "({}: not in this corpus's vocabulary)"
FILES = [
    "checkpoint.safetensors",
    "curves.png",
    "lines.npy",
    "metrics.jsonl",
    "model.safetensors",
    "poems.png",
    "poems.txt",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; nothing can be downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    return tmp_path


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("poetry") / "corpus", pseudo_poems(300))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> tuple[Outcome, Path]:
    """A whole run in a process of its own, where the locale, Python and the terminal all want ASCII."""
    folder = tmp_path_factory.mktemp("run") / "out"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, PROGRAMS / "train.py", "--corpus", corpus_folder, *SMALL, "--epochs", "3"]
    command += ["--lr", "0.02", "--seed", "3", "--out", folder]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False)
    return Outcome(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")), folder


def train(folder: Path | str, *arguments: object) -> Outcome:
    return run_program("train", "--corpus", folder, *SMALL, "--epochs", 2, *arguments)


# A whole run


def test_it_ends_well_and_leaves_its_files(run: tuple[Outcome, Path]) -> None:
    outcome, folder = run
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in folder.iterdir()) == FILES
    width, height = png_size(folder / "curves.png")
    assert 600 <= width <= 2000 and 250 <= height <= 1500 and (folder / "curves.png").stat().st_size > 10_000


def test_the_metrics_have_the_fields_that_were_promised(run: tuple[Outcome, Path]) -> None:
    *epochs, last = jsonl(run[1] / "metrics.jsonl")
    assert [list(line) for line in epochs] == [EPOCH_FIELDS] * 3 and list(last) == TEST + ERRORS
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    for line in epochs:
        assert line["validation_perplexity"] == pytest.approx(math.exp(line["validation_loss"]))
        assert line["seconds"] > 0 and line["chars_per_second"] > 0
    assert last["test_perplexity"] == pytest.approx(math.exp(last["test_loss"]))
    assert epochs[2]["validation_loss"] < epochs[0]["validation_loss"] < 2.7
    # each of the poems is ten characters and an end mark; about a twentieth of 300 is held back
    assert last["test_targets"] % 11 == 0 and 5 * 11 <= last["test_targets"] <= 30 * 11
    assert last["vocabulary_size"] == 14 and last["unknown_rate"] == 0


def test_stdout_holds_the_seven_poems_alone_and_so_does_the_file(run: tuple[Outcome, Path]) -> None:
    outcome, folder = run
    assert (folder / "poems.txt").read_text(encoding="utf-8") == outcome.out
    lines = outcome.out.splitlines()
    assert len(lines) == 7
    for start, line in zip(STARTS, lines, strict=True):
        if start in "湖海":
            assert line == MISSING.format(start)
        else:
            assert line.startswith(start) and set(line) <= set("甲乙丙丁日月山夜紅，。") and len(line) <= 10


def test_stderr_says_of_each_epoch_and_of_the_test(run: tuple[Outcome, Path]) -> None:
    err = run[0].err
    *epochs, last = jsonl(run[1] / "metrics.jsonl")
    for line in epochs:
        losses = f"train {line['train_loss']:.3f}  validation {line['validation_loss']:.3f} nats/char"
        speed = f"(perplexity {line['validation_perplexity']:.1f})  {line['chars_per_second']:,.0f} chars/s"
        assert f"epoch  {line['epoch']}  {losses} {speed}\n" in err
    error = last["test_perplexity_error"]
    assert f"test {last['test_loss']:.3f} nats/char (perplexity {last['test_perplexity']:.1f} ± {error:.1f})" in err
    assert f"over {last['test_targets']} targets; vocabulary 14, 0.00% unknown\n" in err
    assert "of 300 read, 300 kept\n" in err and "seed 3, into " in err
    assert "Warning" not in err and "Traceback" not in err


def test_the_best_model_is_in_the_file_with_its_settings(run: tuple[Outcome, Path]) -> None:
    model, vocabulary, facts = load_model(run[1] / "model.safetensors")
    *epochs, last = jsonl(run[1] / "metrics.jsonl")
    assert facts["epoch"] == min(epochs, key=lambda line: line["validation_loss"])["epoch"]
    assert facts["max_length"] == 10
    assert (facts["arguments"]["seed"], facts["arguments"]["lr"]) == (3, 0.02)
    assert len(vocabulary) == 14
    assert (model.settings["embedding_size"], model.settings["hidden_size"]) == (6, 8)
    task = tasks.packed_task(tang.split(pseudo_poems(300)), vocabulary, 32)
    assert training.held_out_figures(model, task) == pytest.approx(last), "the test figures are the saved model's"


def test_the_run_in_this_process_is_the_same_to_the_last_digit(
    run: tuple[Outcome, Path], corpus_folder: Path, here: Path
) -> None:
    arguments = ("--epochs", 3, "--lr", 0.02, "--seed", 3, "--out", "again")
    outcome = train(corpus_folder, *arguments)
    assert outcome.out == run[0].out
    lines, others = (jsonl(folder / "metrics.jsonl") for folder in (run[1], here / "again"))
    for line, again in zip(lines, others, strict=True):
        for field in ("seconds", "chars_per_second"):
            line.pop(field, None), again.pop(field, None)
        assert line == pytest.approx(again, rel=1e-9)


def test_another_seed_is_another_run(run: tuple[Outcome, Path], corpus_folder: Path) -> None:
    assert train(corpus_folder, "--epochs", 3, "--lr", 0.02, "--seed", 4).out != run[0].out


# Folders


@pytest.mark.slow
def test_runs_are_numbered(corpus_folder: Path, here: Path) -> None:
    for number in (1, 2):
        assert train(corpus_folder, "--epochs", 1).code == 0
        assert sorted(path.name for path in (here / "runs" / str(number)).iterdir()) == FILES
    shutil.rmtree(here / "runs" / "1")
    assert train(corpus_folder, "--epochs", 1).code == 0
    assert (here / "runs" / "1" / "metrics.jsonl").exists()


def test_a_finished_run_is_never_written_over(corpus_folder: Path, here: Path) -> None:
    train(corpus_folder, "--epochs", 1, "--out", "a")
    before = {path: path.read_bytes() for path in (here / "a").iterdir()}
    refused(train(corpus_folder, "--epochs", 1, "--out", "a"), "--out", "holds a run")
    assert {path: path.read_bytes() for path in (here / "a").iterdir()} == before


def test_a_run_that_another_program_begins_at_the_same_moment_is_not_written_over(
    corpus_folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = tang.load

    def slowly(*arguments: Any, **options: Any) -> tang.Corpus:
        (here / "a").mkdir(exist_ok=True)
        (here / "a" / "metrics.jsonl").write_text("another's", encoding="utf-8")
        return load(*arguments, **options)

    monkeypatch.setattr(tang, "load", slowly)
    outcome = train(corpus_folder, "--out", "a")
    assert outcome.code == 2 and "has just started" in outcome.err
    assert (here / "a" / "metrics.jsonl").read_text(encoding="utf-8") == "another's"
    assert tree(here / "a") == ["metrics.jsonl"]


def test_a_folder_whose_name_is_not_utf_8_is_no_trouble(corpus_folder: Path, here: Path) -> None:
    if sys.platform in ("win32", "darwin"):
        pytest.skip("file names are Unicode here")
    name = os.fsdecode(b"run-\xff")
    assert train(corpus_folder, "--epochs", 1, "--out", name).code == 0
    assert sorted(os.listdir(name)) == FILES


def test_a_folder_with_a_chinese_name_and_spaces_is_no_trouble(corpus_folder: Path, here: Path) -> None:
    outcome = train(corpus_folder, "--epochs", 1, "--out", here / "山 月" / "日")
    assert outcome.code == 0 and "山 月" in outcome.err
    assert sorted(path.name for path in (here / "山 月" / "日").iterdir()) == FILES


# One's own text


def test_text_trains_on_ones_own_lines(here: Path) -> None:
    poems = pseudo_poems(200, seed=1)
    (here / "mine.txt").write_text("\ufeff" + "\r\n\r\n".join([*poems, *poems[:9]]), encoding="utf-8")
    outcome = run_program("train", "--text", "mine.txt", *SMALL, "--epochs", 1, "--out", "a")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 7
    assert "200 kept" in outcome.err and "9 duplicate" in outcome.err
    *_, last = jsonl(here / "a" / "metrics.jsonl")
    assert list(last) == TEST + ERRORS


def test_a_text_of_long_lines_is_cut_into_pieces_and_nothing_is_lost(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["".join(pseudo_poems(70, seed)) for seed in range(20)]  # 700 characters each
    (here / "mine.txt").write_text("\n".join(lines), encoding="utf-8")
    task = settings_of(monkeypatch, "--text", "mine.txt", *SMALL)["task"]
    batches = [*task.train(np.random.default_rng(0)), *task.validation, *task.test]
    assert task.max_length < 700
    assert max(len(batch.packing.batch_sizes) for batch in batches) == task.max_length + 1
    pieces = sum(batch.packing.batch_sizes[0] for batch in batches)
    assert sum(len(batch.targets) for batch in batches) == 20 * 700 + pieces


def test_unknown_characters_are_counted_in_the_test_part_alone(here: Path) -> None:
    strangers = "".join(map(chr, range(0x5000, 0x5000 + 300)))  # each in one poem, so that none is known
    poems = [poem[:9] + stranger for poem, stranger in zip(pseudo_poems(300), strangers, strict=True)]
    (here / "mine.txt").write_text("\n".join(poems), encoding="utf-8")
    run_program("train", "--text", "mine.txt", *SMALL, "--epochs", 1, "--out", "a")
    *_, last = jsonl(here / "a" / "metrics.jsonl")
    assert last["unknown_rate"] == pytest.approx(1 / 11) and last["vocabulary_size"] == 13  # no 。 is left


def test_the_vocabulary_is_of_the_training_part_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poems = iter(pseudo_poems(4000))

    def ending_in(character: str, training_part: bool) -> str:
        """A new poem that ends so and falls to the training part, or to one of the others."""
        lines = (poem[:8] + character for poem in poems)
        return next(line for line in lines if bool(tang.split([line])[0]) == training_part)

    lines = [ending_in(character, True) for character in "戊己庚" for _ in range(2)]
    lines += [ending_in(character, part) for character in "辛壬癸" for part in (True, False)]
    (here / "mine.txt").write_text("\n".join([*pseudo_poems(300, seed=1), *lines]), encoding="utf-8")
    vocabulary = settings_of(monkeypatch, "--text", "mine.txt", *SMALL)["task"].vocabulary
    assert [character for character in "戊己庚辛壬癸" if character in vocabulary] == [*"戊己庚"]


def test_max_vocabulary_keeps_the_most_frequent_characters(corpus_folder: Path, here: Path) -> None:
    outcome = train(corpus_folder, "--epochs", 1, "--max-vocabulary", 5, "--out", "a")
    assert outcome.code == 0, outcome.err
    assert "vocabulary 8, " in outcome.err and "0.00% unknown" not in outcome.err
    *_, last = jsonl(here / "a" / "metrics.jsonl")
    assert last["vocabulary_size"] == 8 and last["unknown_rate"] > 0.2
    _, vocabulary, facts = load_model(here / "a" / "model.safetensors")
    everything = Vocabulary.build(tang.split(pseudo_poems(300))[0])
    assert vocabulary.tokens == everything.tokens[:8], "three marks and five characters"
    assert facts["arguments"]["max_vocabulary"] == 5


@pytest.mark.slow
def test_of_a_larger_corpus_nothing_stays_but_its_ids(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held when the vocabulary begins, and when training does, grows by at most 4 bytes a character."""
    build, held = Vocabulary.build, []

    def spy(*arguments: Any, **options: Any) -> Vocabulary:
        held.append(tracemalloc.get_traced_memory()[0])
        return build(*arguments, **options)

    monkeypatch.setattr(Vocabulary, "build", spy)
    parts = [pseudo_poems(4000, seed) for seed in range(3)]
    poems = ["".join(lines) for lines in zip(*parts, strict=True)]  # 30 characters each
    for count in (1000, 4000):
        (here / "mine.txt").write_text("\n".join(poems[:count]), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["train.py", "--text", "mine.txt"])
        tracemalloc.start()
        task, index, _ = default_data(parse_arguments())
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert task.max_length == 30 and len(index) > 0
    growth = [(held[place + 2] - held[place]) / (3000 * 30) for place in (0, 1)]
    assert max(growth) < 4, growth


def test_a_text_in_which_no_character_comes_twice_still_ends_well(here: Path) -> None:
    strangers = "".join(map(chr, range(0x5000, 0x5000 + 600)))
    lines = [strangers[at : at + 3] for at in range(0, 600, 3)]
    (here / "mine.txt").write_text("\n".join(lines), encoding="utf-8")
    outcome = run_program("train", "--text", "mine.txt", *SMALL, "--epochs", 1)
    assert outcome.code == 0
    assert outcome.out == "".join(MISSING.format(start) + "\n" for start in STARTS)


# Settings


class Stopped(cli.UsageError):
    """The test has seen what it wanted to see."""


def stop() -> Any:
    raise Stopped("seen enough")


def refused_late(outcome: Outcome) -> None:
    assert outcome.code == 2 and outcome.err.endswith("train.py: error: seen enough\n"), outcome


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    """What train.py hands to its Trainer."""
    seen: dict[str, Any] = {}

    def fit(trainer: training.Trainer, epochs: int, patience: int) -> Any:
        seen.update(vars(trainer), epochs=epochs, patience=patience)
        stop()

    monkeypatch.setattr(training.Trainer, "fit", fit)
    refused_late(run_program("train", *arguments))
    return seen


def test_the_default_recipe(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = settings_of(monkeypatch, "--corpus", corpus_folder)
    assert isinstance(seen["schedule"].optimizer, minidl.Adam)
    assert seen["model"].embedding.embedding_dim == 128 and seen["model"].lstms[0].hidden_size == 256
    assert seen["pads_count"] is False and seen["clip"] is not None and seen["patience"] >= 1
    task = seen["task"]
    (batch,) = list(task.train(np.random.default_rng(0)))[:1]
    assert batch.packing.batch_sizes[0] == 256 and batch.real is None and task.test
    assert "<pad>" not in task.vocabulary and "<begin>" in task.vocabulary


@pytest.mark.parametrize("name", ["adam", "adagrad", "adadelta"])
def test_the_reports_recipe(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poems = pseudo_poems(300)
    folder = write_corpus(here / "corpus", [*poems, *poems])  # duplicates stay
    seen = settings_of(monkeypatch, "--corpus", folder, "--protocol", "report", "--optimizer", name)
    rates = {"adam": 0.005, "adagrad": 0.01, "adadelta": 0.5}
    kinds = {"adam": minidl.Adam, "adagrad": minidl.AdaGrad, "adadelta": minidl.Adadelta}
    schedule = seen["schedule"]
    assert type(schedule.optimizer) is kinds[name]
    assert [schedule.rate(step) for step in (0, 1, 100)] == [rates[name]] * 3, "the rate does not move"
    assert (seen["epochs"], seen["patience"], seen["clip"], seen["pads_count"]) == (30, 1, None, True)
    model, task = seen["model"], seen["task"]
    assert (model.embedding.embedding_dim, model.lstms[0].hidden_size) == (128, 256)
    assert model.dropouts[0].p == model.dropouts[-1].p == 0
    assert task.steps == 2 and [batch.packing.batch_sizes[0] for batch in task.validation] == [88]
    pads = task.vocabulary.ids["<pad>"]
    assert sum(int((batch.targets != pads).sum()) for batch in task.validation) == 88 * 10


def test_options_reach_the_training(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        "--files",
        2,
        "--optimizer",
        "sgd",
        "--lr",
        0.25,
        "--epochs",
        4,
        "--patience",
        7,
        "--batch-size",
        16,
    )
    sizes = ("--hidden-size", 5, "--embedding-size", 3, "--dropout", 0, "--clip", 2.5)
    seen = settings_of(monkeypatch, "--corpus", corpus_folder, *options, *sizes)
    optimizer = seen["schedule"].optimizer
    assert isinstance(optimizer, minidl.SGD)
    assert max(seen["schedule"].rate(step) for step in range(100)) == pytest.approx(0.25)
    assert (seen["epochs"], seen["patience"], seen["clip"]) == (4, 7, 2.5)
    model, task = seen["model"], seen["task"]
    assert (model.embedding.embedding_dim, model.lstms[0].hidden_size, model.dropouts[-1].p) == (3, 5, 0)
    batches = list(task.train(np.random.default_rng(0)))
    poems = sum(batch.packing.batch_sizes[0] for batch in (*batches, *task.validation, *task.test))
    assert poems == 76, "two of eight files of 38 poems"
    assert max(batch.packing.batch_sizes[0] for batch in batches) == 16


def test_one_cycle_rises_to_the_rate_and_falls_over_all_epochs(
    corpus_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--schedule", "one-cycle", "--lr", 0.25, "--epochs", 7, "--batch-size", 32)
    seen = settings_of(monkeypatch, "--corpus", corpus_folder, *options)
    steps = 7 * seen["task"].steps
    rates = [seen["schedule"].rate(step) for step in range(steps + 1)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(0.25, rel=0.02) and 0 < top < steps / 2
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] < 0.05 and rates[steps // 2] > 0.1 and rates[-1] < 0.001


def test_weight_decay_reaches_the_optimizer(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = settings_of(monkeypatch, "--corpus", corpus_folder, "--weight-decay", 0.5)["schedule"].optimizer
    assert isinstance(optimizer, minidl.AdamW) and optimizer.weight_decay == 0.5


@pytest.mark.slow
def test_without_lr_every_optimizer_has_its_own(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {}
    for name in ("adam", "adagrad", "adadelta", "sgd"):
        seen = settings_of(monkeypatch, "--corpus", corpus_folder, "--optimizer", name)
        rates[name] = max(seen["schedule"].rate(step) for step in range(seen["epochs"] * seen["task"].steps))
    help_text = " ".join(run_program("train", "--help").out.split())
    for name, rate in rates.items():
        assert f"{name} {rate:g}" in help_text, "the help says so"


def test_the_protocol_in_small(here: Path) -> None:
    folder = write_corpus(here / "corpus", pseudo_poems(512))
    outcome = run_program("train", "--protocol", "report", "--corpus", folder, "--epochs", 2, "--out", "a")
    assert outcome.code == 0, outcome.err
    lines = jsonl(here / "a" / "metrics.jsonl")
    *epochs, last = lines
    fields = [*EPOCH_FIELDS, "report_cross_entropy", "report_perplexity"]
    assert [list(line) for line in epochs] == [fields] * 2
    for line in lines:
        assert line["report_perplexity"] == pytest.approx(2 ** line["report_cross_entropy"])
    assert last["selected_on_test"] is True
    best = min(epochs, key=lambda line: line["report_cross_entropy"])
    assert {name: last[name] for name in best} == best
    assert last["test_loss"] == pytest.approx(best["validation_loss"], rel=1e-6), "the honest figure of the same part"
    assert last["test_targets"] == sum(map(len, pseudo_poems(512)[256:])), "as many as characters: no pad counts"
    assert last["vocabulary_size"] > 3 and 0 <= last["unknown_rate"] < 1
    assert sorted(path.name for path in (here / "a").iterdir()) == FILES
    poems = outcome.out.splitlines()
    assert [poem[0] for poem in poems] == ["日", "紅", "山", "夜", "(", "(", "月"]
    _, vocabulary, facts = load_model(here / "a" / "model.safetensors")
    assert vocabulary.tokens[:3] == ["<end>", "<unknown>", "<pad>"] and facts["epoch"] == best["epoch"]


# Ways to end


def test_a_run_that_diverges_at_once_ends_in_one_line_and_leaves_the_folder_free(
    corpus_folder: Path, here: Path
) -> None:
    with np.errstate(all="ignore"):
        outcome = train(corpus_folder, "--lr", "1e300", "--out", "a")
    assert outcome.code == 2 and outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert (
        "train.py: error: training diverged after 1 steps: the gradient of head.bias is not finite; try a smaller"
        in last
    )
    assert last.endswith("; nothing was saved yet")
    assert tree(here / "a") == []
    assert train(corpus_folder, "--epochs", 1, "--out", "a").code == 0


def test_a_hopeless_run_is_reported_in_lines_of_ordinary_length(corpus_folder: Path) -> None:
    # its loss stays finite, and its perplexity has three hundred digits
    outcome = train(corpus_folder, "--lr", "1e6", "--out", "a")
    assert "Traceback" not in outcome.err and "Warning" not in outcome.err
    assert max(len(line.split("\r")[-1]) for line in outcome.err.splitlines()) < 200


def test_a_run_that_diverges_later_keeps_the_best_model(
    corpus_folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, epochs = training.evaluate, []

    def spoiled(*arguments: Any) -> training.RunningLoss:
        mean = evaluate(*arguments)
        epochs.append(1)
        if len(epochs) == 3:
            mean.real_nats = math.nan
        return mean

    monkeypatch.setattr(training, "evaluate", spoiled)
    outcome = train(corpus_folder, "--epochs", 5, "--out", "a")
    assert outcome.code == 2 and "diverged" in outcome.err.splitlines()[-1]
    assert [line["epoch"] for line in jsonl(here / "a" / "metrics.jsonl")] == [1, 2]
    assert load_model(here / "a" / "model.safetensors")[2]["epoch"] == 2


def test_the_file_keeps_the_best_epoch_though_later_ones_follow(
    corpus_folder: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate, epochs = training.evaluate, []

    def worse(*arguments: Any) -> training.RunningLoss:
        mean = evaluate(*arguments)
        epochs.append(1)
        mean.real_nats *= {3: 2, 4: 1.5}.get(len(epochs), 1)  # the fifth is of the test part
        return mean

    monkeypatch.setattr(training, "evaluate", worse)
    assert train(corpus_folder, "--epochs", 9, "--patience", 2, "--out", "a").code == 0
    *lines, last = jsonl(here / "a" / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    model, vocabulary, facts = load_model(here / "a" / "model.safetensors")
    assert facts["epoch"] == 2
    parts = tang.split(pseudo_poems(300))
    task = tasks.packed_task(parts, vocabulary, 32)
    assert evaluate(model, task.test).loss == pytest.approx(last["test_loss"], rel=1e-6)
    assert evaluate(model, task.validation).loss == pytest.approx(lines[1]["validation_loss"], rel=1e-6)


def test_a_full_disk_ends_in_one_line(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minidl.checkpoint, "_replace", full)
    outcome = train(corpus_folder, "--out", "a")
    assert outcome.code == 2 and outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert last.endswith("checkpoint.safetensors: cannot be written (No space left on device)")
    assert "Traceback" not in outcome.err


INTERRUPTIBLE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests without it
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def endless(corpus_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    forever = ["--epochs", "1000000", "--patience", "1000000", "--out", "a"]
    program = [PROGRAMS, PROGRAMS / "train.py", "--corpus", corpus_folder, *SMALL, *forever]
    command = [sys.executable, "-c", INTERRUPTIBLE, *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_ends_with_130_and_one_line_and_the_best_model_is_there(
    endless: subprocess.Popen[bytes], here: Path
) -> None:
    assert endless.stderr is not None
    while b"epoch  4  " not in (line := endless.stderr.readline()):
        assert line, "it ended by itself"
    endless.send_signal(signal.SIGINT)
    out, err = endless.communicate(timeout=60)
    assert (endless.returncode, out) == (130, b"")
    text = err.decode("utf-8")
    # "\r" begins a progress bar's line; what stays is the notes of the epochs until the signal, and one more
    notes = [line.split("\r")[-1].strip() for line in text.removesuffix("\n").split("\n")]
    assert "Traceback" not in text
    checkpoint = run_checkpoint.read(here / "a")
    assert checkpoint is not None
    assert notes[-1] == f"interrupted; step {checkpoint.steps} is saved in a, use --resume --out a to resume"
    assert text.endswith("\n") and text.count("interrupted") == 1
    assert all(" nats/char (perplexity " in note for note in notes[:-1]), notes
    lines = jsonl(here / "a" / "metrics.jsonl")
    assert len(lines) >= 4 and all(list(line) == EPOCH_FIELDS for line in lines)
    _, vocabulary, facts = load_model(here / "a" / "model.safetensors")
    assert len(vocabulary) == 14
    losses = [line["validation_loss"] for line in lines]
    assert facts["epoch"] == losses.index(min(losses)) + 1 and checkpoint.metadata["lines"] == lines
    assert [name for name in tree(here / "a") if "tmp" in name] == []


@pytest.mark.parametrize(
    ("error", "epochs", "kept"),
    [
        (MemoryError("Out of memory allocating 512 bytes\nmore"), 0, "nothing was saved yet"),
        (
            RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
            2,
            "step 18 is saved in a, use --resume --out a to resume",
        ),
    ],
)
def test_memory_that_runs_out_is_reported_with_a_remedy_and_loses_nothing(
    here: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, epochs: int, kept: str
) -> None:
    real, done = training.evaluate, []

    def full(*arguments: Any) -> training.RunningLoss:
        if len(done) == epochs:
            raise error
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate", full)
    outcome = run_program("train", "--corpus", corpus_folder, *SMALL, "--epochs", "5", "--out", "a")
    reason = f"out of memory ({str(error).splitlines()[0]}); a smaller --batch-size needs less; {kept}"
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == f"train.py: error: {reason}" and "Traceback" not in outcome.err
    if not epochs:
        assert tree(here) == []
        return
    assert len(jsonl(here / "a" / "metrics.jsonl")) == epochs
    load_model(here / "a" / "model.safetensors")


def test_another_error_of_a_gpu_is_not_taken_for_memory(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> training.RunningLoss:
        raise RuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(training, "train_step", broken)
    monkeypatch.setattr(sys, "argv", ["train.py", "--corpus", str(corpus_folder), *SMALL, "--out", "a"])
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        main()


def test_a_text_in_another_script_gets_poems_too(here: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["the moon", "a river", "of night", "in spring", "wine"]
    lines = {" ".join(rng.choice(words, 4)) for _ in range(400)}
    (here / "english.txt").write_text("\n".join(sorted(lines)), encoding="utf-8")
    outcome = run_program("train", "--text", "english.txt", "--epochs", 1, *SMALL, "--out", "a")
    assert outcome.code == 0, outcome.err
    written = outcome.out.split("\n")[:-1]
    assert len(written) == 7 and not any("not in this corpus" in poem for poem in written)


def test_pieces_of_a_long_line_count_once(here: Path) -> None:
    (here / "same.txt").write_text("月" * 100_000, encoding="utf-8")
    outcome = run_program("train", "--text", "same.txt", "--out", "a")
    assert outcome.code == 2 and "too few distinct poems: 1 / 0 / 0" in outcome.err


def test_the_pictures_are_there_though_nobody_reads_the_poems(corpus_folder: Path, here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, PROGRAMS / "train.py", "--corpus", corpus_folder, *SMALL, "--epochs", "1", "--out", "a"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(write)
    assert done.returncode == 0, done
    assert tree(here / "a") == FILES
