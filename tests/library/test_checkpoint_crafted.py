"""load with malicious files, paths that are not files, and files that change while they are read."""

from __future__ import annotations

import errno
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import TINY, fails, header_of, same, with_header
from helpers import python

import minidl


def tensor(dtype: str, shape: list[int], *place: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [*place]}


def entry(text: str) -> bytes:
    """A file without tensors whose entry "minidl" is `text`."""
    return with_header({"__metadata__": {"minidl": text}})


def metadata(text: str) -> bytes:
    """The same, in the format of old, whose caller's metadata is `text`, with the checksum that belongs to it."""
    return entry(json.dumps({"format": 1, "sha256": minidl.checkpoint._digest({}, text), "metadata": text}))


DAMAGED, UNREADABLE = "damaged, or not a safetensors file", "metadata cannot be read"
FILES: dict[str, tuple[bytes, str]] = {
    "a header of 2**63 bytes": ((2**63).to_bytes(8, "little") + b"{}", DAMAGED),
    "a header of 2**64 - 1 bytes": ((2**64 - 1).to_bytes(8, "little") + b"{}", DAMAGED),
    "a header longer than the file": ((1000).to_bytes(8, "little") + b"{}", DAMAGED),
    "no header": (bytes(100), DAMAGED),
    "terabytes": (with_header({"a": tensor("F64", [2**40], 0, 2**43)}), DAMAGED),
    "terabytes in a small place": (with_header({"a": tensor("F64", [2**40], 0, 8)}, bytes(8)), DAMAGED),
    "a size that overflows": (with_header({"a": tensor("U8", [2**32, 2**32, 1], 0, 0)}), DAMAGED),
    "a place that overflows": (with_header({"a": tensor("U8", [1], 2**64 - 1, 0)}), DAMAGED),
    "nothing, but huge": (with_header({"a": tensor("F32", [0, 2**62], 0, 0)}), DAMAGED),
    "65 dimensions": (with_header({"a": tensor("U8", [1] * 65, 0, 1)}, b"a"), DAMAGED),
    "a million dimensions": (with_header({"a": tensor("U8", [1] * 1_000_000, 0, 1)}, b"a"), DAMAGED),
    "a negative size": (with_header({"a": tensor("U8", [-1], 0, 1)}, b"a"), DAMAGED),
    "a size of 5,000 digits": (with_header(b'{"a":{"dtype":"U8","shape":[%s]}}' % (b"9" * 5000)), DAMAGED),
    "two in one place": (with_header({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"abc"), DAMAGED),
    "a hole": (with_header({"a": tensor("U8", [1], 1, 2)}, b"ab"), DAMAGED),
    "more at the end": (with_header({"a": tensor("U8", [1], 0, 1)}, b"ab"), DAMAGED),
    "a dtype unknown to NumPy": (with_header({"a": tensor("BF16", [1], 0, 2)}, b"ab"), "dtype 'BF16'"),
    "lists in lists": (with_header(b"[" * 1_000_000), DAMAGED),
    "objects in objects": (with_header(b'{"a":' * 200_000), DAMAGED),
    "not UTF-8": (with_header(b'{"\xff\xfe":{}}'), DAMAGED),
    "half a character": (with_header(b'{"__metadata__":{"minidl":"\\ud800"}}'), DAMAGED),
    "a name of two lines": (with_header({"a\nb" * 1000: tensor("U8", [1], 1, 2)}, b"ab"), DAMAGED),
    "an entry that is no text": (with_header({"__metadata__": {"minidl": {}}}), DAMAGED),
    "no entries": (with_header({"__metadata__": None}), "not a minidl checkpoint"),
    "an entry of lists in lists": (entry("[" * 1_000_000), UNREADABLE),
    "a format of 5,000 digits": (entry('{"format": ' + "9" * 5000), UNREADABLE),
    "a format that is a list of a list of ...": (entry('{"format": ' + "[" * 900 + "]" * 900 + "}"), UNREADABLE),
    "versions that are a list of a list of ...": (
        entry('{"format": 2, "sha256": "", "metadata": "{}", "versions": ' + "[" * 900 + "]" * 900 + "}"),
        "damaged",
    ),
    "a format that is text of two lines": (entry('{"format": "\\n\\n"}'), UNREADABLE),
    "metadata that is no text": (entry('{"format": 1, "sha256": "", "metadata": {}}'), UNREADABLE),
    "a list": (metadata("[]"), UNREADABLE),
    "a number": (metadata("3"), UNREADABLE),
    "nothing at all": (metadata(""), UNREADABLE),
    "NaN": (metadata('{"a": NaN}'), UNREADABLE),
    "-Infinity": (metadata('{"a": -Infinity}'), UNREADABLE),
    "a number beyond all": (metadata('{"a": 1e999}'), UNREADABLE),
    "a number of 5,000 digits": (metadata('{"a": ' + "9" * 5000 + "}"), UNREADABLE),
    "a key twice": (metadata('{"a": 1, "a": 2}'), UNREADABLE),
    "half a character below": (metadata('{"a": "\\ud800"}'), UNREADABLE),
    "lists in lists below": (metadata('{"a": ' + "[" * 500_000 + "]" * 500_000 + "}"), UNREADABLE),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_made_to_do_harm_is_refused(name: str, tmp_path: Path) -> None:
    content, word = FILES[name]
    (tmp_path / "c").write_bytes(content)
    with fails(tmp_path / "c", word):
        minidl.load(tmp_path / "c")


def test_the_old_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(metadata('{"a": 1}'))
    assert minidl.load(tmp_path / "c") == ({}, {"a": 1})


def test_a_dtype_that_checkpoints_have_not_is_refused_though_the_checksum_holds(tmp_path: Path) -> None:
    """Complex numbers, which newer releases of safetensors know."""
    path = tmp_path / "c"
    text, waves = "{}", {"waves": np.ones(1, np.complex64)}
    fields = {"format": 1, "sha256": minidl.checkpoint._digest(waves, text), "metadata": text}
    header = {"__metadata__": {"minidl": json.dumps(fields)}, "waves": tensor("C64", [1], 0, 8)}
    path.write_bytes(with_header(header, waves["waves"].tobytes()))
    with fails(path, "damaged"):
        minidl.load(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its address space")
def test_what_a_header_promises_takes_no_memory(tmp_path: Path) -> None:
    """The kernel refuses all memory beyond 300 MB more than the import takes."""
    for number, (content, _) in enumerate(FILES.values()):
        (tmp_path / str(number)).write_bytes(content)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**43)  # 8 TB of zeros, which take no place on the disk
    code = f"""
        import os, pathlib, resource
        import safetensors.numpy, minidl
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
        refused = 0
        for file in pathlib.Path({str(tmp_path)!r}).iterdir():
            try:
                minidl.load(file)
            except minidl.CheckpointError as error:
                refused += "memory" not in str(error)
        print(refused)
    """
    assert python(code) == str(len(FILES) + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its address space")
def test_a_file_larger_than_the_memory_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(with_header({"a": tensor("U8", [2**40], 0, 2**40)}))
    os.truncate(path, path.stat().st_size + 2**40)  # as large as it promises, without a place on the disk
    code = f"""
        import resource, minidl
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
        try:
            minidl.load({str(path)!r})
        except minidl.CheckpointError as error:
            print(error)
    """
    assert python(code) == f"{path}: cannot be read (larger than the memory)"


@pytest.mark.parametrize(
    ("tensors", "facts", "times"),
    [
        ({"a": np.ones(500_000)}, {}, 3),
        ({f"{i}": np.ones(1, np.int8) for i in range(3000)}, {}, 40),
        ({}, {"lists": [[] for _ in range(100_000)]}, 40),
        ({}, {"objects": [{} for _ in range(100_000)]}, 40),
        ({}, {"text": "a" * 500_000 + "🌸"}, 40),
    ],
    ids=["one tensor", "many tensors", "lists", "objects", "text"],
)
def test_the_memory_is_a_multiple_of_the_files_size(tensors: Any, facts: Any, times: int, tmp_path: Path) -> None:
    """Twice, for tensors; a header that is made for it takes more, as Python's objects are larger than their text."""
    path = tmp_path / "c"
    minidl.save(path, tensors, facts)
    minidl.load(path)  # imports what it needs
    tracemalloc.start()
    try:
        minidl.load(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < times * path.stat().st_size


def no_file(path: Path, words: str) -> None:
    with fails(path, "cannot be read", words):
        minidl.load(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    no_file(tmp_path / "none", os.strerror(errno.ENOENT))
    no_file(tmp_path, "directory")
    no_file(Path("a\0b"), "null")
    with fails(Path("a\0b"), "cannot be written", "null"):
        minidl.save("a\0b", *TINY)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
def test_pipes_devices_and_links_to_nowhere_are_no_files(tmp_path: Path) -> None:
    """A pipe that nobody writes would be waited for, and /dev/zero read, without an end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / "zero").symlink_to("/dev/zero")
    no_file(tmp_path / "pipe", "not a regular file")
    no_file(tmp_path / "zero", "not a regular file")
    no_file(tmp_path / "loop", os.strerror(errno.ELOOP))
    no_file(tmp_path / "nowhere", os.strerror(errno.ENOENT))
    minidl.save(tmp_path / "c", *TINY)
    (tmp_path / "link").symlink_to("c")
    assert same(minidl.load(tmp_path / "link")[0], TINY[0])


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minidl.save(tmp_path / "c", *TINY)
    for number in (errno.EACCES, errno.EIO):

        def broken(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", broken)
            with fails(tmp_path / "c", "cannot be read", os.strerror(number)):
                minidl.load(tmp_path / "c")


@pytest.mark.parametrize("length", [0, 4, 100, 10**6])
def test_a_file_that_changes_while_it_is_read(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short or grown after its size was asked for; mapped into memory, a cut would end the process."""
    minidl.save(tmp_path / "c", *TINY)
    fstat = os.fstat

    def changing(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        os.truncate(tmp_path / "c", length)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", changing)
        if length > 1000:  # what was there when it was opened is read
            assert same(minidl.load(tmp_path / "c")[0], TINY[0])
        else:
            with fails(tmp_path / "c", "damaged"):
                minidl.load(tmp_path / "c")


def test_the_versions_that_wrote_a_file_can_be_read_by_any_safetensors_program(tmp_path: Path) -> None:
    minidl.save(tmp_path / "c", *TINY)
    fields = json.loads(header_of((tmp_path / "c").read_bytes())[0]["__metadata__"]["minidl"])
    assert fields["format"] == minidl.checkpoint.FORMAT == 2
    assert fields["versions"]["numpy"] == np.__version__ and fields["versions"]["minidl"] == minidl.__version__
    assert sorted(fields["versions"]) == ["minidl", "numpy", "safetensors"]
