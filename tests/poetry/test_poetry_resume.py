"""train.py --resume: a run that was stopped anywhere ends as the run that never was, bit for bit.

MINIDL_THOROUGH=1 makes the run of many kills one of 200.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from corpus.tasks import packed_task
from learning import protocol, run_checkpoint
from learning.training import TrainingState, build_optimizer
from model import PoemModel

import numpy as np
import pytest
from poetry_helpers import (
    CLOCK,
    PROGRAMS,
    SMALL,
    VOCABULARY,
    Killed,
    Outcome,
    alone_in,
    fit,
    jsonl,
    killed_after,
    pseudo_poems,
    refused,
    results,
    run_program,
    small_model,
    tree,
    weights,
    write_corpus,
)

import minidl

STEPS = 9  # an epoch's, of about 270 poems in batches of 32
KILLS = 200 if os.environ.get("MINIDL_THOROUGH") else 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; nothing is downloaded or drawn."""
    return alone_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("poetry") / "corpus", pseudo_poems(300))


def command(folder: Path, *arguments: object) -> tuple[object, ...]:
    return ("--corpus", folder, *SMALL, "--epochs", 3, "--seed", 5, *arguments)


def train(*arguments: object) -> Outcome:
    return run_program("train", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("name", ["adam", "adagrad", "adadelta", "sgd"])
def test_a_run_killed_twice_in_the_middle_of_epochs_ends_as_the_whole_one(
    corpus_folder: Path, name: str, schedule: str
) -> None:
    options = command(corpus_folder, "--optimizer", name, "--schedule", schedule)
    assert train(*options, "--out", "whole").code == 0
    with killed_after(STEPS + 4):  # in the second epoch; the latest checkpoint is one step older
        train(*options, "--out", "cut", "--checkpoint-every", 3)
    assert run_checkpoint.read(Path("cut")).steps == STEPS + 3  # type: ignore[union-attr]
    assert len(jsonl(Path("cut/metrics.jsonl"))) == 1
    with killed_after(STEPS - 1):  # in the third
        train("--resume", "--out", "cut", "--checkpoint-every", 2)
    outcome = train("--resume", "--out", "cut")
    assert outcome.code == 0 and f"resuming from step {2 * STEPS + 2}, after 2 complete epochs" in outcome.err
    assert results("cut") == results("whole")


@pytest.mark.slow
def test_without_checkpoints_in_between_it_continues_at_the_epochs_beginning(corpus_folder: Path) -> None:
    train(*command(corpus_folder, "--out", "whole"))
    with killed_after(STEPS + 4):
        train(*command(corpus_folder, "--out", "cut"))
    assert f"resuming from step {STEPS}, after 1 complete epochs" in train("--resume", "--out", "cut").err
    assert results("cut") == results("whole")


def test_the_sums_of_targets_and_of_pads_travel() -> None:
    """Under the report's protocol both are watched; the run stops in the middle of its second epoch."""
    task = protocol.report_task(pseudo_poems(60), batch_size=8, width=16)

    def fresh() -> tuple[PoemModel, minidl.Constant, TrainingState]:
        model = small_model(task.vocabulary)
        schedule = minidl.Constant(build_optimizer("adam", model.parameters(), 0.01))
        return model, schedule, TrainingState(np.random.default_rng(0), model.state_dict())

    def run(
        model: PoemModel, schedule: minidl.Constant, state: TrainingState, stop: int = 99
    ) -> list[dict[str, float]]:
        def after_step() -> None:
            if schedule.steps == stop:
                run_checkpoint.save(Path("checkpoint.safetensors"), model, schedule, state, {}, [], "")
                raise Killed

        options: Any = {"epochs": 3, "patience": 3, "pads_count": True, "quiet": True, "after_step": after_step}
        with contextlib.suppress(Killed):
            list(fit(model, schedule, task, state=state, **options))
        return [{n: v for n, v in line.items() if n not in CLOCK} for line in state.lines]

    whole, cut, again = fresh(), fresh(), fresh()
    lines = run(*whole)
    assert task.steps > 3 and len(run(*cut, stop=task.steps + 3)) == 1
    checkpoint = run_checkpoint.read(Path("."))
    assert checkpoint is not None and checkpoint.metadata["sums"]["batches"] == 3
    state = run_checkpoint.restore(checkpoint, *again[:2], "")
    assert state.running.pad_nats and run(*again[:2], state) == lines
    assert weights(again[0]) == weights(whole[0])


def test_a_kill_before_the_model_or_the_metrics_are_written_loses_nothing(
    corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(*command(corpus_folder, "--out", "whole"))
    with killed_after(3 * STEPS - 1):
        train(*command(corpus_folder, "--out", "cut", "--checkpoint-every", 1))
    (Path("cut") / "model.safetensors").unlink()
    (Path("cut") / "metrics.jsonl").write_text('{"epoch": 1, "trai', encoding="utf-8")
    assert train("--resume", "--out", "cut").code == 0
    assert results("cut") == results("whole")


def test_patience_and_the_best_epoch_travel() -> None:
    """Given losses of epochs 1 to 5: a run that is interrupted after each epoch stops where it would have."""
    poems = pseudo_poems(8)
    task = packed_task([poems, poems, poems], VOCABULARY, 8)

    class Scripted(PoemModel):
        def nats(self, batch: Any) -> Any:
            return super().nats(batch)._replace(real=[3.0, 2.0, 2.5, 2.4, 1.0][len(state.lines)] * 80)

    def fresh() -> tuple[PoemModel, minidl.Constant]:
        model = Scripted(len(VOCABULARY), 2, 2, rng=0)
        return model, minidl.Constant(build_optimizer("adam", model.parameters(), 0.01))

    model, schedule = fresh()
    state, seen = TrainingState(np.random.default_rng(0), model.state_dict()), []
    for _ in range(9):
        run = fit(model, schedule, task, epochs=9, patience=2, state=state, quiet=True)
        if next(run, None) is None:
            break
        seen.append(weights(model))
        run_checkpoint.save(Path("c.safetensors"), model, schedule, state, {}, [], "")
        shutil.move("c.safetensors", "checkpoint.safetensors")
        checkpoint = run_checkpoint.read(Path("."))
        assert checkpoint is not None
        model, schedule = fresh()
        state = run_checkpoint.restore(checkpoint, model, schedule, "")
    assert len(seen) == 4 and state.best_epoch == 2
    assert weights(model) == seen[1], "the best epoch's weights, not the last one's"


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(corpus_folder: Path) -> None:
    train(*command(corpus_folder, "--out", "a"))
    before = results("a")
    outcome = train("--resume", "--out", "a")
    assert outcome.code == 0 and results("a") == before
    assert outcome.out == (Path("a") / "poems.txt").read_text(encoding="utf-8")


# What may be resumed, and what not


def test_a_folder_without_a_checkpoint_starts_at_step_0_and_says_so(corpus_folder: Path) -> None:
    train(*command(corpus_folder, "--out", "whole"))
    outcome = train(*command(corpus_folder, "--out", "a", "--resume"))
    assert outcome.code == 0 and "no checkpoint in a: the run starts at step 0\n" in outcome.err
    assert results("a") == results("whole")


@pytest.mark.slow
def test_the_run_that_was_saved_last_is_resumed_where_no_folder_is_named(corpus_folder: Path) -> None:
    for number in (1, 2):
        with killed_after(STEPS + 1):
            train(*command(corpus_folder))
        os.utime(f"runs/{number}/checkpoint.safetensors", (number, number))
    os.utime("runs/1/checkpoint.safetensors", (9, 9))
    assert train("--resume").code == 0
    assert "poems.txt" in tree(Path("runs/1")) and "poems.txt" not in tree(Path("runs/2"))
    assert "the run starts at step 0" in train(*command(corpus_folder, "--resume", "--out", "runs/3")).err


def test_a_folder_that_holds_a_run_is_refused_without_resume(corpus_folder: Path) -> None:
    with killed_after(STEPS + 1):
        train(*command(corpus_folder, "--out", "a"))
    before = {path: path.read_bytes() for path in Path("a").iterdir()}
    refused(train(*command(corpus_folder, "--out", "a")), "--out a already holds a run", "--resume continues it")
    assert {path: path.read_bytes() for path in Path("a").iterdir()} == before


def test_a_run_stopped_in_its_first_epoch_is_no_free_folder(corpus_folder: Path) -> None:
    with killed_after(4):
        train(*command(corpus_folder, "--checkpoint-every", 2))
    assert tree(Path("runs/1")) == ["checkpoint.safetensors"]
    refused(train(*command(corpus_folder, "--out", "runs/1")), "--resume continues it")
    assert train(*command(corpus_folder)).code == 0 and Path("runs/2/poems.txt").exists()


def test_a_run_without_a_checkpoint_is_not_written_over_by_resuming(corpus_folder: Path) -> None:
    train(*command(corpus_folder, "--out", "a"))
    Path("a/checkpoint.safetensors").unlink()
    refused(train(*command(corpus_folder, "--out", "a", "--resume")), "--out a", "without a checkpoint")


@pytest.fixture
def stopped(corpus_folder: Path) -> Path:
    with killed_after(STEPS + 1):
        train(*command(corpus_folder, "--out", "a"))
    return Path("a")


@pytest.mark.parametrize(
    "option",
    [
        ("--lr", "0.5"),
        ("--optimizer", "sgd"),
        ("--epochs", "4"),
        ("--dropout", "0.1"),
        ("--seed", "6"),
        ("--batch-size", "16"),
        ("--hidden-size", "9"),
        ("--recipe", "default"),
        ("--clip", "2"),
    ],
)
def test_other_settings_are_refused(stopped: Path, option: tuple[str, str]) -> None:
    before = (stopped / "checkpoint.safetensors").read_bytes()
    refused(train("--resume", "--out", stopped, *option), *option[:1], "does not go with --resume", "the run in a has")
    assert (stopped / "checkpoint.safetensors").read_bytes() == before


def test_the_same_settings_may_be_typed_again(stopped: Path, corpus_folder: Path) -> None:
    assert train(*command(corpus_folder, "--out", stopped, "--resume", "--lr", 0.005)).code == 0


@pytest.mark.slow
def test_other_poems_are_refused_and_the_same_ones_elsewhere_taken(
    stopped: Path, corpus_folder: Path, here: Path
) -> None:
    other = write_corpus(here / "other", pseudo_poems(300, seed=1))
    outcome = train("--resume", "--out", stopped, "--corpus", other)
    assert outcome.code == 2 and "checkpoint.safetensors: cannot be resumed (it was trained on different" in outcome.err
    shutil.copytree(corpus_folder, here / "copy")
    assert train("--resume", "--out", stopped, "--corpus", here / "copy").code == 0


def test_another_number_of_threads_is_reported(stopped: Path) -> None:
    assert "was" not in train("--resume", "--out", stopped).err
    before = minidl.get_num_threads()
    minidl.set_num_threads(before + 1)
    try:
        err = train("--resume", "--out", stopped).err
    finally:
        minidl.set_num_threads(before)
    assert f"threads was {before}, now {before + 1}: the last digits" in err


def test_a_damaged_checkpoint_is_an_error_and_stays(stopped: Path) -> None:
    path = stopped / "checkpoint.safetensors"
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    path.write_bytes(broken)
    files = tree(stopped)
    refused(train("--resume", "--out", stopped), "checkpoint.safetensors", "SHA-256")
    assert path.read_bytes() == broken and tree(stopped) == files


def test_another_checkpoint_is_refused(stopped: Path) -> None:
    tensors, facts = minidl.load(stopped / "checkpoint.safetensors")
    shutil.copy(stopped / "model.safetensors", stopped / "checkpoint.safetensors")
    refused(train("--resume", "--out", stopped), "not from a run of train.py")
    for wrong in ({"typed": 7}, {"typed": [7]}, {"arguments": []}, {"lines": None}, {"machine": "mine"}):
        minidl.save(stopped / "checkpoint.safetensors", tensors, facts | wrong)
        refused(train("--resume", "--out", stopped), "not from a run of train.py")


@pytest.mark.parametrize(
    "fault",
    [
        lambda tensors, facts: tensors.pop("optimizer.exp_avg.0"),
        lambda tensors, facts: tensors.update({"model.head.bias": np.zeros(3, np.float32)}),
        lambda tensors, facts: tensors.update({"best.head.bias": np.zeros(3, np.float32)}),
        lambda tensors, facts: tensors.update({"schedule.more": np.zeros(3, np.float32)}),
        lambda tensors, facts: tensors.update({"sums.nats": np.zeros(3)}),
        lambda tensors, facts: facts["rng"].update(bit_generator="MT19937"),
        lambda tensors, facts: facts["rng"]["state"].update(state=-1),
        lambda tensors, facts: facts["sums"].pop("targets"),
        lambda tensors, facts: facts.update(lines=[{"epoch": 1}]),
        lambda tensors, facts: facts.update(lines=[7]),
        lambda tensors, facts: facts.pop("seconds"),
        lambda tensors, facts: facts.update(seconds="soon"),
    ],
)
def test_a_checkpoint_that_does_not_fit_leaves_model_and_optimizer_untouched(stopped: Path, fault: Any) -> None:
    path, tensors, facts = run_checkpoint.read(stopped)  # type: ignore[misc]
    model = small_model(dropout=0.3)
    schedule = minidl.Constant(build_optimizer("adam", model.parameters(), 0.01))
    fault(tensors, facts)
    before = weights(model)
    with pytest.raises(minidl.CheckpointError, match=r"a.checkpoint.safetensors: cannot be resumed \(.+\)") as e:
        run_checkpoint.restore(run_checkpoint.Checkpoint(path, tensors, facts), model, schedule, facts["poems"])
    assert len(str(e.value).splitlines()) == 1
    assert weights(model) == before and schedule.optimizer.steps == schedule.steps == 0 and schedule.lr == 0.01
    assert not any(state.any() for state in schedule.optimizer.state.values())


def test_no_clock_is_among_the_tensors(stopped: Path) -> None:
    tensors, facts = minidl.load(stopped / "checkpoint.safetensors")
    assert facts["lines"][0]["seconds"] > 0
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "schedule", "best", "sums"}
    assert not [name for name in tensors if "second" in name or "time" in name]


# Real processes, really stopped


PROGRAM = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests without it
sys.path.insert(0, sys.argv[1])
from common import figures
figures.draw_curves = figures.draw_poems = lambda *_: None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def process(*arguments: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", PROGRAM, PROGRAMS, PROGRAMS / "train.py", *arguments]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_the_whole_one(corpus_folder: Path) -> None:
    """SIGKILL (on Windows TerminateProcess) at random instants, of a run that saves after every step."""
    rng, kills, epochs = random.Random(0), 0, max(3, KILLS // 3)
    options = ("--corpus", corpus_folder, *SMALL, "--epochs", epochs, "--patience", epochs, "--seed", 5)
    assert train(*options, "--out", "whole").code == 0
    done, steps = False, [0]
    while not done:
        with process(*options, "--out", "cut", "--resume", "--checkpoint-every", 1) as run:
            assert run.stderr is not None
            if kills < KILLS:
                while b"weights, adam" not in (line := run.stderr.readline()):
                    assert line, "it ended by itself"
                time.sleep(rng.uniform(0.0, 0.3))
                run.kill()
                kills += run.wait() != 0
            err = run.communicate(timeout=300)[1]
            done = run.returncode == 0
            assert done or kills <= KILLS, err
        checkpoint = run_checkpoint.read(Path("cut"))  # whole, whatever the kill hit
        steps.append(0 if checkpoint is None else checkpoint.steps)
        assert steps[-1] >= steps[-2], "nothing that was saved is lost"
    assert results("cut") == results("whole")
    print(f"{kills} kills; steps at each: {steps}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_saves_at_the_step_under_way(corpus_folder: Path) -> None:
    options = ("--corpus", corpus_folder, *SMALL, "--epochs", 30, "--patience", 30, "--seed", 5)
    assert train(*options, "--out", "whole").code == 0
    with process(*options, "--out", "cut") as run:
        assert run.stderr is not None
        while b"epoch  2  " not in (line := run.stderr.readline()):
            assert line, "it ended by itself"
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=60)[1].decode("utf-8")
        assert run.returncode == 130
    checkpoint = run_checkpoint.read(Path("cut"))
    assert checkpoint is not None and checkpoint.steps >= 2 * STEPS
    said = f"interrupted; step {checkpoint.steps} is saved in cut, use --resume --out cut to resume\n"
    assert err.endswith(said) and "Traceback" not in err
    assert train("--resume", "--out", "cut").code == 0
    assert results("cut") == results("whole")
