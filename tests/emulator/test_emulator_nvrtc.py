"""Every kernel compiles for every GPU architecture that minidl names, and keeps its values in registers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import emulator
import pytest

pytestmark = pytest.mark.cupy
ARCHITECTURES = {"sm_70", "sm_80", "sm_90", "sm_100"}


def compile_all(*arguments: str) -> dict[str, dict[str, Any]]:
    done = emulator.run(Path(__file__).with_name("compile_all.py"), *arguments)
    assert done.returncode == 0, done.stderr
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert answers and all(each.keys() == ARCHITECTURES for each in answers.values())
    return answers


def test_all_kernels_for_all_architectures() -> None:
    if importlib.util.find_spec("minidl.kernels.cuda") is None:
        pytest.skip("minidl has no kernels of its own")
    answers = compile_all()
    for dtype in ("float32", "float64"):
        assert any(name.endswith(dtype) for name in answers)
    each = {f"{name} for {a}": answer for name, several in answers.items() for a, answer in several.items()}
    assert not {name: answer["error"] for name, answer in each.items() if "error" in answer}
    spilled = [name for name, answer in each.items() if answer["spilled"]]
    assert not spilled, "values that do not fit into registers are spilled to slow memory"


def test_an_error_is_seen_on_every_architecture() -> None:
    (answers,) = compile_all("--refused").values()
    assert all("INFINITY" in answer["error"] for answer in answers.values())
