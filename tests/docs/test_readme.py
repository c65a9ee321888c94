"""README.md is run: its code gives the output that it shows, and its commands and paths exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PROGRAM = re.compile(r"python examples/poetry/(\w+)\.py([^\n&]*)")


def test_the_code_prints_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    languages = [language for language, _ in BLOCKS]
    place = languages.index("python")
    assert languages[place + 1] == "text"
    exec(compile(BLOCKS[place][1], "README.md", "exec"), {})
    assert capsys.readouterr().out == BLOCKS[place + 1][1]


def test_every_command_line_is_one_that_the_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [match for language, block in BLOCKS if language == "sh" for match in PROGRAM.findall(block)]
    assert {program for program, _ in commands} == {
        *("train", "prepare", "generate", "report", "evaluate_verse", "shrink", "export"),
    }
    for program, arguments in commands:
        words = shlex.split(arguments, comments=True)
        monkeypatch.setattr("sys.argv", [f"{program}.py", *words])
        importlib.import_module(program).parse_arguments()  # exits on an unknown argument


def test_every_path_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"\]\(([^)#:]+)\)", README))  # links and pictures within the repository
    named |= set(re.findall(r"`((?:minidl|examples|tests|docs|benchmarks)/[\w./-]*)`", README))
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_two_commands_set_up_what_they_need() -> None:
    lines = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    fresh = [line for line in lines if line.startswith("python3 -m venv .venv && .venv/bin/pip install")]
    assert len(fresh) == 2
    assert "examples/poetry/train.py" in fresh[0]
    assert fresh[1].endswith("-m pytest -n auto")
