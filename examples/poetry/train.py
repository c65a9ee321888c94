"""Train an LSTM on the Tang poems, watch it learn, and read what it writes.

python examples/poetry/train.py                     the default recipe, on the report's 8 files
python examples/poetry/train.py --recipe best       the recipe with the lowest perplexity, on all 58 files
python examples/poetry/train.py --protocol report   the report's own experiment
python examples/poetry/train.py --protocol report-rows --recipe best    its poems and test part, with better settings
python examples/poetry/train.py --text FILE         your own poems or prose, one per line
python examples/poetry/train.py --prepared DIR      a corpus from prepare.py, which may be larger than memory
python examples/poetry/train.py --resume            continue the run that was saved last
mpiexec -n 2 python examples/poetry/train.py --distributed      with two processes, which share every batch
"""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

from common import cli
from common.atomic_files import write_text
from corpus import tang
from corpus.tasks import MAX_LENGTH, Task
from corpus.vocabulary import Vocabulary
from learning import protocol, ranks, records, run_checkpoint
from learning.metrics import figures_text, short
from learning.ranks import SingleProcess
from learning.records import NoRecords, Run
from learning.settings import parse_arguments
from learning.sources import Data, data_of
from learning.training import Diverged, Trainer, TrainingState, build_optimizer, held_out_figures
from model import PoemModel, load_model
from verse.free_verse import MARKS, FreeVerse
from verse.writing import STARTS, write_poems

import numpy as np

import minidl
from minidl.schedules import Schedule


def train(args: Namespace, out: Path, group: SingleProcess) -> int:
    data = data_of(args, group)
    task = data.task

    rng = np.random.default_rng(args.seed)
    sizes = args.embedding_size, args.hidden_size, args.dropout, args.tied, args.layers
    model = PoemModel(len(task.vocabulary), *sizes, backend=args.backend, rng=rng)
    if args.init_from and args.checkpoint is None and group.first:  # the others get theirs from it
        take_weights(args.init_from, model, task.vocabulary)
    schedule = build_schedule(args, model, task)
    weights = sum(parameter.data.size for parameter in model.parameters())
    cli.note(f"{weights:,} weights, {args.optimizer} with learning rate {args.lr:g}, seed {args.seed}, into {out}")
    state = begin(args, model, schedule, data, rng)

    run = Run(args, data, model, schedule, state)
    with (
        records.opened(out, run) if group.first else nullcontext(NoRecords()) as written,
        run_checkpoint.stop_asked() as asked,
    ):

        def after_step() -> None:
            if asked() or (args.checkpoint_every and schedule.optimizer.steps % args.checkpoint_every == 0):
                written.checkpoint()
            if asked():
                raise KeyboardInterrupt

        trainer = Trainer(model, schedule, task, state, args.clip, args.protocol == "report", after_step, group)
        for line, improved in trainer.fit(args.epochs, args.patience):  # each iteration trains one epoch
            written.epoch(line, improved)
            cli.note(epoch_text(line))
            if asked():
                raise KeyboardInterrupt
        written.end(last_line(args, task, model, state.lines, group))
    if group.first:
        draw_and_write(args, task, model, state.lines)
    return 0


def take_weights(path: Path, model: PoemModel, vocabulary: Vocabulary) -> None:
    """Load the model's weights from a file; UsageError if its characters or sizes differ."""
    other, known, _ = load_model(path)
    if known.tokens != vocabulary.tokens:
        here = f"{len(known):,} characters and marks, these poems have {len(vocabulary):,}"
        raise cli.UsageError(f"--init-from {path} has a different vocabulary: {here}")
    theirs, ours = ({**settings, "dropout": None} for settings in (other.settings, model.settings))
    if theirs != ours:
        differ = ", ".join(f"{name} {theirs[name]}, here {ours[name]}" for name in ours if ours[name] != theirs[name])
        raise cli.UsageError(f"--init-from {path} has different sizes: {differ}")
    model.load_state_dict(other.state_dict())


def begin(args: Namespace, model: PoemModel, schedule: Schedule, data: Data, rng: np.random.Generator) -> TrainingState:
    """The initial state of the run, or the state in its checkpoint."""
    checkpoint: run_checkpoint.Checkpoint | None = args.checkpoint
    if checkpoint is None:
        if args.resume:
            cli.note(f"no checkpoint in {args.out}: the run starts at step 0")
        return TrainingState(rng, model.state_dict())
    state = run_checkpoint.restore(checkpoint, model, schedule, data.poems)
    cli.note(f"resuming from step {checkpoint.steps}, after {len(state.lines)} complete epochs")
    for change in run_checkpoint.changes(checkpoint):
        cli.note(f"{change}: the last digits of the figures may differ from an uninterrupted run")
    return state


def build_schedule(args: Namespace, model: PoemModel, task: Task) -> Schedule:
    optimizer = build_optimizer(args.optimizer, model.parameters(), args.lr, args.weight_decay)
    if args.schedule == "one-cycle":
        return minidl.OneCycle(optimizer, args.lr, args.epochs * task.steps)
    return minidl.Constant(optimizer)


def epoch_text(line: dict[str, float]) -> str:
    report = f", with pads {line['report_cross_entropy']:.3f}" if "report_cross_entropy" in line else ""
    return (
        f"epoch {line['epoch']:2}  train {line['train_loss']:.3f}  validation {line['validation_loss']:.3f} nats/char"
        f" (perplexity {short(line['validation_perplexity'])}{report})  {line['chars_per_second']:,.0f} chars/s"
    )


def last_line(
    args: Namespace, task: Task, model: PoemModel, lines: list[dict[str, float]], group: SingleProcess
) -> dict[str, float]:
    """The final figures, of the best epoch; under a protocol of the report also how it was selected."""
    last = held_out_figures(model, task, group)
    known = f"vocabulary {last['vocabulary_size']:,}, {last['unknown_rate']:.2%} unknown"
    cli.note(f"test {figures_text(last, 'test')}; {known}")
    if "short_test_loss" in last:
        cli.note(f"its poems of at most {MAX_LENGTH} characters: {figures_text(last, 'short_test')}")
    if args.protocol:
        best = min(lines, key=lambda line: line.get("report_cross_entropy", line["validation_loss"]))
        return {**best, **last, "selected_on_test": True}
    return last


def draw_and_write(args: Namespace, task: Task, model: PoemModel, lines: list[dict[str, float]]) -> None:
    """The curves, and a poem for each of the report's seven first characters."""
    from common import figures  # matplotlib is slow to import, and only needed here

    as_it_was = args.protocol == "report"
    figures.draw_curves(args.out / "curves.png", lines, protocol.REPORTED[args.optimizer] if as_it_was else None)
    known = [start for start in STARTS if start in task.vocabulary]
    # For a text in another script the model chooses the first characters.
    writes = any(len(token) == 1 and token not in MARKS for token in task.vocabulary.tokens)
    free = bool(args.text or args.prepared) and not known and writes
    starts = [""] * len(STARTS) if free else known
    # The report always took the most probable character.
    rules = None if as_it_was else FreeVerse(task.vocabulary)
    written = write_poems(model, task.vocabulary, starts, task.max_length, argmax=as_it_was, rules=rules, rng=args.seed)
    poems = iter(written)
    lost = "({}: not in this corpus's vocabulary)"
    text = "\n".join(next(poems) if free or start in known else lost.format(start) for start in STARTS)
    write_text(args.out / "poems.txt", text + "\n")
    figures.draw_poems(args.out / "poems.png", written)
    print(text)  # last, in case nobody reads it


def main() -> int:
    group = ranks.start() if "--distributed" in sys.argv[1:] else ranks.SINGLE_PROCESS
    args = parse_arguments()
    args = group.broadcast(lambda: args)
    minidl.backend.get(args.backend)
    if args.backend == "cupy":
        group.choose_gpu()
    remedy = "stop other programs that use it" if args.protocol == "report" else "a smaller --batch-size needs less"
    with cli.results_folder(args.out, args.resume) if group.first else nullcontext(args.out) as out:
        try:
            with cli.memory_advice(remedy, lambda: kept(out)):
                return train(args, out, group)
        except Diverged as error:
            raise Diverged(f"{error}; {kept(out)}") from error
        except KeyboardInterrupt:
            cli.note(f"interrupted; {kept(out)}")
            return 130


def kept(out: Path) -> str:
    """What is left of a run that ends early."""
    checkpoint = run_checkpoint.read(out)
    if checkpoint is None:
        return "nothing was saved yet"
    return f"step {checkpoint.steps} is saved in {out}, use --resume --out {out} to resume"


if __name__ == "__main__":
    cli.run(main, tang.CorpusError, Diverged, leave=ranks.leave)
