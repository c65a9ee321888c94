"""Checkpoints: a dict of arrays and a dict of JSON values in one safetensors file.

The file's metadata has one entry, "minidl": a JSON object of the format's version, the caller's metadata and
a SHA-256 over both them and the tensors, since safetensors itself has no checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import backend
from .backend import Array

FORMAT = 1
DTYPES = {np.dtype(code) for code in "?bBhHiIlLqQefd"}  # those that safetensors has, of the machine's byte order


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the file and the fault."""


def save(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and `metadata` to `path`, atomically: the file is the old one or the new one, whole.

    Tensors may be on either backend. Raises CheckpointError, and leaves what was at `path`, if a float
    tensor holds NaN or infinity, a name or dtype is not one that the format has, the metadata is not JSON, or the
    disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    path = _path(path)
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a dict of arrays, got {type(tensors).__name__}")
    arrays = {}
    for name, array in tensors.items():
        try:
            arrays[name] = backend.to_host(array)
        except TypeError as error:
            raise CheckpointError(f"{path}: not written, {name!a}: {error}") from None
    # Contiguous and of the machine's byte order. np.ascontiguousarray would make 0-d arrays 1-d.
    arrays = {name: a.astype(a.dtype.newbyteorder("="), order="C", copy=False) for name, a in arrays.items()}
    for name, array in arrays.items():
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            raise CheckpointError(f"{path}: not written, {name!a} cannot be a tensor's name")
        if array.dtype not in DTYPES:
            raise CheckpointError(f"{path}: not written, {name} has dtype {array.dtype}, which safetensors has not")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{path}: not written, {name} holds values that are not finite")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True, allow_nan=False)
        text.encode("utf-8")
        if json.loads(text).keys() != metadata.keys():
            raise TypeError("keys must be strings")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not written, metadata must be JSON values ({error})") from error
    entry = {"format": FORMAT, "sha256": _digest(arrays, text), "metadata": text}
    try:
        _replace(path, to_bytes(arrays, {"minidl": json.dumps(entry, ensure_ascii=False)}))
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise CheckpointError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not written, the format refuses it ({error})") from error


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, metadata): the tensors on the host, the metadata as JSON gives it back.

    Raises CheckpointError if the file is missing, is no checkpoint of minidl's, is damaged, or fails its checksum.
    """
    from safetensors import SafetensorError, safe_open

    path = _path(path)
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: cannot be read (is a directory)")
    try:
        with safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get("minidl")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({str(error).splitlines()[0]})") from error
    if entry is None:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of minidl")
    try:
        fields = json.loads(entry)
        version, digest, text = fields["format"], fields["sha256"], fields["metadata"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged, its metadata cannot be read") from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: has format {version!r}; this version of minidl reads format {FORMAT}")
    if digest != _digest(tensors, text):
        raise CheckpointError(f"{path}: damaged, its SHA-256 does not match its content")
    return tensors, json.loads(text)


def _path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}")
    return Path(path)


def _digest(arrays: Mapping[str, np.ndarray], metadata: object) -> str:
    """SHA-256 over the metadata's text and every tensor's name, dtype, shape and bytes, in order of names."""
    digest = hashlib.sha256(repr(metadata).encode("utf-8", "backslashreplace"))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, array.dtype.str, np.shape(arrays[name]))).encode("utf-8"))
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and put it in its place once it is safely on the disk."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the new name must survive a power cut as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
