"""docs/gpu.md says what docs/roofline.py computes, and what the code says: its tables, commands and links."""

from __future__ import annotations

import importlib.util
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from minidl.backend import device

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import side_floor  # noqa: E402
import sizes  # noqa: E402

PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def roofline() -> Any:
    spec = importlib.util.spec_from_file_location("roofline", ROOT / "docs" / "roofline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_tables_that_the_program_prints(roofline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 3
    assert [table for table in tables if table not in PAGE] == []


@pytest.mark.slow
def test_the_roofline_is_of_the_reports_model_and_has_all_its_products(roofline: Any) -> None:
    size = sizes.MODELS["report"]
    assert (size.batch, size.steps, size.embedding) == (roofline.BATCH, roofline.STEPS, roofline.EMBEDDING)
    assert (size.hidden, size.vocabulary) == (roofline.HIDDEN, roofline.VOCABULARY)
    expected = {part: product.flops for part, product in side_floor.products(size).items()}
    counted = dict.fromkeys(expected, 0)
    for call in roofline.calls():
        if call.flops:
            counted[call.part] += call.flops * call.times
    assert counted == expected
    assert f"= {sum(expected.values()) / 1e9:.0f} GFLOP" in PAGE
    weights = sum(values.size for values in sizes.weights(size).values())
    assert next(call.values for call in roofline.calls() if call.part == "optimizer") == 8 * weights


def test_a_call_takes_the_longer_of_its_work_and_its_bytes(roofline: Any) -> None:
    chip = roofline.Chip("", flops=100.0, bandwidth=8.0)
    assert roofline.Call("", flops=1000, values=2, times=3).seconds(chip) == 30
    assert roofline.Call("", flops=1000, values=40, times=3).seconds(chip) == 60
    assert roofline.product("", 2, 3, 5) == roofline.Call("", 60, 2 * 5 + 5 * 3 + 2 * 3)
    assert roofline.product("", 2, 3, 5, adds=True).values == 2 * 5 + 5 * 3 + 2 * 2 * 3


def test_the_peaks_and_assumptions_of_the_page_are_the_programs(roofline: Any) -> None:
    for chip in roofline.CHIPS:
        assert f"{chip.flops / 1e12:.1f} TFLOP/s" in PAGE and f"{chip.bandwidth / 1e9:,.0f} GB/s" in PAGE
    a_step, host = roofline.CALLS_A_STEP, roofline.HOST * 1e6
    assert f"The host needs {host:g} µs for a device call" in PAGE
    assert f"{a_step} x {host:g} = {a_step * host:g} µs" in PAGE
    total = (roofline.STEPS * a_step + roofline.OTHER_CALLS) * host / 1000
    assert f"(50 x {a_step} + {roofline.OTHER_CALLS}) x {host:g} µs = {total:.1f} ms" in PAGE


def test_every_link_of_the_page_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert len(links) >= 3
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    named = re.findall(r"python ((?:benchmarks|examples)/\S+\.py)", PAGE)
    assert {"benchmarks/gpu.py", "benchmarks/device_calls.py", "examples/poetry/train.py"} == set(named)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_extras_the_errors_and_the_page_want_the_same_packages() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for cuda, pin in device.PINS.items():
        name = f"cuda{cuda}x"
        assert name in PAGE
        assert pin.strip("'").replace(">=14,", ">=14.0,") == setup["options.extras_require"][name].strip()
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| CUDA {cuda} |"))
        assert f"| {device.DRIVERS[cuda]} or later |" in row
