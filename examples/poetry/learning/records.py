"""What a run writes during training: its checkpoint, the best model, the metrics and TensorBoard's curves."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common import cli
from corpus import line_index
from learning import curves_log, run_checkpoint
from learning.settings import as_json
from learning.sources import Data
from learning.training import TrainingState
from model import PoemModel, save_model

from minidl.schedules import Schedule

Line = Mapping[str, float]  # a line of the metrics


class Run(NamedTuple):
    """Everything that is written."""

    args: Namespace
    data: Data
    model: PoemModel
    schedule: Schedule
    state: TrainingState


class NoRecords:
    """For ranks other than the first, which write nothing."""

    def checkpoint(self) -> None:
        """Save the state of the run."""

    def epoch(self, line: Line, improved: bool) -> None:
        """Write an epoch's metrics, and the model if it is the best so far."""

    def end(self, line: Line) -> None:
        """Write the final model and its test figures."""


class Records(NoRecords):
    """The files in the run's folder."""

    def __init__(self, out: Path, run: Run, write: Callable[[Line], None], log: Callable[[Line], None]) -> None:
        self.out, self.run, self.write, self.log = out, run, write, log

    def checkpoint(self) -> None:
        args, data, model, schedule, state = self.run
        path = self.out / cli.CHECKPOINT
        run_checkpoint.save(path, model, schedule, state, as_json(args), args.typed, data.poems)

    def epoch(self, line: Line, improved: bool) -> None:
        self.log(line)  # first: a resumed run drops whatever its checkpoint does not know
        self.checkpoint()  # so that the metrics never mention what is not on disk
        if improved:
            self._model()
        self.write(line)

    def end(self, line: Line) -> None:
        self._model()  # again: a kill may have prevented an earlier write
        self.write(line)
        self.log(line)

    def _model(self) -> None:
        args, data, model, _, state = self.run
        metadata = {"max_length": data.task.max_length, "arguments": as_json(args)}
        path = self.out / "model.safetensors"
        save_model(path, model, data.task.vocabulary, epoch=state.best_epoch, **metadata)
        if data.lines is not None:
            data.lines.save(self.out / line_index.FILE)  # for generate.py --no-copy


@contextmanager
def opened(out: Path, run: Run) -> Iterator[Records]:
    """The records of `run` in the folder `out`; UsageError if it cannot be written, or contains another run."""
    args, lines = run.args, run.state.lines
    with (
        curves_log.event_log(args.tensorboard, lines, args.resume) as log,
        cli.metrics_file(out, lines if args.resume else None) as write,
    ):
        yield Records(out, run, write, log)
