"""report.py as a user runs it, with few units and a tiny corpus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from corpus import download
from learning import protocol, training
from learning.training import Trainer
from model import load_model
from verse.judging import judge

import numpy as np
import pytest
from poetry_helpers import (
    Outcome,
    jsonl,
    never,
    png_size,
    pseudo_poems,
    refused,
    run_program,
    tree,
    weights,
    write_corpus,
)

import minidl

FILES = [
    *("adadelta.safetensors", "adagrad.safetensors", "adam.safetensors", "metrics.jsonl"),
    *("optimizers.png", "poems.png", "report.md", "starts.png"),
]
RUNS = ["Adam", "AdaGrad", "Adadelta", "all weights 0", "all weights 0.05"]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report's experiment with 8 hidden units and batches of 8."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "cached", never("the download"))
    monkeypatch.setattr(protocol, "HIDDEN_SIZE", 8)
    monkeypatch.setattr(protocol, "EMBEDDING_SIZE", 6)
    monkeypatch.setattr(protocol.report_task, "__defaults__", (8, 50))
    return write_corpus(tmp_path / "corpus", pseudo_poems(60))


def report(*arguments: object) -> Outcome:
    return run_program("report", "--corpus", "corpus", *arguments)


def table_under(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its ruler left out."""
    rows = re.findall(r"^\| (.*) \|$", text.split(f"## {heading}\n")[1].split("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows if not row.startswith("---")]


def test_the_whole_report(tmp_path: Path) -> None:
    outcome = report("--epochs", 6, "--out", "a", "--seed", 2)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "", "standard output is for poems"
    assert outcome.err.endswith(f"the report is {Path('a', 'report.md')}\n")
    assert tree(tmp_path / "a") == FILES

    lines = jsonl(tmp_path / "a" / "metrics.jsonl")
    assert list(dict.fromkeys(line["run"] for line in lines)) == RUNS
    assert all(line["report_perplexity"] == 2 ** line["report_cross_entropy"] for line in lines)
    last = {line["run"]: line for line in lines}
    text = (tmp_path / "a" / "report.md").read_text(encoding="utf-8")
    for name in ("optimizers.png", "starts.png"):
        assert f"]({name})" in text
    for name in ("optimizers.png", "starts.png", "poems.png"):
        assert min(png_size(tmp_path / "a" / name)) > 100 and (tmp_path / "a" / name).stat().st_size > 5000

    head, *rows = table_under(text, "Three optimizers")
    assert head[0] == "epoch" and head[1:] == ["1", "2", "4", "6", "8", "10", "12", "13", "14", "20", "30"]
    assert [row[0] for row in rows[:6]] == [
        "Adam",
        "the report",
        "AdaGrad",
        "the report",
        "Adadelta",
        "the report",
    ]
    assert " ".join(rows[1][1:]) == "5.35 5.10 4.81 4.61 4.49 4.41 4.38 4.37 4.37  "
    first = next(line for line in lines if line["run"] == "Adam" and line["epoch"] == 1)
    assert rows[0][1] == f"{first['report_cross_entropy']:.3f}"

    head, *rows = table_under(text, "Where training starts")
    assert [row[0] for row in rows] == ["as the report starts", "all weights 0", "all weights 0.05"]
    assert [row[-1] for row in rows] == ["8", "1", "1"], "hidden units that do something of their own"
    assert rows[1][-2] == f"{last['all weights 0']['validation_loss']:.3f}"

    head, *rows = table_under(text, "Seven poems")
    assert [row[0] for row in rows] == list("日紅山夜湖海月")
    assert [row[1] for row in rows] == list(protocol.POEMS)
    for start, _, *ours in rows:
        assert len(ours) == 3
        assert all(poem == "(not in this corpus)" if start in "湖海" else poem[0] == start for poem in ours)
    head, *rows = table_under(text, "Poems that keep a form")
    assert head == ["the report", "五絕", "七絕"]
    for start, (reported, *ruled) in zip("日紅山夜湖海月", rows, strict=True):
        assert reported in protocol.POEMS and [poem[0] for poem in ruled] == [start, start]
        assert [judge(poem).shape for poem in ruled] == ["五絕", "七絕"] and all(judge(poem).kept for poem in ruled)


@pytest.mark.slow
def test_every_run_has_the_reports_settings_and_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(trainer: Trainer, epochs: int, patience: int) -> Any:
        model, schedule = trainer.model, trainer.schedule
        optimizer = schedule.optimizer
        options = {"epochs": epochs, "patience": patience, "pads_count": trainer.pads_count}
        rates = {schedule.rate(step) for step in range(50)}
        values = np.unique(np.concatenate([parameter.data.ravel() for parameter in model.parameters()]))
        start = values.tolist() if len(values) == 1 else weights(model)
        seen.append((type(optimizer), rates, start, options))
        return real(trainer, epochs, patience)

    real = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", spy)
    assert report("--epochs", 7, "--out", "a", "--seed", 4).code == 0
    adam, adagrad, adadelta, zeros, equal = seen
    assert [run[0] for run in seen] == [
        minidl.Adam,
        minidl.AdaGrad,
        minidl.Adadelta,
        minidl.Adam,
        minidl.Adam,
    ]
    assert [run[1] for run in seen] == [{0.005}, {0.01}, {0.5}, {0.005}, {0.005}]
    assert adam[2] == adagrad[2] == adadelta[2], "all three start from the same weights"
    assert zeros[2] == [0.0] and equal[2] == [np.float32(0.05)]
    assert [run[3]["epochs"] for run in seen] == [7, 7, 7, 5, 5]
    for *_, options in seen:
        assert (options["patience"], options["pads_count"], options.get("clip")) == (1, True, None)


@pytest.mark.slow
def test_its_models_can_be_used(tmp_path: Path) -> None:
    report("--epochs", 1, "--out", "a")
    for name in ("adam", "adagrad", "adadelta"):
        model, vocabulary, facts = load_model(tmp_path / "a" / f"{name}.safetensors")
        assert model.settings["hidden_size"] == 8 and facts["max_length"] == 10 and "月" in vocabulary
    outcome = run_program("generate", "--model", "a/adam.safetensors", "--start", "红", "--argmax")
    assert outcome.code == 0 and outcome.out.startswith("紅")


@pytest.mark.slow
def test_it_does_not_say_of_more_epochs_than_there_were(tmp_path: Path) -> None:
    report("--epochs", 1, "--out", "a")
    text = (tmp_path / "a" / "report.md").read_text(encoding="utf-8")
    assert "after 5 epochs" not in text


@pytest.mark.slow
def test_reports_are_numbered_apart_from_runs_and_never_written_over(tmp_path: Path) -> None:
    assert report("--epochs", 1).code == 0
    assert tree(tmp_path / "runs" / "report-1") == FILES
    refused(report("--epochs", 1, "--out", "runs/report-1"), "--out", "holds a run")


@pytest.mark.slow
def test_a_corpus_without_any_of_the_seven_characters_still_gets_its_report(tmp_path: Path) -> None:
    swap = str.maketrans("日月山夜紅", "戊己庚辛壬")
    write_corpus(tmp_path / "other", [poem.translate(swap) for poem in pseudo_poems(60)])
    outcome = run_program("report", "--corpus", "other", "--epochs", 1, "--out", "a")
    assert outcome.code == 0, outcome.err
    rows = table_under((tmp_path / "a" / "report.md").read_text(encoding="utf-8"), "Seven poems")[1:]
    assert {cell for row in rows for cell in row[2:]} == {"(not in this corpus)"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    texts = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        report("--epochs", 1, "--out", out, "--seed", seed)
        lines = jsonl(tmp_path / out / "metrics.jsonl")
        texts.append([(line["run"], line["validation_loss"]) for line in lines])
    assert texts[0] == texts[1] != texts[2]


def test_too_few_poems_are_reported_in_one_line_and_nothing_stays(tmp_path: Path) -> None:
    write_corpus(tmp_path / "few", pseudo_poems(8))
    message = refused(run_program("report", "--corpus", "few", "--out", "a"), "8 poems are too few")
    assert message.startswith("report.py: error: ")
    assert not (tmp_path / "a").exists()


def full(*_: object) -> Any:
    raise MemoryError("Out of memory allocating 512 bytes")


@pytest.mark.parametrize(
    ("place", "name", "kept"),
    [(training, "evaluate", "nothing was finished"), (minidl.AdaGrad, "__init__", "what was finished is in a")],
)
def test_memory_that_runs_out_loses_nothing(
    place: object, name: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, full)
    outcome = report("--epochs", 1, "--out", "a")
    reason = f"out of memory (Out of memory allocating 512 bytes); stop other programs that use it; {kept}"
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == f"report.py: error: {reason}" and "Traceback" not in outcome.err
    assert (tmp_path / "a" / "adam.safetensors").exists() == (tmp_path / "a").exists() == (kept[0] == "w")


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["cp936", "cp950", "ascii"])
def test_a_terminal_that_lacks_its_characters_costs_nothing(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", wanted)
    outcome = report("--epochs", 1, "--out", "紙")
    shown = "紙".encode(wanted, "replace").decode(wanted)
    assert outcome.code == 0 and Path(shown, "report.md").as_posix() in outcome.err.replace("\\", "/"), outcome
    assert "日" in Path("紙", "report.md").read_text(encoding="utf-8")
