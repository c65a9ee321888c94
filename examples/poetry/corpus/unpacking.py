"""Reads files from an untrusted .tgz in bounded memory and time, without extracting anything.

`tarfile` reads the headers; how much they can make it read, and where they can send it, is limited here.
"""

from __future__ import annotations

import gzip
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEADER_BYTES = 2**13  # per member: tarfile keeps it all, and can take quadratic time
UNPACKED_BYTES = 2 << 30  # for the whole archive, far more than the package has
SECONDS = 300.0


class ArchiveError(Exception):
    """The archive is broken, hostile, or lacks a file."""


class _Forwards:
    """The stream for tarfile: at most `allowed` bytes at a time, and never backwards, which could loop forever."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.stream, self.tell = stream, stream.tell
        self.allowed = HEADER_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.allowed:
            raise ArchiveError(f"a header of more than {HEADER_BYTES} bytes")
        self.allowed -= size
        return self.stream.read(size)

    def seek(self, offset: int) -> None:
        if not self.tell() <= offset <= UNPACKED_BYTES:
            raise ArchiveError(f"more than {UNPACKED_BYTES} bytes, or a member out of place")
        self.stream.seek(offset)


def members(tarball: Path, wanted: Mapping[str, str], most: int) -> Iterator[tuple[str, bytes]]:
    """(wanted[member], its first `most` bytes) of every wanted member that is a file; no other member is read."""
    left, deadline = dict(wanted), time.monotonic() + SECONDS
    try:
        with gzip.open(tarball) as unpacked:
            stream = _Forwards(unpacked)
            archive: Any = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]
            while left and (member := archive.next()) is not None:
                archive.members.clear()  # it would grow with every member
                if time.monotonic() > deadline:
                    raise ArchiveError(f"not unpacked in {SECONDS:g} s")
                name = left.pop(member.name, "") if member.isreg() else ""
                if name:
                    stream.allowed = most
                    stream.seek(member.offset_data)
                    yield name, stream.read(min(member.size, most))
                stream.allowed = HEADER_BYTES
    except Exception as error:  # a malicious header makes tarfile raise more than its own errors
        raise ArchiveError(f"broken package: {error or type(error).__name__}") from None
    if left:
        raise ArchiveError(f"the package lacks {next(iter(left.values()))}")
