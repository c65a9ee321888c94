"""Checkpoints: a dict of arrays and a dict of JSON values in one safetensors file.

The file's metadata has one entry, "minidl": a JSON object of

    format      2; format 1, which had no versions, can be read as well
    versions    the versions of minidl, NumPy and safetensors that wrote the file
    metadata    the caller's metadata, as JSON text
    sha256      over these two and every tensor's name, dtype, shape and bytes: safetensors has no checksum

What `save` guarantees
    killed at any instant       `path` holds the complete old file or the complete new one; at most a `.name.*.tmp`
                                remains beside it, which a later save of the same path deletes after an hour
    disk full, not writable     CheckpointError; `path` is unchanged, and nothing remains beside it
    power cut after it returned the new file is in place, if the disk honours a flush
    NaN or infinity anywhere    CheckpointError, before anything is written

What `load` guarantees for any file content: no code in the file is run, and memory use stays within about twice its
size, or thirty times if most of it is a header of tiny tensors or JSON values. It raises CheckpointError, one line
with the file and the fault, for
    a truncated or extended file, flipped bits, tensors swapped, added or removed, a changed dtype or shape
    a header that is not JSON, or that promises more than the file contains
    another program's file, a newer format
    a valid checksum over content that `save` never writes: NaN, infinity, a duplicate key, metadata not an object
    a missing file, a directory, a pipe or a device, a file without read permission
The digest is a checksum, not a signature: it detects damage, but does not say who wrote the file.
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
DTYPES = {np.dtype(code) for code in "?bBhHiIlLqQefd"}  # supported by safetensors, in native byte order
MOST = 100_000_000  # largest header in bytes that safetensors accepts
STALE = 3600.0  # seconds after which the writer of an unfinished file is assumed to be dead


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the file and the fault."""


def save(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and `metadata` to `path`, atomically: the file is either the old one or the new one.

    Tensors may be on either backend. Raises CheckpointError, and leaves `path` unchanged, if a float tensor contains
    NaN or infinity, the format does not support a name or dtype, the metadata is not JSON, or the disk refuses.
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
    """(tensors, metadata): the tensors on the host, the metadata as JSON returns it.

    Raises CheckpointError if the file is missing, is not a minidl checkpoint, is damaged, or fails its checksum.
    """
    path = as_path(path)
    tensors, entries = read(path)
    if "minidl" not in entries:
        raise CheckpointError(f"{path}: a safetensors file, but not a minidl checkpoint")
    return tensors, _metadata(path, tensors, entries)


def writable(path: Path, argument: str, tensors: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """`tensors` (called `argument` in errors) on the host, ready for `write`; CheckpointError if one cannot be."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"{argument} must be a dict of arrays, got {type(tensors).__name__}")
    arrays = {}
    for name, array in tensors.items():
        try:
            arrays[name] = backend.to_host(array)
        except TypeError as error:
            raise CheckpointError(f"{path}: not written, {name!a}: {error}") from None
    # Contiguous and in native byte order. np.ascontiguousarray would make 0-d arrays 1-d.
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
        if int.from_bytes(content[:8], "little") > MOST:  # safetensors 0.5 writes it but cannot read it
            raise SafetensorError("header too large")
        _replace(path, content)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written ({_reason(error)})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not written, the format refuses it ({_gist(error)})") from error


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, metadata) of any safetensors file; CheckpointError if it is not one. Tensor values are not checked."""
    from safetensors.numpy import load as from_bytes

    try:
        # Not mapped into memory: the process would die if another one truncated the file.
        content = _content(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_reason(error)})") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: cannot be read (larger than the memory)") from error
    try:
        tensors = from_bytes(content)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return tensors, json.loads(header).get("__metadata__") or {}
    except KeyError as error:  # an intact file with a dtype that NumPy does not have
        remedy = "; where it was made, convert its tensors with .float()"
        raise CheckpointError(f"{path}: holds tensors of dtype {_gist(error)}, unknown to NumPy{remedy}") from error
    except Exception as error:  # the library's own, but also a ValueError for a shape, ...
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({_gist(error)})") from error


def _content(path: Path) -> bytes:
    """All bytes of a regular file, or only the first eight if its header would not fit into it."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # checked before opening, which can block forever
        raise ValueError("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        end = 8 + int.from_bytes(start, "little")
        return start + (file.read(size - 8) if 8 < end <= size else b"")


def _metadata(path: Path, tensors: dict[str, np.ndarray], entries: dict[str, str]) -> dict[str, Any]:
    """The caller's metadata, after checking that everything in the file is as `save` writes it."""
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
    """`path` as a Path; TypeError if it is neither a path nor a str."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}")
    return Path(path)


def fault(arrays: Mapping[str, np.ndarray]) -> str:
    """What makes the arrays unfit for a checkpoint, or an empty string."""
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            return f"{name[:100]!r} has dtype {array.dtype}, which checkpoints do not support"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name[:100]!r} holds values that are not finite"
    return ""


def _as_json(value: object) -> str:
    """One text for equal values, so that a duplicate key, or infinity as 1e999, shows in a comparison."""
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
    """Write `content` beside `path`, and rename it to `path` once it is safely on disk."""
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
    """Delete leftovers of killed saves of `path`, by age on the file system's clock: others may be saving right now."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-z_]{{8,16}}\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry)


def _flush_folder(folder: Path) -> None:
    """fsync, for file systems that support it on folders; only a disk fault is an error."""
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
    """The system's message; a ValueError means an impossible path, with a zero byte in it."""
    return getattr(error, "strerror", None) or str(error)


def _gist(error: BaseException) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_text(name: str) -> bool:
    """Whether `name` can be encoded as UTF-8; half a surrogate pair cannot."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
