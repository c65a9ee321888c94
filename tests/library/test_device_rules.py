"""Optimizer rules on CuPy's double: a kernel if the class has its own CUDA lines, and always NumPy's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import device_double
import device_kernels
import numpy as np
import pytest

import minidl
from minidl.optimizers import Optimizer


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    return device_double.install(monkeypatch)


MAKE: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda params, kind=minidl.SGD: kind(params, lr=0.1),
    "momentum": lambda params, kind=minidl.SGD: kind(params, lr=0.1, momentum=0.9),
    "adagrad": lambda params, kind=minidl.AdaGrad: kind(params, lr=0.1),
    "adadelta": lambda params, kind=minidl.Adadelta: kind(params, lr=0.7),
    "adam": lambda params, kind=minidl.Adam: kind(params, lr=0.01),
    "adamw": lambda params, kind=minidl.AdamW: kind(params, lr=0.01, weight_decay=0.3),
}
every_rule = pytest.mark.parametrize("name", MAKE)
kernels_of_rules = {"find_bad", *MAKE}


def agree(expected: list[np.ndarray], got: list[np.ndarray]) -> None:
    for values, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-14)


def stepped(make: Callable[[Any], Optimizer], backend: str, split: bool = False) -> tuple[Optimizer, list[np.ndarray]]:
    """Six steps at rates that change, from random weights; what is left of the weights and the states."""
    rng = np.random.default_rng(0)
    params = [minidl.Parameter(minidl.to_backend(rng.normal(size=shape), backend)) for shape in ((3, 4), (5,), (2, 3))]
    optimizer = make(params)
    if split:
        minidl.flatten([params[2], params[0]])
    for step in range(6):
        optimizer.lr *= 0.5 if step % 2 else 1.5
        for parameter in params:
            parameter.grad[...] = minidl.to_backend(rng.normal(size=parameter.grad.shape), backend)
        optimizer.step()
    state = optimizer.state_dict()
    return optimizer, [*(minidl.to_host(p.data) for p in params), *(state[name] for name in sorted(state))]


@pytest.mark.parametrize("split", [False, True], ids=["one piece", "three pieces"])
@every_rule
def test_a_rules_kernel_agrees_with_numpy_over_several_steps(name: str, split: bool, cupy: Any) -> None:
    cupy.calls.clear()
    _, got = stepped(MAKE[name], "cupy", split)
    launched = [call for call in cupy.calls if call in kernels_of_rules]
    assert launched.count(name) == launched.count("find_bad") == len(launched) / 2 == (18 if split else 6)
    agree(stepped(MAKE[name], "numpy", split)[1], got)


@every_rule
def test_a_rules_cuda_lines_say_what_its_numpy_says(name: str) -> None:
    """Read as Python, which they nearly are: the double computes a formula of its own and not these."""
    optimizer = MAKE[name]([minidl.Parameter(np.zeros(1))])
    source = optimizer.kernel().source("float64")
    lines = source.split("real g = grad[k];")[1].split("}")[0].replace("[k]", "[...]").replace("real ", "")
    program = "\n".join(line.strip() for line in lines.split(";"))

    class ByItsLines(type(optimizer)):  # type: ignore[misc]
        def _update(self, n: Any, data: Any, grad: Any, *state: Any) -> None:
            names = {"sqrt": np.sqrt, "data": data, "g": grad, **vars(n)}
            exec(program, names, dict(zip(self.state_names, state, strict=True)))

    agree(stepped(MAKE[name], "numpy")[1], stepped(lambda params: MAKE[name](params, ByItsLines), "numpy")[1])


@every_rule
def test_a_subclass_with_a_rule_of_its_own_does_not_use_its_bases(name: str, cupy: Any) -> None:
    base = type(MAKE[name]([minidl.Parameter(np.zeros(1))]))

    class Halved(base):  # type: ignore[misc, valid-type]
        def _update(self, n: Any, data: Any, grad: Any, *state: Any) -> None:
            super()._update(n, data, 0.5 * grad, *state)
            data *= 0.5

    class Renamed(Halved):
        """Nor does one that says nothing of its own."""

    for kind in (Halved, Renamed):
        cupy.calls.clear()
        optimizer, got = stepped(lambda params, kind=kind: MAKE[name](params, kind), "cupy")
        assert optimizer.kernel() is None and not kernels_of_rules & set(cupy.calls)
        agree(stepped(lambda params, kind=kind: MAKE[name](params, kind), "numpy")[1], got)
        assert not np.allclose(got[0], stepped(MAKE[name], "numpy")[1][0], rtol=1e-3)


class Signed(minidl.SGD):
    """v = momentum v + sign(g);  p = p - lr share v."""

    cuda_rule = (
        "signed",
        """
        momentum_buffer[k] = momentum * momentum_buffer[k] + (g > 0 ? 1 : g < 0 ? -1 : 0);
        data[k] -= lr * share * momentum_buffer[k];""",
    )

    def _numbers(self, lr: float) -> dict[str, float]:
        return {"share": 0.25, **super()._numbers(lr)}

    def _update(self, n: Any, data: Any, grad: Any, *state: Any) -> None:
        (velocity,) = state
        velocity *= n.momentum
        velocity += np.sign(grad)
        data -= n.lr * n.share * velocity


def test_a_subclass_with_cuda_lines_of_its_own_uses_those(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its base chooses between two kernels."""

    def signed(data: Any, g: Any, velocity: Any, share: Any, lr: Any, momentum: Any) -> None:
        velocity[...] = momentum * velocity + np.sign(g)
        data -= lr * share * velocity

    def make(params: Any) -> Optimizer:
        return Signed(params, lr=0.1, momentum=0.9)

    monkeypatch.setattr(device_kernels, "signed", device_kernels.rule(signed), raising=False)
    expected = stepped(make, "numpy")[1]
    cupy.calls.clear()
    optimizer, got = stepped(make, "cupy")
    assert cupy.calls.count("signed") == 6 and not set(MAKE) & set(cupy.calls)
    assert Signed.cuda_rule[1].strip() in optimizer.kernel().source("float32")
    agree(expected, got)
