"""Files that were changed at random: each is a CheckpointError, or gives back exactly what was saved.

MINIDL_THOROUGH=1 makes it 12,000 files in place of 900.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import THOROUGH, fails, header_of, same, with_header
from model import load_model, save_model
from poetry_helpers import VOCABULARY, small_model

import minidl

FILES = 12_000 if THOROUGH else 900
TENSORS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bias": np.array([0.5, -1.0], np.float64),
    "steps": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float16),
}
METADATA = {"tokens": ["甲", "<end>"], "lr": 0.1, "nested": {"a": [1, None, True]}}

Change = Callable[[random.Random, bytes, bytes], bytes]


def flip(rng: random.Random, content: bytes, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def cut_out(rng: random.Random, content: bytes, other: bytes) -> bytes:
    start, length = rng.randrange(len(content)), rng.choice((1, 2, 8, 50))
    return content[:start] + content[start + length :]


def put_in(rng: random.Random, content: bytes, other: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.choice((1, 2, 8, 50))) + content[start:]


def splice(rng: random.Random, content: bytes, other: bytes) -> bytes:
    at = rng.randrange(1, min(len(content), len(other)))
    return content[:at] + other[at:]


def promise(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Another length of the header."""
    length = rng.choice((0, 1, len(content) - 8, len(content), 2**31, 2**40, 2**63, 2**64 - 1, rng.randrange(999)))
    return length.to_bytes(8, "little") + content[8:]


def edit(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A header that is still one: another shape, dtype, place or name; a tensor more or less; other metadata."""
    header, body = header_of(content)
    names = [name for name in header if name != "__metadata__"]
    name, entry = rng.choice(names), header["__metadata__"]
    number = rng.choice((0, 1, 2, 3, 4, 12, 48, -1, 10**6, 2**40, 2**62, 2**64, 10**400, 1.5, None, "3", [3]))

    def shape() -> None:
        header[name]["shape"] = rng.choice(([number], [number, 4], [3, number], [], number, [2] * 70))

    def dtype() -> None:
        header[name]["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "", 3))

    def place() -> None:
        header[name]["data_offsets"] = rng.choice(([0, number], [number, number], [number], number, None))

    def rename() -> None:
        header[rng.choice(("bias", "x", "", "__metadata__", "\0"))] = header.pop(name)

    def more() -> None:
        header["more"] = rng.choice((header[name], {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, {}, 7))

    def less() -> None:
        del header[name]

    def metadata() -> None:
        old = entry["minidl"]
        words = (
            old[:-1],
            old + " ",
            old.replace("甲", "乙"),
            old.replace('format": 2', 'format": 1'),
            "[]",
            "{}",
            "",
            "7",
        )
        entry["minidl"] = rng.choice(
            (*words, "[" * 10**5, old.replace("0.1", "NaN"), old.replace("0.1", "1e999"), "9" * 9999)
        )

    def surplus() -> None:
        entry[rng.choice(("minidl2", "format", ""))] = "x"

    rng.choice((shape, dtype, place, rename, more, less, metadata, surplus))()
    return with_header(header, body)


def white(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """White space that says nothing."""
    header, body = header_of(content)
    return with_header(with_header(header)[8:] + b" " * rng.randrange(1, 30), body)


CHANGES: tuple[Change, ...] = (flip, cut, cut_out, put_in, splice, promise, edit, edit, edit, white)


def test_whatever_a_file_holds_it_is_refused_or_what_was_saved(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    saved = [(TENSORS, METADATA), ({name: tensor + 1 for name, tensor in TENSORS.items()}, METADATA | {"lr": 0.2})]
    for path, whole in zip(paths, saved, strict=True):
        minidl.save(path, *whole)
    content, other = (path.read_bytes() for path in paths)
    path, outcomes = tmp_path / "changed", Counter[str]()
    for seed in range(FILES):
        rng = random.Random(seed)
        change = rng.choice(CHANGES)
        changed = change(rng, content, other)
        path.write_bytes(changed)
        try:
            tensors, metadata = minidl.load(path)
        except minidl.CheckpointError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 600, (seed, message)
            outcomes[f"{change.__name__} refused"] += 1
        else:
            allowed = saved if change is splice else saved[:1]  # which may have taken the other file from its start
            assert any(same(tensors, whole) and metadata == facts for whole, facts in allowed), (seed, change.__name__)
            outcomes[f"{change.__name__} equal"] += 1
    refused = sum(count for name, count in outcomes.items() if name.endswith("refused"))
    print(f"{FILES} files: {refused} refused, {FILES - refused} as saved, none wrong; {dict(sorted(outcomes.items()))}")
    assert 0.7 * FILES < refused < FILES


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    minidl.save(path, TENSORS, METADATA)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with fails(path):
            minidl.load(path)


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
