"""save and load: round trips, and detection of damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import TINY, fails, rewritten, same

import minidl


def test_arrays_of_all_kinds_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "0-d": np.array(3.25),
        "0-d int": np.array(-7, np.int64),
        "scalar": np.float32(0.1),
        "empty": np.zeros((0,)),
        "empty rows": np.zeros((3, 0, 2), np.float16),
        **{d: rng.normal(size=(2, 3)).astype(d) for d in ("float16", "float32", "float64")},
        **{d: rng.integers(0, 100, (5,)).astype(d) for d in ("int8", "uint8", "int16", "int32", "int64", "uint64")},
        "bool": np.array([True, False]),
        "fortran": np.asfortranarray(rng.normal(size=(4, 3))),
        "strided": rng.normal(size=(6, 4))[::2, ::-1],
        "transposed": rng.normal(size=(4, 3)).T,
        "negative zero and smallest": np.array([-0.0, 5e-324]),
        "ein Name mit Ümläuten, 名字 / .": np.ones(1),
        "": np.ones(1),
    }
    minidl.save(tmp_path / "c", tensors, {})
    loaded, metadata = minidl.load(tmp_path / "c")
    assert same(loaded, tensors) and metadata == {}
    assert all(array.flags.writeable for array in loaded.values())


METADATA = {
    "text": '春眠不覺曉 "quoted" \\ \n\t \0 é 🌸',
    "numbers": [0, -1, 2**60, 1.5, 1e-300],
    "nested": {"a": {"b": [None, True, False, []]}},
    "": "an empty key",
    "vocabulary": [chr(code) for code in range(0x4E00, 0x4E40)],
}


def test_metadata_comes_back(tmp_path: Path) -> None:
    minidl.save(tmp_path / "c", {}, METADATA)
    assert minidl.load(tmp_path / "c") == ({}, METADATA)


def test_a_path_is_a_string_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minidl.save(str(tmp_path / "c"), *TINY)
    assert same(minidl.load(str(tmp_path / "c"))[0], TINY[0])
    monkeypatch.chdir(tmp_path)
    minidl.save("d", *TINY)
    assert same(minidl.load("d")[0], TINY[0])
    assert sorted(os.listdir(tmp_path)) == ["c", "d"]


def test_any_safetensors_program_reads_it(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    minidl.save(tmp_path / "c", *TINY)
    assert same(load_file(tmp_path / "c"), TINY[0])


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": np.ones(3), "a": np.zeros((2, 2), np.float32), "c": np.arange(3)}
    minidl.save(tmp_path / "1", tensors, METADATA)
    backwards = {name: np.asfortranarray(tensors[name]) for name in reversed(tensors)}
    minidl.save(tmp_path / "2", backwards, dict(reversed(METADATA.items())))
    content = (tmp_path / "1").read_bytes()
    assert content == (tmp_path / "2").read_bytes()
    minidl.save(tmp_path / "2", *minidl.load(tmp_path / "1"))
    assert content == (tmp_path / "2").read_bytes()
    minidl.save(tmp_path / "3", tensors, METADATA | {"step": 1})
    assert content != (tmp_path / "3").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_that_are_not_finite_are_not_saved(value: float, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "c"
    minidl.save(path, *TINY)
    before = path.read_bytes()
    with fails(path, "weight", "not finite"):
        minidl.save(path, {"fine": np.ones(2), "weight": np.array([[0, value]], dtype)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c"]


def test_values_that_are_not_finite_are_not_loaded_though_the_checksum_holds(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minidl.checkpoint, "fault", lambda arrays: "")
        minidl.save(path, {"weight": np.array([0, np.nan])}, {})
    with fails(path, "weight", "not finite"):
        minidl.load(path)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "an object": ({}, {"when": object()}, "JSON"),
    "nan": ({}, {"loss": float("nan")}, "JSON"),
    "inf": ({}, {"loss": float("inf")}, "JSON"),
    "an array": ({}, {"array": np.ones(2)}, "JSON"),
    "a tuple as key": ({}, {("a", "b"): 1}, "JSON"),
    "a number as key": ({}, {1: "would come back under '1'"}, "JSON"),
    "a number as key below": ({}, {"a": [{"b": {1: 2}}]}, "JSON"),
    "a key twice below": ({}, {"a": ({1: 2, "1": 3},)}, "JSON"),
    "inf below": ({}, {"a": {"best": [float("-inf")]}}, "JSON"),
    "a set": ({}, {"set": {1}}, "JSON"),
    "bytes": ({}, {"bytes": b"x"}, "JSON"),
    "half a character": ({}, {"text": "\ud800"}, "JSON"),
    "a list for a dict": ({}, [1, 2], "JSON"),
    "None for a dict": ({}, None, "JSON"),
    "half a character as name": ({"half \ud800": np.ones(1)}, {}, "name"),
    "a number as name": ({1: np.ones(1)}, {}, "name"),
    "the format's own name": ({"__metadata__": np.ones(1)}, {}, "__metadata__"),
    "texts": ({"texts": np.array(["a"])}, {}, "texts"),
    "objects": ({"objects": np.array([None])}, {}, "objects"),
    "complex": ({"waves": np.ones(1, complex)}, {}, "waves"),
    "long double": ({"long": np.ones(1, np.longdouble)}, {}, "long"),
    "dates": ({"dates": np.array(["2020-01-01"], "M8[D]")}, {}, "dates"),
}


@pytest.mark.parametrize(("tensors", "metadata", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_back_is_not_saved(tensors: Any, metadata: Any, word: str, tmp_path: Path) -> None:
    path = tmp_path / "c"
    minidl.save(path, *TINY)
    before = path.read_bytes()
    with fails(path, word):
        minidl.save(path, tensors, metadata)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c"]


def test_tuples_become_lists_as_json_has_it(tmp_path: Path) -> None:
    minidl.save(tmp_path / "c", {}, {"betas": (0.9, 0.999)})
    assert minidl.load(tmp_path / "c")[1] == {"betas": [0.9, 0.999]}


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4", ">u2"])
def test_big_endian_arrays_come_back_with_their_values(dtype: str, tmp_path: Path) -> None:
    values = np.arange(3).astype(dtype)
    minidl.save(tmp_path / "c", {"a": values}, {})
    (loaded,) = minidl.load(tmp_path / "c")[0].values()
    assert loaded.tolist() == [0, 1, 2] and loaded.dtype == values.dtype.newbyteorder("=")


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    with fails(tmp_path / "c", "cannot be read", "No such file"):
        minidl.load(tmp_path / "c")
    with fails(tmp_path, "directory"):
        minidl.load(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    minidl.save(tmp_path / "c", *TINY)
    return tmp_path / "c"


def test_a_file_cut_at_any_length_is_refused(tiny: Path) -> None:
    content = tiny.read_bytes()
    for length in reversed(range(len(content))):
        os.truncate(tiny, length)
        with fails(tiny):
            minidl.load(tiny)
    tiny.write_bytes(content + b"\0")
    with fails(tiny):
        minidl.load(tiny)


def test_every_single_bit_that_flips_is_found(tiny: Path) -> None:
    content = tiny.read_bytes()
    assert len(content) < 400
    with tiny.open("r+b", buffering=0) as file:  # in place: much faster than 3,000 new files
        for place, byte in enumerate(content):
            for bit in range(8):
                file.seek(place)
                file.write(bytes([byte ^ 1 << bit]))
                with fails(tiny):
                    minidl.load(tiny)
            file.seek(place)
            file.write(bytes([byte]))
    assert tiny.read_bytes() == content
    minidl.load(tiny)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b'"step\\\\\\": 3', b'"step\\\\\\": 4', "SHA-256"),
        (b'"a":', b'"b":', "SHA-256"),
        (b'"F32"', b'"I32"', "SHA-256"),
        (b'"shape":[2]', b'"shape":[1,2]', "SHA-256"),
        (b'"minidl":', b'"others":', "not a minidl checkpoint"),
        (b'\\"format\\": 2', b'\\"format\\": 3', "format 3"),
        (b'\\"format\\": 2', b'\\"format\\": 1', "metadata"),
        (b'\\"format\\": 2', b'\\"format\\": 0', "metadata"),
        (b'\\"format\\": 2', b'\\"format\\": 1e99', "metadata"),
        (b'\\"format\\": 2', b'\\"format\\": true', "metadata"),
        (b'\\"format\\": 2', b'\\"format\\": [2]', "metadata"),
        (b'\\"format\\": 2', b'\\"format\\": ' + b"9" * 300, "format 1e+300"),
        (b'\\"format\\": 2', b'\\"format\\": ' + b"9" * 5000, "metadata"),
        (b'\\"format\\": 2', b'\\"form\\": 2', "metadata"),
        (b'\\"format\\": 2', b'\\"more\\": 0, \\"format\\": 2', "surplus"),
        (b'\\"safetensors\\"', b'\\"safetensor\\"', "SHA-256"),
        (b'"minidl":', b'"more":"","minidl":', "surplus"),
        (b'\\"sha256\\"', b'\\"sha\\"', "metadata"),
        (b'{\\"format\\"', b'[\\"format\\"', "metadata"),
    ],
)
def test_a_changed_header_is_refused(old: bytes, new: bytes, word: str, tiny: Path) -> None:
    tiny.write_bytes(rewritten(tiny.read_bytes(), old, new))
    with fails(tiny, word):
        minidl.load(tiny)


def test_two_tensors_exchanged_are_found(tmp_path: Path) -> None:
    """Same names, same shapes, same bytes in all: only the digest knows which is whose."""
    path = tmp_path / "c"
    minidl.save(path, {"a": np.zeros(2), "b": np.ones(2)}, {})
    content = path.read_bytes()
    path.write_bytes(content[:-32] + content[-16:] + content[-32:-16])
    with fails(path, "SHA-256"):
        minidl.load(path)


def test_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "c"
    save_file({"a": np.ones(2)}, path)
    with fails(path, "not a minidl checkpoint"):
        minidl.load(path)
    save_file({"a": np.ones(2)}, path, metadata={"format": "pt"})
    with fails(path, "not a minidl checkpoint"):
        minidl.load(path)
    for entry in ("", "{}", "[]", "null", "3", '{"format": 1}', '"format"', "\N{SNOWMAN}"):
        save_file({"a": np.ones(2)}, path, metadata={"minidl": entry})
        with fails(path):
            minidl.load(path)
    for content in (b"", b"\0" * 8, b"PK\x03\x04", os.urandom(500), b"a text\nof two lines\n" * 20):
        path.write_bytes(content)
        with fails(path, "damaged, or not a safetensors file"):
            minidl.load(path)


def test_saving_what_was_loaded_over_itself(tiny: Path) -> None:
    tensors, metadata = minidl.load(tiny)
    minidl.save(tiny, tensors, metadata)
    assert same(minidl.load(tiny)[0], TINY[0])


def test_a_symbolic_link_at_the_path_is_replaced_or_followed_but_never_half(tmp_path: Path) -> None:
    minidl.save(tmp_path / "first", *TINY)
    (tmp_path / "latest").symlink_to("first")
    minidl.save(tmp_path / "latest", {"a": np.zeros(3)}, {})
    assert minidl.load(tmp_path / "latest")[0]["a"].tolist() == [0, 0, 0]
    minidl.load(tmp_path / "first")


@pytest.mark.slow
def test_metadata_beyond_what_the_format_takes_is_refused(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(minidl.CheckpointError, match="metadata must be JSON"):
        minidl.save(tmp_path / "a", {}, {"deep": deep})
    with pytest.raises(minidl.CheckpointError, match="the format refuses it"):  # a backslash is eight in the header
        minidl.save(tmp_path / "a", {}, {"long": "\\" * 13_000_000})
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_the_library_would_write_but_not_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minidl.checkpoint, "MOST", 1000)  # the library's own 100 MB take 5 s to fill
    path = tmp_path / "c"
    minidl.save(path, {"a": np.zeros(2)}, {"facts": "x" * 400})
    before = path.read_bytes()
    with pytest.raises(minidl.CheckpointError, match="header too large"):
        minidl.save(path, {"a": np.zeros(2)}, {"facts": "x" * 1000})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_header_of_just_the_largest_size_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    minidl.save(path, {"a": np.zeros(2)}, {})
    monkeypatch.setattr(minidl.checkpoint, "MOST", int.from_bytes(path.read_bytes()[:8], "little"))
    minidl.save(path, {"a": np.zeros(2)}, {})


def test_characters_stand_in_the_file_as_they_are(tmp_path: Path) -> None:
    """Not as \\u escapes: a vocabulary of thousands would be several times as long."""
    minidl.save(tmp_path / "c", {}, {"tokens": ["月"]})
    assert "月".encode() in (tmp_path / "c").read_bytes()


def test_the_digest_of_this_format_stays_what_it_is() -> None:
    """Else files that were written before would be refused."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 2)), "月": np.array(7, np.int64)}
    digest = minidl.checkpoint._digest(arrays, [{"minidl": "0.1.0"}, '{"x": "\\ud800月"}'])
    assert digest == "1550224fa5bd825fa90b61732d7357d150b5af4337c5bbaeb9ba4bcb76df6a3f"


@pytest.mark.parametrize(("said", "told"), [("", "(MemoryError)"), ("x" * 300, f"({'x' * 200})")])
def test_an_error_is_reported_in_part_or_by_its_name(
    said: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: bytes) -> None:
        raise MemoryError(said)

    minidl.save(tmp_path / "c", {}, {})
    monkeypatch.setattr("safetensors.numpy.load", fail)
    with fails(tmp_path / "c", told):
        minidl.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "holds values that are not finite"), (1 + 2j, "has dtype complex128")]
)
def test_a_long_name_is_reported_in_part(tmp_path: Path, value: complex, words: str) -> None:
    with fails(tmp_path / "c", f"'{'n' * 100}' {words}"):
        minidl.save(tmp_path / "c", {"n" * 300: np.array([value])}, {})


def test_tensors_that_are_no_dict_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^tensors must be a dict of arrays, got list$"):
        minidl.save(tmp_path / "c", [np.zeros(2)], {})  # type: ignore[arg-type]
