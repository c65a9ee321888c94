"""A program whose packages are not installed says so in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

POETRY = Path(__file__).parents[2] / "examples" / "poetry"


@pytest.mark.parametrize("program", ["train", "generate", "report", "evaluate_verse"])
def test_missing_packages_are_reported_with_the_remedy(program: str) -> None:
    command = [sys.executable, "-S", "-E", str(POETRY / f"{program}.py")]  # -S: without site-packages
    outcome = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"{program}.py: error: numpy, ")
    assert "tqdm" in line and "pip install -e '.[poetry]'" in line
