"""Helpers shared by the checkpoint tests."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidl

TINY = ({"a": np.array([1.5, -2.0], np.float32)}, {"step": 3})
THOROUGH = os.environ.get("MINIDL_THOROUGH") == "1"  # long versions of some tests: minutes, not seconds


@contextlib.contextmanager
def fails(path: Path, *words: str) -> Iterator[None]:
    """The block raises a CheckpointError with one short line that names the file and contains `words`."""
    with pytest.raises(minidl.CheckpointError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 400, message
    assert all(word in message for word in words), message


def same(got: dict[str, np.ndarray], expected: dict[str, Any]) -> bool:
    return got.keys() == expected.keys() and all(
        got[name].dtype == np.asarray(value).dtype
        and got[name].shape == np.shape(value)
        and got[name].tobytes() == np.asarray(value).tobytes()
        for name, value in expected.items()
    )


def with_header(header: bytes | dict[str, Any], body: bytes = b"") -> bytes:
    """A safetensors file: the header's length in eight bytes, the header, the tensors' bytes."""
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + body


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, the tensors' bytes) of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def rewritten(content: bytes, old: bytes, new: bytes) -> bytes:
    """`content` with `old` replaced in its header and the header's length corrected."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(old, new)
    assert header != content[8:end]
    return with_header(header, content[end:])
