"""Where training starts: zero weights and equal weights leave every hidden unit a copy of one."""

from __future__ import annotations

from corpus.tasks import Task, packed_task
from corpus.vocabulary import PAD
from learning.protocol import report_task
from learning.training import build_optimizer, evaluate, train_step
from model import PoemModel

import numpy as np
import pytest
import report
from poetry_helpers import VOCABULARY, pseudo_poems

import minidl

POEMS = pseudo_poems(40)
OPTIMIZERS = {"adam": 0.05, "adagrad": 0.05, "adadelta": 1.0, "sgd": 0.5}


def trained(value: float | None, name: str, epochs: int, dropout: float = 0.0) -> tuple[PoemModel, Task]:
    """A model whose weights all start at `value` (None: as it starts by itself), after some epochs."""
    task = packed_task([POEMS, POEMS, POEMS], VOCABULARY, 20)
    model = PoemModel(len(VOCABULARY), 6, 8, dropout, rng=0)
    if value is not None:
        for parameter in model.parameters():
            parameter.data[...] = value
    schedule = minidl.Constant(build_optimizer(name, model.parameters(), OPTIMIZERS[name]))
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for batch in task.train(rng):
            train_step(model, schedule, batch)
    return model, task


def outputs(model: PoemModel, task: Task) -> np.ndarray:
    """What each hidden unit puts out at every place: (H, N)."""
    batch = task.validation[0]
    return model.body(batch.inputs, batch.packing).T


def plain_entropy() -> float:
    """The least cross-entropy of a model that knows frequencies alone."""
    counts = np.bincount(np.concatenate([[*VOCABULARY.encode(poem), 1] for poem in POEMS]))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_zero_every_unit_is_the_same_and_only_the_heads_bias_ever_moves(name: str) -> None:
    model, task = trained(0.0, name, 5)
    assert not outputs(model, task).any(), "every unit puts out exactly zero at every step"
    moved = [name for name, parameter in model.named_parameters() if parameter.data.any()]
    assert moved == ["head.bias"]
    assert report.distinct_units(model, task.validation[0]) == 1


def test_from_zero_the_loss_stalls_at_plain_frequencies() -> None:
    limit = plain_entropy()
    runs = [trained(0.0, "adam", epochs) for epochs in (0, 60, 120)]
    losses = [evaluate(model, task.validation).loss for model, task in runs]
    assert losses[0] == pytest.approx(np.log(len(VOCABULARY)), rel=1e-6)
    assert limit <= losses[2] < limit + 0.01 < losses[0]
    assert losses[1] - losses[2] < 0.01
    model, task = trained(None, "adam", 120)
    assert evaluate(model, task.validation).loss < limit - 0.2, "a random start gets further in as many steps"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_equal_weights_units_learn_but_stay_copies_of_one(name: str) -> None:
    model, task = trained(0.05, name, 5)
    units = outputs(model, task)
    assert np.abs(units).max() > 1e-3 and np.ptp(units[0]) > 1e-3, "they do something"
    np.testing.assert_allclose(units, np.broadcast_to(units[:1], units.shape), atol=1e-5)
    assert report.distinct_units(model, task.validation[0]) == 1
    for name, parameter in model.named_parameters():
        assert (parameter.data != np.float32(0.05)).any(), f"{name} has moved"
    incoming = model.lstms[0].weight_ih.data.reshape(4, 8, 6)  # gate, unit, input
    np.testing.assert_allclose(incoming, np.broadcast_to(incoming[:, :1], incoming.shape), atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_the_random_start_units_differ(name: str) -> None:
    for epochs in (0, 5):
        model, task = trained(None, name, epochs)
        units = outputs(model, task)
        gaps = np.abs(units[:, None] - units[None]).max(axis=2) + np.eye(8)
        assert gaps.min() > 0.01
        assert report.distinct_units(model, task.validation[0]) == 8


def test_units_are_counted_by_what_they_put_out() -> None:
    model, task = trained(None, "adam", 0)
    for part in (model.lstms[0].weight_ih, model.lstms[0].weight_hh, model.lstms[0].bias):
        by_unit = part.data.reshape(4, 8, -1)
        by_unit[:, 5] = by_unit[:, 2]
        by_unit[:, 7] = by_unit[:, 2]
    assert report.distinct_units(model, task.validation[0]) == 6


def test_the_plain_frequencies_of_the_report_are_the_training_parts_on_the_test_part() -> None:
    poems = ["甲乙"] * 8 + ["乙甲月"] * 2 + ["月"] * 2  # by two: 10 train (floor of 10.8 / 2 = 5), 2 test
    task = report_task(poems, 2, 5)
    # real targets, of each poem without its first: 乙 8, 甲 2, 月 2, end 10; and one more for each token
    counts = {"<end>": 11, "<unknown>": 1, PAD: 1, "甲": 3, "乙": 9, "月": 3}
    assert task.vocabulary.ids.keys() == counts.keys()
    expected = -np.log(counts["<end>"] / sum(counts.values()))  # the test part's only targets are ends
    assert report.unigram_entropy(task) == pytest.approx(expected, rel=1e-9)
