"""Tests that need a real GPU: the poetry example's sizes, and the same bits from truly parallel threads."""

from __future__ import annotations

from typing import Any

from corpus.tasks import Batch
from model import PoemModel

import numpy as np
import pytest
from agreement import agree
from twins import gradients_agree, twins

import minidl

pytestmark = pytest.mark.gpu
TOKENS, WIDTH, HIDDEN = 3488, 128, 256
LENGTHS = [49] * 20 + [33] * 20 + [12] * 24


@pytest.fixture(autouse=True)
def hardware(cupy: Any) -> None:
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    if "emulator" in name:
        pytest.skip(f"needs a GPU, and this is a {name}")


def batch(seed: int) -> Batch:
    packed = minidl.pack([np.zeros(length, np.int32) for length in LENGTHS])
    ids = np.random.default_rng(seed).zipf(1.3, (2, len(packed.data))) % TOKENS  # few characters are most of a text
    inputs, targets = ids.astype(np.int32)
    return Batch(inputs, targets, minidl.Packing(packed.batch_sizes.tolist()))


def trained(steps: int) -> tuple[PoemModel, list[float]]:
    model = PoemModel(TOKENS, WIDTH, HIDDEN, dropout=0.3, backend="cupy", rng=0)
    optimizer = minidl.Adam(model.parameters(), lr=0.005)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(model.forward_backward(batch(step), step).real)
        minidl.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
    return model, [float(minidl.to_host(loss)) for loss in losses]


def test_a_step_of_the_poetry_examples_size() -> None:
    host, device = twins(PoemModel, TOKENS, WIDTH, HIDDEN)
    for model in (host, device):  # values as they are at the start of a training
        model.load_state_dict(PoemModel(TOKENS, WIDTH, HIDDEN, rng=0).state_dict())
    nats = [model.forward_backward(batch(0), 0).real for model in (host, device)]
    agree("poetry's size: nats", nats[1], nats[0], dtype="float32")
    gradients_agree("poetry's size: gradients", device, host)


def test_the_same_run_gives_the_same_bits() -> None:
    runs = [trained(20) for _ in range(2)]
    assert runs[0][1] == runs[1][1] and runs[0][1][-1] < runs[0][1][0]
    states = [model.state_dict() for model, _ in runs]
    assert [name for name in states[0] if states[0][name].tobytes() != states[1][name].tobytes()] == []


def test_memory_does_not_grow_with_the_steps(cupy: Any) -> None:
    pool = cupy.get_default_memory_pool()
    trained(5)
    before = pool.total_bytes()
    trained(40)
    assert pool.total_bytes() == before
