"""The training loop: steps, epochs, evaluation and early stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.progress import Progress
from corpus.tasks import MAX_LENGTH, Batch, Task
from corpus.vocabulary import UNKNOWN
from learning.metrics import Sums, perplexity
from learning.ranks import SINGLE_PROCESS, SingleProcess
from model import Nats, PoemModel

import numpy as np

import minidl
from minidl.optimizers import Optimizer
from minidl.schedules import Schedule

HOPELESS = 10.0  # times the loss of uniform guessing: no run recovers from there


@dataclass
class RunningLoss:
    """Nats per target, summed batch by batch (on the GPU, if the model is there)."""

    real_nats: Any = 0.0
    pad_nats: Any = 0.0
    batches: int = 0
    targets: int = 0
    places: int = 0
    poems: int = 0

    def add(self, nats: Nats, batch: Batch) -> None:
        self.batches += 1
        self.real_nats = self.real_nats + nats.real
        self.pad_nats = self.pad_nats + nats.pads
        self.places += len(batch.targets)
        self.poems += int(batch.packing.batch_sizes[0])
        self.targets += len(batch.targets) if batch.real is None else int(batch.real.sum())

    @property
    def loss(self) -> float:
        """Cross-entropy in nats per real target: a character or an end mark."""
        return self.nats / self.targets

    @property
    def nats(self) -> float:
        """Summed over the real targets."""
        return float(minidl.to_host(self.real_nats))

    @property
    def loss_with_pads(self) -> float:
        """Cross-entropy in nats per place, pads included, as the report counts."""
        return float(minidl.to_host(self.real_nats + self.pad_nats)) / self.places


def build_optimizer(
    name: str, params: Sequence[minidl.Parameter], lr: float, weight_decay: float | None = None
) -> Optimizer:
    """The optimizer called adam, adagrad, adadelta or sgd (with momentum 0.9); `weight_decay` makes adam AdamW."""
    if name == "sgd":
        return minidl.SGD(params, lr, momentum=0.9)
    if name == "adam" and weight_decay is not None:
        return minidl.AdamW(params, lr, weight_decay=weight_decay)
    return {"adam": minidl.Adam, "adagrad": minidl.AdaGrad, "adadelta": minidl.Adadelta}[name](params, lr)


class Diverged(Exception):
    """The loss or a gradient is no longer finite, or the loss is hopeless."""


@dataclass
class TrainingState:
    """Everything a run needs to resume, besides its weights, its optimizer and its schedule."""

    rng: np.random.Generator  # as it was before the shuffle of the current epoch
    best_weights: dict[str, np.ndarray]  # of the best epoch so far, or the initial ones
    lines: list[dict[str, float]] = field(default_factory=list)  # the metrics of every finished epoch
    running: RunningLoss = field(default_factory=RunningLoss)  # over the steps of the current epoch
    seconds: float = 0.0  # that these steps took

    @property
    def best_epoch(self) -> int:
        """The first epoch with the lowest loss, counted from 1; 0 before there is one."""
        losses = [_watched(line) for line in self.lines]
        return 1 + losses.index(min(losses)) if losses else 0

    @property
    def epochs_without_improvement(self) -> int:
        return len(self.lines) - self.best_epoch


def _watched(line: dict[str, float]) -> float:
    """The loss that decides which epoch is best: with pads under the report's protocol."""
    return line.get("report_cross_entropy", line["validation_loss"])


def train_step(
    model: PoemModel, schedule: Schedule, batch: Batch, clip: float | None = None, ranks: SingleProcess = SINGLE_PROCESS
) -> Nats:
    """One step of the optimizer; the batch's nats before it. Each rank computes its shard of the batch."""
    optimizer = schedule.optimizer
    optimizer.zero_grad()
    shard = ranks.shard_batch(batch)
    nats = Nats(0.0) if shard is None else model.forward_backward(shard, optimizer.steps)
    ranks.all_reduce_gradients(optimizer.params)
    if clip is not None:
        minidl.clip_grad_norm(optimizer.params, clip)
    optimizer.step()
    schedule.step()
    return Nats(*ranks.all_reduce(nats))


def evaluate(model: PoemModel, batches: Iterable[Batch], ranks: SingleProcess = SINGLE_PROCESS) -> RunningLoss:
    """The loss over `batches`, without dropout."""
    running = RunningLoss()
    for batch in ranks.shard(batches):
        running.add(model.nats(batch), batch)
    return RunningLoss(*ranks.all_reduce(list(vars(running).values())))


@dataclass
class Trainer:
    """Trains `model` on `task`, epoch by epoch, from `state` on.

    It keeps `state` up to date: at every `after_step()`, and whenever `fit` yields, a run restored to this state, model
    and schedule continues as if it had never stopped.
    """

    model: PoemModel
    schedule: Schedule
    task: Task
    state: TrainingState
    clip: float | None = None  # the largest norm of the gradient
    pads_count: bool = False  # add the report's figures, and pick the best epoch by them
    after_step: Callable[[], None] = lambda: None
    ranks: SingleProcess = SINGLE_PROCESS
    quiet: bool = False  # no progress bar

    def fit(self, epochs: int, patience: int) -> Iterator[tuple[dict[str, float], bool]]:
        """Yield each epoch's metrics and whether it is the best so far; afterwards `model` has the best weights.

        Stops after `epochs`, or after `patience` epochs in a row without a better validation loss. Raises Diverged,
        with the best weights so far in `model`.
        """
        state = self.state
        try:
            while len(state.lines) < epochs and state.epochs_without_improvement < patience:
                state.lines.append(self._epoch())
                improved = state.epochs_without_improvement == 0
                if improved:
                    state.best_weights = self.model.state_dict()
                yield state.lines[-1], improved
        except FloatingPointError as error:
            what = f"training diverged after {self.schedule.optimizer.steps} steps: {_culprit(self.model) or error}"
            raise Diverged(f"{what}; try a smaller learning rate") from error
        finally:
            self.model.load_state_dict(state.best_weights)

    def _epoch(self) -> dict[str, float]:
        """Train the rest of the current epoch, then validate; its metrics. `state` is then ready for the next epoch."""
        model, schedule, state, ranks = self.model, self.schedule, self.state, self.ranks
        rng, running, epoch = copy.deepcopy(state.rng), state.running, len(state.lines) + 1
        batches = self.task.train(rng, running.batches)
        ranks.broadcast_parameters(schedule.optimizer.params)  # another processor may have rounded differently
        progress = Progress(
            **{"total": self.task.steps, "initial": running.batches, "desc": f"epoch {epoch}", "unit": "step"},
            **{"leave": False, "disable": self.quiet},
        )
        clock = time.perf_counter()
        with progress, np.errstate(over="ignore", invalid="ignore"):  # infinities are found and reported below
            for batch in batches:
                running.add(train_step(model, schedule, batch, self.clip, ranks), batch)
                progress.update()
                if schedule.steps % 10 == 0 and not self.quiet:  # reading the loss makes the host wait for a GPU
                    progress.set_postfix_str(f"{running.loss:.3f} nats/char", refresh=False)
                state.seconds += time.perf_counter() - clock
                self.after_step()  # it may save, which is not training
                clock = time.perf_counter()
            train_loss = running.loss  # read before the clock: by then a GPU has finished
            seconds = state.seconds + time.perf_counter() - clock
            validation = evaluate(model, self.task.validation, ranks)
        _check_loss(train_loss, validation.loss, math.log(len(self.task.vocabulary)))
        state.rng, state.running, state.seconds = rng, RunningLoss(), 0.0
        line = {
            "epoch": epoch,
            "train_loss": train_loss,
            "validation_loss": validation.loss,
            "validation_perplexity": perplexity(validation.loss),
            "seconds": seconds,  # of training alone, without validation
            "chars_per_second": running.targets / seconds,
        }
        if self.pads_count:
            line["report_cross_entropy"] = validation.loss_with_pads
            line["report_perplexity"] = 2**validation.loss_with_pads
        return line


def _check_loss(train: float, validation: float, even: float) -> None:
    """FloatingPointError for a loss that is not finite, or over HOPELESS times `even`, that of uniform guessing."""
    if not math.isfinite(train + validation):
        raise FloatingPointError("the loss is not finite")
    if train > HOPELESS * even:
        raise FloatingPointError(f"the loss is {train:.3g} nats/char, and uniform guessing has {even:.3g}")


def _culprit(model: PoemModel) -> str:
    """The parameter nearest to the loss whose gradient is not finite, where the problem probably started."""
    for name, parameter in reversed(model.named_parameters()):
        if not np.isfinite(minidl.to_host(parameter.grad)).all():
            return f"the gradient of {name} is not finite"
    return ""


def held_out_figures(model: PoemModel, task: Task, ranks: SingleProcess = SINGLE_PROCESS) -> dict[str, float]:
    """The figures on the test part, which (except under the report's protocol) nothing else uses.

    If there are poems of more than MAX_LENGTH characters, the shorter ones, if any, also have their own figures, so
    that models with different limits can be compared.
    """
    every, short, unknowns = Sums(), Sums(), 0
    for batch in ranks.shard(task.test):
        mean = evaluate(model, [batch])
        every.add(mean.nats, mean.targets, mean.poems)
        if mean.targets <= MAX_LENGTH + 1:  # the end mark is a target too
            short.add(mean.nats, mean.targets, mean.poems)
        unknowns += int((batch.targets == task.vocabulary.ids[UNKNOWN]).sum())
    every, short = (Sums(*ranks.all_reduce(list(vars(sums).values()))) for sums in (every, short))
    (unknowns,) = ranks.all_reduce([unknowns])
    figures = every.figures("test")
    figures |= {"vocabulary_size": len(task.vocabulary), "unknown_rate": unknowns / every.targets}
    figures |= every.errors("test")
    if task.max_length > MAX_LENGTH and short.targets:
        figures |= short.figures("short_test") | short.errors("short_test")
    return figures
