"""Optimizers and clip_grad_norm: rules, resuming, blocks, refusals. test_oracle.py compares them with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refuses, relative_error, snapshot

import minidl
from minidl import optimizers
from minidl.kernels.cpu import cuts

Params = list[minidl.Parameter]
MAKERS: dict[str, Callable[[Params], Any]] = {
    "SGD": lambda params: minidl.SGD(params, lr=0.1),
    "SGD with momentum": lambda params: minidl.SGD(params, lr=0.1, momentum=0.9),
    "AdaGrad": lambda params: minidl.AdaGrad(params, lr=0.1),
    "Adadelta": lambda params: minidl.Adadelta(params),
    "Adam": lambda params: minidl.Adam(params, lr=0.01),
    "AdamW": lambda params: minidl.AdamW(params, lr=0.01, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def parameters(dtype: str = "float64", shapes: Any = ((3, 5), (7,), (1, 2))) -> Params:
    rng = np.random.default_rng(0)
    return [minidl.Parameter(rng.normal(size=shape).astype(dtype), f"p{i}") for i, shape in enumerate(shapes)]


def train(optimizer: Any, first: int, last: int) -> None:
    """Steps `first` to `last` of a run whose gradients depend on the values, the step and nothing else."""
    for step in range(first, last):
        optimizer.zero_grad()
        for index, parameter in enumerate(optimizer.params):
            parameter.grad[...] += 0.3 * parameter.data + np.sin(step + index)
        optimizer.step()


def one_step(optimizer: Callable[[Params], Any], values: Any, grads: Any) -> list[float]:
    parameter = minidl.Parameter(np.array([values], np.float64))
    made = optimizer([parameter])
    seen = []
    for grad in grads:
        parameter.grad[...] = grad
        made.step()
        seen.append(parameter.data.item())
    return seen


def test_sgd_by_hand() -> None:
    assert one_step(lambda p: minidl.SGD(p, lr=0.5), 1.0, [2.0, -1.0]) == [0.0, 0.5]


def test_momentum_by_hand() -> None:
    """v = 2, 0.5*2-1 = 0, 0.5*0+4 = 4."""
    made = one_step(lambda p: minidl.SGD(p, lr=0.5, momentum=0.5), 1.0, [2.0, -1.0, 4.0])
    assert made == [0.0, 0.0, -2.0]


def test_adagrad_by_hand() -> None:
    made = one_step(lambda p: minidl.AdaGrad(p, lr=0.5, eps=1e-12), 1.0, [3.0, -4.0])
    np.testing.assert_allclose(made, [0.5, 0.5 + 0.5 * 4 / 5], rtol=1e-11)


def test_adadelta_by_hand() -> None:
    rho, eps = 0.9, 1e-2
    d = 2 * math.sqrt(eps / (0.1 * 4 + eps))
    u = 0.1 * d * d
    second = 1 * math.sqrt((u + eps) / (0.9 * 0.4 + 0.1 + eps))
    made = one_step(lambda p: minidl.Adadelta(p, lr=0.5, rho=rho, eps=eps), 1.0, [2.0, 1.0])
    np.testing.assert_allclose(made, [1 - 0.5 * d, 1 - 0.5 * d - 0.5 * second], rtol=1e-14)


def test_adam_by_hand() -> None:
    """The first step is lr, whatever the gradient's size; the second follows the moments."""
    made = one_step(lambda p: minidl.Adam(p, lr=0.1, betas=(0.5, 0.75), eps=1e-12), 1.0, [40.0, -10.0])
    m, v = 0.5 * 20 - 5, 0.75 * 400 + 25
    second = 0.1 * (m / 0.75) / math.sqrt(v / (1 - 0.75**2))
    np.testing.assert_allclose(made, [0.9, 0.9 - second], rtol=1e-11)


def test_adamw_by_hand() -> None:
    """Adam's rule, but each step begins with nine tenths of what there is."""
    rule: dict[str, Any] = {"lr": 0.1, "betas": (0.5, 0.75), "eps": 1e-12}
    first, second = one_step(lambda p: minidl.Adam(p, **rule), 1.0, [40.0, -10.0])
    made = one_step(lambda p: minidl.AdamW(p, **rule, weight_decay=1.0), 1.0, [40.0, -10.0])
    np.testing.assert_allclose(made, [0.9 + first - 1, 0.9 * (0.9 + first - 1) + second - first], rtol=1e-11)


def test_adamw_without_decay_is_adam() -> None:
    adam, adamw = parameters(), parameters()
    train(minidl.Adam(adam), 0, 5)
    train(minidl.AdamW(adamw, weight_decay=0), 0, 5)
    assert snapshot([p.data for p in adam]) == snapshot([p.data for p in adamw])


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "AdamW"])  # whose weights decay all the same
def test_a_gradient_of_zero_at_the_start_moves_nothing(name: str) -> None:
    params = parameters()
    before = [p.data.copy() for p in params]
    optimizer = MAKERS[name](params)
    optimizer.step()
    assert snapshot([p.data for p in params]) == snapshot(before) and optimizer.steps == 1


@every_optimizer
def test_every_rule_goes_downhill(make: Callable[[Params], Any]) -> None:
    params = parameters()
    optimizer = make(params)
    start = sum(float((p.data**2).sum()) for p in params)
    for _ in range(50):
        for p in params:
            p.grad[...] = 2 * p.data
        optimizer.step()
    assert sum(float((p.data**2).sum()) for p in params) < start


@every_optimizer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ten_steps_are_five_and_a_resume_and_five(make: Any, dtype: str, tmp_path: Path) -> None:
    """Bit for bit, through a file: step count, learning rate and all state."""
    whole = make(parameters(dtype))
    train(whole, 0, 5)
    whole.lr *= 0.5
    train(whole, 5, 10)

    first = make(parameters(dtype))
    train(first, 0, 5)
    first.lr *= 0.5
    tensors = {f"params.{i}": p.data for i, p in enumerate(first.params)}
    tensors |= {f"optimizer.{name}": value for name, value in first.state_dict().items()}
    minidl.save(tmp_path / "checkpoint", tensors, {})

    loaded, _ = minidl.load(tmp_path / "checkpoint")
    params = parameters(dtype)
    for index, parameter in enumerate(params):
        parameter.data[...] = loaded.pop(f"params.{index}")
    resumed = make(params)
    train(resumed, 100, 103)  # whatever it did before is forgotten
    for index, parameter in enumerate(params):
        parameter.data[...] = first.params[index].data
    resumed.load_state_dict({name.removeprefix("optimizer."): value for name, value in loaded.items()})
    train(resumed, 5, 10)
    assert snapshot(resumed) == snapshot(whole)
    assert resumed.steps == 10


def test_adams_step_count_matters_to_a_resume() -> None:
    """A resume that restarts the count at zero takes steps of another size: the test above can fail."""
    lost, kept = (MAKERS["Adam"](parameters()) for _ in range(2))
    for optimizer in (lost, kept):
        train(optimizer, 0, 5)
    lost.steps = 0
    for optimizer in (lost, kept):
        train(optimizer, 5, 6)
    assert relative_error(lost.params[0].data, kept.params[0].data) > 1e-3


@every_optimizer
def test_state_dict_is_a_copy_in_the_parameters_shapes(make: Callable[[Params], Any]) -> None:
    optimizer = make(parameters())
    train(optimizer, 0, 3)
    state = optimizer.state_dict()
    assert state["steps"] == 3 and state["lr"] == optimizer.lr
    arrays = {name: value for name, value in state.items() if name not in ("steps", "lr")}
    shapes = [value.shape for name, value in arrays.items()]
    assert shapes == [(3, 5), (7,), (1, 2)] * len(optimizer.state_names)
    assert all(value.any() for value in arrays.values())
    before = snapshot(optimizer)
    for value in state.values():
        value[...] = 77
    assert snapshot(optimizer) == before


def test_state_survives_another_memory_layout() -> None:
    """State belongs to parameters, not to places in a buffer: it fits a model that is laid out otherwise."""
    first = minidl.Adam(parameters())
    train(first, 0, 5)
    params = parameters()
    minidl.flatten(params[::-1])
    for mine, theirs in zip(params, first.params, strict=True):
        mine.data[...] = theirs.data
    second = minidl.Adam(params)
    second.load_state_dict(first.state_dict())
    minidl.SGD([params[2], params[0]], lr=1.0)  # moves two of them out of the buffer under the optimizer's feet
    train(first, 5, 8)
    train(second, 5, 8)
    assert snapshot([p.data for p in first.params]) == snapshot([p.data for p in second.params])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exp_avg.1": None}, ["exp_avg.1"]),
        ({"steps": None}, ["steps"]),
        ({"lr": None}, ["lr"]),
        ({"exp_avg.3": np.zeros(2)}, ["exp_avg.3"]),
        ({"momentum_buffer.0": np.zeros((3, 5))}, ["momentum_buffer.0"]),
        ({"exp_avg.1": np.zeros(8)}, ["exp_avg.1", "(7,)", "(8,)"]),
        ({"exp_avg_sq.0": np.zeros((5, 3))}, ["exp_avg_sq.0", "(3, 5)", "(5, 3)"]),
        ({"steps": np.zeros(1, int)}, ["steps", "()", "(1,)"]),
        ({"lr": np.zeros(2)}, ["lr", "()", "(2,)"]),
        ({"exp_avg_sq.2": np.full((1, 2), "x")}, ["exp_avg_sq.2"]),
        ({"exp_avg_sq.2": np.zeros((1, 2), complex)}, ["exp_avg_sq.2"]),
        ({"steps": np.array(2.5)}, ["steps"]),
        ({"steps": np.array(-1)}, ["steps"]),
        ({"lr": np.array(np.nan)}, ["lr"]),
        ({"lr": np.array(-0.1)}, ["lr"]),
        ({"lr": np.array("fast")}, ["lr"]),
    ],
)
def test_load_state_dict_refuses_what_does_not_fit(change: dict[str, Any], words: list[str]) -> None:
    optimizer = minidl.Adam(parameters())
    train(optimizer, 0, 3)
    other = minidl.Adam(parameters())
    train(other, 7, 9)
    state = {name: value for name, value in (other.state_dict() | change).items() if value is not None}
    with refuses(ValueError, *words, keep=optimizer):
        optimizer.load_state_dict(state)


def test_load_state_dict_refuses_values_that_would_become_infinite() -> None:
    optimizer = minidl.SGD([minidl.Parameter(np.ones(2, np.float32))], lr=0.1, momentum=0.9)
    state = optimizer.state_dict() | {"momentum_buffer.0": np.array([1.0, 1e39])}
    with refuses(ValueError, "momentum_buffer.0", "float32", "1e+39", keep=optimizer):
        optimizer.load_state_dict(state)


@every_optimizer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_parameter_larger_than_a_block_is_one_parameter(
    make: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = cuts.BLOCK * 2 + 1234
    results = []
    for block in (cuts.BLOCK, 10 * size, 1000):
        monkeypatch.setattr(cuts, "BLOCK", block)
        optimizer = make(parameters(dtype, [(3, 3), (size,), (5,)]))
        train(optimizer, 0, 3)
        results.append(snapshot(optimizer))
    assert results[0] == results[1] == results[2]


@every_optimizer
def test_a_flat_buffer_is_as_good_as_parameters_alone(make: Callable[[Params], Any]) -> None:
    together = make(parameters())
    alone = [make([p]) for p in parameters()]
    train(together, 0, 4)
    for index, optimizer in enumerate(alone):
        for step in range(4):
            (parameter,) = optimizer.params
            parameter.grad[...] = 0.3 * parameter.data + np.sin(step + index)
            optimizer.step()
    for p, optimizer in zip(together.params, alone, strict=True):
        np.testing.assert_allclose(p.data, optimizer.params[0].data, rtol=1e-13)


@every_optimizer
def test_lr_can_be_set_between_steps_and_is_checked_when_used(make: Callable[[Params], Any]) -> None:
    optimizer = make(parameters())
    train(optimizer, 0, 2)
    optimizer.lr = 0.0
    before = snapshot([p.data for p in optimizer.params])
    train(optimizer, 2, 3)
    assert snapshot([p.data for p in optimizer.params]) == before
    for lr in (float("nan"), -1.0, float("inf")):
        optimizer.lr = lr
        with refuses(ValueError, "lr", "at least 0", lr, keep=[optimizer.params, *optimizer.state.values()]):
            optimizer.step()
    assert optimizer.steps == 3


@every_optimizer
def test_zero_grad_zeroes_all_and_only_its_own(make: Callable[[Params], Any]) -> None:
    params, other = parameters(), parameters()[0]
    optimizer = make(params)
    for p in [*params, other]:
        p.grad[...] = 3.0
    optimizer.zero_grad()
    assert not any(p.grad.any() for p in params) and (other.grad == 3.0).all()


@every_optimizer
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("flat", [True, False])
def test_a_gradient_that_is_not_finite_is_refused_before_anything_changes(make: Any, value: float, flat: bool) -> None:
    params = parameters()
    if flat:
        minidl.flatten(params)
    params[1].grad[3] = value
    with refuses(FloatingPointError, "p1", "(7,)", "not finite", keep=params):
        minidl.clip_grad_norm(params, 1.0)
    optimizer = make(params)
    optimizer.zero_grad()
    train(optimizer, 0, 2)
    params[1].grad[3] = value
    with refuses(FloatingPointError, "p1", "(7,)", "not finite", keep=optimizer):
        optimizer.step()
    train(optimizer, 2, 3)  # and training continues
    assert optimizer.steps == 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_gradients_whose_squares_overflow_are_finite(dtype: str) -> None:
    """The norm is right, clipping works, a step is taken, and NumPy warns of nothing on the way."""
    large = 1e30 if dtype == "float32" else 1e200
    params = parameters(dtype)
    for p in params:
        p.grad[...] = large
    count = sum(p.data.size for p in params)
    norm = minidl.clip_grad_norm(params, 2.0)
    assert math.isclose(norm, large * math.sqrt(count), rel_tol=1e-5)
    np.testing.assert_allclose(params[0].grad, 2.0 / math.sqrt(count), rtol=1e-5)

    for p in params:
        p.grad[...] = large
    before = params[0].data.copy()
    minidl.SGD(params, lr=1 / large).step()
    np.testing.assert_allclose(params[0].data, before - 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flat", [True, False])
def test_clip_grad_norm_scales_all_gradients_together(flat: bool) -> None:
    params = parameters()
    if flat:
        minidl.flatten(params)
    rng = np.random.default_rng(1)
    for p in params:
        p.grad[...] = rng.normal(size=p.grad.shape)
    before = [p.grad.copy() for p in params]
    expected = math.sqrt(sum(float((g**2).sum()) for g in before))
    assert math.isclose(minidl.clip_grad_norm(params, 0.25), expected, rel_tol=1e-14)
    for p, g in zip(params, before, strict=True):
        np.testing.assert_allclose(p.grad, g * 0.25 / expected, rtol=1e-5)
    assert math.isclose(minidl.clip_grad_norm(params, 1.0), 0.25, rel_tol=1e-5)


def test_clip_grad_norm_below_the_limit_changes_nothing() -> None:
    params = parameters()
    for p in params:
        p.grad[...] = 0.01
    before = snapshot(params)
    assert minidl.clip_grad_norm(params, 1.0) < 1.0
    assert snapshot(params) == before
    assert minidl.clip_grad_norm(parameters(), 1.0) == 0.0


def test_clip_grad_norm_reaches_gradients_in_any_memory_order() -> None:
    parameter = minidl.Parameter(np.ones((2, 3)).T)
    parameter.grad[...] = 3.0
    minidl.clip_grad_norm([parameter], 1.0)
    assert math.isclose(float(np.linalg.norm(parameter.grad)), 1.0, rel_tol=1e-5)


def test_a_max_norm_of_inf_gives_the_norm_and_clips_nothing() -> None:
    params = parameters()
    for p in params:
        p.grad[...] = 1e18
    before = snapshot(params)
    norm = minidl.clip_grad_norm(params, math.inf)
    assert math.isclose(norm, 1e18 * math.sqrt(sum(p.grad.size for p in params)), rel_tol=1e-5)
    assert snapshot(params) == before
    params[0].grad[0] = np.nan
    with refuses(FloatingPointError, "p0", "not finite", keep=params):
        minidl.clip_grad_norm(params, math.inf)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), -float("inf")])
def test_a_bad_max_norm_is_refused(max_norm: float) -> None:
    params = parameters()
    with refuses(ValueError, "max_norm", "above 0", max_norm, keep=params):
        minidl.clip_grad_norm(params, max_norm)


BAD: list[tuple[Any, dict[str, Any], type[Exception], list[str]]] = [
    (minidl.SGD, {"lr": -1.0}, ValueError, ["lr", "at least 0", "-1"]),
    (minidl.SGD, {"lr": float("nan")}, ValueError, ["lr", "finite", "nan"]),
    (minidl.SGD, {"lr": None}, TypeError, ["lr", "number", "NoneType"]),
    (minidl.SGD, {"lr": "0.1"}, TypeError, ["lr", "number", "str"]),
    (minidl.SGD, {"lr": 1, "momentum": 1.0}, ValueError, ["momentum", "below 1", "1.0"]),
    (minidl.SGD, {"lr": 1, "momentum": -0.1}, ValueError, ["momentum", "-0.1"]),
    (minidl.AdaGrad, {"eps": -1e-3}, ValueError, ["eps", "-0.001"]),
    (minidl.Adadelta, {"rho": 1.0}, ValueError, ["rho", "below 1"]),
    (minidl.Adadelta, {"eps": -1}, ValueError, ["eps", "-1"]),
    (minidl.Adam, {"betas": (1.0, 0.9)}, ValueError, ["betas[0]", "below 1"]),
    (minidl.Adam, {"betas": (0.9, -1)}, ValueError, ["betas[1]", "-1"]),
    (minidl.Adam, {"betas": (0.9, None)}, TypeError, ["betas[1]", "NoneType"]),
    (minidl.Adam, {"betas": 0.9}, TypeError, ["betas", "pair", "float"]),
    (minidl.Adam, {"betas": (0.9, 0.9, 0.9)}, ValueError, ["betas", "pair"]),
    (minidl.Adam, {"eps": float("inf")}, ValueError, ["eps", "inf"]),
    (minidl.AdamW, {"weight_decay": -0.1}, ValueError, ["weight_decay", "at least 0", "-0.1"]),
    (minidl.AdamW, {"weight_decay": None}, TypeError, ["weight_decay", "NoneType"]),
]


@pytest.mark.parametrize(
    ("make", "keywords", "error", "words"), BAD, ids=[f"{row[0].__name__} {row[1]}" for row in BAD]
)
def test_bad_arguments_are_refused(
    make: Any, keywords: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    params = parameters()
    places = [p.data.ctypes.data for p in params]
    with refuses(error, *words, keep=params):
        make(params, **keywords)
    assert [p.data.ctypes.data for p in params] == places


@pytest.mark.parametrize("make", [minidl.AdaGrad, minidl.Adadelta, minidl.Adam])
def test_an_eps_of_zero_divides_zero_by_zero_and_is_refused(make: Any) -> None:
    """It would fill the gaps between the parameters with NaN, and every row that an Embedding did not use."""
    with refuses(ValueError, "eps", "above 0"):
        make(parameters(), eps=0.0)


def test_the_base_class_has_no_rule() -> None:
    params = parameters()
    with refuses(NotImplementedError, "Optimizer", "_update", keep=params):
        optimizers.Optimizer(params, lr=1.0).step()


def test_the_defaults_are_pytorchs() -> None:
    params = parameters()
    adagrad, adadelta, adam = minidl.AdaGrad(params), minidl.Adadelta(params), minidl.Adam(params)
    assert (adagrad.lr, adagrad.eps) == (1e-2, 1e-10)
    assert (adadelta.lr, adadelta.rho, adadelta.eps) == (1.0, 0.9, 1e-6)
    assert (adam.lr, adam.betas, adam.eps) == (1e-3, (0.9, 0.999), 1e-8)
    adamw = minidl.AdamW(params)
    assert (adamw.lr, adamw.betas, adamw.eps, adamw.weight_decay) == (1e-3, (0.9, 0.999), 1e-8, 1e-2)


def test_a_norm_at_the_limit_changes_nothing_and_a_tiny_one_stays_below() -> None:
    parameter = minidl.Parameter(np.zeros(2))
    parameter.grad[...] = [3, 4]
    minidl.clip_grad_norm([parameter], 5.0)
    assert parameter.grad.tolist() == [3, 4]
    parameter.grad[...] = [3e-6, 4e-6]
    minidl.clip_grad_norm([parameter], 2e-6)
    assert np.linalg.norm(parameter.grad) == pytest.approx(2e-6 * 5 / 6)


def test_a_fresh_state_can_be_loaded_and_an_lr_that_is_an_int() -> None:
    optimizer = minidl.SGD(parameters(), lr=0.1, momentum=0.9)
    optimizer.lr = 1
    state = optimizer.state_dict()
    assert set(state) == {"steps", "lr", *(f"momentum_buffer.{i}" for i in range(3))}
    assert (state["steps"].dtype, state["lr"].dtype) == (np.int64, np.float64)
    optimizer.load_state_dict(state)
    assert (optimizer.steps, optimizer.lr) == (0, 1.0)


def test_an_optimizer_prints_its_settings_as_they_are_now() -> None:
    params = parameters()
    optimizer = minidl.AdamW(params, lr=0.5, weight_decay=0.25)
    train(optimizer, 0, 2)
    optimizer.lr = 0.125
    count = sum(p.data.size for p in params)
    assert repr(optimizer) == (
        "AdamW(lr=0.125, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.25, steps=2, "
        f"dtype={params[0].data.dtype}, backend=numpy, weights={count})"
    )
    assert repr(minidl.SGD(params, 1.0, momentum=0.5)).startswith("SGD(lr=1.0, momentum=0.5, steps=0, ")
