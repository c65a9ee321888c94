"""Files of poem models with a good checksum, whose settings or vocabulary are not those of their weights.

100 of them at random; with MINIDL_THOROUGH=1 in the environment 2,000, and how they fared is printed (pytest -s).
"""

from __future__ import annotations

import copy
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus.vocabulary import END, UNKNOWN
from model import load_model, save_model

import numpy as np
import pytest
from checkpoint_helpers import THOROUGH, fails, same
from poetry_helpers import VOCABULARY, small_model

import minidl

FAULTS: dict[str, Any] = {
    "hidden_size": (10**9, -1, 0, "8", 8.0, None, [8], True, 9),
    "embedding_size": (10**9, 6.5, 7),
    "layers": (10**9, 2, 0, "1", None),
    "dropout": (1.5, "0", None, [0.1], 10**400),
    "tied": (True,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FAULTS.items() for value in values])
def test_a_poem_model_whose_settings_are_not_its_weights_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, small_model(), VOCABULARY)
    tensors, metadata = minidl.load(path)
    metadata["settings"][name] = value
    minidl.save(path, tensors, metadata)
    with fails(path, "not a poem model"):
        load_model(path)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["甲"],
        VOCABULARY.tokens[:-1],
        [*VOCABULARY.tokens, "新"],
        [*VOCABULARY.tokens[:-1], "甲"],
        7,
        [7] * 14,
        [*VOCABULARY.tokens[:-1], "山水"],
        [*VOCABULARY.tokens[:-1], ""],
        dict.fromkeys(VOCABULARY.tokens),
    ],
)
def test_a_poem_model_with_another_vocabulary_is_refused(tmp_path: Path, tokens: Any) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, small_model(), VOCABULARY)
    tensors, metadata = minidl.load(path)
    minidl.save(path, tensors, metadata | {"tokens": tokens})
    with fails(path, "not a poem model"):
        load_model(path)


def test_weights_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_model(), VOCABULARY)
    tensors, metadata = minidl.load(tmp_path / "m")
    tensors["head.bias"] = np.full(len(VOCABULARY), 1e300)
    minidl.save(tmp_path / "m", tensors, metadata)
    with fails(tmp_path / "m", "not a poem model", "head.bias", "float32"):
        load_model(tmp_path / "m")


TOKENS = VOCABULARY.tokens
WRONG_TOKENS: list[Any] = [
    *(None, 3, "", "春眠", [], {}, dict.fromkeys(TOKENS), TOKENS[:-1], [*TOKENS, "龘"], [*TOKENS[:-1], TOKENS[3]]),
    *([*TOKENS[:-1], 3], [*TOKENS[:-1], None], [*TOKENS[:-1], ["龘"]], [END, UNKNOWN], [[]], ["龘"] * len(TOKENS)),
    *([token for token in TOKENS if token != END] + ["龘"], [*TOKENS, *map(str, range(1000))]),
]
WRONG_SETTINGS: list[Any] = [
    *(None, "8", "", [], [8], {}, 8.0, 7, 9, 0, -8, 0.5, True, False, 1500, 10**9, 10**30, 10**4200, 1e300),
]
NAMES = ["embedding_size", "hidden_size", "dropout", "tied", "layers"]
SETTINGS = [*NAMES, "heads", "backend", "rng", "vocabulary_size", "self", "a\nb", ""]


def change_facts(rng: random.Random, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    kind = rng.choice(["tokens", "setting", "setting", "setting", "no setting", "settings", "max_length", "tensors"])
    settings = facts["settings"]
    if kind == "tokens":
        facts["tokens"] = rng.choice(WRONG_TOKENS)
    elif kind == "setting" and isinstance(settings, dict):
        settings[rng.choice(SETTINGS)] = rng.choice(WRONG_SETTINGS)
    elif kind == "no setting" and isinstance(settings, dict):
        settings.pop(rng.choice(NAMES), None)
    elif kind == "settings":
        facts["settings"] = rng.choice(WRONG_SETTINGS)
    elif kind == "max_length":
        facts["max_length"] = rng.choice([None, "9", 0, -1, 1.5, [], {}])
    else:
        name = rng.choice(list(tensors))
        shape = rng.choice([(0,), (), (1, 10**5), (10**5, 1), (10**5,), tensors[name].shape[::-1]])
        tensors[name] = np.zeros(shape, rng.choice(["float32", "int32", "float16", "bool"]))


def test_a_models_file_with_wrong_facts_is_refused_or_is_the_model(tmp_path: Path) -> None:
    """Every other file here is whole: its checksum holds."""
    path, counts = tmp_path / "c", Counter[str]()
    save_model(path, small_model(), VOCABULARY, max_length=9)
    original = minidl.load(path)
    for seed in range(2_000 if THOROUGH else 100):
        rng = random.Random(seed)
        tensors, facts = copy.deepcopy(original)
        for _ in range(rng.choice([1, 1, 2, 3])):
            change_facts(rng, tensors, facts)
        try:
            minidl.save(path, tensors, facts)
            with_settings = facts["settings"]
            try:
                model, vocabulary, _ = load_model(path)
            except minidl.CheckpointError as error:
                with fails(path):
                    raise error
                counts["refused"] += 1
                continue
            counts["loaded"] += 1
            held = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}  # may be float16
            assert vocabulary.tokens == TOKENS == facts["tokens"] and same(model.state_dict(), held)
            assert with_settings.items() <= model.settings.items()
            assert all(type(value) is type(model.settings[name]) for name, value in with_settings.items())
        except Exception as error:
            raise AssertionError(f"{seed}: {str(facts)[:2000]}") from error
    print(dict(counts))
    assert counts["refused"] > 0 and counts["loaded"] > 0


def peak_of_refusing(path: Path, load: Callable[[Path], Any]) -> int:
    """Bytes in use at most while `load` found out that the file is to be refused."""
    with fails(path):
        load(path)  # once before: what is imported is not counted
    tracemalloc.start()
    try:
        with fails(path):
            load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "settings",
    [
        *({name: size} for name in ("embedding_size", "hidden_size") for size in (1500, 10**9)),
        *({"layers": layers} for layers in (2000, 10**9, 10**4000)),
        {"hidden_size": -8, "embedding_size": 10**4},  # the negative may not make up for the rest
        {"hidden_size": "8" * 10**4},
        {"a\nb" * 1000: 1},
    ],
    ids=lambda settings: str(settings)[:50],
)
def test_settings_take_no_memory_that_the_tensors_do_not(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_model(path, small_model(), VOCABULARY)
    tensors, facts = minidl.load(path)
    facts["settings"] |= settings
    minidl.save(path, tensors, facts)
    assert peak_of_refusing(path, load_model) < 300_000


@pytest.mark.parametrize("tied", [False, True])
def test_wide_tables_take_no_memory_by_what_they_are_multiplied_with(tied: bool, tmp_path: Path) -> None:
    """Two tensors that fit the settings, of 300 kB, and others that would be of 100 MB."""
    path, settings = tmp_path / "c", {"embedding_size": 30_000, "hidden_size": 100, "dropout": 0.0, "layers": 1}
    tensors = {"embedding.weight": np.zeros((2, 30_000), np.float16), "lstms.0.weight_hh": np.zeros((400, 100), "f2")}
    minidl.save(path, tensors, {"tokens": [END, UNKNOWN], "settings": {**settings, "tied": tied}})
    assert peak_of_refusing(path, load_model) < 2_000_000
