"""Checkpoints saved on one backend and loaded on the other, resumed runs, and ids sampled from device logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gpu_training import OPTIMIZERS, TOKENS, every_optimizer
from twins import Model, batch, there

import minidl

pytestmark = pytest.mark.gpu
BACKENDS = ["numpy", "cupy"]


def train(model: Any, optimizer: Any, schedule: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model.forward_backward(*batch(TOKENS, seed=step), step)
        minidl.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def make(name: str, backend: str) -> tuple[Any, Any, Any]:
    model = Model(TOKENS, 6, 9, backend=backend, dtype="float32", rng=0)
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer, minidl.ExponentialDecay(optimizer, gamma=0.9)


def tensors_of(*parts: Any) -> dict[str, np.ndarray]:
    return {f"{number}.{name}": array for number, part in enumerate(parts) for name, array in part.state_dict().items()}


def load(path: Path, *parts: Any) -> None:
    tensors, _ = minidl.load(path)
    for number, part in enumerate(parts):
        start = f"{number}."
        part.load_state_dict({name[len(start) :]: a for name, a in tensors.items() if name.startswith(start)})


@pytest.mark.parametrize(("made_on", "loaded_on"), [("numpy", "cupy"), ("cupy", "numpy"), ("cupy", "cupy")])
@every_optimizer
def test_a_checkpoint_of_either_side_is_loaded_bit_for_bit(
    name: str, made_on: str, loaded_on: str, tmp_path: Path
) -> None:
    whole = make(name, made_on)
    train(*whole, range(2))
    minidl.save(tmp_path / "run", tensors_of(*whole), {})
    again = make(name, loaded_on)
    load(tmp_path / "run", *again)
    before, after = tensors_of(*whole), tensors_of(*again)
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert array.dtype == after[key].dtype and array.tobytes() == after[key].tobytes(), key


@every_optimizer
def test_a_run_that_is_resumed_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = make(name, "cupy")
    train(*whole, range(2))
    minidl.save(tmp_path / "run", tensors_of(*whole), {})
    train(*whole, range(2, 4))
    again = make(name, "cupy")
    load(tmp_path / "run", *again)
    train(*again, range(2, 4))
    before, after = tensors_of(*whole), tensors_of(*again)
    assert [key for key in before if before[key].tobytes() != after[key].tobytes()] == []


def test_arrays_of_the_device_are_saved_as_they_are(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    minidl.save(tmp_path / "a", {"a": there(array), "transposed": there(array).T}, {"k": 1})
    tensors, metadata = minidl.load(tmp_path / "a")
    assert (tensors["a"] == array).all() and (tensors["transposed"] == array.T).all() and metadata == {"k": 1}


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 0.3}])
def test_samples_are_those_of_the_host(how: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (50, 12)).astype(np.float32)
    drawn = minidl.sample(there(logits), rng=1, **how)
    assert isinstance(drawn, np.ndarray) and (drawn == minidl.sample(logits, rng=1, **how)).all()


@pytest.mark.parametrize("kind", ["ids", "rows"])
def test_packed_and_unpacked_on_the_device(kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = () if kind == "ids" else (3,)
    sequences = [rng.integers(0, 9, (length, *shape)) * (1 if kind == "ids" else 0.5) for length in (2, 5, 5, 1)]
    packed, expected = minidl.pack(sequences, backend="cupy"), minidl.pack(sequences)
    assert minidl.to_host(packed.data).tobytes() == expected.data.tobytes()
    parts = minidl.unpack(packed)
    assert all((minidl.to_host(part) == sequence).all() for part, sequence in zip(parts, sequences, strict=True))
