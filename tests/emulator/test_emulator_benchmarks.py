"""The GPU benchmarks on the emulator: what they count, and that they do not mistake it for a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import emulator
import pytest
from emulator_build import ROOT

pytestmark = pytest.mark.cupy
SIZES = ("--vocabulary", "30", "--embedding", "4", "--hidden", "8", "--batch", "6", "--steps", "5")


@pytest.mark.parametrize("model", ["report", "word"])
def test_device_calls_stay_within_the_budget(model: str) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "device_calls.py", "--model", model, *SIZES, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    layers = {"report": 1, "word": 2}[model]
    for part in ("LSTM forward", "LSTM backward"):
        assert result["parts"][part]["per_time_step"]["device_calls"] == 2 * layers
    assert result["per_time_step"]["device_calls"] == 4 * layers
    assert 0 < result["rest"]["device_calls"] <= 40
    step = result["figures"]["minidl"]
    assert (step["syncs"], step["allocations"], step["copies_to_host"], step["copies_to_device"]) == (0, 0, 0, 1)
    assert result["host_seconds"] > 0


def test_the_emulator_is_not_taken_for_a_gpu() -> None:
    done = emulator.run(ROOT / "benchmarks" / "gpu.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "CPU emulator (not a GPU)" in done.stderr
    done = emulator.run("-m", "minidl.backend")
    assert (done.returncode, done.stderr) == (0, "")
    assert "this is not a GPU" in done.stdout and "matrix product are correct" in done.stdout
