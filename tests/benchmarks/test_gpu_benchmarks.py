"""benchmarks/device_calls.py and gpu.py, where there is neither a GPU nor the emulator: their sums and refusals."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import device_double
import pytest
from helpers import refuses
from test_benchmarks import BENCHMARKS, FIELDS, run

from minidl.backend import device

import device_calls  # isort: skip (test_benchmarks has put its folder on the path)
import gpu  # isort: skip
import sizes  # isort: skip
from processes import BenchmarkError  # isort: skip

SMALL = sizes.MODELS["report"]._replace(vocabulary=20, embedding=3, hidden=6, batch=4, steps=5)


@pytest.fixture
def broken_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CuPy that no process of this test can import."""
    (tmp_path / "cupy.py").write_text("raise OSError('no CUDA here')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


class FakeTrace:
    """In place of the emulator's: counts what the test puts into `made` while it is open."""

    def __init__(self) -> None:
        self.made: list[str] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Any]:
        calls, before = types.SimpleNamespace(), len(self.made)
        yield calls
        for name in (*device_calls.CALLS, *device_calls.OTHERS):
            setattr(calls, name, self.made[before:].count(name))


def test_calls_are_counted_by_the_part_that_ends_at_each_mark() -> None:
    trace = FakeTrace()
    counter = device_calls.Counter(trace)

    def step() -> None:
        trace.made += ["fills"]
        counter.mark("optimizer")
        trace.made += ["launches", "products", "launches", "syncs"]
        counter.mark("LSTM forward")
        trace.made += ["copies_to_device", "copies_on_device"]
        counter.mark("head and loss")
        trace.made += ["launches"]
        counter.mark("optimizer")

    step()  # warming up counts nothing
    parts = counter.of(step)
    assert parts.keys() == set(device_calls.PARTS)
    some = {
        part: {name: n for name, n in counts.items() if n} for part, counts in parts.items() if any(counts.values())
    }
    assert some == {
        "optimizer": {"device_calls": 2, "fills": 1, "launches": 1},
        "LSTM forward": {"device_calls": 3, "launches": 2, "products": 1, "syncs": 1},
        "head and loss": {"device_calls": 1, "copies_to_device": 1, "copies_on_device": 1},
    }
    assert counter.of(step) == parts, "a second count begins at zero"


def pretended(size: sizes.Size) -> dict[str, Any]:
    """What `count` gives for a model that asks 2 launches and 2 products a time step, and 7 fills and an upload."""
    parts = {part: dict.fromkeys(device_calls.COUNTS, 0) for part in device_calls.PARTS}
    steps = size.steps
    parts["LSTM forward"] = parts["LSTM forward"] | {
        "device_calls": 4 * steps,
        "launches": 2 * steps,
        "products": 2 * steps,
    }
    parts["optimizer"] = parts["optimizer"] | {"device_calls": 7, "fills": 7, "copies_to_device": 1}
    return {"parts": parts, "versions": {"Python": "3"}, "host_seconds": 0.00123}


def test_the_time_steps_share_is_reported_from_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_calls, "count", pretended)
    monkeypatch.setattr(sys, "argv", ["device_calls.py", "--steps", "10", "--json"])
    device_calls.main()
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [field for field in FIELDS if field not in result] == []
    assert result["ours"] == 47 and result["steps"] == 10 and result["ratio"] is None
    assert result["figures"]["minidl"]["device_calls"] == 47 and result["host_seconds"] == 0.00123
    assert (result["per_time_step"]["device_calls"], result["rest"]["device_calls"]) == (4, 7)
    assert (result["per_time_step"]["launches"], result["rest"]["fills"], result["rest"]["copies_to_device"]) == (
        2,
        7,
        1,
    )
    forward = result["parts"]["LSTM forward"]
    assert (forward["step"]["products"], forward["per_time_step"]["products"], forward["rest"]["products"]) == (
        20,
        2,
        0,
    )
    rows = {line[:20].strip(): line[20:].split() for line in err.splitlines()}
    assert rows["LSTM forward"][:6] == ["40", "4", "0", "20", "20", "0"]
    assert rows["step"][:3] == ["47", "4", "7"]
    assert "took 1.23 ms" in err


class Unavailable(Exception):
    """As the emulator's."""


def fake_emulator(python: Any = lambda: sys.executable) -> types.SimpleNamespace:
    def environment(mode: str) -> dict[str, str]:
        return {**os.environ, "MODE": mode}

    return types.SimpleNamespace(python=python, environment=environment, Unavailable=Unavailable)


def unavailable() -> str:
    raise Unavailable("there is no g++")


def test_without_the_emulator_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "emulator", None)
    with refuses(BenchmarkError, "the emulator", "tests"):
        device_calls.count(SMALL)
    monkeypatch.setitem(sys.modules, "emulator", fake_emulator(unavailable))
    with refuses(BenchmarkError, "cannot be built", "there is no g++"):
        device_calls.count(SMALL)


def test_what_ends_the_counting_process_is_reported(
    broken_cupy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python that counts is this one, which has no CuPy."""
    (tmp_path / "emulator.py").write_text("trace = None", encoding="utf-8")  # for that process
    monkeypatch.setitem(sys.modules, "emulator", fake_emulator())
    with refuses(BenchmarkError, "nothing was counted", "no CUDA here"):
        device_calls.count(SMALL)


def test_the_counting_process_is_given_the_size_and_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is the last line that it prints."""
    seen: list[Any] = []

    def start(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append((sizes.Size(**json.loads(command[-1])), env["MODE"]))
        return subprocess.CompletedProcess(command, 0, 'something else\n{"parts": {}, "versions": {}}\n', "")

    monkeypatch.setitem(sys.modules, "emulator", fake_emulator())
    monkeypatch.setattr(subprocess, "run", start)
    assert device_calls.count(SMALL) == {"parts": {}, "versions": {}}
    assert seen == [(SMALL, "idle")]


def test_gpu_without_cupy_ends_in_one_line(broken_cupy: None) -> None:
    out, err = run("gpu", code=2)
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("gpu.py: error: backend 'cupy' ") and ("no CUDA here" in err or "pip uninstall" in err)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    return device_double.install(monkeypatch)


def test_gpu_does_not_call_the_emulator_a_gpu(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cupy.cuda.runtime.getDeviceProperties = lambda _: {"name": b"CPU emulator (not a GPU)"}
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("gpu.py: error: CPU emulator (not a GPU): ")


def test_a_gpu_is_named_with_its_driver(cupy: Any) -> None:
    assert gpu.facts() == {
        "name": "a double of a GPU",
        "compute_capability": "8.0",
        "driver": "12.9",
        "runtime": "12.9",
        "memory": 4 * 2**30,
    }
    assert device.EMULATOR == "CPU emulator (not a GPU)", "the name that the emulator's driver gives"


@pytest.mark.parametrize("option", ["--sides", "--threads", "--batches"])
def test_options_that_gpu_does_not_take(option: str) -> None:
    _, err = run("gpu", option, {"--sides": "minidl", "--threads": "2", "--batches": "0"}[option], code=2)
    assert option in err.splitlines()[-1]


class FakeEvent:
    """A CUDA event of a device that is done with each thing when the test says."""

    now = 0.0

    def record(self) -> None:
        self.stamp = FakeEvent.now

    def synchronize(self) -> None:
        self.waited = True


def test_the_events_between_two_marks_are_a_parts_time() -> None:
    clock = gpu.EventClock(FakeEvent, lambda before, after: after.stamp - before.stamp)
    clock.mark("optimizer")  # before any step that is timed
    for forward in (3.0, 5.0, 10.0):
        clock.begin()
        for part, milliseconds in (("optimizer", 1.0), ("LSTM forward", forward), ("optimizer", 2.0)):
            FakeEvent.now += milliseconds
            clock.mark(part)
        FakeEvent.now += 100  # between the steps
    last = clock.steps[-1][-1][1]
    medians = clock.medians()
    assert last.waited
    assert {part: round(seconds, 9) for part, seconds in medians.items() if seconds} == {
        "optimizer": 0.003,
        "LSTM forward": 0.005,
    }
    assert medians.keys() == set(gpu.PARTS) and clock.steps == []


@pytest.mark.parametrize("counted", [True, False])
def test_the_table_of_a_gpu(counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(size: sizes.Size) -> dict[str, Any]:
        raise BenchmarkError("there is no g++")

    monkeypatch.setattr(device_calls, "count", pretended if counted else none)
    left_out: dict[str, str] = {}
    args = types.SimpleNamespace(model="report", vocabulary=None, embedding=None, hidden=None, batch=None, steps=10)
    calls = gpu.calls(args, [64, 256], left_out)  # type: ignore[arg-type]
    assert left_out == ({} if counted else {"device calls": "there is no g++"})
    turn = {"rate": 1234567.0, "step": 0.01, "host": 0.002, **dict.fromkeys(gpu.PARTS, 0.001)}
    facts = {"name": "GPU X", "compute_capability": "9.0", "driver": "13.0", "runtime": "12.9", "memory": 80 * 2**30}
    result = {"gpu": facts, "figures": {"batch 64": turn, "batch 256": turn}, "calls": calls, "left_out": left_out}
    text = gpu.table({**result, "rounds": 3, "versions": {"CuPy": "14"}})
    rows = text.splitlines()
    assert rows[0] == "GPU X, compute capability 9.0, 80 GiB; driver for CUDA 13.0, CuPy's CUDA 12.9"
    assert rows[2].split() == ["characters", "a", "second", "1,234,567", "1,234,567"]
    assert rows[3].split()[-2:] == (["47", "47"] if counted else ["-", "-"])
    assert ("device calls is left out: there is no g++" in rows) is not counted
