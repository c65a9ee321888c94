"""load_model, given files with a checksum that holds and content that is wrong, or with damage of any kind.

600 files; with MINIDL_THOROUGH=1 in the environment 6,000.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import THOROUGH, fails
from model import PoemModel, load_model, save_model
from poetry_helpers import VOCABULARY, small_model, weights

import minidl

FILES = 6000 if THOROUGH else 600
MOST = 3_000_000  # bytes; the model has 1,100 weights, and some are larger than they promise


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "m", small_model(), VOCABULARY, max_length=9)
    load_model(tmp_path / "m")  # imports what it needs, so that the memory is the model's
    return tmp_path / "m"


Change = Callable[[dict[str, Any], dict[str, Any]], object]
SETTINGS: dict[str, dict[str, Any]] = {
    "an LSTM of terabytes": {"hidden_size": 10**6},
    "a table of terabytes": {"embedding_size": 10**11},
    "a size of 400 digits": {"hidden_size": 10**400},
    "a size of 1e300": {"hidden_size": 1e300},
    "sizes that cancel out": {"embedding_size": -(10**9), "hidden_size": 10**9},
    "a negative size": {"hidden_size": -8},
    "no size": {"hidden_size": 0},
    "null": {"embedding_size": None},
    "text": {"hidden_size": "8", "embedding_size": "6"},
    "lists": {"hidden_size": [8], "embedding_size": [6]},
    "a fraction": {"hidden_size": 8.0},
    "a truth": {"embedding_size": True},
    "dropout of 400 digits": {"dropout": 10**400},
    "dropout beyond 1": {"dropout": 2},
    "dropout that is text": {"dropout": "0.1"},
    "tied": {"tied": True},
    "a billion layers": {"layers": 10**9},
    "no layers, but a huge LSTM": {"layers": -1, "hidden_size": 10**9},
    "no layer": {"layers": 0},
    "layers in words": {"layers": "one"},
    "a setting of two lines": {"a\nb": 1},
    "another backend": {"backend": "cupy"},
    "a seed": {"rng": 1},
    "another vocabulary": {"vocabulary_size": 14},
}
OTHERS: dict[str, Change] = {
    "settings that are a list": lambda tensors, metadata: metadata.update(settings=[1]),
    "settings that are null": lambda tensors, metadata: metadata.update(settings=None),
    "tokens as an object": lambda tensors, metadata: metadata.update(tokens=dict.fromkeys(metadata["tokens"], 0)),
    "tokens that are lists": lambda tensors, metadata: metadata["tokens"].__setitem__(-1, []),
    "tokens that are numbers": lambda tensors, metadata: metadata["tokens"].__setitem__(-1, 3),
    "a token of two characters": lambda tensors, metadata: metadata["tokens"].__setitem__(-1, "山水"),
    "a token of none": lambda tensors, metadata: metadata["tokens"].__setitem__(-1, ""),
    "a million tokens": lambda tensors, metadata: metadata["tokens"].extend(map(chr, range(0x20000, 0x2A000))),
    "a length of nothing": lambda tensors, metadata: metadata.update(max_length=0),
    "a length in words": lambda tensors, metadata: metadata.update(max_length="nine"),
    "no tensors": lambda tensors, metadata: tensors.clear(),
    "one empty tensor of the right name": lambda tensors, metadata: tensors.update(
        {"lstms.0.weight_hh": np.zeros((0, 10**9), np.float32)}
    ),
    "a wide table and a wide LSTM, but nothing between": lambda tensors, metadata: (
        metadata["settings"].update(embedding_size=20_000, hidden_size=300),
        tensors.update(
            {
                "embedding.weight": np.zeros((len(metadata["tokens"]), 20_000), np.float16),
                "lstms.0.weight_hh": np.zeros((1200, 300), np.float16),
            }
        ),
    ),
    "many layers of nothing": lambda tensors, metadata: (
        metadata["settings"].update(layers=3000),
        tensors.update({f"{number}.weight_hh": np.zeros(0) for number in range(2999)}),
    ),
    "all sizes another way around": lambda tensors, metadata: tensors.update(
        {name: np.ascontiguousarray(array.T) for name, array in tensors.items()}
    ),
    "weights that float32 cannot hold": lambda tensors, metadata: tensors.update(
        {"head.bias": np.full(len(metadata["tokens"]), 1e300)}
    ),
    "weights that are truths": lambda tensors, metadata: tensors.update(
        {"head.bias": np.zeros(len(metadata["tokens"]), bool)}
    ),
}
CHANGES: dict[str, Change] = OTHERS | {
    name: (lambda tensors, metadata, wrong=wrong: metadata["settings"].update(wrong))  # type: ignore[misc]
    for name, wrong in SETTINGS.items()
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_poem_model_is_refused_before_memory_is_taken_for_it(name: str, saved: Path) -> None:
    tensors, metadata = minidl.load(saved)
    CHANGES[name](tensors, metadata)
    minidl.save(saved, tensors, metadata)
    tracemalloc.start()
    try:
        with fails(saved, "not of a poem model"):
            load_model(saved)
        assert tracemalloc.get_traced_memory()[1] < MOST + 40 * saved.stat().st_size
    finally:
        tracemalloc.stop()


def test_weights_that_are_not_finite_are_refused_though_the_checksum_holds(saved: Path) -> None:
    tensors, metadata = minidl.load(saved)
    tensors["lstms.0.bias"][3] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minidl.checkpoint, "_fault", lambda arrays: "")
        minidl.save(saved, tensors, metadata)
    with fails(saved, "lstms.0.bias", "not finite"):
        load_model(saved)


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_file_is_refused_or_the_same_model(seed: int, saved: Path) -> None:
    """By a bit, or with the checksum set right, by a value in its metadata or a tensor's shape or dtype."""
    rng = random.Random(seed)
    good, (tensors, metadata) = saved.read_bytes(), minidl.load(saved)
    expected = load_model(saved)[0]
    values = [None, True, -1, 0, 1, 10**9, 10**30, 0.5, 1e300, "", "8", [], ["<end>"], {}]
    refused = 0
    for _ in range(FILES // 3):
        if rng.random() < 0.3:
            content = bytearray(good)
            content[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            saved.write_bytes(content)
        else:
            changed, facts = dict(tensors), {**metadata, "settings": dict(metadata["settings"])}
            what, name = rng.randrange(4), rng.choice(sorted(tensors))
            if what == 0:
                facts["settings"][rng.choice(["dropout", "embedding_size", "hidden_size", "layers", "tied"])] = (
                    rng.choice(values)
                )
            elif what == 1:
                facts[rng.choice(["tokens", "settings", "max_length"])] = rng.choice(values)
            elif what == 2:
                changed[name] = changed[name].reshape(rng.choice([(-1,), (-1, 1), (1, -1), (2, -1)]))
            else:
                changed[name] = changed[name].astype(rng.choice(["float16", "float64", "int32", "bool"]))
            minidl.save(saved, changed, facts)
        try:
            found = load_model(saved)[0]
        except minidl.CheckpointError as error:
            message = str(error)
            assert message.startswith(f"{saved}: ") and "\n" not in message and len(message) < 400 + len(str(saved))
            refused += 1
        else:
            assert same_but_for_rounding(found, expected)
    assert refused > FILES // 5


def same_but_for_rounding(found: PoemModel, expected: PoemModel) -> bool:
    """Sizes and weights; the latter may have gone through float16."""
    if weights(found) == weights(expected):
        return found.settings.keys() == expected.settings.keys()
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    return all(np.allclose(one.data, other.data, rtol=1e-3, atol=1e-4) for one, other in pairs)
