"""The real poems, as examples/poetry reads, splits and encodes them."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sizes
from harness import POETRY

sys.path.append(str(POETRY))
if TYPE_CHECKING:
    from corpus.tasks import Rows
BATCH = 256  # poems a step, train.py's default


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="a folder with the Tang files (default: download them)"
    )


def import_all() -> None:
    """Import what `training_rows` needs, so that measuring it excludes the imports."""
    for name in ("learning.settings", "learning.sources", "corpus.tasks", "corpus.vocabulary"):
        importlib.import_module(name)


def report_poems(directory: Path | None) -> list[str]:
    """The report's poems in its order, duplicates and all."""
    from corpus import tang
    from learning import protocol

    longest = protocol.DATA["max_length"]
    return tang.load(directory, protocol.FILES, max_length=longest, unique=False, progress=False).poems


def training_rows(directory: Path | None, files: int, max_vocabulary: int | None = None) -> tuple[Rows, sizes.Size]:
    """The training part of the first `files` files, encoded, and the default model's size for it."""
    from corpus.tasks import Rows
    from corpus.vocabulary import Vocabulary
    from learning import settings, sources

    longest = settings.DEFAULTS["max_length"]
    part = sources.read_parts(argparse.Namespace(text=None, corpus=directory, files=files, max_length=longest))[0]
    gc.collect()  # as train.py does
    vocabulary = Vocabulary.build(part, most=max_vocabulary)
    return Rows(part, vocabulary), sizes.MODELS["report"]._replace(vocabulary=len(vocabulary), batch=BATCH)
