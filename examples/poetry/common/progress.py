"""Progress: a bar on a terminal, or a short line now and then if standard error goes to a file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

PAUSE = 60.0  # seconds between two lines, and before the first
LINE = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left{postfix}"


class Progress(tqdm):
    """A bar to use in `with`. tqdm's own `__del__` fails noisily if Ctrl-C interrupts its constructor."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if not (options.get("disable") or options.get("file") or sys.stderr.isatty()):
            options |= {"file": _Lines(), "bar_format": LINE}
            options |= dict.fromkeys(("mininterval", "maxinterval", "delay"), PAUSE)
        super().__init__(*arguments, **options)

    def __del__(self) -> None:
        pass


class _Lines:
    """The stream for a bar that cannot be redrawn in place: each state becomes a line."""

    latest = ""

    def write(self, text: str) -> None:
        if text.strip() not in ("", self.latest):  # tqdm draws a finished bar once more
            self.latest = text.strip()
            sys.stderr.write(f"{self.latest}\n")

    def flush(self) -> None:
        sys.stderr.flush()
