"""PoemModel: its forward pass by hand, its whole gradient numerically, and its file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from corpus.tasks import Batch, Rows
from corpus.vocabulary import END, UNKNOWN, Vocabulary
from model import Nats, PoemModel, load_model, save_model

import numpy as np
import pytest
from helpers import filled, relative_error
from poetry_helpers import VOCABULARY, log_softmax, small_model, weights

import minidl

V, E, H = 7, 3, 4


def float64_model(dropout: float = 0.0, layers: int = 1) -> PoemModel:
    """PoemModel computes in float32; this one has the same layers in float64, with random biases."""
    model = PoemModel(V, E, H, dropout, layers=layers, rng=0)
    model.embedding = minidl.Embedding(V, E, dtype="float64", rng=1)
    model.lstms = [minidl.LSTM(lstm.input_size, H, dtype="float64", rng=2) for lstm in model.lstms]
    model.head = minidl.LinearCrossEntropy(H, V, dtype="float64", rng=3)
    return filled(model, seed=4)


def test_tied_the_table_is_the_projections_weight_too() -> None:
    model = PoemModel(V, H, H, tied=True, rng=0)
    assert model.head.weight is model.embedding.weight
    assert [name for name, _ in model.named_parameters()] == [
        "embedding.weight",
        "lstms.0.weight_ih",
        "lstms.0.weight_hh",
        "lstms.0.bias",
        "head.bias",
    ]
    assert (model.lstms[0].bias.data[H : 2 * H] == 1).all() and not model.lstms[0].bias.data[:H].any()
    logits, _ = PoemModel(3000, 64, 64, tied=True, rng=0).next_logits(np.arange(100), None)
    assert abs(logits).max() < 2, "the first guess is nearly even"
    with pytest.raises(ValueError, match="embedding_size must be hidden_size = 4 if tied, got 3"):
        PoemModel(V, E, H, tied=True)


def test_tied_the_lowest_lstm_hears_its_small_inputs_as_one_with_a_table_of_its_own_does() -> None:
    loud, tied = (PoemModel(3000, 64, 64, tied=tied, rng=0) for tied in (False, True))
    ids = np.arange(1000)
    heard = [float((model.embedding(ids) @ model.lstms[0].weight_ih.data.T).std()) for model in (loud, tied)]
    assert heard[1] == pytest.approx(heard[0], rel=0.05)


def test_the_gradient_of_a_tied_model_is_the_numerical_one() -> None:
    model = PoemModel(V, H, H, tied=True, rng=0)
    model.embedding = minidl.Embedding(V, H, dtype="float64", rng=1)
    model.lstms = [minidl.LSTM(H, H, dtype="float64", rng=2)]
    model.head = minidl.LinearCrossEntropy(H, V, model.embedding.weight, dtype="float64", rng=3)
    minidl.gradcheck(MeanLoss(filled(model, seed=4), batch(False), step=3), rng=6)


def test_a_tied_models_file_gives_it_back(tmp_path: Path) -> None:
    model = PoemModel(len(VOCABULARY), H, H, tied=True, rng=0)
    save_model(tmp_path / "m.safetensors", model, VOCABULARY)
    loaded, _, metadata = load_model(tmp_path / "m.safetensors")
    assert metadata["settings"]["tied"] and loaded.head.weight is loaded.embedding.weight
    ids = np.array([1, 2])
    assert (loaded.next_logits(ids, None)[0] == model.next_logits(ids, None)[0]).all()


def batch(real: bool) -> Batch:
    """Lengths 4, 3, 3, 1, packed; with `real` some of the targets are pads."""
    rng = np.random.default_rng(5)
    sizes = [4, 3, 3, 1]
    inputs, targets = rng.integers(0, V, (2, sum(sizes)))
    return Batch(inputs, targets, minidl.Packing(sizes), targets > 2 if real else None)


class MeanLoss(minidl.Layer):
    """The loss whose gradient `forward_backward` promises: the mean over all rows, pads included."""

    def __init__(self, model: PoemModel, rows: Batch, step: int) -> None:
        self.model, self.rows, self.step = model, rows, step

    def forward_backward(self) -> tuple[float, tuple[()]]:
        nats = self.model.forward_backward(self.rows, self.step)
        return (nats.real + nats.pads) / len(self.rows.targets), ()


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("dropout, layers", [(0.0, 1), (0.5, 1), pytest.param(0.5, 3, marks=pytest.mark.slow)])
def test_the_gradient_of_the_whole_model_is_the_numerical_one(dropout: float, layers: int, real: bool) -> None:
    report = minidl.gradcheck(MeanLoss(float64_model(dropout, layers), batch(real), step=3), rng=6)
    lstms = {f"lstms.{n}.{name}" for n in range(layers) for name in ("weight_ih", "weight_hh", "bias")}
    names = {check.name.removeprefix("model.") for check in report.checks}
    assert names == {"embedding.weight", "head.weight", "head.bias"} | lstms
    assert report.max_error < 1e-6


@pytest.mark.parametrize("layers", [1, 2])
def test_the_loss_is_that_of_each_poem_alone_through_the_textbook(layers: int) -> None:
    model, rows = small_model(layers=layers), Rows(["甲乙，丙", "月", "夜山日。紅"], VOCABULARY)
    got = model.nats(rows.batch(np.array([0, 1, 2])))
    expected = 0.0
    for start, length in zip(rows.starts, rows.lengths, strict=True):
        ids = rows.ids[start : start + length + 1]
        state = None
        for before, after in pairwise(ids):
            logits, state = model.next_logits(np.array([before]), state)
            expected -= log_softmax(logits)[0, after]
    assert float(got.real) == pytest.approx(expected, rel=1e-5) and got.pads == 0.0


@pytest.mark.parametrize("real", [False, True])
def test_forward_backward_gives_the_nats_of_the_forward_pass_alone(real: bool) -> None:
    model, rows = PoemModel(V, E, H, rng=0), batch(real)
    trained, alone = model.forward_backward(rows, 0), model.nats(rows)
    assert float(trained.real) == pytest.approx(float(alone.real), rel=1e-6)
    assert float(trained.pads) == pytest.approx(float(alone.pads), rel=1e-6)
    assert (float(alone.pads) > 0) == real


@pytest.mark.parametrize("place", [0, 1, 2])
def test_dropout_works_in_training_only_and_by_the_step(place: int) -> None:
    """Before the first LSTM, between the two, and after the last."""
    model, rows = PoemModel(V, 16, 16, dropout=0.5, layers=2, rng=0), batch(False)
    for number, dropout in enumerate(model.dropouts):
        dropout.p = 0.5 * (number == place)
    first, again, other = (float(model.forward_backward(rows, step).real) for step in (1, 1, 2))
    assert first == again != other
    assert model.nats(rows).real == PoemModel(V, 16, 16, layers=2, rng=0).nats(rows).real


def gradients(rows: Batch) -> tuple[list[np.ndarray], Nats]:
    model = float64_model()
    nats = model.forward_backward(rows, 0)
    return [parameter.grad.copy() for parameter in model.parameters()], nats


def test_pads_apart_have_the_same_gradient_as_all_in_one_loss() -> None:
    apart, nats = gradients(batch(True))
    together, total = gradients(batch(True)._replace(real=None))
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(apart, together, strict=True))
    assert nats.real + nats.pads == pytest.approx(total.real, rel=1e-13)


def test_real_targets_and_pads_are_reported_apart_as_the_mask_says() -> None:
    model, rows = float64_model(), batch(True)
    h = model.body(rows.inputs, rows.packing)
    nats = -log_softmax(model.head.logits(h))[np.arange(len(rows.targets)), rows.targets]
    assert rows.real is not None
    real, pads = nats[rows.real].sum(), nats[~rows.real].sum()
    assert abs(real - pads) > 0.1
    for got in (model.nats(rows), model.forward_backward(rows, 0)):
        assert (got.real, got.pads) == (pytest.approx(real, rel=1e-12), pytest.approx(pads, rel=1e-12))


def test_a_batch_without_a_single_pad_may_say_so_by_a_mask() -> None:
    rows = batch(True)
    full, nats = gradients(rows._replace(real=np.ones(len(rows.targets), bool)))
    expected, total = gradients(rows._replace(real=None))
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(full, expected, strict=True))
    assert nats.real == pytest.approx(total.real, rel=1e-13) and nats.pads == 0.0


def test_gradients_add_until_they_are_reset() -> None:
    model, rows = PoemModel(V, E, H, rng=0), batch(False)
    model.forward_backward(rows, 0)
    once = [parameter.grad.copy() for parameter in model.parameters()]
    model.forward_backward(rows, 0)
    for parameter, grad in zip(model.parameters(), once, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * grad, rtol=1e-5, atol=1e-8)


def test_the_start_is_the_reports() -> None:
    model = PoemModel(3602, 128, 256, rng=0)
    embedding = model.embedding.weight.data
    assert abs(embedding.mean()) < 0.01 and abs(embedding.std() - 1) < 0.01 and embedding.max() > 4
    for weight, bound in (
        (model.lstms[0].weight_ih.data, (6 / (1024 + 128)) ** 0.5),
        (model.lstms[0].weight_hh.data, (6 / (1024 + 256)) ** 0.5),
        (model.head.weight.data, 1 / 16),
        (model.head.bias.data, 1 / 16),
    ):
        assert 0.99 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not model.lstms[0].bias.data.any()
    assert all(parameter.data.dtype == np.float32 for parameter in model.parameters())


def test_the_same_seed_makes_the_same_model_and_another_seed_another() -> None:
    one, same, other = (PoemModel(V, E, H, 0.5, rng=seed) for seed in (1, 1, 2))
    assert weights(one) == weights(same) != weights(other)
    rows = batch(False)
    assert one.forward_backward(rows, 0).real == same.forward_backward(rows, 0).real


# The file


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.safetensors", small_model(dropout=0.25), VOCABULARY, max_length=9, note="山")
    return tmp_path / "m.safetensors"


def test_a_saved_model_comes_back_with_the_same_logits(saved: Path) -> None:
    model, (again, vocabulary, facts) = small_model(), load_model(saved)
    ids = np.array([0, 5, 8])
    logits, state = model.next_logits(ids, None)
    loaded, state_again = again.next_logits(ids, None)
    assert np.array_equal(logits, loaded)
    assert np.array_equal(model.next_logits(ids, state)[0], again.next_logits(ids, state_again)[0])
    assert vocabulary.tokens == VOCABULARY.tokens and again.settings == small_model(dropout=0.25).settings
    assert again.dropouts[-1].p == 0.25 and (facts["max_length"], facts["note"]) == (9, "山")


def test_the_file_alone_holds_vocabulary_and_settings(saved: Path) -> None:
    tensors, metadata = minidl.load(saved)
    assert metadata["tokens"] == VOCABULARY.tokens
    assert metadata["settings"] == {"embedding_size": 6, "hidden_size": 8, "dropout": 0.25, "tied": False, "layers": 1}
    assert sorted(tensors) == [
        *("embedding.weight", "head.bias", "head.weight"),
        *("lstms.0.bias", "lstms.0.weight_hh", "lstms.0.weight_ih"),
    ]


Change = Callable[[dict[str, Any], dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "no tokens": lambda tensors, metadata: metadata.pop("tokens"),
    "no settings": lambda tensors, metadata: metadata.pop("settings"),
    "a token less": lambda tensors, metadata: metadata["tokens"].pop(),
    "a token more": lambda tensors, metadata: metadata["tokens"].append("龘"),
    "a token twice": lambda tensors, metadata: metadata["tokens"].__setitem__(-1, "甲"),
    "no end": lambda tensors, metadata: metadata["tokens"].__setitem__(1, "龘"),
    "tokens no list": lambda tensors, metadata: metadata.update(tokens=3),
    "other sizes": lambda tensors, metadata: metadata["settings"].update(hidden_size=9),
    "a size that is none": lambda tensors, metadata: metadata["settings"].update(hidden_size="8"),
    "layers that are not there": lambda tensors, metadata: metadata["settings"].update(layers=2),
    "a setting too many": lambda tensors, metadata: metadata["settings"].update(heads=2),
    "a setting too few": lambda tensors, metadata: metadata["settings"].pop("hidden_size"),
    "a tensor less": lambda tensors, metadata: tensors.pop("head.bias"),
    "a tensor more": lambda tensors, metadata: tensors.update(extra=np.zeros(2)),
    "whole numbers": lambda tensors, metadata: tensors.update({"head.bias": np.zeros(14, np.int32)}),
    "another shape": lambda tensors, metadata: tensors.update({"lstms.0.bias": np.zeros((4, 8), np.float32)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_something_else_is_a_checkpoint_error(saved: Path, change: str) -> None:
    tensors, metadata = minidl.load(saved)
    CHANGES[change](tensors, metadata)
    minidl.save(saved, tensors, metadata)
    with pytest.raises(minidl.CheckpointError, match="not a poem model") as caught:
        load_model(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_another_programs_checkpoint_and_no_checkpoint_are_checkpoint_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    minidl.save(path, minidl.Linear(2, 3, rng=0).state_dict(), {"kind": "something else"})
    with pytest.raises(minidl.CheckpointError, match="not a poem model"):
        load_model(path)
    path.write_text("甲乙丙丁", encoding="utf-8")
    with pytest.raises(minidl.CheckpointError, match="not a safetensors file"):
        load_model(path)
    with pytest.raises(minidl.CheckpointError, match="cannot be read"):
        load_model(tmp_path / "missing")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_file_cut_short_is_a_checkpoint_error(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    with pytest.raises(minidl.CheckpointError):
        load_model(saved)


def test_a_vocabulary_that_does_not_fit_is_found_at_loading_though_saving_takes_it(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_model(), Vocabulary([END, UNKNOWN, "甲"]))
    with pytest.raises(minidl.CheckpointError, match=r"embedding.weight .* \(3, 6\), got \(14, 6\)"):
        load_model(tmp_path / "m")
