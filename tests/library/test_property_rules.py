"""Optimizers, clip_grad_norm and sample against slow_reference.py, with random sizes, values and cuts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import slow_reference as slow
from hypothesis import assume, given
from hypothesis import strategies as st
from test_properties import Cut, Draw, cuts, dtypes, layouts, seeds

import minidl

shapes = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=2).map(tuple), min_size=1, max_size=4)
RULES: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "SGD": (lambda params: minidl.SGD(params, 0.1), lambda: slow.Sgd(0.1)),
    "momentum": (lambda params: minidl.SGD(params, 0.1, 0.9), lambda: slow.Sgd(0.1, 0.9)),
    "AdaGrad": (lambda params: minidl.AdaGrad(params, 0.1, 1e-10), lambda: slow.AdaGrad(0.1, 1e-10)),
    "Adadelta": (lambda params: minidl.Adadelta(params, 1.0, 0.9, 1e-6), lambda: slow.Adadelta(1.0, 0.9, 1e-6)),
    "Adam": (lambda params: minidl.Adam(params, 0.1, (0.9, 0.999), 1e-8), lambda: slow.Adam(0.1, (0.9, 0.999), 1e-8)),
}
OPERATIONS = 16  # roundings in one step of any rule; those of the steps before fade or add, so a step counts once more


@given(
    shapes=shapes, steps=st.integers(1, 5), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e10]), dtype=dtypes, seed=seeds,
    cut=cuts,
)  # fmt: skip
@pytest.mark.parametrize("rule", RULES)
def test_optimizers(
    rule: str, shapes: list[tuple[int, ...]], steps: int, scale: float, dtype: str, seed: int, cut: Cut
) -> None:
    """Gradients of one size, of both signs, and now and then 0."""
    draw = Draw(seed, dtype)
    params = [minidl.Parameter(draw.normal(*shape), f"p{k}") for k, shape in enumerate(shapes)]
    expected = [[float(value) for value in parameter.data.flat] for parameter in params]
    sizes = [[abs(value) for value in values] for values in expected]
    rules = [[RULES[rule][1]() for _ in values] for values in expected]
    with cut(1):
        optimizer = RULES[rule][0](params)
        for step in range(1, steps + 1):
            for k, parameter in enumerate(params):
                grad = draw.normal(*parameter.data.shape) * np.dtype(dtype).type(scale)
                parameter.grad[...] = np.where(draw.rng.random(grad.shape) < 0.2, 0, grad)
                for n, g in enumerate(parameter.grad.flat):
                    change, size = rules[k][n].change(float(g))
                    expected[k][n] -= change
                    sizes[k][n] += size
            optimizer.step()
            for parameter, values, of_values in zip(params, expected, sizes, strict=True):
                allowed = OPERATIONS * step * np.finfo(dtype).eps * np.array(of_values)
                wrong = np.abs(parameter.data.reshape(-1).astype(np.float64) - values)
                assert (wrong <= allowed).all(), (step, wrong, allowed)


@given(
    shapes=shapes, most=st.floats(1e-3, 1e3), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]), dtype=dtypes,
    seed=seeds, cut=cuts,
)  # fmt: skip
def test_clip_grad_norm(
    shapes: list[tuple[int, ...]], most: float, scale: float, dtype: str, seed: int, cut: Cut
) -> None:
    """In float32 squares of 1e30 overflow, which is made good, and those of 1e-30 vanish, which needs no clip."""
    draw = Draw(seed, dtype)
    params = [minidl.Parameter(draw.normal(*shape), f"p{k}") for k, shape in enumerate(shapes)]
    for parameter in params:
        parameter.grad[...] = draw.normal(*parameter.data.shape) * np.dtype(dtype).type(scale)
    before = [parameter.grad.copy() for parameter in params]
    values = [float(value) for grad in before for value in grad.flat]
    norm, eps = slow.norm(values), np.finfo(dtype).eps
    with cut(1):
        found = float(minidl.clip_grad_norm(params, most))
    allowed = (len(values) + 4) * eps
    vanishing = math.sqrt(len(values) * float(np.finfo(dtype).tiny))  # a square below this is 0
    assert abs(found - norm) <= allowed * norm + vanishing
    if abs(norm - most) <= 2 * allowed * norm:
        return  # either is right
    factor = most / (norm + 1e-6) if norm > most else 1.0
    for parameter, grad in zip(params, before, strict=True):
        tiny = float(np.finfo(dtype).smallest_subnormal)
        np.testing.assert_allclose(parameter.grad, grad * np.float64(factor), rtol=2 * allowed, atol=tiny)


class Drawn(np.random.Generator):
    """Draws these numbers, one a row."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__(np.random.PCG64(0))
        self.numbers = numbers

    def random(self, size: Any = None, *_: Any, **__: Any) -> Any:
        assert size == (len(self.numbers), 1)
        return np.array(self.numbers)[:, None]


@given(
    logits=st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True), forbidden=st.integers(0, 3),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 5.0]), top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0), dtype=dtypes, layout=layouts, cut=cuts,
)  # fmt: skip
def test_sample(
    logits: list[int], forbidden: int, temperature: float, top_k: int | None, top_p: float | None, dtype: str,
    layout: str, cut: Cut,
) -> None:  # fmt: skip
    """A draw in the middle of an id's share of [0, 1) gives that id, and each share is as wide as its probability."""
    row = [value / 16 for value in logits]  # exact in float32, too
    row[1 : 1 + forbidden] = [-math.inf] * len(row[1 : 1 + forbidden])
    shares = slow.shares(row, temperature, top_k, top_p)
    if top_p is not None:  # where a share more or less would do, either may be right
        sure = [slow.shares(row, temperature, top_k, p) for p in (top_p * (1 - 1e-9), min(1.0, top_p * (1 + 1e-9)))]
        assume(sure[0] == sure[1])
    ids = [v for v, share in enumerate(shares) if share > 1e-12]
    starts = [math.fsum(shares[:v]) for v in ids]
    for at in (1e-6, 0.5, 1 - 1e-6):
        draws = [start + at * shares[v] for start, v in zip(starts, ids, strict=True)]
        with cut(1):
            many = Draw(0, dtype, layout).normal(len(ids), len(row))
            many[...] = row
            found = minidl.sample(many, temperature, top_k, top_p, Drawn(draws))
        wide = [k for k, v in enumerate(ids) if shares[v] > 1e-9]  # narrower ones are lost in the sums' rounding
        assert [int(found[k]) for k in wide] == [ids[k] for k in wide]
