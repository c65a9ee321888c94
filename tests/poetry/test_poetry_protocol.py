"""The report's own experiment: its rows, split, vocabulary and figures, exactly as it is pinned down."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from common import cli
from corpus.tasks import Batch, Task
from corpus.vocabulary import END, PAD, UNKNOWN
from learning import protocol
from learning.protocol import report_task, rows_task
from learning.training import build_optimizer
from model import PoemModel

import numpy as np
import poetry_helpers
import pytest
from poetry_helpers import CHARACTERS, fit, log_softmax, pseudo_poems

import minidl

POEMS = [
    "甲乙，丙甲",
    "月甲。",
    "乙",
    "丁乙甲月",
    "甲乙丙月，",
    "月。",
]  # 甲 5, 乙 4, 月 4, "，" 丙 。 2 each, 丁 1
TOKENS = [END, UNKNOWN, PAD, "甲", "乙", "月", "，", "丙", "。"]


def rows(batch: Batch) -> tuple[list[str], list[str]]:
    """Inputs and targets as text, a poem a line: E is the end, P a pad, ? unknown."""
    letters = ["E", "?", "P", *TOKENS[3:]]
    count = batch.packing.batch_sizes[0]
    shaped = [part.reshape(-1, count).T for part in (batch.inputs, batch.targets)]
    inputs, targets = (["".join(letters[index] for index in row) for row in part] for part in shaped)
    return inputs, targets


def test_rows_and_batches_are_exactly_the_reports() -> None:
    task = report_task(POEMS, batch_size=2, width=7)
    train = list(task.train(np.random.default_rng(0)))
    assert [rows(batch) for batch in (*train, *task.validation)] == [
        (["甲乙，丙EPP", "月甲EPPPP"], ["乙，丙甲EPP", "甲。EPPPP"]),
        (["EPPPPPP", "?乙甲EPPP"], ["EPPPPPP", "乙甲月EPPP"]),
        (["甲乙丙月EPP", "月EPPPPP"], ["乙丙月，EPP", "。EPPPPP"]),
    ]
    for batch, lengths in zip((*train, *task.validation), ([5, 3], [1, 4], [5, 2]), strict=True):
        assert batch.packing.batch_sizes == [2] * 7
        assert batch.real is not None
        assert batch.real.reshape(7, 2).sum(axis=0).tolist() == lengths, "n real targets for n characters"
        assert np.array_equal(batch.real, batch.targets != 2)
    assert (task.steps, task.max_length) == (2, 5)
    assert task.test is task.validation, "the report has no third part"


def test_the_vocabulary_is_of_all_poems_by_falling_frequency_with_three_marks() -> None:
    assert report_task(POEMS, batch_size=2, width=7).vocabulary.tokens == TOKENS


def test_the_real_sizes_split_into_17_batches_and_642_poems() -> None:
    poems = [f"甲{'乙丙丁'[place % 3]}月"[: 1 + place % 3] for place in range(4994)]
    task = report_task(poems)
    train = list(task.train(np.random.default_rng(0)))
    assert task.steps == len(train) == 17
    assert [list(batch.packing.batch_sizes) for batch in train] == [[256] * 50] * 17
    assert [list(batch.packing.batch_sizes) for batch in task.validation] == [[256] * 50, [256] * 50, [130] * 50]
    assert sum(len(batch.targets) for batch in (*train, *task.validation)) == 4994 * 50
    real = [int(batch.real.sum()) for batch in (*train, *task.validation) if batch.real is not None]
    assert sum(real) == sum(map(len, poems))
    first = task.vocabulary.ids["甲"]
    assert train[3].inputs[:2].tolist() == [task.vocabulary.ids[END], first], "poems 768 and 769: 甲, 甲丙"


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_split_is_floor_of_nine_tenths_in_whole_batches(batch_size: int) -> None:
    for count in range(1, 130):
        expected = 9 * count // (10 * batch_size)
        if not expected:
            with pytest.raises(cli.UsageError):
                report_task(["甲"] * count, batch_size, 2)
            continue
        task = report_task(["甲"] * count, batch_size, 2)
        held = sum(batch.packing.batch_sizes[0] for batch in task.validation)
        assert (task.steps, held) == (expected, count - expected * batch_size)


def test_nothing_is_shuffled() -> None:
    task = report_task(POEMS, batch_size=2, width=7)
    for seed in (0, 1):
        assert [rows(batch) for batch in task.train(np.random.default_rng(seed))] == [
            rows(batch) for batch in task.train(np.random.default_rng(5))
        ]


@pytest.mark.parametrize("count", [0, 1, 284])
def test_too_few_poems_are_an_error_of_one_line(count: int) -> None:
    with pytest.raises(cli.UsageError, match=f"^{count} poems are too few for the report's split .* of 256$"):
        report_task(["甲乙"] * count)
    assert report_task(["甲乙"] * 285).steps == 1  # 0.9 * 285 is just above 256


def test_the_settings_are_the_reports() -> None:
    assert (protocol.FILES, protocol.WIDTH, protocol.BATCH_SIZE) == (8, 50, 256)
    assert (protocol.EMBEDDING_SIZE, protocol.HIDDEN_SIZE, protocol.EPOCHS) == (128, 256, 30)
    assert protocol.LEARNING_RATES == {"adam": 0.005, "adagrad": 0.01, "adadelta": 0.5}
    optimizer = build_optimizer("adadelta", PoemModel(5, 2, 2, rng=0).parameters(), 0.5)
    assert isinstance(optimizer, minidl.Adadelta)
    assert (optimizer.rho, optimizer.eps) == (0.9, 1e-6)


def test_the_reported_values_are_those_read_off_its_figures() -> None:
    epochs = [1, 2, 4, 6, 8, 10, 12, 13, 14, 20, 30]
    table = {
        "adam": "5.35 5.10 4.81 4.61 4.49 4.41 4.38 4.37 4.37",
        "adagrad": "5.26 5.03 4.89 4.82 4.76 4.71 4.67 4.66 4.64 4.56 4.475",
        "adadelta": "7.00 6.87 6.52 5.89 5.60 5.42 5.31 5.38",
    }
    assert protocol.REPORTED.keys() == table.keys()
    for name, values in table.items():
        expected = zip(epochs, map(float, values.split()), strict=False)
        assert list(protocol.REPORTED[name].items()) == list(expected)


def test_the_seven_poems_begin_with_the_seven_characters() -> None:
    assert "".join(poem[0] for poem in protocol.POEMS) == "日紅山夜湖海月"
    assert all(poem.endswith("。") and 5 < len(poem) < 50 for poem in protocol.POEMS)


# The two ways to count


@pytest.fixture
def fitted() -> tuple[Task, PoemModel, dict[str, float]]:
    task = report_task([poem[: 1 + place % 10] for place, poem in enumerate(pseudo_poems(40))], 8, 12)
    model = PoemModel(len(task.vocabulary), 6, 8, rng=0)
    schedule = minidl.Constant(build_optimizer("adam", model.parameters(), 0.05))
    ((line, _),) = fit(model, schedule, task, epochs=1, patience=1, pads_count=True, quiet=True)
    return task, model, line


def test_the_reports_figure_is_over_all_places_and_the_honest_one_over_real_targets(fitted: Any) -> None:
    task, model, line = fitted
    picked, real = [], []
    for batch in task.validation:
        h = model.body(batch.inputs, batch.packing)
        logs = log_softmax(model.head.logits(h))
        picked += logs[np.arange(len(logs)), batch.targets].tolist()
        real += [target != task.vocabulary.ids[PAD] for target in batch.targets.tolist()]
    nats, real = -np.array(picked), np.array(real)
    assert len(nats) == 8 * 12 and 0 < real.sum() < 8 * 12
    assert line["report_cross_entropy"] == pytest.approx(nats.mean(), rel=1e-5)
    assert line["report_perplexity"] == 2 ** line["report_cross_entropy"]
    assert line["validation_loss"] == pytest.approx(nats[real].mean(), rel=1e-5)
    assert line["validation_perplexity"] == math.exp(line["validation_loss"])
    assert abs(line["validation_loss"] - line["report_cross_entropy"]) > 0.01


def test_its_training_loss_leaves_pads_out_but_its_gradient_counts_them(fitted: Any) -> None:
    task, model, _ = fitted
    (batch,) = list(task.train(np.random.default_rng(0)))[:1]
    for parameter in model.parameters():
        parameter.grad[...] = 0
    nats = model.forward_backward(batch, 0)
    h = model.body(batch.inputs, batch.packing)
    logs = log_softmax(model.head.logits(h))
    pad = task.vocabulary.ids[PAD]
    # dL/dbias over all places, pads among the targets
    onehot = np.eye(len(task.vocabulary))[batch.targets]
    np.testing.assert_allclose(model.head.bias.grad, (np.exp(logs) - onehot).mean(axis=0), atol=1e-6)
    assert onehot[:, pad].mean() > 0.2
    expected = -logs[np.arange(len(logs)), batch.targets][batch.targets != pad].sum()
    assert float(nats.real) == pytest.approx(expected, rel=1e-5)


def test_the_pseudo_poems_are_none() -> None:
    assert poetry_helpers.pseudo_poems(3) == pseudo_poems(3) != pseudo_poems(3, seed=1)
    assert set("".join(pseudo_poems(50))) == set(CHARACTERS + "，。")


def test_the_rows_without_pads_are_the_reports_targets_in_the_reports_parts() -> None:
    poems = [poem[: 1 + place % 10] for place, poem in enumerate(pseudo_poems(300))]
    report, rows = report_task(poems), rows_task(poems, 32)
    assert rows.vocabulary.tokens == report.vocabulary.tokens and rows.max_length == report.max_length
    assert (report.steps, rows.steps) == (1, 8)

    def pairs(batches: Iterable[Batch]) -> list[list[tuple[int, int]]]:
        """(input, target) of every row without its pads, sorted."""
        found = []
        for batch in batches:
            real = np.ones(len(batch.targets), bool) if batch.real is None else batch.real
            starts = np.cumsum([0, *batch.packing.batch_sizes[:-1]])
            for row in range(batch.packing.batch_sizes[0]):
                places = [start + row for start, n in zip(starts, batch.packing.batch_sizes, strict=True) if row < n]
                found.append([(int(batch.inputs[k]), int(batch.targets[k])) for k in places if real[k]])
        return sorted(found)

    drawn = [list(rows.train(np.random.default_rng(seed))) for seed in (0, 1)]
    assert pairs(drawn[0]) == pairs(drawn[1]) == pairs(report.train(np.random.default_rng(0)))
    assert [len(batch.packing.batch_sizes) for batch in drawn[0]] != [
        len(batch.packing.batch_sizes) for batch in drawn[1]
    ], "shuffled"
    assert pairs(rows.validation) == pairs(rows.test) == pairs(report.test)
    assert (
        all(batch.packing.batch_sizes[0] == 1 for batch in rows.test)
        and sum(b.real is not None for b in rows.test) == 0
    )
