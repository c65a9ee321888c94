"""Progress: a bar on a terminal, and a few short lines where standard error goes to a file."""

from __future__ import annotations

import io
import re

import progress
import pytest
from poetry_helpers import SMALL, prepared_folder, pseudo_poems, run_program
from progress import Progress


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
    lines = progress.sys.stderr.getvalue().split("\n")  # type: ignore[attr-defined]
    assert len(lines) in (3, 4, 5) and lines[-1] == ""
    pattern = r"epoch 1: \d+%, \d+ of 200, 0\d:\d\d so far, 0\d:\d\d left, 5.432 nats/char"
    assert [line for line in lines[:-1] if not re.fullmatch(pattern, line)] == []


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


def test_the_programs_leave_no_bar_in_a_log(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    prepared_folder(pseudo_poems(200))
    for arguments in (
        ("train", "--text", "text", *SMALL, "--epochs", 2, "--out", "a"),
        ("prepare", "--text", "text", "--out", "b"),
    ):
        outcome = run_program(*arguments)  # type: ignore[arg-type]
        assert outcome.code == 0 and "\r" not in outcome.err and "it/s" not in outcome.err
        assert len(outcome.err.splitlines()) <= 5, outcome.err
