"""Complete training steps of a model with every layer, each starting from NumPy's weights and gradients.

Step by step because rounding errors grow: Adam divides by the root of a sum of squares that may be almost zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from agreement import LIMITS, agree
from twins import Model, batch, gradients_agree, there, twins, zero_grads

import minidl

pytestmark = pytest.mark.gpu

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: minidl.SGD(params, lr=0.1),
    "SGD with momentum": lambda params: minidl.SGD(params, lr=0.1, momentum=0.9),
    "AdaGrad": lambda params: minidl.AdaGrad(params, lr=0.1),
    "Adadelta": lambda params: minidl.Adadelta(params),
    "Adam": lambda params: minidl.Adam(params, lr=0.01),
    "AdamW": lambda params: minidl.AdamW(params, lr=0.01, weight_decay=0.1),
}
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "Constant": lambda optimizer: minidl.Constant(optimizer, warmup=2),
    "ExponentialDecay": lambda optimizer: minidl.ExponentialDecay(optimizer, gamma=0.8),
    "StepDecay": lambda optimizer: minidl.StepDecay(optimizer, every=2),
    "OneCycle": lambda optimizer: minidl.OneCycle(optimizer, max_lr=0.1, total_steps=4),
}
TOKENS = 23
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def copy_gradients(device: minidl.Layer, host: minidl.Layer) -> None:
    for p, q in zip(device.parameters(), host.parameters(), strict=True):
        p.grad[...] = there(q.grad)


def state_agrees(subject: str, device: Any, host: Any) -> None:
    """The optimizers' states; Adadelta's and Adam's are of different sizes, so each array by itself."""
    mine, expected = device.state_dict(), host.state_dict()
    assert mine.keys() == expected.keys() and mine["steps"] == expected["steps"] and mine["lr"] == expected["lr"]
    for name in expected.keys() - {"steps", "lr"}:
        agree(subject, mine[name], expected[name], name)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@both_dtypes
@every_optimizer
def test_training_steps(name: str, dtype: str, tied: bool) -> None:
    host, device = twins(Model, TOKENS, 6, 9, tied=tied, dtype=dtype)
    optimizers = [OPTIMIZERS[name](model.parameters()) for model in (host, device)]
    schedules = [SCHEDULES["OneCycle"](optimizer) for optimizer in optimizers]
    for step in range(4):
        device.load_state_dict(host.state_dict())
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        for optimizer in optimizers:
            optimizer.zero_grad()
        ids, sizes, targets = batch(TOKENS, seed=step)
        losses = [model.forward_backward(ids, sizes, targets, step) for model in (host, device)]
        agree("training step: loss", losses[1], losses[0], dtype=dtype)
        gradients_agree("training step: gradients", device, host)

        copy_gradients(device, host)
        norms = [minidl.clip_grad_norm(model.parameters(), 0.1) for model in (host, device)]
        assert norms[0] > 0.1, "there is nothing to clip"
        agree("clip_grad_norm", norms[1], norms[0], dtype=dtype)
        gradients_agree("clip_grad_norm", device, host)

        copy_gradients(device, host)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        for (parameter, p), q in zip(device.named_parameters(), host.parameters(), strict=True):
            agree(name, p.data, q.data, parameter)
        state_agrees(f"{name}: state", *reversed(optimizers))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_set_the_same_rates(name: str) -> None:
    host, device = twins(minidl.Linear, 3, 4)
    optimizers = [minidl.SGD(model.parameters(), lr=0.3) for model in (host, device)]
    schedules = [SCHEDULES[name](optimizer) for optimizer in optimizers]
    for step in range(4):
        for model, optimizer, schedule in zip((host, device), optimizers, schedules, strict=True):
            for parameter in model.parameters():
                parameter.grad[...] = step + 1
            optimizer.step()
            schedule.step()
        assert optimizers[0].lr == optimizers[1].lr
        for p, q in zip(device.parameters(), host.parameters(), strict=True):
            agree(f"SGD under {name}", p.data, q.data)


@both_dtypes
def test_a_run_left_to_itself_arrives_at_the_same_loss(dtype: str) -> None:
    """Forty steps without a look at the other side: what the poetry example does."""
    runs = []
    for model in twins(Model, TOKENS, 6, 9, dtype=dtype):
        optimizer = minidl.Adam(model.parameters(), lr=0.02)
        losses = []
        for step in range(40):
            optimizer.zero_grad()
            losses.append(model.forward_backward(*batch(TOKENS, seed=0), step))
            minidl.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
        runs.append([float(minidl.to_host(loss)) for loss in (losses[0], losses[-1])])
    (first, last), (_, last_there) = runs
    assert last < 0.7 * first, "nothing was learnt"
    assert abs(last_there - last) < 100 * LIMITS[dtype] * last


@both_dtypes
@pytest.mark.parametrize("shared", [True, False])
@every_optimizer
def test_optimizers_from_equal_gradients(name: str, shared: bool, dtype: str) -> None:
    """Five steps of parameters of any size, one buffer's or (as after a second optimizer took one away) several's."""
    shapes = [(3, 5), (7,), (1, 1), (300, 7)]
    sides = []
    for place in (np.asarray, there):  # from zero, so that the values are the sum of the steps
        params = [minidl.Parameter(place(np.zeros(shape, dtype)), f"p{i}") for i, shape in enumerate(shapes)]
        optimizer = OPTIMIZERS[name](params)
        if not shared:
            minidl.flatten(params[1:2])
        rng = np.random.default_rng(0)
        for _ in range(5):
            optimizer.zero_grad()
            for parameter in params:
                parameter.grad[...] += place(rng.normal(0, 0.1, parameter.grad.shape).astype(dtype))
            optimizer.step()
        sides.append((params, optimizer))
    for p, q in zip(sides[1][0], sides[0][0], strict=True):
        agree(name, p.data, q.data, p.name)
        agree("zero_grad", p.grad, q.grad, p.name)
    state_agrees(f"{name}: state", sides[1][1], sides[0][1])


@every_optimizer
def test_an_empty_parameter_takes_part(name: str) -> None:
    params = [minidl.Parameter(there(np.ones(shape, np.float32))) for shape in (3, (0, 2))]
    for parameter in params:
        parameter.grad[...] = 1
    agree("clip_grad_norm", minidl.clip_grad_norm(params[1:], 1.0), 0.0, dtype="float32")
    agree("clip_grad_norm", minidl.clip_grad_norm(params, 10.0), 3**0.5, dtype="float32")  # not yet one buffer
    OPTIMIZERS[name](params[1:]).step()
    OPTIMIZERS[name](params).step()
    assert (minidl.to_host(params[0].data) < 1).all()


@pytest.mark.parametrize("max_norm", [0.5, 1e6, np.inf])
def test_clipping_leaves_small_gradients_alone(max_norm: float) -> None:
    host, device = twins(minidl.Linear, 30, 40)
    rng = np.random.default_rng(0)
    for parameter in host.parameters():
        parameter.grad[...] = rng.normal(size=parameter.grad.shape)
    copy_gradients(device, host)
    before = [minidl.to_host(p.grad).tobytes() for p in device.parameters()]
    norms = [minidl.clip_grad_norm(model.parameters(), max_norm) for model in (host, device)]
    agree("clip_grad_norm", norms[1], norms[0], dtype="float32")
    gradients_agree("clip_grad_norm", device, host)
    same = [minidl.to_host(p.grad).tobytes() for p in device.parameters()] == before
    assert same == (max_norm > 1)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_optimizer
def test_a_gradient_that_is_not_finite_is_left_out_and_reported(name: str, value: float, clip: bool) -> None:
    _, device = twins(Model, TOKENS, 6, 9)
    optimizer = OPTIMIZERS[name](device.parameters())
    arrays = [*(p.data for p in device.parameters()), *optimizer.state.values()]
    device.forward_backward(*batch(TOKENS, seed=0), 0)
    optimizer.step()
    before = [array.get().tobytes() for array in arrays]
    device.lstms[0].bias.grad[3:4] = value
    if clip:
        minidl.clip_grad_norm(device.parameters(), 0.5)
    optimizer.step()
    assert [array.get().tobytes() for array in arrays] == before
    with pytest.raises(FloatingPointError, match="1 optimizer step"):
        minidl.to_host(device.lstms[0].bias.data)
    assert optimizer.steps == 1
    optimizer.zero_grad()
    device.forward_backward(*batch(TOKENS, seed=0), 0)
    optimizer.step()
    assert [array.get().tobytes() for array in arrays] != before
    minidl.to_host(device.lstms[0].bias.data)
    assert optimizer.steps == 2


def test_zero_grad_forgets_gradients_that_are_not_finite() -> None:
    _, device = twins(minidl.Linear, 3, 4)
    optimizer = minidl.Adam(device.parameters())
    device.weight.grad[...] = np.nan
    optimizer.zero_grad()
    assert not minidl.to_host(device.weight.grad).any()
    zero_grads(device)
