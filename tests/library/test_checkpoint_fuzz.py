"""load with thousands of damaged files: each is refused in one line, or returns what was saved.

1,500 files, or 30,000 with MINIDL_THOROUGH=1 in the environment; results by kind are printed (pytest -s).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import THOROUGH, header_of, same, with_header

import minidl

FILES = 30_000 if THOROUGH else 1500
Content = tuple[dict[str, Any], dict[str, Any]]
SAVED: list[Content] = [
    (
        {
            "lstm.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
            "lstm.bias": np.arange(4, dtype=np.float32),
            "steps": np.array(7),
            "real": np.array([True, False, True]),
            "none": np.zeros((0, 3), np.float16),
        },
        {"step": 3, "loss": 0.25, "tokens": ["<end>", "山", '"\\'], "nested": {"a": [1, None, True]}},
    ),
    (
        {
            "lstm.weight": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32),
            "lstm.bias": np.arange(4, 8, dtype=np.float32),
        },
        {"step": 4, "tokens": ["<end>", "水"]},
    ),
]
Change = Callable[[random.Random, bytes, bytes], bytes]  # from two good files' bytes


def place(rng: random.Random, content: bytes) -> int:
    """Half of them in the header, where a change means more."""
    end = len(content) if rng.random() < 0.5 else 8 + int.from_bytes(content[:8], "little")
    return rng.randrange(end)


def bits(rng: random.Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def byte(rng: random.Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    changed[place(rng, content)] = rng.choice([0, 255, *b'"\\{}[]:, 09e-n', rng.randrange(256)])
    return bytes(changed)


def start(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """The header's length."""
    length = int.from_bytes(content[:8], "little") + rng.choice([-8, -1, 1, 8])
    return rng.choice([length, 2 ** rng.randrange(64), rng.randrange(2**64)]).to_bytes(8, "little") + content[8:]


def insert(rng: random.Random, content: bytes, _: bytes) -> bytes:
    at = place(rng, content)
    return content[:at] + rng.randbytes(rng.choice([1, 2, 8, 100])) + content[at:]


def delete(rng: random.Random, content: bytes, _: bytes) -> bytes:
    at = place(rng, content)
    return content[:at] + content[at + rng.choice([1, 2, 8, 100]) :]


def repeat(rng: random.Random, content: bytes, _: bytes) -> bytes:
    at, length = place(rng, content), rng.choice([1, 4, 8, 50])
    return content[: at + length] + content[at:]


def cut(rng: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes, other: bytes) -> bytes:
    at = place(rng, content)
    return content[:at] + other[rng.choice([at, rng.randrange(len(other))]) :]


def header_of_the_other(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return with_header(header_of(content)[0], header_of(other)[1])


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    2**64,
    1e308,
    "",
    "F64",
    "山",
    [],
    [0],
    [1, 1, 1],
    {},
    "x" * 500,
]


def anything(rng: random.Random, header: Any) -> None:
    """One value somewhere in a nest becomes another, goes, or is joined by one."""
    inner = [
        child for child in (header.values() if isinstance(header, dict) else header) if isinstance(child, (dict, list))
    ]
    if inner and rng.random() < 0.8:
        return anything(rng, rng.choice(inner))
    keys = list(header) if isinstance(header, dict) else list(range(len(header)))
    what = rng.choice(["set", "set", "delete", "add"])
    if what == "add" or not keys:
        if isinstance(header, dict):
            header[rng.choice(["", "a", "shape", "lstm.more", "__metadata__"])] = rng.choice(VALUES)
        else:
            header.insert(rng.randrange(len(header) + 1), rng.choice(VALUES))
    elif what == "set":
        header[rng.choice(keys)] = rng.choice(VALUES)
    else:
        del header[rng.choice(keys)]


def header(rng: random.Random, content: bytes, _: bytes) -> bytes:
    changed, body = header_of(content)
    anything(rng, changed)
    return with_header(changed, body)


def numbers(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """A shape, dtype or place of one tensor, or the name, which may become that of another."""
    changed, body = header_of(content)
    names = [name for name in changed if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice([*names, "more"])
    what = rng.choice(["shape", "dtype", "data_offsets", "rename", "exchange", "double"])
    if what == "shape":
        shape = changed[name]["shape"]
        changed[name]["shape"] = rng.choice([shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [2**40], [0, 2**40]])
    elif what == "dtype":
        changed[name]["dtype"] = rng.choice(
            ["F16", "F32", "F64", "I32", "U32", "BOOL", "BF16", "I8", "C64", "F4", "F8_E5M2"]
        )
    elif what == "data_offsets":
        changed[name]["data_offsets"] = [
            offset + rng.choice([-8, 0, 4, 2**50]) for offset in changed[name]["data_offsets"]
        ]
    elif what == "rename":
        changed[other] = changed.pop(name)
    else:
        changed[name], changed[other] = changed.get(other, {}), changed[name]
        if what == "double":
            changed[name] = changed[other]
    return with_header(changed, body)


def entry(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """minidl's own entry, in its outer fields or in the caller's metadata."""
    changed, body = header_of(content)
    fields = json.loads(changed["__metadata__"]["minidl"])
    if rng.random() < 0.5:
        anything(rng, fields)
    else:
        metadata = json.loads(fields["metadata"])
        anything(rng, metadata)
        fields["metadata"] = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
    changed["__metadata__"]["minidl"] = json.dumps(fields, ensure_ascii=False)
    return with_header(changed, body)


CHANGES: list[Change] = [
    bits,
    byte,
    start,
    insert,
    delete,
    repeat,
    cut,
    splice,
    header_of_the_other,
    header,
    numbers,
    entry,
]


@pytest.fixture
def good(tmp_path: Path) -> list[bytes]:
    contents = []
    for tensors, metadata in SAVED:
        minidl.save(tmp_path / "good", tensors, metadata)
        contents.append((tmp_path / "good").read_bytes())
    return contents


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_file_is_refused_or_is_what_was_saved(change: Change, good: list[bytes], tmp_path: Path) -> None:
    rng = random.Random(change.__name__)
    path = tmp_path / "changed"
    refusals: Counter[str] = Counter()
    for _ in range(FILES // len(CHANGES)):
        first, second = rng.sample(good, 2)
        content = change(rng, first, second)
        path.write_bytes(content)
        try:
            loaded, metadata = minidl.load(path)
        except minidl.CheckpointError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400 + len(str(path)), (
                message
            )
            refusals[message.removeprefix(f"{path}: ").split(" (")[0]] += 1
        else:
            assert any(same(loaded, tensors) and metadata == facts for tensors, facts in SAVED), content
            refusals["loaded"] += 1
    print(dict(refusals))
    assert refusals["loaded"] < FILES // len(CHANGES) // 2, "most changes change nothing"


def test_every_length(good: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for length in range(len(good[0])):
        path.write_bytes(good[0][:length])
        with pytest.raises(minidl.CheckpointError):
            minidl.load(path)
