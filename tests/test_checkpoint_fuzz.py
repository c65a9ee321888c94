"""load, and load_model of examples/poetry, on files that were changed at random: refused, or what they held before.

MINIDL_THOROUGH=1 makes 20,000 changed files of the 1,200. That a file is refused at every length it can be
cut to, and with any single bit flipped, test_checkpoint.py tests whole.
"""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import THOROUGH, TINY, fails, header_of, rewritten, same, with_header
from model import load_model, save_model
from poetry_helpers import VOCABULARY, small_model
from vocabulary import END, UNKNOWN

import minidl

Header = dict[str, Any]
Content = tuple[dict[str, Any], dict[str, Any]]

RANDOM = np.random.default_rng(0)
VALID: list[Content] = [
    TINY,
    ({"a": np.array([2.5, -1.0], np.float32)}, {"step": 4}),  # as long as the one before
    ({}, {"nothing": None}),
    (
        {
            "0-d": np.array(2.5),
            "empty": np.zeros((3, 0), np.float16),
            "ids": RANDOM.integers(0, 9, 7),
            "mask": np.array([True, False, True]),
            **{f"layer.{n}": RANDOM.normal(size=(3, 4)).astype(np.float32) for n in range(3)},
        },
        {"tokens": ["春", "眠"], "settings": {"hidden_size": 3}, "note": 'a "quote" \\'},
    ),
]
WRONG_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**32, 2**63, 2**64 - 1, 10**30, 1.5, 1e300),
    *("", "F32", "F64", "I64", "F16", "BF16", "F8_E4M3", "C64", "BOOL", "a", "a\nb", "\0", "龘" * 3000),
    *([], [0], [[]], [-1], [2**40, 2**40], [0, 2**64 - 1], [2, 0], [1] * 2000, {}, {"a": 1}),
]


def overwrite(rng: random.Random, content: bytes, _: bytes) -> bytes:
    place, length = rng.randrange(len(content)), rng.choice([1, 4, 8, 50])
    return content[:place] + rng.randbytes(length) + content[place + length :]


def insert(rng: random.Random, content: bytes, _: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.choice([b" ", b"\0", b'"', b"{", rng.randbytes(8), content[:place]]) + content[place:]


def delete(rng: random.Random, content: bytes, _: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.choice([1, 4, 8, 50]) :]


def cut(rng: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bits(rng: random.Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def splice(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """The front of one file and the rear of another, cut at the same place, anywhere, or between header and tensors."""
    place = rng.randrange(min(len(content), len(other)))
    ends = [8 + int.from_bytes(file[:8], "little") for file in (content, other)]
    first, second = rng.choice([(place, place), (rng.randrange(len(content)), rng.randrange(len(other))), ends])
    return content[:first] + other[second:]


def other_length(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """The header's length is another: giant, or a little off."""
    length = int.from_bytes(content[:8], "little")
    lengths = [0, 1, length - 1, length + 1, len(content), 10**8, 2**31, 2**32 + length, 2**63, 2**64 - 1]
    return rng.choice(lengths).to_bytes(8, "little") + content[8:]


def other_header(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """One to three changes of the header's JSON, whose length is right."""
    header, body = header_of(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        rng.choice(HEADER_CHANGES)(rng, header, header_of(other)[0])
    if rng.random() < 0.1:
        body += bytes(rng.choice([1, 8, 64]))
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
    return with_header(text + b" " * rng.choice([0, 0, 3]), body)


def a_tensor(rng: random.Random, header: Header) -> Any:
    """The entry of one tensor, or what has been put in its place."""
    names = [name for name in header if name != "__metadata__" and isinstance(header[name], dict)]
    return header[rng.choice(names)] if names else {}


def change_field(rng: random.Random, header: Header, _: Header) -> None:
    a_tensor(rng, header)[rng.choice(["shape", "dtype", "data_offsets"])] = rng.choice(WRONG_VALUES)


def change_shape(rng: random.Random, header: Header, _: Header) -> None:
    """Often to one of as many elements."""
    shape = a_tensor(rng, header).get("shape")
    if isinstance(shape, list):
        rng.choice([shape.reverse, lambda: shape.append(1), lambda: shape.insert(0, 0), shape.clear])()


def change_dtype(rng: random.Random, header: Header, _: Header) -> None:
    """Often to one of as many bytes."""
    a_tensor(rng, header)["dtype"] = rng.choice(["F32", "I32", "U32", "F64", "I64", "U64", "F16", "BF16", "BOOL", "U8"])


def exchange_places(rng: random.Random, header: Header, _: Header) -> None:
    one, other = a_tensor(rng, header), a_tensor(rng, header)
    for field in rng.choice([["data_offsets"], ["data_offsets", "shape", "dtype"]]):
        one[field], other[field] = other.get(field), one.get(field)


def shift_places(rng: random.Random, header: Header, _: Header) -> None:
    entry, by = a_tensor(rng, header), rng.choice([-8, -4, 4, 8, 10**12])
    offsets = entry.get("data_offsets")
    if isinstance(offsets, list):
        entry["data_offsets"] = [offset + by if isinstance(offset, int) else offset for offset in offsets]


def rename(rng: random.Random, header: Header, _: Header) -> None:
    old = rng.choice(list(header) or [""])
    header[rng.choice(["b", "", "layer.0", "layer.9", "__metadata__", "a\nb", "a" * 5000])] = header.pop(old, {})


def remove(rng: random.Random, header: Header, _: Header) -> None:
    if header:
        del header[rng.choice(list(header))]


def add(rng: random.Random, header: Header, other: Header) -> None:
    """A tensor without a byte, one that shares its place with another, or what the other file has."""
    entry = rng.choice([{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, copy.deepcopy(a_tensor(rng, header))])
    header.update(rng.choice([{"more": entry}, {"more": rng.choice(WRONG_VALUES)}, other]))


def reorder(rng: random.Random, header: Header, _: Header) -> None:
    """Nothing is changed by this."""
    entries = list(header.items())
    rng.shuffle(entries)
    header.clear()
    header.update(entries)


def change_metadata(rng: random.Random, header: Header, other: Header) -> None:
    """The entry that minidl reads: a field is another, that of the other file, or one more; or nothing is left of it."""
    entries = header.get("__metadata__")
    if not isinstance(entries, dict) or rng.random() < 0.1:
        header["__metadata__"] = rng.choice([*WRONG_VALUES, {"minidl": rng.choice(WRONG_VALUES)}])
        return
    try:
        fields = json.loads(entries["minidl"])
        name = rng.choice([*fields, "more"])
        fields[name] = rng.choice([rng.choice(WRONG_VALUES), json.loads(other["__metadata__"]["minidl"]).get(name)])
        entries["minidl"] = json.dumps(fields)
    except (KeyError, TypeError, ValueError, AttributeError):  # an earlier change left no such entry
        entries["minidl"] = "{}"
    if rng.random() < 0.2:
        entries["more"] = rng.choice(["", 3, "{}"])


HEADER_CHANGES = [
    *(change_field, change_shape, change_dtype, exchange_places, shift_places),
    *(rename, remove, add, reorder, change_metadata, change_metadata),
]
Change = Callable[[random.Random, bytes, bytes], bytes]
CHANGES: list[Change] = [overwrite, insert, delete, cut, flip_bits, splice, other_length, other_header, other_header]


def outcome(path: Path, valid: list[Content]) -> str:
    """ "refused", or "equal" to one of the `valid` contents; the test fails on anything else."""
    try:
        tensors, metadata = minidl.load(path)
    except minidl.CheckpointError as error:
        with fails(path):
            raise error
        return "refused"
    assert any(metadata == facts and same(tensors, arrays) for arrays, facts in valid), "loaded, but something else"
    return "equal"


@pytest.mark.parametrize("change", dict.fromkeys(CHANGES), ids=lambda change: change.__name__)
def test_a_changed_file_is_refused_or_holds_what_it_held(change: Change, tmp_path: Path) -> None:
    path, files, counts = tmp_path / "c", [], Counter[str]()
    for content in VALID:
        minidl.save(path, *content)
        files.append(path.read_bytes())
    many = (20_000 if THOROUGH else 1_200) * CHANGES.count(change) // len(CHANGES)
    for seed in range(many):
        rng = random.Random(f"{change.__name__} {seed}")
        one, other = rng.sample(range(len(VALID)), 2)
        changed = change(rng, files[one], files[other])
        if changed in files:
            continue  # no change
        with path.open("r+b") as file:  # in place: a file that is made anew is flushed by some file systems
            file.write(changed)
            file.truncate()
        try:
            counts[outcome(path, [VALID[one], VALID[other]])] += 1
        except Exception as error:
            raise AssertionError(f"{change.__name__} {seed}: {changed[:2000]!r}") from error
    print(f"{change.__name__}: {dict(counts)}")
    assert counts["refused"] > 0.5 * many


# Headers that promise more than the file holds


PROMISES = {
    "a header of 99 MB": lambda file: (99 * 10**6).to_bytes(8, "little") + file[8:],
    "a header of an exabyte": lambda file: (2**60).to_bytes(8, "little") + file[8:],
    "a tensor of 100 MB": lambda file: rewritten(file, b"[2]", b"[25000000]"),
    "its place as well": lambda file: rewritten(rewritten(file, b"[2]", b"[25000000]"), b"[0,8]", b"[0,100000000]"),
    "a shape beyond 64 bits": lambda file: rewritten(file, b"[2]", b"[4294967296,4294967296,2]"),
    "a terabyte of nothing": lambda file: rewritten(rewritten(file, b"[2]", b"[250000000000,0]"), b"[0,8]", b"[0,0]"),
}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_takes_no_memory(promise: str, tmp_path: Path) -> None:
    path = tmp_path / "c"
    minidl.save(path, *TINY)
    path.write_bytes(PROMISES[promise](path.read_bytes()))
    assert peak_of_refusing(path, minidl.load) < 200_000


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


# A poem model's file with a valid checksum


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
    for seed in range(4_000 if THOROUGH else 200):
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
            assert vocabulary.tokens == TOKENS == facts["tokens"] and same(model.state_dict(), original[0])
            assert with_settings.items() <= model.settings.items()
            assert all(type(value) is type(model.settings[name]) for name, value in with_settings.items())
        except Exception as error:
            raise AssertionError(f"{seed}: {str(facts)[:2000]}") from error
    print(dict(counts))
    assert counts["refused"] > 0 and counts["loaded"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        *({name: size} for name in ("embedding_size", "hidden_size") for size in (1500, 10**9)),
        *({"layers": layers} for layers in (2000, 10**9, 10**4000)),
        {"hidden_size": -8, "embedding_size": 10**4},  # the negative may not make up for the rest
        {"hidden_size": "8" * 10**4},
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
