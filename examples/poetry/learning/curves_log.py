"""TensorBoard's event files for a run: the curves of metrics.jsonl, to watch during training.

Step n is line n of metrics.jsonl: the epochs from 1, then the test figures. A resumed run writes a new file, whose
first event makes TensorBoard drop everything in earlier files from the next step on.
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
    """A function that logs a line of metrics and flushes it; it does nothing without a `folder`.

    The `lines` of a resumed run (`resume`) are logged too if the folder has no events yet. UsageError if the folder
    cannot be written, or contains events although the run is new.
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
    """An event file, created with the first line and flushed with every line; SummaryWriter's thread lags."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.writer: Any = None

    def add(self, line: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar  # imported only here: rarely needed

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

        # TensorBoard orders the files by name, which starts with the time in seconds; the number breaks ties.
        number = len(list(self.folder.glob(FILES)))
        self.writer = EventsWriter(str(self.folder.resolve() / "events"), f".{number:06}.{uuid.uuid4().hex[:8]}")
        self._write(step=self.steps + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write_event(Event(wall_time=time.time(), **event))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
