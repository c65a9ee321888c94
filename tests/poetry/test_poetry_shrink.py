"""shrink.py: the same model in half the bytes, with the figures of both."""

from __future__ import annotations

import json
from pathlib import Path

from common import cli
from corpus import line_index
from model import load_model

import numpy as np
import pytest
from poetry_helpers import Outcome, pseudo_poems, refused, run_program, write_corpus

import minidl

SMALL = ("--epochs", 2, "--hidden-size", 8, "--embedding-size", 8, "--batch-size", 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a run, and what shrink.py made of it."""
    folder = tmp_path_factory.mktemp("shrink")
    write_corpus(folder / "corpus", pseudo_poems(300))
    trained = run_program("train", "--corpus", folder / "corpus", *SMALL, "--max-length", 60, "--out", folder / "run")
    assert trained.code == 0, trained.err
    return folder


def shrink(folder: Path, run: str = "run") -> Outcome:
    return run_program("shrink", folder / run, "--out", folder / "small", "--corpus", folder / "corpus")


def test_the_small_model_has_half_the_bytes_and_nearly_the_same_weights(folder: Path) -> None:
    outcome = shrink(folder)
    assert outcome.code == 0, outcome.err
    large, small = (minidl.load(folder / name / "model.safetensors") for name in ("run", "small"))
    assert large[0].keys() == small[0].keys()
    for name, tensor in small[0].items():
        assert tensor.dtype == np.float16
        np.testing.assert_allclose(tensor, large[0][name], rtol=2**-11, atol=2**-24)
    same = large[1].keys() - {"arguments"}
    assert {name: small[1][name] for name in same} == {name: large[1][name] for name in same}
    assert large[1]["arguments"].keys() - small[1]["arguments"].keys() == {"corpus"}
    assert (folder / "small" / line_index.FILE).read_bytes() == (folder / "run" / line_index.FILE).read_bytes()


def test_it_says_what_that_costs(folder: Path) -> None:
    err = shrink(folder).err
    told = [line for line in err.splitlines() if line.startswith("float")]
    assert [line.split()[0] for line in told] == ["float32", "float16"]
    figures = minidl.load(folder / "small" / "model.safetensors")[1]["figures"]
    assert f"{figures['test_loss']:.3f} nats/char" in told[1]
    metrics = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert f"{json.loads(metrics)['test_loss']:.3f} nats/char" in told[0]


def test_generate_takes_the_small_model(folder: Path) -> None:
    assert shrink(folder).code == 0
    model, vocabulary, _ = load_model(folder / "small" / "model.safetensors")
    assert model.embedding.weight.data.dtype == np.float32
    outcome = run_program("generate", "--model", folder / "small" / "model.safetensors", "--seed", 1)
    assert outcome.code == 0 and set(outcome.out.strip()) <= set(vocabulary.tokens)


def test_what_it_cannot_shrink(folder: Path, tmp_path: Path) -> None:
    refused(run_program("shrink", tmp_path, "--out", tmp_path / "small"), "model.safetensors")
    refused(run_program("shrink", tmp_path), "--out")
    (tmp_path / "mine.txt").write_text("\n".join(pseudo_poems(300)), encoding="utf-8")
    assert run_program("train", "--text", tmp_path / "mine.txt", *SMALL, "--out", tmp_path / "own").code == 0
    refused(run_program("shrink", tmp_path / "own", "--out", tmp_path / "small"), "Tang poems", "recipe")
    assert not (tmp_path / "small").exists()


def test_the_model_that_comes_with_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is small, records its figures, names no folder of its maker, and writes verse without a run or the corpus."""
    monkeypatch.chdir(tmp_path)
    folder = cli.PRETRAINED.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20
    _, metadata = minidl.load(cli.PRETRAINED)
    assert metadata["figures"]["short_test_perplexity"] < 120 and metadata["arguments"]["recipe"] == "best"
    assert not {"out", "corpus"} & metadata["arguments"].keys()
    outcome = run_program("generate", "--form", "七绝", "--no-copy", "--seed", 1)
    assert outcome.code == 0 and [len(line) for line in outcome.out.split()] == [32]
    assert outcome.err == f"the model is {cli.PRETRAINED}\n"
