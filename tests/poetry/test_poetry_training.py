"""The training loop: poems as packed rows, epochs, the rule that stops, and the figures of the test part."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from corpus.tasks import Batch, Joined, Rows, Task, packed_task
from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
from learning.training import Diverged, RunningLoss, build_optimizer, evaluate
from learning.training import held_out_figures as figures_of_the_test_part
from model import Nats, PoemModel
from verse.writing import write_poems

import numpy as np
import pytest
from poetry_helpers import (
    CHARACTERS,
    EPOCH_FIELDS,
    VOCABULARY,
    fit,
    log_softmax,
    pseudo_poems,
    small_model,
    weights,
)

import minidl

POEMS = ["甲乙，丙", "月", "夜山日。紅", "丁龘", "日月山"]
BEGINNING, ENDING, STRANGER = (VOCABULARY.ids[mark] for mark in (BEGIN, END, UNKNOWN))
Line = dict[str, float]
Epochs = Iterator[tuple[Line, bool]]


def small_task(poems: Sequence[str] | None = None, batch_size: int = 16) -> Task:
    poems = poems or pseudo_poems(60)
    return packed_task([poems[:-20], poems[-20:-10], poems[-10:]], VOCABULARY, batch_size)


def constant(model: PoemModel, name: str, lr: float) -> minidl.Constant:
    return minidl.Constant(build_optimizer(name, model.parameters(), lr))


def run(
    task: Task, seed: int = 0, lr: float = 0.01, dropout: float = 0.2, **options: Any
) -> tuple[list[Line], PoemModel]:
    """All epochs of a small model, with one generator for start, shuffles and dropout as in train.py."""
    rng = np.random.default_rng(seed)
    model = PoemModel(len(task.vocabulary), 6, 8, dropout, rng=rng)
    schedule = constant(model, "adam", lr)
    settings = {"epochs": 3, "patience": 3, "clip": 1.0, "quiet": True, "rng": rng, **options}
    return told(fit(model, schedule, task, **settings)), model


def told(epochs: Epochs) -> list[Line]:
    return [line for line, _ in epochs]


# Rows


def unpacked(batch: Batch, part: np.ndarray) -> list[list[int]]:
    count = batch.packing.batch_sizes[0]
    order = np.arange(count)
    packed = minidl.PackedSequence(part, np.array(batch.packing.batch_sizes), order, order)
    return [row.tolist() for row in minidl.unpack(packed)]


def pairs_of(batches: Iterable[Batch]) -> list[tuple[list[int], list[int]]]:
    return [
        pair
        for batch in batches
        for pair in zip(unpacked(batch, batch.inputs), unpacked(batch, batch.targets), strict=True)
    ]


def expected_pairs(poems: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Input begin, c1 ... cn and target c1 ... cn, end."""
    ids = [VOCABULARY.encode(poem).tolist() for poem in poems]
    return [([BEGINNING, *row], [*row, ENDING]) for row in ids]


def test_a_row_is_begin_to_the_last_character_and_the_first_to_end() -> None:
    (pair,) = pairs_of([Rows(POEMS, VOCABULARY).batch(np.array([3]))])
    丁 = VOCABULARY.ids["丁"]
    assert pair == ([BEGINNING, 丁, STRANGER], [丁, STRANGER, ENDING])


def test_a_batch_is_the_picked_poems_longest_first() -> None:
    batch = Rows(POEMS, VOCABULARY).batch(np.array([1, 4, 2]))
    assert pairs_of([batch]) == expected_pairs([POEMS[2], POEMS[4], POEMS[1]])
    assert list(batch.packing.batch_sizes) == [3, 3, 2, 2, 1, 1] and batch.real is None
    assert batch.inputs.dtype == batch.targets.dtype == np.int32


@pytest.mark.parametrize(("size", "bytes_each"), [(256, 1), (257, 2), (1 << 16, 2), ((1 << 16) + 1, 4)])
def test_ids_take_no_more_bytes_than_they_need_and_stay_what_they_are(size: int, bytes_each: int) -> None:
    characters = [chr(0x20000 + place) for place in range(size - 3)]
    rows = Rows(["".join(characters[-3:])], Vocabulary([BEGIN, END, UNKNOWN, *characters]))
    assert rows.ids.nbytes == 5 * bytes_each
    batch = rows.batch(np.array([0]))
    assert batch.inputs.tolist() == [0, size - 3, size - 2, size - 1]
    assert batch.targets.tolist() == [size - 3, size - 2, size - 1, 1]
    assert batch.inputs.dtype == batch.targets.dtype == np.int32


def test_joined_poems_are_the_poems() -> None:
    poems = ["甲乙，丙", "", "月", "𠮷a\n"]
    joined = Joined(iter(poems))
    assert len(joined) == 4 and list(joined) == list(joined) == poems
    assert "月" in joined and "日" not in joined
    assert list(Joined([])) == [] and len(Joined([])) == 0
    assert pairs_of([Rows(Joined(POEMS), VOCABULARY).batch(np.arange(5))]) == pairs_of(
        [Rows(POEMS, VOCABULARY).batch(np.arange(5))]
    )


@pytest.mark.parametrize("batch_size", [1, 7, 16, 60, 1000])
def test_every_poem_comes_once_an_epoch(batch_size: int) -> None:
    poems = [poem[: 1 + place % 9] for place, poem in enumerate(pseudo_poems(60))]
    batches = list(Rows(poems, VOCABULARY).batches(batch_size, 0))
    assert sorted(pairs_of(batches)) == sorted(expected_pairs(poems))
    assert len(batches) == math.ceil(60 / batch_size)
    assert all(batch.packing.batch_sizes[0] <= batch_size for batch in batches)


def test_batches_are_of_like_lengths_and_shuffled_again_each_epoch() -> None:
    poems = [poem[: 1 + place % 9] for place, poem in enumerate(pseudo_poems(90))]
    task = packed_task([poems, poems[:9], poems[:9]], VOCABULARY, 10)
    rng = np.random.default_rng(0)
    first, second = list(task.train(rng)), list(task.train(rng))
    assert all(
        len(batch.packing.batch_sizes) - sum(size == 10 for size in batch.packing.batch_sizes) <= 1 for batch in first
    )
    assert pairs_of(first) != pairs_of(second)
    assert pairs_of(first) == pairs_of(task.train(np.random.default_rng(0)))
    assert pairs_of(first) != pairs_of(task.train(np.random.default_rng(1)))


def test_a_task_counts_its_steps_and_its_longest_poem() -> None:
    task = packed_task([POEMS, ["甲" * 9], ["乙"]], VOCABULARY, 2)
    assert task.steps == 3 == len(list(task.train(np.random.default_rng(0))))
    assert task.max_length == 9
    assert pairs_of(task.validation) == expected_pairs(["甲" * 9])
    assert pairs_of(task.test) == expected_pairs(["乙"])


def test_a_mean_is_over_targets_and_with_pads_over_places() -> None:
    mean = RunningLoss()
    real = np.array([True, True, False, False])
    mean.add(Nats(3.0, 1.0), Batch(np.zeros(4, int), np.zeros(4, int), minidl.Packing([2, 2]), real))
    mean.add(Nats(2.0, 0.0), Batch(np.zeros(3, int), np.zeros(3, int), minidl.Packing([3])))
    assert (mean.targets, mean.places) == (5, 7)
    assert mean.loss == pytest.approx(5 / 5) and mean.loss_with_pads == pytest.approx(6 / 7)


# fit


def test_learns_eight_lines_by_heart_and_writes_them_back() -> None:
    # eight lines of 29 characters that begin each with another: that first one is all there is to guess
    tails = ["".join(pseudo_poems(3, seed))[:28] for seed in range(8)]
    poems = [first + tail for first, tail in zip("甲乙丙丁日月山夜", tails, strict=True)]
    task = packed_task([poems, poems, poems], VOCABULARY, 8)
    model = PoemModel(len(VOCABULARY), 16, 64, rng=0)
    schedule = constant(model, "adam", 0.02)
    lines = told(fit(model, schedule, task, epochs=150, patience=150, clip=1.0, rng=0, quiet=True))
    least = math.log(8) / 30
    assert lines[0]["validation_loss"] > 2
    assert least < min(line["validation_loss"] for line in lines) < 0.1
    assert write_poems(model, VOCABULARY, "甲乙丙丁日月山夜", 40, argmax=True) == poems


def test_an_epochs_metrics() -> None:
    task = small_task()
    lines, model = run(task, epochs=2)
    assert [list(line) for line in lines] == [EPOCH_FIELDS] * 2
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert line["validation_perplexity"] == math.exp(line["validation_loss"])
        assert line["seconds"] * line["chars_per_second"] == pytest.approx(40 * 11)  # end marks are counted
        assert all(type(value) in (int, float) and math.isfinite(value) for value in line.values())
    assert json.loads(json.dumps(lines)) == lines
    assert evaluate(model, task.validation).loss == lines[1]["validation_loss"] < lines[0]["validation_loss"]


def test_the_report_protocols_metrics_are_added_where_pads_count() -> None:
    lines, _ = run(small_task(), epochs=1, pads_count=True)
    assert list(lines[0])[-2:] == ["report_cross_entropy", "report_perplexity"]
    assert lines[0]["report_perplexity"] == 2 ** lines[0]["report_cross_entropy"]


def test_train_loss_is_the_mean_of_the_steps_losses() -> None:
    task = small_task(batch_size=40)._replace()
    lines, _ = run(task, epochs=1, dropout=0.0, lr=1e-9)
    rng = np.random.default_rng(0)
    start = PoemModel(len(VOCABULARY), 6, 8, 0.0, rng=rng)
    assert lines[0]["train_loss"] == pytest.approx(evaluate(start, task.train(rng)).loss, rel=1e-6)


def without_clock(lines: Sequence[Line]) -> list[Line]:
    clock = ("seconds", "chars_per_second")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def test_the_same_seed_gives_the_same_run_to_the_last_bit() -> None:
    (lines, model), (again, same), (others, other) = (run(small_task(), seed) for seed in (5, 5, 6))
    assert without_clock(lines) == without_clock(again) != without_clock(others)
    assert weights(model) == weights(same) != weights(other)


def test_another_order_alone_makes_another_run() -> None:
    lines = []
    for seed in (1, 1, 2):
        model = small_model()
        schedule = constant(model, "adam", 0.01)
        options = {"epochs": 2, "patience": 2, "quiet": True, "rng": seed}
        lines.append(without_clock([line for line, _ in fit(model, schedule, small_task(), **options)]))
    assert lines[0] == lines[1] != lines[2]


def test_clip_bounds_the_gradient_and_none_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = minidl.SGD.step

    def spy(self: minidl.SGD) -> None:
        norms.append(math.sqrt(sum(float((p.grad.astype(np.float64) ** 2).sum()) for p in self.params)))
        step(self)

    monkeypatch.setattr(minidl.SGD, "step", spy)
    for clip in (0.01, None):
        model = small_model()
        schedule = constant(model, "sgd", 0.1)
        list(fit(model, schedule, small_task(), epochs=1, patience=1, clip=clip, rng=0, quiet=True))
    clipped, free = norms[: len(norms) // 2], norms[len(norms) // 2 :]
    assert max(clipped) == pytest.approx(0.01, rel=1e-3) and min(free) > 0.02


def test_the_schedule_moves_with_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = minidl.SGD.step
    monkeypatch.setattr(minidl.SGD, "step", lambda self: (rates.append(self.lr), step(self)))
    model, task = small_model(), small_task()
    schedule = minidl.ExponentialDecay(build_optimizer("sgd", model.parameters(), 0.1), 0.5)
    list(fit(model, schedule, task, epochs=2, patience=2, rng=0, quiet=True))
    assert task.steps == 3 and rates == [0.1 * 0.5**place for place in range(6)]


class Scripted(PoemModel):
    """Prescribed validation losses by epoch: (nats a real target, nats a pad)."""

    def __init__(self, losses: Sequence[float | tuple[float, float]]) -> None:
        super().__init__(len(VOCABULARY), 2, 2, rng=0)
        pairs = [loss if isinstance(loss, tuple) else (loss, 0.0) for loss in losses]
        self.script = iter(pairs)
        self.seen: list[bytes] = []  # the weights when each epoch was evaluated

    def nats(self, batch: Batch) -> Nats:
        self.seen.append(weights(self))
        real, pads = next(self.script)
        return Nats(real * len(batch.targets), pads * len(batch.targets))


def scripted(losses: Sequence[Any], patience: int, **options: Any) -> tuple[Scripted, Epochs]:
    poems = pseudo_poems(8)
    task = packed_task([poems, poems, poems], VOCABULARY, 8)
    model = Scripted(losses)
    schedule = constant(model, "adam", 0.01)
    settings = {"epochs": len(losses), "rng": 0, "quiet": True, **options}
    return model, fit(model, schedule, task, patience=patience, **settings)


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "best"),
    [
        ([3, 2, 2.5, 2.4, 1.9], 1, 3, 2),
        ([3, 2, 2.5, 2.4, 1.9], 2, 4, 2),
        ([3, 2, 2.5, 2.4, 1.9], 3, 5, 5),
        ([3, 2, 2.5, 1.9, 2.4, 2.3, 1.8], 2, 6, 4),
        ([3, 3, 3], 2, 3, 1),  # as good as before is no better
        ([3, 4, 5], 1, 2, 1),
        ([3, 2, 1], 1, 3, 3),
        ([3], 1, 1, 1),
    ],
)
def test_stops_after_its_patience_and_keeps_the_best_weights(
    losses: list[float], patience: int, epochs: int, best: int
) -> None:
    model, run = scripted(losses, patience)
    lines, improved = zip(*run, strict=True)
    losses = losses[:epochs]
    assert [line["validation_loss"] for line in lines] == pytest.approx(losses)
    before = [min(losses[:place], default=math.inf) for place in range(epochs)]
    assert list(improved) == [loss < least for loss, least in zip(losses, before, strict=True)]
    assert weights(model) == model.seen[best - 1]
    assert len(set(model.seen)) == epochs, "the weights must have moved for this test to mean anything"


def test_the_figure_that_is_watched_counts_pads_where_pads_count() -> None:
    losses = [(3, 1), (2, 5), (2.5, 0.5), (1, 9)]  # the sums: 4, 7, 3, 10
    assert [improved for _, improved in scripted(losses, 2, pads_count=True)[1]] == [True, False, True, False]
    assert [improved for _, improved in scripted(losses, 2)[1]] == [True, True, False, True]


def test_nothing_happens_before_the_first_epoch_is_asked_for() -> None:
    model, run = scripted([3, 2], 1)
    before = weights(model)
    assert weights(model) == before and model.seen == []
    next(run)
    assert weights(model) == model.seen[0] != before, "an epoch's weights are in the model when it is told"


def test_who_stops_listening_gets_the_best_weights() -> None:
    model, run = scripted([3, 2, 2.5, 1], 4)
    for _ in range(3):
        next(run)
    assert weights(model) == model.seen[2]
    run.close()  # type: ignore[attr-defined]
    assert weights(model) == model.seen[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_whatever_interrupts_an_epoch_leaves_the_best_weights(error: type[BaseException]) -> None:
    model = small_model()
    task = small_task()
    epochs: list[int] = []

    def train(rng: np.random.Generator, start: int = 0) -> Iterator[Batch]:
        epochs.append(1)
        for place, batch in enumerate(task.train(rng, start)):
            if len(epochs) == 2 and place == 1:
                raise error
            yield batch

    run = fit(
        model,
        constant(model, "adam", 0.01),
        task._replace(train=train),
        epochs=3,
        patience=3,
        quiet=True,
        rng=0,
    )
    next(run)
    best = weights(model)
    with pytest.raises(error):
        next(run)
    assert weights(model) == best


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_an_error_with_the_best_weights_kept(loss: float) -> None:
    model, run = scripted([3, loss, 2], 3)
    next(run)
    with pytest.raises(Diverged, match=r"training diverged .* not finite.*smaller learning rate"):
        next(run)
    assert weights(model) == model.seen[0]


def diverge(name: str, clip: float | None) -> None:
    model = small_model(dropout=0.3)
    start = weights(model)
    with pytest.raises(Diverged) as caught:
        list(
            fit(
                model,
                constant(model, name, 1e300),
                small_task(),
                epochs=3,
                patience=3,
                clip=clip,
                rng=0,
                quiet=True,
            )
        )
    message = str(caught.value)
    assert message.startswith("training diverged after 1 steps: ") and message.endswith("; try a smaller learning rate")
    assert len(message.splitlines()) == 1
    assert weights(model) == start and np.isfinite(model.head.weight.data).all()


@pytest.mark.parametrize("name", ["adam", "adagrad", "adadelta", "sgd"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_an_absurd_learning_rate_ends_in_one_line_with_the_start_kept(name: str, clip: float | None) -> None:
    with np.errstate(all="ignore"):
        diverge(name, clip)


def test_divergence_is_reported_without_numpys_warnings() -> None:
    diverge("adam", 1.0)  # warnings are errors here; to a user they would be ten more lines


def test_every_optimizer_is_built_as_its_name_says_and_learns() -> None:
    kinds = {"adam": minidl.Adam, "adagrad": minidl.AdaGrad, "adadelta": minidl.Adadelta, "sgd": minidl.SGD}
    for name, kind in kinds.items():
        model = small_model()
        schedule = constant(model, name, 0.02 if name != "adadelta" else 1.0)
        optimizer = schedule.optimizer
        assert type(optimizer) is kind and optimizer.lr == (1.0 if name == "adadelta" else 0.02)
        lines = told(fit(model, schedule, small_task(), epochs=3, patience=3, rng=0, quiet=True))
        assert lines[2]["train_loss"] < lines[0]["train_loss"], name
    assert optimizer.momentum == 0.9  # type: ignore[attr-defined]


# The test part


def test_the_test_figures_count_targets_and_unknowns() -> None:
    strange = ["甲龘", "乙", "龘龘龘。"]  # 3 + 2 + 5 targets, 4 of them unknown
    task = packed_task([POEMS, POEMS, strange], VOCABULARY, 2)
    model = small_model()
    figures = figures_of_the_test_part(model, task)
    assert list(figures) == [
        "test_loss",
        "test_perplexity",
        "test_targets",
        "vocabulary_size",
        "unknown_rate",
        "test_loss_error",
        "test_perplexity_error",
    ]
    assert (figures["test_targets"], figures["vocabulary_size"], figures["unknown_rate"]) == (10, 14, 0.4)
    nats = 0.0
    for inputs, targets in expected_pairs(strange):
        h = model.body(np.array(inputs), minidl.Packing([1] * len(inputs)))
        nats -= log_softmax(model.head.logits(h))[np.arange(len(targets)), targets].sum()
    assert figures["test_loss"] == pytest.approx(nats / 10, rel=1e-5)
    assert figures["test_perplexity"] == pytest.approx(math.exp(nats / 10), rel=1e-5)
    assert json.loads(json.dumps(figures)) == figures


def test_the_error_of_the_test_figures_is_the_spread_over_drawn_poems() -> None:
    """Against the bootstrap: the test poems resampled with replacement, many times."""
    rng = np.random.default_rng(0)
    poems = ["".join(rng.choice(list("甲乙丙丁"), rng.integers(1, 9))) for _ in range(60)]
    model = small_model()
    figures = figures_of_the_test_part(model, packed_task([POEMS, POEMS, poems], VOCABULARY, 2))
    batches = packed_task([POEMS, POEMS, poems], VOCABULARY, 2).test
    nats, targets = np.array([[float(model.nats(batch).real), len(batch.targets)] for batch in batches]).T
    drawn = rng.integers(0, len(poems), (4000, len(poems)))
    losses = nats[drawn].sum(axis=1) / targets[drawn].sum(axis=1)
    assert figures["test_loss_error"] == pytest.approx(losses.std(), rel=0.06)
    expected = figures["test_loss_error"] * figures["test_perplexity"]
    assert figures["test_perplexity_error"] == pytest.approx(expected)


def test_poems_of_the_reports_length_have_figures_of_their_own_where_there_are_longer_ones() -> None:
    short, long = ["甲乙" * 24 + "甲", "乙"], ["丙" * 50, "丁" * 64]  # the first has 49
    model = small_model()
    figures = figures_of_the_test_part(model, packed_task([POEMS, POEMS, [*short, *long]], VOCABULARY, 2))
    alone = figures_of_the_test_part(model, packed_task([POEMS, POEMS, short], VOCABULARY, 2))
    assert figures["short_test_targets"] == alone["test_targets"] == 52
    for name in ("loss", "perplexity", "loss_error", "perplexity_error"):
        assert figures[f"short_test_{name}"] == pytest.approx(alone[f"test_{name}"])
    assert figures["test_targets"] == 52 + 51 + 65
    assert not any(name.startswith("short") for name in alone)


def test_the_vocabulary_of_the_helpers_is_what_these_tests_take_it_for() -> None:
    assert len(VOCABULARY) == 14 and set("甲乙丙丁日月山夜紅") == set(CHARACTERS)
    assert Vocabulary(VOCABULARY.tokens).marks == [BEGINNING, ENDING, STRANGER] == [0, 1, 2]
