"""The poems' model on CuPy, by its double: NumPy's numbers, one upload a batch, few calls, no waiting."""

from __future__ import annotations

from collections import Counter
from typing import Any

from corpus.tasks import Batch, Task
from corpus.vocabulary import Vocabulary
from learning.training import RunningLoss, Trainer, TrainingState
from model import PoemModel

import device_double
import numpy as np
import pytest

import minidl

SIZES = [4, 3, 3, 1]
V = 7


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    return device_double.install(monkeypatch)


def batch(seed: int, pads: bool) -> Batch:
    inputs, targets = np.random.default_rng(seed).integers(0, V, (2, sum(SIZES)))
    return Batch(inputs, targets, minidl.Packing(SIZES), targets > 2 if pads else None)


def train(backend: str, pads: bool, clear: Any) -> tuple[PoemModel, RunningLoss]:
    model, mean = PoemModel(V, 6, 8, dropout=0.3, backend=backend, rng=0), RunningLoss()
    optimizer = minidl.AdaGrad(model.parameters())
    for step in range(3):
        rows = batch(step, pads)
        clear()
        optimizer.zero_grad()
        nats = model.forward_backward(rows, step)
        minidl.clip_grad_norm(optimizer.params, 0.5)
        optimizer.step()
        mean.add(nats, rows)
    return model, mean


@pytest.mark.parametrize("pads", [False, True])
def test_the_poems_model_trains_as_on_numpy_in_few_calls(pads: bool, cupy: Any) -> None:
    def clear() -> None:
        cupy.calls.clear(), cupy.syncs.clear()

    model, mean = train("cupy", pads, clear)
    counts = Counter(cupy.calls)
    assert cupy.syncs == []
    assert counts["upload"] == 1
    assert counts["lstm_forward"] == counts["lstm_backward"] == len(SIZES)
    metrics = 2 if pads else 1  # what RunningLoss adds
    assert sum(counts.values()) - 4 * len(SIZES) - metrics <= 40, counts

    host, expected = train("numpy", pads, lambda: None)
    assert mean.loss == pytest.approx(expected.loss, rel=1e-5)
    assert mean.loss_with_pads == pytest.approx(expected.loss_with_pads, rel=1e-5)
    for name, values in host.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("shown", "looks"), [(False, 0), (True, 2)])
def test_an_epoch_waits_only_where_it_prints_the_loss(shown: bool, looks: int, cupy: Any) -> None:
    def waits(steps: int, quiet: bool) -> int:
        model = PoemModel(V, 6, 8, backend="cupy", rng=0)
        schedule = minidl.Constant(minidl.SGD(model.parameters(), lr=0.1))
        batches = [batch(seed, False) for seed in range(steps)]
        task = Task(
            Vocabulary(["<begin>", "<end>", "<unknown>", *"日月山河"]),
            lambda rng, start=0: batches,
            steps,
            batches[:1],
            batches[:1],
            9,
        )
        state = TrainingState(np.random.default_rng(0), model.state_dict())
        trainer = Trainer(model, schedule, task, state, clip=1.0, quiet=quiet)
        cupy.syncs.clear()
        next(trainer.fit(1, 1))
        return cupy.syncs.count("get")

    assert waits(25, quiet=not shown) == waits(1, quiet=True) + looks


@pytest.mark.parametrize("pads", [False, True])
def test_evaluation_is_one_upload_a_batch(pads: bool, cupy: Any) -> None:
    models = [PoemModel(V, 6, 8, backend=backend, rng=0) for backend in ("numpy", "cupy")]
    rows = batch(0, pads)
    cupy.calls.clear(), cupy.syncs.clear()
    nats = models[1].nats(rows)
    assert cupy.calls.count("upload") == 1 and cupy.syncs == []
    for got, expected in zip(nats, models[0].nats(rows), strict=True):
        assert float(got) == pytest.approx(float(expected), rel=1e-5)
