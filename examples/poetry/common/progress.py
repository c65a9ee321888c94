"""Progress: a bar on a terminal; a short line now and then in a file that standard error goes to."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

PAUSE = 60.0  # seconds between two lines, and before the first
LINE = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left{postfix}"


class Progress(tqdm):
    """A bar that `with` closes. tqdm's own `__del__` fails noisily when Ctrl-C comes while one is being made."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if not (options.get("disable") or options.get("file") or sys.stderr.isatty()):
            options |= {"file": _Lines(), "bar_format": LINE}
            options |= dict.fromkeys(("mininterval", "maxinterval", "delay"), PAUSE)
        super().__init__(*arguments, **options)

    def __del__(self) -> None:
        pass


class _Lines:
    """What a bar is written to where it cannot be drawn over: each of its states is a line."""

    latest = ""

    def write(self, text: str) -> None:
        if text.strip() not in ("", self.latest):  # a bar that is left on a terminal is drawn once more
            self.latest = text.strip()
            sys.stderr.write(f"{self.latest}\n")

    def flush(self) -> None:
        sys.stderr.flush()
