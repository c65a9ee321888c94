"""TensorBoard's event files of a run: the curves of metrics.jsonl, to be watched while it goes on.

Step n is the n-th line of metrics.jsonl: the epochs from 1, and then the test figures. A run that goes on writes a new
file, whose first event has TensorBoard drop whatever an earlier one holds from the next step on.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import cli

FILES = "events.out.tfevents.*"
EPOCH = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "validation_perplexity": "perplexity/validation",
    "report_cross_entropy": "loss/validation_with_pads",
    "chars_per_second": "chars_per_second",
}
TEST = {f"{part}_{figure}": f"{figure}/{part}" for part in ("test", "short_test") for figure in ("loss", "perplexity")}


@contextmanager
def event_log(
    folder: Path | None, lines: Sequence[Mapping[str, float]], resume: bool
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that logs a line of metrics, on the disk at once; it does nothing without a `folder`.

    `lines` are those of a run that goes on (`resume`), which are logged as well where the folder has none.
    UsageError if it cannot be written, or holds events before a run has begun.
    """
    if folder is None:
        yield lambda line: None
        return
    with cli.output_folder(folder, "--tensorboard"):
        begun = any(folder.glob(FILES))
        if begun and not resume:
            raise cli.UsageError(f"--tensorboard {folder} already holds a run; choose another folder")
        log = _Log(folder, len(lines) if begun else 0)
        try:
            for line in [] if begun else lines:
                log.add(line)
            yield log.add
        finally:
            log.close()


class _Log:
    """An event file, made with the first line. Written at once, unlike SummaryWriter's, whose thread lags behind."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.writer: Any = None

    def add(self, line: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar  # only here: few want it

        if self.writer is None:
            self._open()
        self.steps += 1
        for name, tag in (TEST if "test_loss" in line else EPOCH).items():
            if name in line:
                self._write(step=self.steps, summary=scalar(tag, line[name]))
        self.writer.flush()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        # TensorBoard reads the files by their names, which begin with the time in seconds: a number orders the rest.
        number = len(list(self.folder.glob(FILES)))
        self.writer = EventsWriter(str(self.folder.resolve() / "events"), f".{number:06}.{uuid.uuid4().hex[:8]}")
        self._write(step=self.steps + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write_event(Event(wall_time=time.time(), **event))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
