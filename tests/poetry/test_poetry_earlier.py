"""Files of earlier versions still work: a checkpoint and the pretrained model, as they were at 33d0738.

The run was `train.py --text text` of 120 lines with two tied layers, dropout, one cycle and weight decay, killed in its
second epoch; model.safetensors is what that version made of it by `--resume`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common import cli
from learning import run_checkpoint
from model import load_model
from verse.scoring import log_probabilities

import numpy as np
import pytest
from poetry_helpers import jsonl, pseudo_poems, run_program

import minidl

EARLIER = Path(__file__).parents[1] / "reference" / "run_33d0738"


def test_a_run_of_an_earlier_version_continues_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("\n".join(pseudo_poems(120)), encoding="utf-8")
    (tmp_path / "run").mkdir()
    shutil.copy(EARLIER / "checkpoint.safetensors", tmp_path / "run")
    checkpoint = run_checkpoint.read(tmp_path / "run")
    assert checkpoint is not None and checkpoint.steps == 9
    outcome = run_program("train", "--resume", "--out", "run")
    assert outcome.code == 0 and "resuming from step 9, after 1 complete epochs" in outcome.err, outcome

    expected, facts = minidl.load(EARLIER / "model.safetensors")
    found, ours = minidl.load(tmp_path / "run" / "model.safetensors")
    assert found.keys() == expected.keys() and ours["tokens"] == facts["tokens"] and ours["epoch"] == facts["epoch"]
    others = [change for change in run_checkpoint.changes(checkpoint) if not change.startswith("minidl ")]
    alike = not others  # else the last digits may differ
    for name, tensor in expected.items():
        if alike:
            assert found[name].tobytes() == tensor.tobytes(), name
        np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)
    *_, last = jsonl(tmp_path / "run" / "metrics.jsonl")
    assert last["test_loss"] == pytest.approx(2.5201876416350855, rel=1e-5)


def test_the_pretrained_model_thinks_what_it_thought() -> None:
    model, vocabulary, _ = load_model(cli.PRETRAINED)
    assert list(model.state_dict()) == [
        *("embedding.weight", "lstms.0.weight_ih", "lstms.0.weight_hh", "lstms.0.bias", "head.bias"),
    ]
    (found,) = log_probabilities(model, vocabulary, ["白日依山盡，黃河入海流。"])
    expected = [
        -4.896,
        -2.5333,
        -6.3277,
        -3.1452,
        -4.675,
        -0.1422,
        -4.5383,
        -1.8182,
        -3.5665,
        -3.2382,
        -2.1367,
        -0.0005,
    ]
    np.testing.assert_allclose(found, [*expected, -3.9068], atol=2e-4)
