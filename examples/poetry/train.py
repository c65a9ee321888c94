"""Train an LSTM on the Tang poems, watch it learn, and read what it writes.

python examples/poetry/train.py                     the default recipe, on the report's 8 files
python examples/poetry/train.py --recipe best       the recipe with the lowest perplexity, on all 58 files
python examples/poetry/train.py --protocol report   the report's own experiment, as it was
python examples/poetry/train.py --protocol report-rows --recipe best    its poems and test part, learned better
python examples/poetry/train.py --text FILE         your own poems or prose, one a line
python examples/poetry/train.py --prepared DIR      what prepare.py has written, of a corpus that may exceed the memory
python examples/poetry/train.py --resume            go on with the run that was saved last, as if it had never stopped
mpiexec -n 2 python examples/poetry/train.py --distributed      by two processes, which share every batch
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import cli
import copies
import corpus
import curves_log
import numpy as np
import prepared
import protocol
import ranks
import resuming
from copies import LineIndex
from model import PoemModel, save_model
from ranks import Alone
from settings import as_json, parse_arguments
from tasks import Joined, Task, packed_task
from training import Diverged, Standing, build_optimizer, fit, held_out_figures
from verse import MAX_LENGTH, STARTS, write_poems
from vocabulary import Vocabulary
from whole_files import write_text

import minidl
from minidl.schedules import Schedule


class Data(NamedTuple):
    """What a run learns from."""

    task: Task
    lines: LineIndex | None  # all that its poems have; None where there may be too many
    poems: str  # a hash of them


def main() -> int:
    together = ranks.start() if "--distributed" in sys.argv[1:] else ranks.ALONE
    args = parse_arguments()
    args = together.of_first(lambda: args)
    minidl.backend.get(args.backend)
    if args.backend == "cupy":
        together.choose_gpu()
    remedy = "end what else uses it" if args.protocol == "report" else "a smaller --batch-size needs less"
    with cli.results_folder(args.out, args.resume) if together.first else nullcontext(args.out) as out:
        try:
            with cli.memory_advice(remedy, lambda: kept(out)):
                return train(args, out, together)
        except Diverged as error:
            raise Diverged(f"{error}; {kept(out)}") from error
        except KeyboardInterrupt:
            cli.note(f"interrupted; {kept(out)}")
            return 130


def kept(out: Path) -> str:
    """What a run that ends early leaves behind."""
    checkpoint = resuming.read(out)
    if checkpoint is None:
        return "nothing was saved yet"
    return f"step {checkpoint.steps} is saved in {out}, and --resume --out {out} goes on from there"


def train(args: Namespace, out: Path, together: Alone) -> int:
    data = data_of(args, together)
    task = data.task

    rng = np.random.default_rng(args.seed)
    sizes = args.embedding_size, args.hidden_size, args.dropout, args.tied, args.layers
    model = PoemModel(len(task.vocabulary), *sizes, backend=args.backend, rng=rng)
    schedule = build_schedule(args, model, task)
    weights = sum(parameter.data.size for parameter in model.parameters())
    cli.note(f"{weights:,} weights, {args.optimizer} with learning rate {args.lr:g}, seed {args.seed}, into {out}")
    standing = begin(args, model, schedule, data, rng)

    facts = {"max_length": task.max_length, "arguments": as_json(args)}
    with (
        curves_log.event_log(args.tensorboard if together.first else None, standing.lines, args.resume) as log,
        metrics_of(args, out, standing, together) as write,
        resuming.stop_asked() as asked,
    ):

        def keep() -> None:
            if together.first:
                resuming.save(out / cli.CHECKPOINT, model, schedule, standing, as_json(args), args.typed, data.poems)

        def keep_best() -> None:
            if together.first:
                path = out / "model.safetensors"
                save_model(path, model, task.vocabulary, epoch=standing.best_epoch, **facts)
            if together.first and data.lines is not None:
                data.lines.save(out / copies.FILE)  # for generate.py --no-copy

        def after_step() -> None:
            if asked() or (args.checkpoint_every and schedule.optimizer.steps % args.checkpoint_every == 0):
                keep()
            if asked():
                raise KeyboardInterrupt

        epochs = fit(  # a generator: each turn of the loop below trains one epoch
            model,
            schedule,
            task,
            epochs=args.epochs,
            patience=args.patience,
            clip=args.clip,
            pads_count=args.protocol == "report",
            standing=standing,
            after_step=after_step,
            ranks=together,
        )
        for line, improved in epochs:
            log(line)  # before all else: a run that goes on drops what its checkpoint does not know
            keep()  # first, so that the metrics never speak of what is not on the disk
            if improved:
                keep_best()
            write(line)
            cli.note(epoch_text(line))
            if asked():
                raise KeyboardInterrupt
        keep_best()  # which fit has left in the model: a kill may have kept it from the disk
        last = last_line(args, task, model, standing.lines, together)
        write(last)
        log(last)
    if together.first:
        draw_and_write(args, task, model, standing.lines)
    return 0


def metrics_of(
    args: Namespace, out: Path, standing: Standing, together: Alone
) -> AbstractContextManager[Callable[[Mapping[str, object]], None]]:
    """What writes a line of metrics, at the first rank."""
    if together.first:
        return cli.metrics_file(out, standing.lines if args.resume else None)
    return nullcontext(lambda line: None)


def begin(args: Namespace, model: PoemModel, schedule: Schedule, data: Data, rng: np.random.Generator) -> Standing:
    """Where the run stands: at its start, or where its checkpoint has it."""
    checkpoint: resuming.Checkpoint | None = args.checkpoint
    if checkpoint is None:
        if args.resume:
            cli.note(f"no checkpoint in {args.out}: the run starts at step 0")
        return Standing(rng, model.state_dict())
    standing = resuming.restore(checkpoint, model, schedule, data.poems)
    cli.note(f"the run goes on from step {checkpoint.steps}, after {len(standing.lines)} whole epochs")
    for change in resuming.changes(checkpoint):
        cli.note(f"{change}: the figures may differ from those of the run without a pause in their last digits")
    return standing


def build_schedule(args: Namespace, model: PoemModel, task: Task) -> Schedule:
    optimizer = build_optimizer(args.optimizer, model.parameters(), args.lr)
    if args.schedule == "one-cycle":
        return minidl.OneCycle(optimizer, args.lr, args.epochs * task.steps)
    return minidl.Constant(optimizer)


def data_of(args: Namespace, together: Alone) -> Data:
    if args.prepared:
        return prepared_data(args, together)
    return report_data(args, together) if args.protocol else default_data(args, together)


def default_data(args: Namespace, together: Alone = ranks.ALONE) -> Data:
    """Poems without duplicates, split by their SHA-256; the vocabulary is the training part's."""
    parts = together.of_first(lambda: read_parts(args))
    index = LineIndex.build(poem for part in parts for poem in part)
    gc.collect()  # the memory of the strings goes back to the system, before anything that stays settles among them
    vocabulary = Vocabulary.build(parts[0], most=args.max_vocabulary, least=args.min_count)
    return Data(packed_task(parts, vocabulary, args.batch_size), index, resuming.hash_of(parts))


def read_parts(args: Namespace) -> list[Joined]:
    """The training, validation and test poems; no other string of the corpus lives on."""
    if args.text:
        found = corpus.read_text(args.text)
        poems = list(dict.fromkeys(corpus.pieces(found.poems)))
    else:
        found = corpus.load(args.corpus, args.files, max_length=args.max_length)
        poems = found.poems
    parts = corpus.split(poems)
    if not all(parts):
        raise cli.UsageError(f"{len(poems)} poems are too few: a training, validation or test part is empty")
    cli.note(f"{' / '.join(f'{len(part):,}' for part in parts)} poems to train / validate / test, {counts_text(found)}")
    return [Joined(part) for part in parts]


def report_data(args: Namespace, together: Alone) -> Data:
    found = together.of_first(lambda: corpus.load(args.corpus, args.files, max_length=MAX_LENGTH, unique=False))
    if args.protocol == "report":
        task = protocol.report_task(found.poems)
    else:
        task = protocol.rows_task(found.poems, args.batch_size)
    cli.note(f"{len(found.poems):,} poems in the report's order, {counts_text(found)}")
    return Data(task, LineIndex.build(found.poems), resuming.hash_of([found.poems]))


def prepared_data(args: Namespace, together: Alone) -> Data:
    found = prepared.load(args.prepared)  # by every rank, from its own machine
    if found.digest != together.of_first(lambda: found.digest):
        raise corpus.CorpusError(f"{args.prepared} has other poems here than at the first rank")
    counts = " / ".join(f"{len(part.lengths):,}" for part in found.parts)
    cli.note(f"{counts} poems to train / validate / test, from {args.prepared}")
    return Data(found.task(args.batch_size), None, found.digest)


def counts_text(found: corpus.Corpus) -> str:
    skipped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in found.counts.items() if count]
    return f"of {', '.join(skipped)}"


def epoch_text(line: dict[str, float]) -> str:
    report = f", with pads {line['report_cross_entropy']:.3f}" if "report_cross_entropy" in line else ""
    return (
        f"epoch {line['epoch']:2}  train {line['train_loss']:.3f}  validation {line['validation_loss']:.3f} nats/char"
        f" (perplexity {short(line['validation_perplexity'])}{report})  {line['chars_per_second']:,.0f} chars/s"
    )


def figures_text(figures: dict[str, float], part: str) -> str:
    value, error = figures[f"{part}_perplexity"], figures.get(f"{part}_perplexity_error")
    spread = "" if error is None else f" ± {short(error)}"
    return (
        f"{figures[f'{part}_loss']:.3f} nats/char (perplexity {short(value)}{spread}) "
        f"over {figures[f'{part}_targets']:,} targets"
    )


def short(perplexity: float) -> str:
    return f"{perplexity:.1f}" if perplexity < 1e6 else f"{perplexity:.1e}"


def last_line(
    args: Namespace, task: Task, model: PoemModel, lines: list[dict[str, float]], together: Alone
) -> dict[str, float]:
    """The figures to quote, of the best epoch; under the report's protocol with a word on how it was chosen."""
    last = held_out_figures(model, task, together)
    facts = f"vocabulary {last['vocabulary_size']:,}, {last['unknown_rate']:.2%} unknown"
    cli.note(f"test {figures_text(last, 'test')}; {facts}")
    if "short_test_loss" in last:
        cli.note(f"of its poems of at most {MAX_LENGTH} characters {figures_text(last, 'short_test')}")
    if args.protocol:
        best = min(lines, key=lambda line: line.get("report_cross_entropy", line["validation_loss"]))
        return {**best, **last, "selected_on_test": True}
    return last


def draw_and_write(args: Namespace, task: Task, model: PoemModel, lines: list[dict[str, float]]) -> None:
    """The curves, and a poem for each of the report's seven first characters."""
    import figures  # matplotlib is slow to import, and wanted only here

    as_it_was = args.protocol == "report"
    figures.draw_curves(args.out / "curves.png", lines, protocol.REPORTED[args.optimizer] if as_it_was else None)
    known = [start for start in STARTS if start in task.vocabulary]
    # A text in another script begins as it likes.
    free = bool(args.text or args.prepared) and not known and len(task.vocabulary) > len(task.vocabulary.marks)
    starts = [""] * len(STARTS) if free else known
    # The report took the likeliest character at every place.
    written = write_poems(model, task.vocabulary, starts, task.max_length, argmax=as_it_was, rng=args.seed)
    poems = iter(written)
    lost = "({}: not in this corpus's vocabulary)"
    text = "\n".join(next(poems) if free or start in known else lost.format(start) for start in STARTS)
    write_text(args.out / "poems.txt", text + "\n")
    print(text)
    figures.draw_poems(args.out / "poems.png", written)


if __name__ == "__main__":
    cli.run(main, corpus.CorpusError, Diverged, leave=ranks.leave)
