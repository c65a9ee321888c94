"""The training loop: steps, epochs, evaluation, and the rule that stops."""

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
from learning.ranks import ALONE, Alone
from model import Nats, PoemModel

import numpy as np

import minidl
from minidl.backend import Rng
from minidl.optimizers import Optimizer
from minidl.schedules import Schedule

HOPELESS = 10.0  # times the loss of even guesses: nothing comes back from there


@dataclass
class Mean:
    """Nats per target, summed batch by batch (on the device, where the model is on one)."""

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
        """Cross-entropy in nats per place, pads included: the figure that the report gives."""
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
    """The loss or a gradient is not finite any more, or the loss is hopeless."""


@dataclass
class Standing:
    """Where a run stands, beside its weights, its optimizer and its schedule: all else that it needs to go on."""

    rng: np.random.Generator  # as it was before the shuffle of the epoch under way
    best_weights: dict[str, np.ndarray]  # of the best epoch so far, or the start
    lines: list[dict[str, float]] = field(default_factory=list)  # the metrics of every epoch that was finished
    mean: Mean = field(default_factory=Mean)  # of the steps of the epoch under way
    seconds: float = 0.0  # that they took

    @property
    def best_epoch(self) -> int:
        """The first of those with the lowest loss, from 1; 0 before there is one."""
        losses = [_watched(line) for line in self.lines]
        return 1 + losses.index(min(losses)) if losses else 0

    @property
    def waited(self) -> int:
        """How many epochs ago that was."""
        return len(self.lines) - self.best_epoch


def _watched(line: dict[str, float]) -> float:
    """What decides which epoch is the best: under the report's protocol the loss with pads."""
    return line.get("report_cross_entropy", line["validation_loss"])


def train_epoch(
    model: PoemModel,
    schedule: Schedule,
    batches: Iterable[Batch],
    clip: float | None,
    progress: Progress,
    mean: Mean | None = None,
    after_step: Callable[[], None] | None = None,
    ranks: Alone = ALONE,
) -> Mean:
    """One step of the schedule's optimizer for each of `batches`; adds to `mean`, that of an epoch begun before."""
    mean, optimizer = Mean() if mean is None else mean, schedule.optimizer
    for batch in batches:
        optimizer.zero_grad()
        part = ranks.share(batch)
        nats = Nats(0.0) if part is None else model.forward_backward(part, optimizer.steps)
        ranks.sum_gradients(optimizer.params)
        mean.add(Nats(*ranks.sum(nats)), batch)
        if clip is not None:
            minidl.clip_grad_norm(optimizer.params, clip)
        optimizer.step()
        schedule.step()
        progress.update()
        if optimizer.steps % 10 == 0 and not progress.disable:  # reading the loss makes the host wait for a GPU
            progress.set_postfix_str(f"{mean.loss:.3f} nats/char", refresh=False)
        if after_step is not None:
            after_step()
    return mean


def evaluate(model: PoemModel, batches: Iterable[Batch], ranks: Alone = ALONE) -> Mean:
    """The mean over `batches`, without dropout."""
    mean = Mean()
    for batch in ranks.mine(batches):
        mean.add(model.nats(batch), batch)
    return Mean(*ranks.sum(list(vars(mean).values())))


def fit(
    model: PoemModel,
    schedule: Schedule,
    task: Task,
    *,
    epochs: int,
    patience: int,
    clip: float | None = None,
    pads_count: bool = False,
    rng: Rng = None,
    quiet: bool = False,
    standing: Standing | None = None,
    after_step: Callable[[], None] | None = None,
    ranks: Alone = ALONE,
) -> Iterator[tuple[dict[str, float], bool]]:
    """Train; yields each epoch's metrics and whether it is the best so far. At the end `model` has the best weights.

    Stops after `patience` epochs in a row without a better validation loss. `pads_count` adds the report's
    figures and watches those. `seconds` and `chars_per_second` are of training alone, validation left out.
    Several `ranks` share the work of every batch.
    Goes on from `standing`, which it keeps up to date: at every `after_step()`, and whenever an epoch is told, that,
    `model` and `schedule` are all that a later call needs to go on as if there had been no pause.
    Raises Diverged, with the best weights so far in `model`.
    """
    if standing is None:
        standing = Standing(np.random.default_rng(rng), model.state_dict())
    try:
        while len(standing.lines) < epochs and standing.waited < patience:
            line = _epoch(model, schedule, task, clip, pads_count, quiet, standing, after_step, ranks)
            standing.lines.append(line)
            if standing.waited == 0:
                standing.best_weights = model.state_dict()
            yield line, standing.waited == 0
    except FloatingPointError as error:
        what = f"training diverged after {schedule.optimizer.steps} steps: {_culprit(model) or error}"
        raise Diverged(f"{what}; try a smaller learning rate") from error
    finally:
        model.load_state_dict(standing.best_weights)


def _epoch(
    model: PoemModel,
    schedule: Schedule,
    task: Task,
    clip: float | None,
    pads_count: bool,
    quiet: bool,
    standing: Standing,
    after_step: Callable[[], None] | None,
    ranks: Alone,
) -> dict[str, float]:
    """What is left of the epoch under way; its metrics. `standing` is then before the next one."""
    clock = time.perf_counter()

    def between() -> None:
        nonlocal clock
        standing.seconds += time.perf_counter() - clock
        if after_step is not None:
            after_step()  # which may save, and is not training
        clock = time.perf_counter()

    rng, train = copy.deepcopy(standing.rng), standing.mean
    batches = task.train(rng, train.batches)
    epoch = len(standing.lines) + 1
    progress = Progress(
        total=task.steps, initial=train.batches, desc=f"epoch {epoch}", unit="step", leave=False, disable=quiet
    )
    ranks.take_firsts(schedule.optimizer.params)  # other processors may round otherwise
    with progress, np.errstate(over="ignore", invalid="ignore"):  # infinities are looked for and told
        train_epoch(model, schedule, batches, clip, progress, train, between, ranks)
        train_loss = train.loss  # read before the clock: a GPU has finished then
        seconds = standing.seconds + time.perf_counter() - clock
        validation = evaluate(model, task.validation, ranks)
    if not math.isfinite(train_loss + validation.loss):
        raise FloatingPointError("the loss is not finite")
    even = math.log(len(task.vocabulary))
    if train_loss > HOPELESS * even:
        raise FloatingPointError(f"the loss is {train_loss:.3g} nats/char, and guessing evenly has {even:.3g}")
    standing.rng, standing.mean, standing.seconds = rng, Mean(), 0.0
    line = {
        "epoch": epoch,
        "train_loss": train_loss,
        "validation_loss": validation.loss,
        "validation_perplexity": perplexity(validation.loss),
        "seconds": seconds,
        "chars_per_second": train.targets / seconds,
    }
    if pads_count:
        line["report_cross_entropy"] = validation.loss_with_pads
        line["report_perplexity"] = 2**validation.loss_with_pads
    return line


def _culprit(model: PoemModel) -> str:
    """The parameter nearest to the loss whose gradient is not finite, where the trouble came from if it had a place."""
    for name, parameter in reversed(model.named_parameters()):
        if not np.isfinite(minidl.to_host(parameter.grad)).all():
            return f"the gradient of {name} is not finite"
    return ""


def held_out_figures(model: PoemModel, task: Task, ranks: Alone = ALONE) -> dict[str, float]:
    """The figures on the test part, which (but under the report's protocol) nothing else has looked at.

    Where there are poems of more than MAX_LENGTH characters, the shorter ones, if the part has any, have figures of
    their own, so that models with different limits can be compared.
    """
    every, short, unknowns = Sums(), Sums(), 0
    for batch in ranks.mine(task.test):
        mean = evaluate(model, [batch])
        every.add(mean.nats, mean.targets, mean.poems)
        if mean.targets <= MAX_LENGTH + 1:  # the end is a target too
            short.add(mean.nats, mean.targets, mean.poems)
        unknowns += int((batch.targets == task.vocabulary.ids[UNKNOWN]).sum())
    every, short = (Sums(*ranks.sum(list(vars(sums).values()))) for sums in (every, short))
    (unknowns,) = ranks.sum([unknowns])
    figures = every.figures("test")
    figures |= {"vocabulary_size": len(task.vocabulary), "unknown_rate": unknowns / every.targets}
    figures |= every.errors("test")
    if task.max_length > MAX_LENGTH and short.targets:
        figures |= short.figures("short_test") | short.errors("short_test")
    return figures
