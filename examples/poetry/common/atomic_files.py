"""Files that are written whole or not at all: what was there stays until its successor is complete."""

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

STALE_SECONDS = 7200.0  # in which no file of a folder has been written to
OURS = re.compile(r"\.[0-9a-f]{32}\.tmpdir")  # what `new_folder` names one while it is written


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` at one stroke; if the disk refuses or Ctrl-C comes, nothing has changed."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # beside it: a file cannot be renamed onto another disk
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # some file systems tell only here that they are full
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # tell of the file that was asked for
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """In UTF-8."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `path` when the block has ended; if it does not end well, it goes again.

    What a killed process left behind goes too, once it is STALE_SECONDS old.
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
    except OSError as error:  # tell of the folder that was asked for
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """As PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_bytes(path, content.getvalue())
