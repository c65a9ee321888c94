"""train.py --tensorboard: the curves of metrics.jsonl as events, each step once however often a run is resumed."""

from __future__ import annotations

import importlib.util
import struct
import time
import uuid
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import cli
from learning import curves_log, run_checkpoint

import numpy as np
import pandas as pd
import pytest
from poetry_helpers import SMALL, alone_in, jsonl, pseudo_poems, refused, run_program, tree, write_corpus
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

OPTIONS = ("--corpus", "corpus", *SMALL, "--epochs", 3, "--seed", 5, "--max-length", 60)
EPOCH = {
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "perplexity/validation": "validation_perplexity",
    "chars_per_second": "chars_per_second",
}
TEST = {
    "loss/test": "test_loss",
    "perplexity/test": "test_perplexity",
    "loss/short_test": "short_test_loss",
    "perplexity/short_test": "short_test_perplexity",
}
Curves = dict[str, dict[int, float]]  # values by step, by tag


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in with nothing but a corpus; nothing is downloaded or drawn."""
    alone_in(tmp_path, monkeypatch)
    write_corpus(tmp_path / "corpus", pseudo_poems(300))


def events(file: Path) -> list[Event]:
    """A file's records: the length, its checksum, an Event, its checksum."""
    content, found = file.read_bytes(), []
    while content:
        (length,), (crc,) = struct.unpack("<Q", content[:8]), struct.unpack("<I", content[8:12])
        data, (data_crc,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
        assert (crc, data_crc) == (masked_crc32c(content[:8]), masked_crc32c(data))
        found.append(Event.FromString(data))
        content = content[16 + length :]
    return found


def curves(folder: Path | str) -> Curves:
    """What TensorBoard shows: a START event drops everything from its step on. After that no step may occur twice."""
    shown: Curves = defaultdict(dict)
    for file in sorted(Path(folder).glob("events.out.tfevents.*")):
        first, *others = events(file)
        assert first.file_version == "brain.Event:2"
        for event in others:
            if event.session_log.status == SessionLog.START:
                for values in shown.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                assert event.step not in shown[value.tag], f"{value.tag} twice at {event.step}"
                shown[value.tag][event.step] = value.simple_value
    return {tag: values for tag, values in shown.items() if values}


def of_metrics(path: Path | str) -> Curves:
    """The same out of metrics.jsonl, in float32."""
    found: Curves = defaultdict(dict)
    for step, line in enumerate(jsonl(Path(path)), start=1):
        for tag, name in (TEST if "test_loss" in line else EPOCH).items():
            if name in line:
                found[tag][step] = float(np.float32(line[name]))
    return found


def test_the_events_are_the_lines_of_the_metrics() -> None:
    outcome = run_program("train", *OPTIONS, "--out", "run", "--tensorboard", "logs/run")
    assert outcome.code == 0, outcome.err
    found = curves("logs/run")
    assert found == of_metrics("run/metrics.jsonl")
    steps = {tag: list(values) for tag, values in found.items()}
    assert steps == {tag: [1, 2, 3] for tag in EPOCH} | {tag: [4] for tag in list(TEST)[:2]}
    assert "tensorboard" not in (run_checkpoint.read(Path("run")).metadata["arguments"])  # type: ignore[union-attr]


def test_under_the_reports_protocol_the_test_figures_come_last_too() -> None:
    options = ("--protocol", "report-rows", "--corpus", "corpus", *SMALL, "--epochs", 2)
    assert run_program("train", *options, "--out", "run", "--tensorboard", "logs").code == 0
    found = curves("logs")
    assert list(found["loss/train"]) == [1, 2] and list(found["loss/test"]) == [3]


class Killed(BaseException):
    """Nobody catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_that_continues_has_every_step_once(epoch: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right before the epoch's checkpoint, when its events are written already, or right after."""
    save, saved = run_checkpoint.save, []

    def killed(*arguments: Any) -> None:
        saved.append(1)
        if len(saved) < epoch or when == "after":
            save(*arguments)
        if len(saved) == epoch:
            raise Killed

    options = ("--out", "run", "--tensorboard", "logs")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_checkpoint, "save", killed)
        run_program("train", *OPTIONS, *options)
    assert list(curves("logs")["loss/train"]) == list(range(1, epoch + 1))
    for _ in range(2):  # the second time the run is at its end already
        outcome = run_program("train", *OPTIONS, "--resume", *options)
        assert outcome.code == 0, outcome.err
        shown, metrics = curves("logs"), of_metrics("run/metrics.jsonl")
        speeds = shown.pop("chars_per_second"), metrics.pop("chars_per_second")
        assert shown == metrics and list(speeds[0]) == list(speeds[1]) == [1, 2, 3]


def test_a_run_that_continues_in_a_new_folder_is_whole_there() -> None:
    assert run_program("train", *OPTIONS, "--out", "run").code == 0
    assert run_program("train", "--resume", "--out", "run", "--tensorboard", "logs").code == 0
    assert curves("logs") == of_metrics("run/metrics.jsonl")


def test_each_line_is_on_the_disk_at_once_and_two_files_of_a_second_are_two(tmp_path: Path) -> None:
    line = {"train_loss": 1.5, "epoch": 1, "seconds": 2.0}
    with curves_log.event_log(tmp_path / "logs", [], False) as log:
        assert list((tmp_path / "logs").iterdir()) == []
        log(line)
        assert curves(tmp_path / "logs") == {"loss/train": {1: 1.5}}
        log({"epoch": 1, "train_loss": 9.0, "test_loss": 2.5, "short_test_perplexity": 3.5})
        assert list(curves(tmp_path / "logs")) == ["loss/train", "loss/test", "perplexity/short_test"]
    for _ in range(2):
        with curves_log.event_log(tmp_path / "logs", [line], True) as log:
            log({"train_loss": 1.25})
    assert curves(tmp_path / "logs") == {"loss/train": {1: 1.5, 2: 1.25}}
    assert len(list((tmp_path / "logs").iterdir())) == 3


def test_files_of_one_second_are_read_in_the_order_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the random part of their names: a run was killed before its first checkpoint, and begun again."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for digit, loss in (("f", 1.5), ("0", 1.25)):
        monkeypatch.setattr(uuid, "uuid4", lambda digit=digit: SimpleNamespace(hex=digit * 32))
        with curves_log.event_log(tmp_path / "logs", [], True) as log:
            log({"train_loss": loss})
    assert curves(tmp_path / "logs") == {"loss/train": {1: 1.25}}


@pytest.mark.slow
def test_what_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_bytes(b"")
    Path("taken").mkdir()
    Path("taken/events.out.tfevents.1.host").write_bytes(b"")
    before = tree(tmp_path)
    for folder, words in {
        "file": "cannot be written",
        "file/deeper": "cannot be written",
        "a" * 300: "cannot be written",
        "taken": "already holds a run",
    }.items():
        outcome = run_program("train", *OPTIONS, "--out", "run", "--tensorboard", folder)
        told = [line for line in outcome.err.splitlines() if ": error: " in line]
        assert outcome.code == 2 and len(told) == 1 and f"--tensorboard {Path(folder)} {words}" in told[0], outcome
        assert tree(tmp_path) == before and "epoch" not in outcome.err
    find = importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    told = refused(run_program("train", *OPTIONS, "--out", "run", "--tensorboard", "logs"), "tensorboardX")
    assert "pip install -e '.[tensorboard]'" in told and tree(tmp_path) == before


def test_pandas_reads_the_metrics_in_one_line() -> None:
    assert run_program("train", *OPTIONS, "--out", "runs/1").code == 0
    lines = jsonl(Path("runs/1/metrics.jsonl"))
    table = pd.read_json("runs/1/metrics.jsonl", lines=True)
    assert len(table) == 4
    assert table["validation_loss"].dropna().tolist() == pytest.approx([line["validation_loss"] for line in lines[:3]])
    assert table["test_loss"].dropna().tolist() == pytest.approx([lines[3]["test_loss"]])
