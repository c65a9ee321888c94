"""A side of a comparison as a separate process, which works on request and sleeps in between."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import results


class BenchmarkError(Exception):
    """Nothing can be measured; the message is one line."""


class Ready(NamedTuple):
    """A side that is built and warmed up. `agree`: numbers that must be the same on all sides that have any."""

    turn: Callable[[], dict[str, float]]
    agree: Sequence[float] = ()


@dataclass
class Side:
    """`build` runs in the side's own process, under `environment`, and imports what it measures.

    A `launcher`, such as mpiexec, starts it; if it starts several processes, the first one answers.
    """

    build: Callable[[argparse.Namespace], Ready]
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()


class Process:
    """A side's process: a line on its standard input requests a turn, a line of JSON answers."""

    def __init__(self, name: str, side: Side) -> None:
        self.agree: list[float] = []
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        command = [*side.launcher, sys.executable, *sys.argv, "--side", name]
        environment = {**os.environ, **side.environment}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.popen = subprocess.Popen(command, env=environment, text=True, **pipes)

    def ready(self) -> dict[str, str]:
        """Wait until it is ready; returns the versions that it uses."""
        message = self._answer()
        self.agree = message["agree"]
        return dict(message["versions"])

    def turn(self) -> dict[str, float]:
        with contextlib.suppress(OSError):  # it has ended: _answer reports why
            print("turn", file=self.popen.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.popen.stdout.readline() if self.popen.stdout else ""
        if line:
            return dict(json.loads(line))
        code = self.popen.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        raise BenchmarkError(lines[-1] if lines else f"its process ended with code {code}")

    def close(self) -> None:
        """Closing its input ends it; kill it if it has not exited after 5 seconds."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.popen.communicate(timeout=5)
        self.popen.kill()
        self.popen.wait()
        self.errors.close()


def serve(side: Side, args: argparse.Namespace) -> NoReturn:
    """Run as that side: build, then take one turn for every line of input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    try:
        ready = side.build(args)
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; in the repository's folder: pip install -e '.[bench]'")
    print(json.dumps({"agree": list(ready.agree), "versions": results.versions()}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(ready.turn()), file=answers, flush=True)
    sys.exit(0)
