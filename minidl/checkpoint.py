"""Checkpoints: a dict of arrays and a dict of JSON values in one safetensors file.

The file's metadata has one entry, "minidl": a JSON object of

    format      2; a file of format 1, which had no versions, is read as well
    versions    of minidl, NumPy and safetensors, which wrote the file
    metadata    the caller's, as JSON text
    sha256      over the two before and every tensor's name, dtype, shape and bytes: safetensors has no checksum

What `save` promises
    killed at any instant       `path` holds the old file or the new one, whole; at most a `.name.*.tmp` stays beside
                                it, which a save of the same path deletes an hour later
    disk full, not writable     CheckpointError; `path` is as it was, and nothing stays beside it
    power cut after it returned the new file is there, as far as the disk keeps what it was told to flush
    NaN or infinity anywhere    CheckpointError, before anything is written

What `load` promises, whatever bytes the file holds: no code in it is run, and memory stays within about twice its
size, or thirty times where a header of tiny tensors or JSON values takes most of it. CheckpointError, one line
that names the file and the fault, for
    cut short, grown, bits flipped, tensors exchanged, added or taken away, a dtype or shape that was changed
    a header that is no JSON, or that promises more than the file holds
    another program's file, a later format
    a valid checksum over what `save` never writes: NaN, infinity, a key twice, metadata that is no object
    no file, a directory, a pipe or a device, a file that must not be read
The digest is a checksum and no signature: it finds damage, not who wrote the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import backend
from .backend import Array

FORMAT = 2
DTYPES = {np.dtype(code) for code in "?bBhHiIlLqQefd"}  # those that safetensors has, of the machine's byte order
MOST = 100_000_000  # bytes that safetensors allows a header
STALE = 3600.0  # seconds after which an unfinished file is taken for one whose writer was killed


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the file and the fault."""


def save(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and `metadata` to `path`, atomically: the file is the old one or the new one, whole.

    Tensors may be on either backend. Raises CheckpointError, and leaves what was at `path`, if a float
    tensor holds NaN or infinity, a name or dtype is not one that the format has, the metadata is not JSON, or the
    disk refuses.
    """
    path = as_path(path)
    arrays = writable(path, "tensors", tensors)
    try:
        text = _as_json(dict(metadata))
        text.encode("utf-8")
        if not _has_text_keys(metadata):
            raise TypeError("keys must be strings")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not written, metadata must be JSON values ({_gist(error)})") from error
    versions = _versions()
    digest = _digest(arrays, [versions, text])
    entry = {"format": FORMAT, "versions": versions, "sha256": digest, "metadata": text}
    write(path, arrays, {"minidl": json.dumps(entry, ensure_ascii=False)})


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, metadata): the tensors on the host, the metadata as JSON gives it back.

    Raises CheckpointError if the file is missing, is no checkpoint of minidl's, is damaged, or fails its checksum.
    """
    path = as_path(path)
    tensors, entries = read(path)
    if "minidl" not in entries:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of minidl")
    return tensors, _metadata(path, tensors, entries)


def writable(path: Path, argument: str, tensors: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """`tensors`, the argument of that name, on the host as `write` takes them; CheckpointError if one cannot be."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"{argument} must be a dict of arrays, got {type(tensors).__name__}")
    arrays = {}
    for name, array in tensors.items():
        try:
            arrays[name] = backend.to_host(array)
        except TypeError as error:
            raise CheckpointError(f"{path}: not written, {name!a}: {error}") from None
    # Contiguous and of the machine's byte order. np.ascontiguousarray would make 0-d arrays 1-d.
    arrays = {name: a.astype(a.dtype.newbyteorder("="), order="C", copy=False) for name, a in arrays.items()}
    for name in arrays:
        if not isinstance(name, str) or name == "__metadata__" or not is_text(name):
            raise CheckpointError(f"{path}: not written, {name!a} cannot be a tensor's name")
    found = fault(arrays)
    if found:
        raise CheckpointError(f"{path}: not written, {found}")
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray], entries: dict[str, str]) -> None:
    """Put a safetensors file with `entries` as its metadata at `path`, atomically, or raise CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    try:
        content = to_bytes(arrays, entries)
        if int.from_bytes(content[:8], "little") > MOST:  # safetensors 0.5 writes it, but does not read it
            raise SafetensorError("header too large")
        _replace(path, content)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written ({_reason(error)})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not written, the format refuses it ({_gist(error)})") from error


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, metadata) of any safetensors file; CheckpointError if it is none. No tensor was looked into yet."""
    from safetensors.numpy import load as from_bytes

    try:
        # Not mapped into memory: the process would die if another one cut the file short.
        content = _content(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_reason(error)})") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: cannot be read (larger than the memory)") from error
    try:
        tensors = from_bytes(content)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return tensors, json.loads(header).get("__metadata__") or {}
    except KeyError as error:  # a whole file, but safetensors has a dtype that NumPy has not
        remedy = "; where it was made, convert its tensors with .float()"
        raise CheckpointError(f"{path}: holds tensors of dtype {_gist(error)}, which NumPy has not{remedy}") from error
    except Exception as error:  # the library's own, but also a ValueError for a shape, ...
        raise CheckpointError(f"{path}: damaged or no safetensors file ({_gist(error)})") from error


def _content(path: Path) -> bytes:
    """All bytes of a regular file; but only the first eight of one whose header would not fit into it."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # looked at before it is opened, which can wait for ever
        raise ValueError("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        end = 8 + int.from_bytes(start, "little")
        return start + (file.read(size - 8) if 8 < end <= size else b"")


def _metadata(path: Path, tensors: dict[str, np.ndarray], entries: dict[str, str]) -> dict[str, Any]:
    """The caller's metadata, once everything in the file is found to be what `save` writes."""
    try:
        if len(entries) > 1:
            raise ValueError("surplus entries")
        fields = json.loads(entries["minidl"])
        version = fields["format"]
        if type(version) is int and version > FORMAT:
            raise CheckpointError(f"{path}: has format {version:.6g}; this version of minidl reads 1 to {FORMAT}")
        names = {"format", "sha256", "metadata"} | ({"versions"} if version == FORMAT else set())
        if version not in (1, FORMAT) or fields.keys() != names or not isinstance(fields["metadata"], str):
            raise ValueError("missing or surplus fields")
        text = fields["metadata"]
        covered = [fields["versions"], text] if version == FORMAT else text
        if fields["sha256"] != _digest(tensors, covered):
            raise CheckpointError(f"{path}: damaged, its SHA-256 does not match its content")
        metadata = json.loads(text)
        if not isinstance(metadata, dict) or _as_json(metadata) != text:
            raise ValueError("not as save writes it")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, its metadata cannot be read ({_gist(error)})") from error
    found = fault(tensors)
    if found:
        raise CheckpointError(f"{path}: damaged, {found}")
    return metadata


def as_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path, if it is one or a text."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}")
    return Path(path)


def fault(arrays: Mapping[str, np.ndarray]) -> str:
    """What no checkpoint may hold, or nothing."""
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            return f"{name[:100]!r} has dtype {array.dtype}, which checkpoints have not"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name[:100]!r} holds values that are not finite"
    return ""


def _as_json(value: object) -> str:
    """One text for equal values, so that a key that stands twice, or infinity as 1e999, shows by comparison."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def _has_text_keys(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_has_text_keys, value))
    if not isinstance(value, Mapping):
        return True
    return all(isinstance(key, str) for key in value) and all(map(_has_text_keys, value.values()))


def _versions() -> dict[str, str]:
    import safetensors

    modules = sys.modules["minidl"], np, safetensors
    return {module.__name__: module.__version__ for module in modules}


def _digest(arrays: Mapping[str, np.ndarray], covered: object) -> str:
    """SHA-256 over `covered` and every tensor's name, dtype, shape and bytes, in order of names."""
    digest = hashlib.sha256(repr(covered).encode("utf-8"))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, array.dtype.str, np.shape(arrays[name]))).encode("utf-8"))
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and put it in its place once it is safely on the disk."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            _sweep(path, os.fstat(file.fileno()).st_mtime - STALE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the new name must survive a power cut as well
        _flush_folder(path.parent)


def _sweep(path: Path, before: float) -> None:
    """Delete what killed saves of `path` left; by age, on the file system's clock, as others may be saving now."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-z_]{{8,16}}\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry)


def _flush_folder(folder: Path) -> None:
    """fsync, for file systems that know it for folders; only a fault of the disk is an error."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def _reason(error: OSError | ValueError) -> str:
    """The system's words; a ValueError is of a path that cannot be one, for a zero byte in it."""
    return getattr(error, "strerror", None) or str(error)


def _gist(error: BaseException) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_text(name: str) -> bool:
    """Whether `name` can be written as UTF-8, which half a surrogate pair cannot."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
