"""benchmarks/: turns and ratios with sides that only pretend to work, the floor's products counted, small real runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from poetry_helpers import png_size, pseudo_poems, write_corpus

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import harness  # noqa: E402
import memory  # noqa: E402
import results  # noqa: E402
import side_floor  # noqa: E402
import sizes  # noqa: E402
from results import Question, Ratio  # noqa: E402

import minidl  # noqa: E402

GPU = ("device_calls", "gpu")
PROGRAMS = ("train_step", "profile_step", "sweep", "poems_epoch", "generate", "memory", "scaling", "plots", *GPU)
PROGRAMS += ("time_to_perplexity", "char_lstm", "distributed", "mapped")
FIELDS = ("ratio", "ratio_is", "ours", "peers", "floor", "unit", "spread", "versions", "cores", "rounds")
PRETENDING = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import harness
from processes import Ready, Side
from results import Question, Ratio

harness.PAUSE = 0

def side(figures, agree=(1.0,)):
    turns = iter(figures)
    return Side(lambda args: Ready(lambda: {{"seconds": 1 / (1 / next(turns))}}, agree))

def absent(args):
    import no_such_library

def talkative(args):
    print("no JSON")
    turns = iter([3, 8, 4])
    return Ready(lambda: print("nor this") or {{"seconds": next(turns)}}, [1.00001])

SIDES = {{
    "minidl": side([1, 2, 4]),
    "torch": Side(talkative),
    "jax": side([9, 9, 9]),
    "floor": side([0.5, 1, 1], ()),
    "dies": side([1, 0, 1]),
    "absent": Side(absent),
    "differs": side([1, 1, 1], [1.01]),
}}
RATIOS = {{"share_of_floor": Ratio("floor", "minidl"), "ratio_dies": Ratio("dies", "minidl")}}
QUESTION = Question("seconds", "seconds a step", more_is_better=False, peers=("torch", "jax", "dies"), ratios=RATIOS)
OURS_DIES = Question("seconds", "seconds a step", more_is_better=False, peers=("torch",), ours="dies")

def main():
    parser = harness.parser("Pretends.", rounds=3)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--ours-dies", action="store_true")
    args = parser.parse_args()
    harness.run(SIDES, OURS_DIES if args.ours_dies else QUESTION, args, fresh=args.fresh)

if __name__ == "__main__":
    harness.main(main)
"""


@pytest.fixture
def pretending(tmp_path: Path) -> Path:
    path = tmp_path / "pretending.py"
    path.write_text(PRETENDING, encoding="utf-8")
    return path


def run(program: Path | str, *arguments: str, code: int = 0) -> tuple[str, str]:
    path = BENCHMARKS / f"{program}.py" if isinstance(program, str) else program
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def run_json(program: Path | str, *arguments: str) -> dict[str, Any]:
    out, _ = run(program, *arguments, "--json")
    assert len(out.splitlines()) == 1, "more on standard output than one object"
    return json.loads(out)


@pytest.mark.slow
def test_a_ratio_is_the_median_of_the_rounds_own_ratios(pretending: Path) -> None:
    result = run_json(pretending, "--sides", "minidl,torch,jax,floor")
    assert [field for field in FIELDS if field not in result] == []
    assert result["ours"] == 2 and result["floor"] == 1
    assert result["peers"] == {"torch": 4, "jax": 9}
    assert result["ratio"] == 3, "of 3/1, 8/2 and 4/4; the medians' ratio would be 2"
    assert result["ratio_is"] == "seconds a step: torch / minidl (above 1: minidl is better)"
    assert result["share_of_floor"] == 0.5 and result["ratio_dies"] is None
    assert result["spread"]["minidl"] == [1.5, 3]
    assert result["rounds"] == 3 and result["cores"] >= 1 and result["left_out"] == {}
    assert {"Python", "NumPy", "BLAS"} <= result["versions"].keys()


@pytest.mark.slow
def test_a_side_that_dies_or_cannot_be_imported_is_reported_in_one_line(pretending: Path) -> None:
    out, err = run(pretending, "--sides", "minidl,dies,absent,torch")
    lines = [line.strip() for line in err.replace("\r", "\n").splitlines() if "is left out" in line]
    assert lines == [
        "absent is left out: No module named 'no_such_library'; in the repository's folder: pip install -e '.[bench]'",
        "dies is left out: ZeroDivisionError: division by zero",
    ]
    assert "ratio 3.000: seconds a step: torch / minidl" in out, "the others go on"
    assert "ratio_dies" not in out


def test_without_our_side_there_is_nothing_to_tell(pretending: Path) -> None:
    out, err = run(pretending, "--sides", "dies,torch", "--ours-dies", code=2)
    assert out == ""
    assert err.splitlines()[-1] == "pretending.py: error: dies has no figures: ZeroDivisionError: division by zero"


def test_without_a_peer_the_ratio_is_null(pretending: Path) -> None:
    result = run_json(pretending, "--sides", "minidl")
    assert result["ratio"] is None and result["peers"] == {} and result["floor"] is None


@pytest.mark.slow
def test_a_fresh_process_for_every_turn_starts_again(pretending: Path) -> None:
    assert run_json(pretending, "--sides", "minidl,torch", "--fresh")["peers"] == {"torch": 3}


def test_sides_that_compute_different_things_are_not_compared(pretending: Path) -> None:
    _, err = run(pretending, "--sides", "minidl,differs", code=2)
    assert "minidl and differs compute different things" in err.splitlines()[-1]


def test_an_unknown_side_is_refused(pretending: Path) -> None:
    _, err = run(pretending, "--sides", "minidl,tensorflow", code=2)
    assert "there is no side 'tensorflow'" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_explains_itself(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{program}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f"{program}.py"), run_name="__main__")
    assert not ended.value.code
    assert f"python benchmarks/{program}.py" in capsys.readouterr().out


def test_the_best_peer_depends_on_what_is_better() -> None:
    rounds = {"minidl": [{"x": 6.0}], "slow": [{"x": 2.0}], "fast": [{"x": 3.0}]}
    rates = Question("x", "rate", more_is_better=True, peers=("slow", "fast"), ours_on_top=True)
    assert results.summary(rates, rounds)["ratio"] == 2
    sizes_ = Question("x", "MiB", more_is_better=False, peers=("slow", "fast"), ours_on_top=True)
    summary = results.summary(sizes_, rounds)
    assert summary["ratio"] == 3
    assert summary["ratio_is"] == "MiB: minidl / slow (above 1: minidl is worse)"


def test_a_ratio_may_be_of_another_figure() -> None:
    rounds = {"minidl": [{"x": 6.0, "y": 1.0}], "torch": [{"x": 2.0, "y": 4.0}]}
    question = Question("x", "x", more_is_better=True, peers=(), ratios={"ys": Ratio("torch", "minidl", "y")})
    assert results.summary(question, rounds)["ys"] == 4


@pytest.mark.parametrize("model", sizes.MODELS)
def test_the_floor_counts_the_products_that_it_does(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sizes.MODELS[model]._replace(vocabulary=30, embedding=5, hidden=4, batch=7, steps=6)
    monkeypatch.setattr(side_floor, "BLOCK", 10)
    parts = side_floor.products(size)
    counted = 0
    product = np.matmul

    def counting(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        nonlocal counted
        counted += 2 * math.prod(a.shape) * b.shape[1]
        product(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counting)
    for part in parts.values():
        counted = 0
        part.run()
        assert counted == part.flops
    rows, gates = 6 * 7, 4 * 4
    lstm = sum(2 * rows * gates * (inputs + 4) for inputs in size.inputs())
    assert [part.flops for part in parts.values()] == [lstm, 3 * 2 * rows * 30 * 4, 2 * lstm]


def test_the_peak_of_memory_counts_what_was_given_back() -> None:
    before = memory.now()
    np.ones(64 * 2**20, np.uint8)
    assert memory.peak() > before + 32


def test_whole_numbers_alone_are_taken() -> None:
    assert harness.numbers("1,20") == [1, 20]
    for text in ("0", "-1", "1.5", "", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            harness.whole(text)


SMALL = ("--batch", "4", "--steps", "5", "--hidden", "6", "--embedding", "3", "--vocabulary", "20")


@pytest.mark.slow
def test_a_small_step_is_timed() -> None:
    result = run_json("train_step", *SMALL, "--sides", "minidl,floor", "--rounds", "1")
    assert result["ours"] > result["floor"] > 0
    assert 0 < result["share_of_floor"] < 1


@pytest.mark.slow
def test_a_small_step_is_taken_apart() -> None:
    out, _ = run("profile_step", *SMALL, "--sides", "minidl", "--rounds", "1")
    assert "LSTM backward" in out and "share_of_floor" not in out


def test_a_small_step_is_weighed() -> None:
    assert 0 < run_json("memory", *SMALL, "--sides", "minidl", "--rounds", "1")["ours"] < 1000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", pseudo_poems(400))


@pytest.mark.slow
def test_scaling_compares_the_most_files_with_the_fewest(corpus: Path, tmp_path: Path) -> None:
    options = ("--files", "2,8", "--steps", "2", "--max-vocabulary", "7", "--rounds", "1", "--corpus", str(corpus))
    result = run_json("scaling", *options)
    few, many = result["figures"]["2 files"], result["figures"]["8 files"]
    assert few["vocabulary"] == many["vocabulary"] == 10  # with the three marks
    assert few["characters"] < many["characters"]
    assert result["ratio"] == many["rate"] / few["rate"]
    assert result["ratio_memory"] == many["memory"] / few["memory"]
    (tmp_path / "scaling.json").write_text(json.dumps(result), encoding="utf-8")
    run("plots", str(tmp_path / "scaling.json"), "--out", str(tmp_path))
    assert png_size(tmp_path / "corpus.png")[0] > 100


@pytest.mark.slow
def test_sweeps_are_drawn_and_other_files_refused(tmp_path: Path) -> None:
    sweep = {"program": "sweep", "values": [16, 32], "ours": [2e4, 3e4], "peers": {"torch": [1e4, 2e4]}, "floor": None}
    for over in ("batch", "threads", "hidden"):
        (tmp_path / f"{over}.json").write_text(json.dumps({**sweep, "over": over}), encoding="utf-8")
    run("plots", *(str(path) for path in tmp_path.glob("*.json")), "--out", str(tmp_path))
    assert png_size(tmp_path / "speed.png")[0] > 100
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    _, err = run("plots", str(tmp_path / "other.json"), code=2)
    assert "is not a result of" in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_time_to_perplexity_ends_with_the_epoch_that_reaches_the_bar(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", pseudo_poems(290))  # of which 256 train
    options = ("--corpus", str(folder), "--rounds", "1", "--sides", "minidl")
    result = run_json("time_to_perplexity", *options, "--bar", "99")
    figures = result["figures"]["minidl"]
    assert 1 < figures["loss"] < 99 and figures["epochs"] == 1 and result["ours"] == figures["seconds"] > 0
    _, err = run("time_to_perplexity", *options, "--bar", "0.1", code=2)
    assert "nats after all" in err


@pytest.mark.slow
def test_mapped_trains_from_a_prepared_folder_and_draws_all_of_it(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", pseudo_poems(290))
    options = ("--corpus", str(folder), "--files", "8", "--rounds", "2", "--steps", "1", "--out", str(tmp_path / "out"))
    result = run_json("mapped", *options, "--gigabytes", "0.00002", "--folder", str(tmp_path))
    assert result == json.loads((tmp_path / "out" / "mapped.json").read_text(encoding="utf-8"))
    assert result["repeats"] == 4 and result["map_bytes"] > 290 * 12 * 3 and result["ratio"] > 0
    assert len(result["training"]) == 2 and result["walk"][-1]["batches"] == 9, "267 poems, four times"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"], "the text and the map are gone"
    if sys.platform == "linux":
        assert result["walk"][0]["anonymous"] > 1 and png_size(tmp_path / "out" / "mapped.png")[0] > 500


@pytest.mark.slow
@pytest.mark.oracle
def test_the_reports_run_in_pytorch_has_the_losses_of_ours_and_learns() -> None:
    """A start with minidl's weights has the losses that minidl counts: with pads, and of real targets."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from learning import protocol
    from learning.training import evaluate
    from model import PoemModel

    from side_torch_report import ReportModel, rows_of

    task = protocol.report_task(pseudo_poems(60), batch_size=8)
    ours, model = PoemModel(len(task.vocabulary), rng=0), ReportModel(len(task.vocabulary))
    names = [
        "embedding.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "lstm.bias_ih_l0",
        "head.weight",
        "head.bias",
    ]
    weights = {name: torch.from_numpy(w) for name, w in zip(names, ours.state_dict().values(), strict=True)}
    model.load_state_dict({**weights, "lstm.bias_hh_l0": torch.zeros(1024)})
    mean = evaluate(ours, task.validation)
    expected = pytest.approx((mean.loss_with_pads, mean.loss), rel=1e-5)
    assert model.losses([rows_of(batch) for batch in task.validation]) == expected
    for _ in range(3):
        model.train_epoch([rows_of(batch) for batch in task.train(np.random.default_rng(0))])
    assert model.losses([rows_of(batch) for batch in task.validation])[1] < mean.loss


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("model", sizes.MODELS)
def test_minidl_and_pytorch_train_alike(model: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    out, _ = run("train_step", "--check", "--model", model, *SMALL, "--sides", "minidl,torch")
    assert "minidl, torch" in out


@pytest.mark.slow
@pytest.mark.oracle
def test_all_ways_to_train_on_poems_have_the_same_losses(corpus: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    options = ("--corpus", str(corpus), "--rounds", "1", "--batches", "1")
    result = run_json("poems_epoch", *options)
    assert result["peers"].keys() == {"torch-padded", "torch-packed", "torch-rows"}
    assert len({figures["targets"] for figures in result["figures"].values()}) == 1


@pytest.mark.slow
@pytest.mark.oracle
def test_minidl_and_pytorch_write_the_same_poem() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    result = run_json("generate", "--rounds", "1")
    assert result["peers"].keys() == {"torch", "torch-cell"} and result["ratio"] > 0


def test_the_readme_names_every_file() -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in BENCHMARKS.glob("*.py") if path.name not in readme] == []


def test_a_soak_says_what_grows(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="psutil is not installed")
    result = json.loads(
        run("soak", "--minutes", "0.001", "--every", "0.001", "--out", str(tmp_path / "a"), "--json")[0]
    )
    assert result["rounds_last"] > result["rounds_first"] >= 1 and result["files_last"] >= 3
    assert png_size(tmp_path / "a" / "soak.png")[0] > 100
    lines = (tmp_path / "a" / "soak.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 4 and json.loads(lines[-1])["mib"] == result["mib_last"] > 10
    _, err = run("soak", "--minutes", "nan", code=2)
    assert "--minutes: expected a number above 0" in err and len(err.splitlines()) == 1


def test_the_verdict_is_the_slope_of_the_second_half() -> None:
    pytest.importorskip("psutil", reason="psutil is not installed")
    import soak

    memory = [10.0, 99.0, 50.0, 51.0, 52.0, 53.0]  # 1 MiB every 30 seconds from the third on
    samples = [{"seconds": 30.0 * n, "mib": mib, "files": 7, "threads": 3, "rounds": n} for n, mib in enumerate(memory)]
    result = soak.verdict(samples)
    assert result["kib_per_minute"] == pytest.approx(2048) and result["minutes"] == 2.5
    assert (result["mib_first"], result["mib_last"], result["rounds_last"]) == (10, 53, 5)


@pytest.fixture
def small_text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the moon rises over the river\n" * 2000, encoding="utf-8")
    return path


SMALL_LSTM = ("--hidden-size", "16", "--batch-size", "16", "--epochs", "3")


@pytest.mark.slow
def test_char_lstm_ends_with_the_epoch_that_reaches_the_bar(small_text: Path) -> None:
    options = (str(small_text), "--sides", "minidl", *SMALL_LSTM)
    figures = run_json("char_lstm", *options, "--bar", "99")["figures"]["minidl"]
    assert figures["epochs"] == 1 and figures["loss"] < 99 and figures["seconds"] >= 0
    _, err = run("char_lstm", *options, "--bar", "0.0001", code=2)
    assert "char_lstm.py ended with" in err and "not 0.0001" in err
    _, err = run("char_lstm", "nowhere.txt", code=2)
    assert err == "char_lstm.py: error: there is no file nowhere.txt\n"


@pytest.mark.oracle
def test_the_torch_char_lstm_is_the_same_model(small_text: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_char_lstm

    spec = importlib.util.spec_from_file_location("our_char_lstm", BENCHMARKS.parent / "examples" / "char_lstm.py")
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    ours = example.CharLSTM(9, 8, 0.0, "numpy", np.random.default_rng(0))
    model = torch_char_lstm.CharLSTM(9, 8, 0.0)
    model.load_state_dict(minidl.interop.to_torch(ours.state_dict()))
    ids = np.random.default_rng(1).integers(0, 9, 100).astype(np.int32)
    states: list[Any] = [None, None]
    for mine, theirs in zip(
        example.chunks(ids, 3, 8, "numpy"),
        torch_char_lstm.chunks(torch.from_numpy(ids).long(), 3, 8, "cpu"),
        strict=True,
    ):
        loss, states[0] = ours.loss(*mine, states[0])
        other, states[1] = model(*theirs, states[1])
        assert float(loss) == pytest.approx(other.item(), rel=1e-5)
