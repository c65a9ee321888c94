"""Learning-rate schedules: closed forms at the first, peak and last step, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import refuses

import minidl


def optimizer(lr: float = 0.5) -> minidl.SGD:
    return minidl.SGD([minidl.Parameter(np.zeros(2))], lr=lr)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "Constant": lambda o: minidl.Constant(o),
    "Constant with warmup": lambda o: minidl.Constant(o, warmup=4),
    "ExponentialDecay": lambda o: minidl.ExponentialDecay(o, gamma=0.9),
    "StepDecay": lambda o: minidl.StepDecay(o, every=3, gamma=0.5),
    "OneCycle": lambda o: minidl.OneCycle(o, max_lr=2.0, total_steps=20, warmup=0.25),
}
every_schedule = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def rates(make: Callable[[Any], Any], steps: int) -> list[float]:
    o = optimizer()
    schedule = make(o)
    seen = [o.lr]
    for _ in range(steps):
        schedule.step()
        seen.append(o.lr)
    return seen


def test_constant() -> None:
    assert rates(MAKERS["Constant"], 5) == [0.5] * 6
    np.testing.assert_allclose(rates(MAKERS["Constant with warmup"], 6), [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


def test_exponential_decay() -> None:
    np.testing.assert_allclose(rates(MAKERS["ExponentialDecay"], 40), [0.5 * 0.9**k for k in range(41)])


def test_step_decay() -> None:
    assert rates(MAKERS["StepDecay"], 7) == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]
    np.testing.assert_allclose(rates(lambda o: minidl.StepDecay(o, every=2), 2), [0.5, 0.5, 0.05])


def test_one_cycle_at_its_first_peak_last_and_beyond() -> None:
    seen = rates(MAKERS["OneCycle"], 25)
    assert math.isclose(seen[0], 2.0 / 25)
    assert math.isclose(seen[5], 2.0) and max(seen) == seen[5]
    assert all(math.isclose(late, 2.0 / 1e4) for late in seen[20:])
    assert seen[:6] == sorted(seen[:6]) and seen[5:] == sorted(seen[5:], reverse=True)
    # half a cosine each: at a fifth of the way up, and halfway down (between steps 12 and 13)
    low = 2.0 / 25
    assert math.isclose(seen[1], low + (2.0 - low) * (1 - math.cos(math.pi / 5)) / 2)
    assert math.isclose((seen[12] + seen[13]) / 2, (2.0 + 2.0 / 1e4) / 2)


def test_one_cycle_without_warmup_starts_at_its_peak() -> None:
    seen = rates(lambda o: minidl.OneCycle(o, max_lr=2.0, total_steps=4, warmup=0.0), 5)
    assert seen[0] == 2.0 and math.isclose(seen[2], (2.0 + 2e-4) / 2)
    assert math.isclose(seen[4], 2e-4) and math.isclose(seen[5], 2e-4)


def test_one_cycle_of_one_step() -> None:
    assert all(0 < rate <= 1.0 for rate in rates(lambda o: minidl.OneCycle(o, 1.0, 1), 3))


@every_schedule
def test_the_rate_is_a_function_of_the_step_and_positive(make: Callable[[Any], Any]) -> None:
    schedule = make(optimizer())
    seen = rates(make, 30)
    assert [schedule.rate(step) for step in reversed(range(31))] == seen[::-1]
    assert all(rate > 0 for rate in seen)


@every_schedule
@pytest.mark.parametrize("schedule_first", [True, False])
def test_a_resumed_run_continues_exactly(make: Callable[[Any], Any], schedule_first: bool) -> None:
    """Whether the schedule is made before the optimizer's own state is loaded, or after it."""
    o = optimizer()
    schedule = make(o)
    for _ in range(6):
        o.step()
        schedule.step()
    saved, saved_optimizer = schedule.state_dict(), o.state_dict()

    resumed_optimizer = optimizer()
    if schedule_first:
        resumed = make(resumed_optimizer)
        resumed_optimizer.load_state_dict(saved_optimizer)
    else:
        resumed_optimizer.load_state_dict(saved_optimizer)
        resumed = make(resumed_optimizer)
    resumed.load_state_dict(saved)
    for _ in range(20):
        assert resumed_optimizer.lr == o.lr and resumed.steps == schedule.steps
        schedule.step()
        resumed.step()


@every_schedule
def test_state_dict_can_be_saved(make: Callable[[Any], Any]) -> None:
    state = make(optimizer()).state_dict()
    assert all(isinstance(value, np.ndarray) and value.dtype.kind in "if" for value in state.values())


@pytest.mark.parametrize(
    "change",
    [
        {"steps": None},
        {"extra": np.array(1)},
        {"steps": np.array([1, 2])},
        {"steps": np.array(-1)},
        {"lr": np.array(-0.1)},
    ],
    ids=["missing", "surplus", "shape", "negative", "rate"],
)
def test_load_state_dict_refuses_what_does_not_fit(change: dict[str, Any]) -> None:
    o = optimizer()
    schedule = minidl.ExponentialDecay(o, gamma=0.9)
    schedule.step()
    state = {name: value for name, value in (schedule.state_dict() | change).items() if value is not None}
    with refuses(ValueError, next(iter(change)), keep=o):
        schedule.load_state_dict(state)
    assert schedule.steps == 1


BAD: list[tuple[Any, dict[str, Any], type[Exception], list[str]]] = [
    (minidl.Constant, {"warmup": -1}, ValueError, ["warmup", "-1"]),
    (minidl.Constant, {"warmup": "2"}, TypeError, ["warmup", "str"]),
    (minidl.Constant, {"warmup": 2.5}, TypeError, ["warmup", "int", "float"]),
    (minidl.ExponentialDecay, {"gamma": 0.0}, ValueError, ["gamma", "above 0"]),
    (minidl.ExponentialDecay, {"gamma": float("nan")}, ValueError, ["gamma", "finite"]),
    (minidl.StepDecay, {"every": 0}, ValueError, ["every", "at least 1", "0"]),
    (minidl.StepDecay, {"every": 1.5}, TypeError, ["every", "int", "float"]),
    (minidl.StepDecay, {"every": 1, "gamma": -0.5}, ValueError, ["gamma", "-0.5"]),
    (minidl.OneCycle, {"max_lr": 0.0, "total_steps": 5}, ValueError, ["max_lr", "above 0"]),
    (minidl.OneCycle, {"max_lr": 1.0, "total_steps": 0}, ValueError, ["total_steps", "at least 1"]),
    (minidl.OneCycle, {"max_lr": 1.0, "total_steps": 5, "warmup": 1.0}, ValueError, ["warmup", "below 1"]),
    (minidl.OneCycle, {"max_lr": 1.0, "total_steps": 5, "warmup": -0.1}, ValueError, ["warmup", "-0.1"]),
]


@pytest.mark.parametrize(
    ("make", "keywords", "error", "words"), BAD, ids=[f"{row[0].__name__} {row[1]}" for row in BAD]
)
def test_bad_arguments_are_refused(
    make: Any, keywords: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    o = optimizer()
    with refuses(error, *words, keep=o):
        make(o, **keywords)


def test_the_base_class_has_no_rate() -> None:
    from minidl.schedules import Schedule

    with refuses(NotImplementedError, "Schedule", "rate"):
        Schedule(optimizer())


def test_a_fresh_state_can_be_loaded_and_an_lr_that_is_an_int() -> None:
    o = optimizer()
    o.lr = 1
    schedule = minidl.Constant(o)
    state = schedule.state_dict()
    assert (state["steps"].dtype, state["lr"].dtype) == (np.int64, np.float64)
    schedule.load_state_dict(state)
    assert (schedule.steps, schedule.lr) == (0, 1.0)


def test_a_schedule_prints_its_settings_and_its_step() -> None:
    schedule = minidl.OneCycle(minidl.SGD([minidl.Parameter(np.ones(2))], 1.0), 0.5, 30)
    schedule.step()
    assert repr(schedule) == "OneCycle(max_lr=0.5, total_steps=30, warmup=0.1, steps=1)"
