"""All of tests/gpu on the emulator, once per mode."""

from __future__ import annotations

import json
from pathlib import Path

import emulator
import pytest
from emulator_build import ROOT

pytestmark = pytest.mark.cupy
SUITE = ROOT / "tests" / "gpu"


@pytest.mark.parametrize("mode", ["plain", "reversed", "deferred", "guarded"])
def test_the_suite_of_a_device(mode: str) -> None:
    # --capture=sys: the driver's messages on stderr appear at once, even if the process then dies
    options: list[object] = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--capture=sys"]
    options += ["--ignore", SUITE / "test_gpu_hardware.py"]
    done = emulator.run("-m", "pytest", *options, SUITE, mode=mode)
    print(done.stdout)  # the largest differences, for `pytest -m cupy -rP`
    if done.returncode:
        pytest.fail(f"on the emulator, {mode}:\n{done.stdout}\n{done.stderr}", pytrace=False)
    *_, last = done.stdout.splitlines()
    assert " passed" in last and "skipped" not in last, last


def test_training_gives_the_same_bits_whatever_the_order_of_threads() -> None:
    """Sums by atomic additions would fail: threads reach them in a different order on every run."""
    done = [emulator.run(Path(__file__).with_name("bits.py"), mode=mode) for mode in ("plain", "reversed")]
    assert all(each.returncode == 0 for each in done), done
    plain, turned = (json.loads(each.stdout) for each in done)
    assert len(set(plain.values())) == len(plain) == 6
    assert plain == turned
