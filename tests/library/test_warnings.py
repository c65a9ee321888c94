"""Which warnings fail a test: those from this project's code, not from other packages."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

PLUGIN = """
import warnings


def pytest_configure(config):
    warnings.warn("beside xdist I do nothing")
"""


@pytest.mark.parametrize("module", [__name__, "minidl", "minidl.layers.lstm", "train", "harness", "__main__"])
def test_a_warning_about_our_code_is_an_error(module: str) -> None:
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)


@pytest.mark.parametrize("module", ["pytest_benchmark.logger", "minidle", "trainer", "matplotlib.pyplot", "numpy.lib"])
def test_a_warning_about_anothers_is_none(module: str) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)
    assert [str(warning.message) for warning in found] == ["old"]


def test_what_numpy_warns_of_in_its_own_modules_is_our_doing() -> None:
    with pytest.raises(RuntimeWarning, match="empty"):
        np.mean(np.empty(0))


@pytest.mark.slow
def test_a_plugin_that_warns_as_it_starts_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    test = f"{__file__}::test_what_numpy_warns_of_in_its_own_modules_is_our_doing"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "noisy", "-p", "no:cacheprovider", "-n", "1", test]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, encoding="utf-8", timeout=120)
    assert ended.returncode == 0 and "1 passed" in ended.stdout and "beside xdist" in ended.stderr, ended
