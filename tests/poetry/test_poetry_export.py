"""export.py: the model's own logits and poems by onnxruntime alone, and its weights for PyTorch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import cli
from corpus.vocabulary import END
from model import PoemModel, load_model, save_model
from verse import onnx_graph
from verse.writing import write_poems

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoint_helpers import same
from export import FORMAT
from helpers import filled, relative_error
from poetry_helpers import VOCABULARY, refused, run_program, tree

import minidl

H, V, LONGEST = 6, len(VOCABULARY), 20
KINDS = {"1": (1, False), "1 tied": (1, True), "2": (2, False), "2 tied": (2, True)}
IDS = np.random.default_rng(0).integers(0, V, (9, 3))  # (T, B)


@pytest.fixture(scope="module", params=KINDS)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[PoemModel, Path]:
    """A model with random weights, and its graph."""
    folder = tmp_path_factory.mktemp("exported")
    layers, tied = KINDS[request.param]
    model = filled(PoemModel(V, H if tied else 4, H, dropout=0.3, tied=tied, layers=layers, rng=0))
    model.head.bias.data[VOCABULARY.ids[END]] = -1.0  # poems of some length
    save_model(folder / "model.safetensors", model, VOCABULARY, max_length=LONGEST)
    outcome = run_program("export", "--model", folder / "model.safetensors", "--out", folder / "poem.onnx")
    assert outcome.code == 0 and outcome.out == "" and outcome.err.endswith("poem.onnx\n"), outcome
    return model, folder / "poem.onnx"


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def zeros(session: Any, poems: int) -> np.ndarray:
    layers, _, units = session.get_inputs()[1].shape
    return np.zeros((layers, poems, units), np.float32)


def steps_of(model: PoemModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logits (T, B, V), h and c (L, B, H) after a walk of one step at a time."""
    logits, state = [], None
    for step in ids.astype(np.int32):
        row, state = model.next_logits(step, state)
        logits.append(row)
    assert state is not None
    return np.stack(logits), np.stack([h for h, _ in state]), np.stack([c for _, c in state])


def test_whole_poems_have_the_models_logits_and_states(exported: tuple[PoemModel, Path]) -> None:
    model, path = exported
    session = session_of(path)
    start = zeros(session, IDS.shape[1])
    found = session.run(["logits", "next_h", "next_c"], {"ids": IDS, "h": start, "c": start})
    for got, expected in zip(found, steps_of(model, IDS), strict=True):
        assert relative_error(got, expected) < 1e-6
    hidden = model.body(IDS.ravel().astype(np.int32), minidl.Packing([IDS.shape[1]] * len(IDS)))
    assert relative_error(found[0].reshape(-1, V), model.head.logits(hidden)) < 1e-6


def test_states_carry_from_one_call_to_the_next(exported: tuple[PoemModel, Path]) -> None:
    """Step by step, and in two pieces; one poem or several."""
    model, path = exported
    session = session_of(path)
    for poems in (1, 3):
        ids = IDS[:, :poems]
        expected = steps_of(model, ids)
        for cuts in ([1] * len(ids), [4, len(ids) - 4]):
            h = c = zeros(session, poems)
            logits, at = [], 0
            for length in cuts:
                part, h, c = session.run(None, {"ids": ids[at : at + length], "h": h, "c": c})
                logits.append(part)
                at += length
            for got, want in zip((np.concatenate(logits), h, c), expected, strict=True):
                assert relative_error(got, want) < 1e-6


def test_the_graph_has_an_lstm_a_layer_and_every_weight_once(exported: tuple[PoemModel, Path]) -> None:
    model, path = exported
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node].count("LSTM") == len(model.lstms)
    assert len(graph.node) == 7 + 2 * len(model.lstms) + 1
    weights = sum(parameter.data.size for parameter in model.parameters())
    weights += sum(lstm.bias.data.size for lstm in model.lstms)  # the second bias, zeros
    assert sum(int(np.prod(array.dims)) for array in graph.initializer) == weights + 1  # and one axis
    shapes = {
        value.name: [place.dim_param or place.dim_value for place in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    state = [len(model.lstms), "batch", H]
    assert shapes == {
        "ids": ["time", "batch"],
        **dict.fromkeys(("h", "c", "next_h", "next_c"), state),
        "logits": ["time", "batch", V],
    }


def greedy(path: Path, start: str = "") -> str:
    """The most probable poem, computed from the file only."""
    session = session_of(path)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["poem_format"] == str(FORMAT)
    tokens = json.loads(facts["tokens"])
    never = [id for id, token in enumerate(tokens) if len(token) > 1 and token != "<end>"]
    h = c = zeros(session, 1)
    poem = ""
    token = "<begin>"
    while len(poem) < int(facts["max_length"]):
        logits, h, c = session.run(None, {"ids": np.array([[tokens.index(token)]]), "h": h, "c": c})
        logits[0, 0, never] = -np.inf
        token = start[len(poem)] if len(poem) < len(start) else tokens[int(logits[0, 0].argmax())]
        if token == "<end>":
            break
        poem += token
    return poem


@pytest.mark.parametrize("start", ["", "紅", "日月"])
def test_a_poem_by_onnxruntime_alone_is_the_models(exported: tuple[PoemModel, Path], start: str) -> None:
    model, path = exported
    poem = greedy(path, start)
    assert poem.startswith(start) and len(poem) > len(start)
    assert [poem] == write_poems(model, VOCABULARY, [start], LONGEST, argmax=True)


def code_of_the_page(word: str) -> str:
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
    (block,) = [part for part in page.split("```python\n")[1:] if word in part.split("```")[0]]
    return block.split("```")[0]


def test_the_pretrained_model_writes_its_poem_by_the_lines_in_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_program("export", "--out", "poem.onnx")
    assert outcome.code == 0 and outcome.err.startswith(f"the model is {cli.PRETRAINED}\n"), outcome
    code = code_of_the_page("InferenceSession")
    exec(compile(code, "interop.md", "exec"), {})
    model, vocabulary, facts = load_model(cli.PRETRAINED)
    poem = write_poems(model, vocabulary, [""], facts["max_length"], argmax=True)
    assert capsys.readouterr().out == f"{poem[0]}\n" and code.endswith(f"  # {poem[0]}\n")
    assert greedy(Path("poem.onnx"), "月") == write_poems(model, vocabulary, ["月"], 64, argmax=True)[0]


def test_a_name_that_ends_in_safetensors_is_for_pytorch(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = filled(PoemModel(V, 4, H, layers=2, rng=0))
    save_model(tmp_path / "m.safetensors", model, VOCABULARY)
    out = tmp_path / "p.safetensors"
    assert run_program("export", "--model", tmp_path / "m.safetensors", "--out", out).code == 0
    with safe_open(out, "np") as file:
        assert {"embedding.weight", "head.bias", "lstms.weight_hh_l1", "lstms.bias_hh_l0"} <= set(file.keys())
        assert json.loads(file.metadata()["tokens"]) == VOCABULARY.tokens and file.metadata()["max_length"] == "49"
    assert same(minidl.interop.read_safetensors(out, stacked=True), model.state_dict())


def test_an_old_file_is_replaced_and_the_same_model_gives_the_same_graph(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", PoemModel(V, 4, H, rng=0), VOCABULARY)
    written = []
    for suffix in (".onnx", ".onnx", ".safetensors"):
        (tmp_path / f"p{suffix}").write_bytes(b"old")
        out = tmp_path / f"p{suffix}"
        assert run_program("export", "--model", tmp_path / "m.safetensors", "--out", out).code == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] and all(len(content) > 1000 for content in written)
    assert tree(tmp_path) == ["m.safetensors", "p.onnx", "p.safetensors"]


def missing(name: str) -> Callable[[str], Any]:
    find = importlib.util.find_spec
    return lambda package: None if package == name else find(package)


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model("m.safetensors", PoemModel(V, 4, H, rng=0), VOCABULARY)
    model = ("--model", "m.safetensors")
    before = Path("m.safetensors").read_bytes()
    refused(run_program("export", *model), "--out")
    for name in ("poem", "poem.pt", "poem.ONNX", ".onnx", ""):
        refused(run_program("export", *model, "--out", name), "--out", ".onnx", ".safetensors", repr(str(Path(name))))
    refused(run_program("export", *model, "--out", Path("..", tmp_path.name, "m.safetensors")), "the model itself")
    (tmp_path / "folder.onnx").mkdir()
    for name in ("folder.onnx", "none/poem.onnx", "none/poem.safetensors", "m.safetensors/poem.onnx"):
        refused(run_program("export", *model, "--out", name), str(Path(name)))
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", missing("onnx"))
        refused(run_program("export", *model, "--out", "poem.onnx"), "onnx is not installed", "[export]")
    monkeypatch.setattr(onnx_graph, "LARGEST", 1000)
    refused(run_program("export", *model, "--out", "poem.onnx"), "m.safetensors", "1,000")
    assert tree(tmp_path) == ["folder.onnx", "m.safetensors"] and Path("m.safetensors").read_bytes() == before
