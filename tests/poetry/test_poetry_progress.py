"""Progress: a bar on a terminal, and a few short lines where standard error goes to a file."""

from __future__ import annotations

import io
from pathlib import Path

from common import progress
from common.progress import Progress

import pytest
from poetry_helpers import SMALL, prepared_folder, pseudo_poems, run_program


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that tqdm reads."""
    now = [1e9]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(Progress, "monitor_interval", 0)  # no thread that looks at the clock as well
    return now


def walk(clock: list[float], seconds: int) -> None:
    with Progress(total=seconds, unit="step", desc="epoch 1", leave=False) as bar:
        for _ in range(seconds):
            clock[0] += 1
            bar.set_postfix_str("5.432 nats/char", refresh=False)
            bar.update()


def test_a_log_gets_a_line_a_minute(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    walk(clock, 200)
    assert progress.sys.stderr.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "epoch 1: 30%, 60 of 200, 01:00 so far, 02:20 left, 5.432 nats/char",
        "epoch 1: 60%, 120 of 200, 02:00 so far, 01:20 left, 5.432 nats/char",
        "epoch 1: 90%, 180 of 200, 03:00 so far, 00:20 left, 5.432 nats/char",
    ]


def test_a_line_is_not_said_twice_where_a_bar_is_left(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    for _ in Progress(range(2), "GitHub", unit="file"):
        clock[0] += 61
    lines = progress.sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[-1].startswith("GitHub: 100%, 2 of 2") and len(lines) == len(set(lines))


def test_a_log_gets_nothing_of_short_work(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    walk(clock, 50)
    assert list(Progress(range(3), "GitHub", unit="file")) == [0, 1, 2]
    assert progress.sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_terminal_gets_a_bar(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    walk(clock, 50)
    written = progress.sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert written.count("\r") > 20 and "epoch 1:" in written and "\n" not in written


def test_the_programs_leave_no_bar_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared_folder(pseudo_poems(200))
    for arguments in (
        ("train", "--text", "text", *SMALL, "--epochs", 2, "--out", "a"),
        ("prepare", "--text", "text", "--out", "b"),
    ):
        outcome = run_program(*arguments)  # type: ignore[arg-type]
        assert outcome.code == 0 and "\r" not in outcome.err and "it/s" not in outcome.err
        assert len(outcome.err.splitlines()) <= 5, outcome.err
