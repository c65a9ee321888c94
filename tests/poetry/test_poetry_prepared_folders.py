"""Prepared folders that are damaged or something else: one line that names the file, and no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus import prepared
from corpus.download import CorpusError

import numpy as np
import pytest
from poetry_helpers import SMALL, poems_of_lengths, prepared_folder, run_program


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts_with(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / prepared.METADATA).read_text(encoding="utf-8"))
        facts.update(changed)
        (folder / prepared.METADATA).write_text(json.dumps(facts), encoding="utf-8")

    return change


def content(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length]) and None


def array(name: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, values)


def ids_with(place: int, value: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        ids = np.load(folder / "train.ids.npy")
        ids[place] = value
        np.save(folder / "train.ids.npy", ids)

    return change


def without_an_end(folder: Path) -> None:
    lengths = np.load(folder / "train.lengths.npy")
    ids_with(int(lengths[0]), 5)(folder)


def swapped(folder: Path) -> None:
    """Two poems of different lengths."""
    lengths = np.load(folder / "train.lengths.npy")
    place = np.flatnonzero(np.diff(lengths.astype(int)))[0]
    lengths[[place, place + 1]] = lengths[[place + 1, place]]
    np.save(folder / "train.lengths.npy", lengths)


def huge_lengths(folder: Path) -> None:
    """Whose sum is what it was, modulo 2^64."""
    lengths = np.load(folder / "train.lengths.npy").astype(np.uint64)
    rest = lengths[:3].sum()
    lengths[:3] = 2**63 - 1, 2**63 - 1, rest + np.uint64(2)
    np.save(folder / "train.lengths.npy", lengths)


def no_poems(folder: Path) -> None:
    facts = json.loads((folder / prepared.METADATA).read_text(encoding="utf-8"))
    for kind in ("ids", "lengths"):
        np.save(folder / f"train.{kind}.npy", np.zeros(0, np.uint8))
        facts["parts"]["train"][kind]["count"] = 0
    (folder / prepared.METADATA).write_text(json.dumps(facts), encoding="utf-8")


def zipped(folder: Path) -> None:
    np.savez(folder / "a.npz", a=np.ones(3))
    (folder / "a.npz").replace(folder / "train.ids.npy")


def npy(shape: str) -> bytes:
    """The head of an .npy file that promises this shape."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "prepared.json"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_bytes(b""))[0], "prepared.json"),
    "no facts": (lambda folder: (folder / prepared.METADATA).unlink(), "prepared.json"),
    "no JSON": (content(prepared.METADATA, b"{"), "prepared.json"),
    "not UTF-8": (content(prepared.METADATA, b'{"kind": "\xff"}'), "prepared.json"),
    "deep": (content(prepared.METADATA, b"[" * 100_000), "prepared.json"),
    "a list": (content(prepared.METADATA, b"[]"), "prepared.json"),
    "empty": (content(prepared.METADATA, b"{}"), "it has no 'kind'"),
    "another kind": (facts_with(kind="poem run"), "'poem run'"),
    "another version": (facts_with(version=2), "of version 2"),
    "no tokens": (facts_with(tokens=[]), "vocabulary"),
    "tokens of another kind": (facts_with(tokens=7), "prepared.json"),
    "no beginning": (facts_with(tokens=["<end>", "<unknown>"]), "must have a <begin> token"),
    "no length": (facts_with(max_length=0), "got max_length 0"),
    "no parts": (facts_with(parts={}), "it has no 'train'"),
    "parts of another kind": (facts_with(parts=[1, 2, 3]), "prepared.json"),
    "no ids": (lambda folder: (folder / "test.ids.npy").unlink(), "test.ids.npy"),
    "no lengths": (lambda folder: (folder / "validation.lengths.npy").unlink(), "validation.lengths.npy"),
    "ids cut short": (cut("train.ids.npy", 2000), "train.ids.npy"),
    "empty ids": (cut("train.ids.npy", 0), "train.ids.npy"),
    "half a header": (cut("train.ids.npy", 40), "train.ids.npy"),
    "lengths cut short": (cut("train.lengths.npy", 200), "train.lengths.npy"),
    "NULs": (content("test.ids.npy", bytes(4096)), "test.ids.npy"),
    "fewer ids": (array("train.ids.npy", np.zeros(9, np.uint8)), "train.ids.npy"),
    "floats": (array("train.lengths.npy", np.ones(540)), "train.lengths.npy"),
    "two axes": (array("test.ids.npy", np.zeros((2, 3), np.uint8)), "test.ids.npy"),
    "objects": (lambda folder: np.save(folder / "test.ids.npy", np.array([{}])), "test.ids.npy"),
    "an id beyond the vocabulary": (ids_with(1, 200), "id 200"),
    "a poem without its beginning": (ids_with(0, 5), "do not begin and end"),
    "a poem without its end": (without_an_end, "do not begin and end"),
    "lengths that wrap around": (huge_lengths, "but the lengths require"),
    "no poems": (no_poems, "train.ids.npy"),
    "tokens as an object": (
        facts_with(tokens=dict.fromkeys(["<begin>", "<end>", "<unknown>"], 1)),
        "must be a list, got dict",
    ),
    "a zip file": (zipped, "train.ids.npy"),
    "more ids than there are numbers for": (content("train.ids.npy", npy(f"({10**30},)")), "train.ids.npy"),
    "a head that breaks off": (content("train.ids.npy", npy("(3,")), "train.ids.npy"),
    "other lengths": (swapped, "do not begin and end"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_what_prepare_writes(fault: str) -> None:
    change, named = FAULTS[fault]
    prepared_folder(poems_of_lengths(600))
    change(Path("big"))
    with pytest.raises(CorpusError) as caught:
        list(prepared.load(Path("big")).task(8).train(np.random.default_rng(0)))
    assert named in str(caught.value) and len(str(caught.value).splitlines()) == 1
    outcome = run_program("train", "--prepared", "big", *SMALL)
    errors = [line for line in outcome.err.splitlines() if ": error: " in line]
    assert outcome.code == 2 and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    assert named in errors[0]


def test_more_bytes_than_there_should_be() -> None:
    folder = prepared_folder(poems_of_lengths(600))
    with (folder / "train.ids.npy").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CorpusError, match=r"train\.ids\.npy is not what prepare\.py writes: it has [\d,]+ bytes, not"):
        prepared.load(folder)


def test_lengths_that_need_other_ids() -> None:
    folder = prepared_folder(poems_of_lengths(600))
    lengths = np.load(folder / "train.lengths.npy")
    lengths[0] += 1
    np.save(folder / "train.lengths.npy", lengths)
    with pytest.raises(CorpusError, match="but the lengths require"):
        prepared.load(folder).task(8)
