"""The budget of a step: device calls, waits of the host, memory from the driver. All counted exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import emulator
import pytest

pytestmark = pytest.mark.cupy
OPTIMIZERS = ["sgd", "adagrad", "adadelta", "adam"]
SHORT, LONG = 4, 9  # time steps


@pytest.fixture(scope="module")
def counts() -> Any:
    done = emulator.run(Path(__file__).with_name("counting.py"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def a_time_step(short: dict[str, Any], long: dict[str, Any]) -> float:
    """Device calls for each additional time step."""
    return float(long["device_calls"] - short["device_calls"]) / (LONG - SHORT)


def nothing_waits(step: dict[str, Any]) -> None:
    found = {name: step[name] for name in ("syncs", "copies_to_host", "allocations", "host_allocations")}
    assert not any(found.values()), (found, step["record"])


@pytest.mark.parametrize("direction", ["forward", "inference", "backward"])
def test_a_time_step_of_the_lstm_is_a_product_and_a_kernel(direction: str, counts: Any) -> None:
    short, long = (counts["lstm"][str(times)][direction] for times in (SHORT, LONG))
    assert a_time_step(short, long) <= 2, long["record"]
    assert long["products"] - short["products"] == LONG - SHORT
    nothing_waits(long)


def test_a_step_of_writing_is_two_products_a_kernel_and_its_state(counts: Any) -> None:
    found = counts["lstm"][str(SHORT)]["step"]
    assert found["products"] == 2 and found["device_calls"] <= 5, found["record"]
    nothing_waits(found)
    assert found["copies_to_device"] == 0, found["record"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rest_of_a_training_step_is_at_most_forty_calls(name: str, counts: Any) -> None:
    short, long = (counts["poetry"][name][str(times)]["training"] for times in (SHORT, LONG))
    assert a_time_step(short, long) <= 4, long["record"]
    assert long["device_calls"] - 4 * LONG <= 40, long["record"]


@pytest.mark.parametrize("step", ["training", "evaluation"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_waits_for_nothing_and_sends_one_upload(name: str, step: str, counts: Any) -> None:
    for times in (SHORT, LONG):
        found = counts["poetry"][name][str(times)][step]
        nothing_waits(found)
        assert found["copies_to_device"] == 1, found["record"]


@pytest.mark.parametrize("step", ["training", "evaluation"])
def test_nor_does_one_with_pads(step: str, counts: Any) -> None:
    nothing_waits(counts["pads"][step])
    assert counts["pads"][step]["copies_to_device"] == 1, counts["pads"][step]["record"]


def test_ids_on_the_device_are_not_looked_at(counts: Any) -> None:
    found = counts["ids on the device"]
    nothing_waits(found)
    assert found["copies_to_device"] == 0, found["record"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_more_parameters_are_not_more_calls(name: str, counts: Any) -> None:
    few, many = (counts["optimizer"][name][number] for number in ("1", "40"))
    assert many["device_calls"] == few["device_calls"], many["record"]
    nothing_waits(many)
    assert many["copies_to_device"] == 0


TRACED = """
import cupy, numpy as np, emulator
x = cupy.zeros((4, 4), np.float32)
cupy.exp(x), x @ x, float(x.sum())  # compiled, and memory is in the pool
with emulator.trace() as calls:
    pass
print(calls.device_calls, len(calls.record))
with emulator.trace() as calls:
    y = cupy.exp(x)
    z = x @ y
    z[...] = y
    z.fill(0)
    float(y.sum())
    z.set(np.ones((4, 4), np.float32))
    cupy.empty((999, 999))
names = ["launches", "products", "copies_on_device", "fills"]
names += ["copies_to_device", "copies_to_host", "syncs", "allocations"]
print({name: getattr(calls, name) for name in names}, calls.device_calls, calls.record)
"""


def test_what_the_budget_counts_is_what_was_asked() -> None:
    done = emulator.run("-c", TRACED)
    nothing, something = done.stdout.splitlines()
    assert nothing == "0 0"
    assert something.startswith(
        "{'launches': 2, 'products': 1, 'copies_on_device': 1, 'fills': 1, 'copies_to_device': 1, 'copies_to_host': 1, "
        "'syncs': 1, 'allocations': 1} 5 "
    ), done
    assert "product: 4x4x4" in something
