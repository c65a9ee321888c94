"""Atomic files: the old content stays until the new one is complete."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to import

STALE_SECONDS = 7200.0  # without a write to any file of the folder
OURS = re.compile(r"\.[0-9a-f]{32}\.tmpdir")  # the name that `new_folder` uses while writing


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; after a disk error or Ctrl-C nothing has changed."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # same folder: a rename cannot cross disks
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # some file systems report only here that they are full
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # report the requested file, not the temporary one
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `path` when the block ends, or is removed if the block fails.

    Leftovers of killed processes are removed too, once they are STALE_SECONDS old.
    """
    for left in path.parent.glob(".*.tmpdir"):
        if OURS.fullmatch(left.name):
            with contextlib.suppress(OSError):
                if time.time() - max(file.stat().st_mtime for file in (left, *left.iterdir())) > STALE_SECONDS:
                    shutil.rmtree(left)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmpdir")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    except OSError as error:  # report the requested folder, not the temporary one
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write `figure` as PNG, atomically."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_bytes(path, content.getvalue())
