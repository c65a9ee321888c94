"""Files of poem models with a good checksum, whose settings or vocabulary are not those of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import fails
from model import load_model, save_model
from poetry_helpers import VOCABULARY, small_model

import minidl

FAULTS: dict[str, Any] = {
    "hidden_size": (10**9, -1, 0, "8", 8.0, None, [8], True, 9),
    "embedding_size": (10**9, 6.5, 7),
    "layers": (10**9, 2, 0, "1", None),
    "dropout": (1.5, "0", None, [0.1]),
    "tied": (True,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FAULTS.items() for value in values])
def test_a_poem_model_whose_settings_are_not_its_weights_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, small_model(), VOCABULARY)
    tensors, metadata = minidl.load(path)
    metadata["settings"][name] = value
    minidl.save(path, tensors, metadata)
    with fails(path, "not of a poem model"):
        load_model(path)


@pytest.mark.parametrize(
    "tokens",
    [[], ["甲"], VOCABULARY.tokens[:-1], [*VOCABULARY.tokens, "新"], [*VOCABULARY.tokens[:-1], "甲"], 7, [7] * 14],
)
def test_a_poem_model_with_another_vocabulary_is_refused(tmp_path: Path, tokens: Any) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, small_model(), VOCABULARY)
    tensors, metadata = minidl.load(path)
    minidl.save(path, tensors, metadata | {"tokens": tokens})
    with fails(path, "not of a poem model"):
        load_model(path)
