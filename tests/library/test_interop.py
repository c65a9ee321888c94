"""minidl.interop: weights to PyTorch and back, in memory and in files, and what is refused."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus.tasks import Batch
from model import PoemModel

import numpy as np
import pytest
from checkpoint_helpers import fails, same, with_header
from helpers import filled, refuses, relative_error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import minidl
from minidl import interop

V, E, H = 11, 5, 6
LAYERS_AND_TIED = pytest.mark.parametrize(
    ("layers", "tied"), [(1, False), (1, True), (2, False), (2, True)], ids=["1", "1 tied", "2", "2 tied"]
)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed (extra: oracle)")


def lstm_arrays(prefix: str = "", inputs: int = 3, units: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """An LSTM of minidl's, with numbers that show any exchange."""
    rng = np.random.default_rng(seed)
    shapes = {"weight_ih": (4 * units, inputs), "weight_hh": (4 * units, units), "bias": (4 * units,)}
    return {prefix + name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}


def torch_arrays(prefix: str = "", layer: int = 0, inputs: int = 3, units: int = 2, **parts: Any) -> dict[str, Any]:
    """One of PyTorch's, as safetensors.numpy gives it, with some `parts` replaced or, for None, taken away."""
    rng = np.random.default_rng(layer + 1)
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (4 * units, inputs), "weight_hh": (4 * units, units)}
    shapes |= {"bias_ih": (4 * units,), "bias_hh": (4 * units,)}
    made: dict[str, Any] = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return {f"{prefix}{name}_l{layer}": value for name, value in {**made, **parts}.items() if value is not None}


def written(state_dict: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
    """What `write_safetensors` put into a file, as the library reads it."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        interop.write_safetensors(Path(folder, "f"), state_dict, **options)
        return load_file(Path(folder, "f"))


# Names


def test_an_lstm_gets_a_layer_and_a_second_bias_of_zeros() -> None:
    ours = {**lstm_arrays("lstm."), "head.weight": np.ones((4, 2), "f4"), "head.bias": np.ones(4, "f4")}
    theirs = written(ours)
    assert same(theirs, {
        "lstm.weight_ih_l0": ours["lstm.weight_ih"],
        "lstm.weight_hh_l0": ours["lstm.weight_hh"],
        "lstm.bias_ih_l0": ours["lstm.bias"],
        "lstm.bias_hh_l0": np.zeros(8, "f4"),
        "head.weight": ours["head.weight"],
        "head.bias": ours["head.bias"],
    })  # fmt: skip
    assert same(interop.from_torch(theirs), ours)


def test_two_biases_come_back_as_their_sum_and_none_as_zeros() -> None:
    theirs = torch_arrays("a.")
    ours = interop.from_torch(theirs)
    assert same({"sum": ours["a.bias"]}, {"sum": theirs["a.bias_ih_l0"] + theirs["a.bias_hh_l0"]})
    ours = interop.from_torch(torch_arrays(bias_ih=None, bias_hh=None))
    assert ours.keys() == {"weight_ih", "weight_hh", "bias"} and same({"b": ours["bias"]}, {"b": np.zeros(8, "f4")})


def test_several_layers_are_a_list() -> None:
    theirs = torch_arrays("net.lstm.") | torch_arrays("net.lstm.", layer=1, inputs=2)
    ours = interop.from_torch(theirs)
    parts = ("weight_ih", "weight_hh", "bias")
    assert list(ours) == [f"net.lstm.{layer}.{part}" for layer in (0, 1) for part in parts]
    for layer in (0, 1):
        for part in parts[:2]:
            assert (ours[f"net.lstm.{layer}.{part}"] == theirs[f"net.lstm.{part}_l{layer}"]).all()
    back = written(ours, stacked=True)
    assert back.keys() == theirs.keys()
    assert same(interop.from_torch(back), ours)
    apart = written(ours)  # of a ModuleList
    assert {"net.lstm.0.weight_ih_l0", "net.lstm.1.weight_hh_l0"} <= apart.keys()
    assert same(interop.from_torch(apart), ours)


def test_a_list_of_one_is_kept_by_stacked_on_both_sides() -> None:
    ours = {**lstm_arrays("lstms.0."), **lstm_arrays("other.", seed=1)}
    theirs = written(ours, stacked=True)
    assert {"lstms.weight_ih_l0", "other.weight_ih_l0"} <= theirs.keys()
    back = interop.from_torch(theirs, stacked=True)
    assert {"lstms.0.weight_ih", "other.0.weight_ih"} <= back.keys()
    assert {"lstms.weight_ih", "other.weight_ih"} <= interop.from_torch(theirs).keys()


def test_lstms_without_a_prefix_and_at_the_top_of_a_list() -> None:
    assert set(written(lstm_arrays())) == {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    pair = {**lstm_arrays("0."), **lstm_arrays("1.", inputs=2)}
    assert {"weight_ih_l0", "weight_ih_l1", "bias_hh_l1"} <= written(pair, stacked=True).keys()


def test_the_arrays_are_copies() -> None:
    theirs = {**torch_arrays(), "head.weight": np.ones((4, 2), "f4")}
    ours = interop.from_torch(theirs)
    for array in ours.values():
        array[...] = 7
    assert (theirs["head.weight"] == 1).all() and not (theirs["weight_ih_l0"] == 7).any()


def test_arrays_in_any_layout_and_byte_order() -> None:
    ours = lstm_arrays()
    odd = {"weight_ih": np.asfortranarray(ours["weight_ih"]), "weight_hh": ours["weight_hh"].astype(">f4")}
    odd["bias"] = ours["bias"][::-1].copy()[::-1]
    assert same(written(odd), written(ours))
    assert same(interop.from_torch({"w": ours["weight_ih"].astype(">f4")}), {"w": ours["weight_ih"]})


# What is refused: (state dict, words of the message) by what it is

WIDE = np.ones((6, 2), "f4")
FROM: dict[str, tuple[dict[Any, Any], tuple[str, ...]]] = {
    "bidirectional": (torch_arrays("a.") | {"a.weight_ih_l0_reverse": WIDE}, ("a.weight_ih_l0_reverse", "direction")),
    "projections": (torch_arrays() | {"weight_hr_l0": WIDE}, ("weight_hr_l0", "proj_size")),
    "a GRU": (torch_arrays(weight_hh=np.ones((6, 2))), ("weight_hh_l0", "(6, 2)", "GRU")),
    "an RNN": (torch_arrays(weight_hh=np.ones((2, 2))), ("weight_hh_l0", "(2, 2)", "RNN")),
    "another width": (torch_arrays(weight_hh=np.ones((8, 3))), ("weight_hh_l0", "(4H, H)", "(8, 3)")),
    "a 0-d weight_hh": (torch_arrays(weight_hh=np.array(1.0)), ("weight_hh_l0", "()")),
    "other units": (torch_arrays(weight_ih=np.ones((4, 3))), ("weight_ih_l0", "(8, I)", "(4, 3)")),
    "a 1-D weight_ih": (torch_arrays(weight_ih=np.ones(8)), ("weight_ih_l0", "(8,)")),
    "a short bias": (torch_arrays(bias_hh=np.ones(7)), ("bias_hh_l0", "(8,)", "(7,)")),
    "no weight_hh": (torch_arrays(weight_hh=None), ("weight_ih_l0", "'weight_hh_l0' is missing")),
    "no weight_ih": (torch_arrays("a.", weight_ih=None), ("a.weight_hh_l0", "'a.weight_ih_l0' is missing")),
    "a bias alone": ({"bias_ih_l0": np.ones(8)}, ("bias_ih_l0", "'weight_ih_l0' is missing")),
    "one bias": (torch_arrays(bias_hh=None), ("'bias_hh_l0' is missing",)),
    "the other bias": (torch_arrays(bias_ih=None), ("'bias_ih_l0' is missing",)),
    "a layer left out": (torch_arrays("a.") | torch_arrays("a.", 2, inputs=2), ("'a.'", "a layer 2", "no layer 1")),
    "no first layer": (torch_arrays(layer=1), ("a layer 1", "no layer 0")),
    "a sum too large": (
        torch_arrays(**dict.fromkeys(("bias_ih", "bias_hh"), np.full(8, 6e4, "f2"))),
        ("'bias'", "sum", "float16"),
    ),
    "minidl's own": (lstm_arrays("a."), ("a.weight_ih", "weight_ih_l0", "minidl")),
    "an LSTMCell": ({"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 2))}, ("weight_ih", "LSTMCell")),
    "one name for two": (torch_arrays() | {"bias": np.ones(8)}, ("'bias'", "two tensors")),
    "Keras's LSTM": ({"lstm/recurrent_kernel:0": WIDE}, ("recurrent_kernel", "Keras", "transposed")),
    "Keras's Dense": ({"dense.kernel": WIDE}, ("dense.kernel", "Keras", "transposed")),
    "ONNX's LSTM": ({"l.W": WIDE, "l.R": WIDE, "l.B": WIDE}, ("l.W", "ONNX", "i, o, f, c")),
    "int64": ({"steps": np.array(3)}, ("steps", "float32", "int64")),
    "bool": ({"mask": np.array([True])}, ("mask", "bool")),
    "complex": ({"w": np.ones(2, "c8")}, ("w", "complex64")),
    "objects": ({"w": np.array([1, "a"], object)}, ("w", "object")),
    "text": ({"w": "x"}, ("'w'", "array")),
    "a checkpoint of parts": ({"model": torch_arrays(), "epoch": 3}, ("model", "dict")),
    "a key that is no name": ({3: WIDE}, ("names", "3")),
}
TO: dict[str, tuple[dict[Any, Any], tuple[str, ...]]] = {
    "no bias": ({k: v for k, v in lstm_arrays("a.").items() if k != "a.bias"}, ("a.weight_ih", "'a.bias' is missing")),
    "no weight_ih": ({"a.weight_hh": np.ones((8, 2))}, ("a.weight_hh", "'a.weight_ih' is missing")),
    "PyTorch's already": (torch_arrays("a."), ("a.weight_ih_l0", "PyTorch's name")),
    "another weight_ih": ({**lstm_arrays(), "weight_ih": WIDE}, ("weight_ih", "(8, I)", "(6, 2)")),
    "integers": ({"steps": np.array(3)}, ("steps", "int64")),
}
STACKED: dict[str, tuple[dict[Any, Any], tuple[str, ...]]] = {
    "other units": ({**lstm_arrays("a.0."), **lstm_arrays("a.1.", 2, 3)}, ("a.1.weight_ih", "(8, 2)", "(12, 2)")),
    "other inputs": ({**lstm_arrays("a.0."), **lstm_arrays("a.1.", 3)}, ("a.1.weight_ih", "stack", "(8, 3)")),
    "a hole": ({**lstm_arrays("a.0."), **lstm_arrays("a.2.", 2)}, ("'a.'", "no layer 1")),
    "beside another": ({**lstm_arrays("a.0."), **lstm_arrays("a.")}, ("two tensors", "a.weight_ih_l0")),
}


@pytest.mark.parametrize("what", FROM)
def test_what_from_torch_refuses(what: str) -> None:
    state_dict, words = FROM[what]
    with refuses(ValueError, *words):
        interop.from_torch(state_dict)


@pytest.mark.parametrize("what", [*TO, *STACKED])
def test_what_is_not_written_for_pytorch(what: str, tmp_path: Path) -> None:
    state_dict, words = {**TO, **STACKED}[what]
    with fails(tmp_path / "f", "not written", *words):
        interop.write_safetensors(tmp_path / "f", state_dict, stacked=what in STACKED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.oracle
@pytest.mark.parametrize("what", [*TO, *STACKED])
def test_what_to_torch_refuses(what: str, torch: Any) -> None:
    state_dict, words = {**TO, **STACKED}[what]
    with refuses(ValueError, *words):
        interop.to_torch(state_dict, stacked=what in STACKED)


def test_names_that_only_look_foreign_are_taken() -> None:
    own = {name: np.ones(2, "f4") for name in ("W", "R.weight", "kernel_size", "bias", "a.weight_ih_lx", "a.b_l0")}
    assert same(interop.from_torch(own), own) and same(written(own), own)


def gru_arrays(prefix: str) -> dict[str, np.ndarray]:
    """A GRU as somebody may have written one: its names are an LSTM's and PyTorch's, its shapes are not."""
    names = ("weight_ih", "weight_hh", "bias", "bias_ih", "bias_hh", "weight_hh_l0")
    shapes = ((6, 3), (6, 2), (6,), (6,), (6,), (6, 2))
    pairs = zip(names, shapes, strict=True)
    return {prefix + name: np.full(shape, place, "f4") for place, (name, shape) in enumerate(pairs)}


@pytest.mark.parametrize("stacked", [False, True])
def test_what_is_of_no_lstm_is_passed_through_and_named(stacked: bool) -> None:
    gru = gru_arrays("gru.0.")
    ours = {**gru, **lstm_arrays("lstms.0."), "alone.weight_ih": WIDE}
    with pytest.warns(UserWarning) as told:
        theirs = written(ours, stacked=stacked)
    assert theirs.keys() == gru.keys() | written(lstm_arrays("lstms.0."), stacked=stacked).keys() | {"alone.weight_ih"}
    assert same({name: theirs[name] for name in gru}, gru)
    assert len(told) == 1 and told[0].filename == __file__
    message = str(told[0].message)
    for name in ("gru.0.weight_ih", "gru.0.weight_hh", "gru.0.weight_hh_l0", "alone.weight_ih"):
        assert f"'{name}' {ours[name].shape}" in message
    assert "lstms" not in message and "bias" not in message


def test_the_names_that_were_passed_through_are_a_few() -> None:
    with pytest.warns(UserWarning, match=r"and 30 more$") as told:
        written({f"{number}.weight_hh": WIDE for number in range(40)})
    assert len(str(told[0].message)) < 500


def test_what_was_passed_through_comes_back(tmp_path: Path) -> None:
    gru = {name: array for name, array in gru_arrays("gru.").items() if not name.endswith("_l0")}
    ours = {**gru, **lstm_arrays("lstm.")}
    with pytest.warns(UserWarning, match="'gru.weight_hh'"):
        interop.write_safetensors(tmp_path / "f", ours)
    with pytest.warns(UserWarning, match="'gru.weight_hh'"):
        assert same(interop.read_safetensors(tmp_path / "f"), ours)


# Files


def test_a_file_is_plain_safetensors_and_comes_back(tmp_path: Path) -> None:
    from safetensors import safe_open

    ours = {**lstm_arrays("lstm."), "scale": np.array(2.5)}
    interop.write_safetensors(tmp_path / "f", ours, {"tokens": "日月"})
    assert same(interop.read_safetensors(tmp_path / "f"), ours)
    with safe_open(tmp_path / "f", "np") as file:
        assert file.metadata() == {"format": "pt", "tokens": "日月"}
    assert os.listdir(tmp_path) == ["f"]
    with fails(tmp_path / "f", "not a minidl checkpoint"):
        minidl.load(tmp_path / "f")


def test_a_file_does_not_pass_itself_off_as_a_checkpoint(tmp_path: Path) -> None:
    with fails(tmp_path / "f", "not written", "'minidl'"):
        interop.write_safetensors(tmp_path / "f", lstm_arrays(), {"minidl": "x"})


def test_files_of_another_program_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    theirs = torch_arrays("a.") | torch_arrays("a.", layer=1, inputs=2) | {"e.weight": np.ones((3, 3), "f2")}
    save_file(theirs, tmp_path / "f")
    assert same(interop.read_safetensors(tmp_path / "f"), interop.from_torch(theirs))


def crafted(dtype: str, size: int, name: str = "w") -> bytes:
    return with_header({name: {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}, bytes(size))


WHOLE = with_header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, np.float32(1).tobytes())
UNREADABLE: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "bfloat16": (crafted("BF16", 2), ("BF16", "NumPy", ".float()")),
    "float8": (
        crafted("F8_E4M3", 1),
        ("F8_E4M3", "unknown to NumPy; where it was made, convert its tensors with .float()"),
    ),
    "integers": (crafted("I64", 8), ("'w'", "int64")),
    "NaN": (WHOLE[:-4] + np.float32(np.nan).tobytes(), ("'w'", "not finite")),
    "infinity": (WHOLE[:-4] + np.float32(np.inf).tobytes(), ("'w'", "not finite")),
    "cut short": (WHOLE[:-1], ("damaged",)),
    "longer": (WHOLE + b"x", ("damaged",)),
    "empty": (b"", ("damaged",)),
    "text": (b"hello\n" * 9, ("damaged",)),
    "a pickle": (b"\x80\x02}q\x00." * 9, ("damaged",)),
    "a bidirectional LSTM": (crafted("F32", 4, "weight_ih_l0_reverse"), ("weight_ih_l0_reverse", "direction")),
    "a layer of 5,000 digits": (crafted("F32", 4, "weight_ih_l" + "9" * 5000), ()),
    "a name of two lines": (crafted("F64", 8, "a\nb.kernel"), (r"a\nb.kernel", "Keras")),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_is_refused(what: str, tmp_path: Path) -> None:
    content, words = UNREADABLE[what]
    (tmp_path / "f").write_bytes(content)
    with fails(tmp_path / "f", *words):
        interop.read_safetensors(tmp_path / "f")


def test_the_file_that_the_refused_ones_are_made_of_is_good(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(WHOLE)
    assert same(interop.read_safetensors(tmp_path / "f"), {"w": np.ones(1, "f4")})


def test_a_checkpoint_of_minidl_is_sent_to_load(tmp_path: Path) -> None:
    minidl.save(tmp_path / "f", lstm_arrays(), {})
    with fails(tmp_path / "f", "minidl.load"):
        interop.read_safetensors(tmp_path / "f")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_written_and_leaves_the_old_file(bad: float, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with fails(tmp_path / "f", "not written", "'w'", "finite"):
        interop.write_safetensors(tmp_path / "f", {"w": np.array([1, bad])})
    assert (tmp_path / "f").read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]
    assert same(interop.from_torch({"w": np.array([1, bad])}), {"w": np.array([1, bad])})  # in memory it stays


# Against PyTorch


def torch_poem(torch: Any, layers: int, tied: bool) -> Any:
    """PoemModel out of torch.nn, whose parts have its names."""

    class Poem(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = H if tied else E
            self.embedding = torch.nn.Embedding(V, width)
            self.lstms = torch.nn.LSTM(width, H, layers)
            self.head = torch.nn.Linear(H, V)
            if tied:
                self.head.weight = self.embedding.weight

        def forward(self, ids: Any) -> Any:
            return self.head(self.lstms(self.embedding(ids))[0])

    torch.manual_seed(0)
    return Poem()


def poem_model(layers: int, tied: bool) -> PoemModel:
    return filled(PoemModel(V, H if tied else E, H, tied=tied, layers=layers, rng=0))


IDS = np.random.default_rng(3).integers(0, V, (7, 4))  # (T, B)


def logits(model: PoemModel) -> np.ndarray:
    """(T, B, V) for IDS."""
    hidden = model.body(IDS.ravel().astype(np.int32), minidl.Packing([IDS.shape[1]] * len(IDS)))
    return model.head.logits(hidden).reshape(*IDS.shape, V)


def torch_logits(torch: Any, module: Any) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(IDS)).numpy()


def assert_the_same_logits(torch: Any, model: PoemModel, module: Any) -> None:
    assert relative_error(torch_logits(torch, module), logits(model)) < 1e-6


@pytest.mark.oracle
@LAYERS_AND_TIED
def test_a_model_of_ours_has_its_logits_in_pytorch(torch: Any, layers: int, tied: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file, load_model

    model, module = poem_model(layers, tied), torch_poem(torch, layers, tied)
    before = torch_logits(torch, module)
    left = module.load_state_dict(minidl.interop.to_torch(model.state_dict(), stacked=True), strict=not tied)
    assert (left.missing_keys, left.unexpected_keys) == (["head.weight"] if tied else [], [])
    assert relative_error(before, logits(model)) > 0.1
    assert_the_same_logits(torch, model, module)

    interop.write_safetensors(tmp_path / "f", model.state_dict(), stacked=True)
    again = torch_poem(torch, layers, tied)
    load_model(again, tmp_path / "f")  # knows of tied weights
    assert_the_same_logits(torch, model, again)
    if not tied:
        again.load_state_dict(load_file(tmp_path / "f"))


@pytest.mark.oracle
@LAYERS_AND_TIED
def test_a_module_of_pytorch_has_its_logits_here(torch: Any, layers: int, tied: bool, tmp_path: Path) -> None:
    from safetensors.torch import save_model

    model, module = poem_model(layers, tied), torch_poem(torch, layers, tied)
    assert module.lstms.bias_ih_l0.abs().min() > 0 and module.lstms.bias_hh_l0.abs().min() > 0
    model.load_state_dict(minidl.interop.from_torch(module.state_dict(), stacked=True))
    assert_the_same_logits(torch, model, module)

    save_model(module, str(tmp_path / "f"))
    again = poem_model(layers, tied)
    again.load_state_dict(interop.read_safetensors(tmp_path / "f", stacked=True))
    assert (logits(again) == logits(model)).all()


@pytest.mark.oracle
def test_a_list_of_lstms_is_a_modulelist_without_stacked(torch: Any) -> None:
    model = poem_model(2, False)
    module = torch.nn.Module()
    module.embedding, module.head = torch.nn.Embedding(V, E), torch.nn.Linear(H, V)
    module.lstms = torch.nn.ModuleList([torch.nn.LSTM(E, H), torch.nn.LSTM(H, H)])
    module.load_state_dict(minidl.interop.to_torch(model.state_dict()))
    assert same(interop.from_torch(module.state_dict()), model.state_dict())


@pytest.mark.oracle
def test_one_layer_takes_the_other_sides_state_dict_in_one_line(torch: Any) -> None:
    pairs = [
        (minidl.LSTM(3, 4, rng=0), torch.nn.LSTM(3, 4)),
        (minidl.Linear(3, 4, rng=0), torch.nn.Linear(3, 4)),
        (minidl.Linear(3, 4, bias=False, rng=0), torch.nn.Linear(3, 4, bias=False)),
        (minidl.Embedding(7, 3, rng=0), torch.nn.Embedding(7, 3)),
    ]
    for layer, module in pairs:
        layer.load_state_dict(minidl.interop.from_torch(module.state_dict()))
        module.load_state_dict(minidl.interop.to_torch(layer.state_dict()))
        assert same(interop.from_torch(module.state_dict()), layer.state_dict())
    bare = torch.nn.LSTM(3, 4, bias=False)
    pairs[0][0].load_state_dict(minidl.interop.from_torch(bare.state_dict()))
    assert not pairs[0][0].bias.data.any()


@pytest.mark.oracle
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@LAYERS_AND_TIED
def test_a_step_of_training_ends_in_the_same_weights(torch: Any, optimizer: str, layers: int, tied: bool) -> None:
    model, module = poem_model(layers, tied), torch_poem(torch, layers, tied)
    module.load_state_dict(interop.to_torch(model.state_dict(), stacked=True), strict=not tied)
    targets = np.random.default_rng(4).integers(0, V, IDS.shape)

    before = model.state_dict()
    rate = {"SGD": 1.0, "Adam": 0.1}[optimizer]
    step = getattr(minidl, optimizer)(model.parameters(), lr=rate)
    model.forward_backward(
        Batch(*(a.ravel().astype("i4") for a in (IDS, targets)), minidl.Packing([IDS.shape[1]] * len(IDS))), 0
    )
    step.step()

    for layer in range(layers):
        getattr(module.lstms, f"bias_hh_l{layer}").requires_grad_(False)
    twin = getattr(torch.optim, optimizer)([p for p in module.parameters() if p.requires_grad], lr=rate)
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(IDS)).flatten(0, 1), torch.tensor(targets.ravel()))
    loss.backward()
    twin.step()

    ours, theirs = model.state_dict(), interop.from_torch(module.state_dict(), stacked=True)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert relative_error(theirs[name], array) < (1e-6 if optimizer == "SGD" else 1e-4), name
        assert relative_error(before[name], array) > 1e-3, f"{name} was not trained"


@pytest.mark.oracle
def test_tensors_that_train_are_views_or_in_other_layouts(torch: Any) -> None:
    grown = torch.arange(6.0).reshape(2, 3).requires_grad_()
    odd = {"w": grown, "turned": grown.t(), "parameter": torch.nn.Parameter(grown.detach().half()), "one": grown.sum()}
    ours = interop.from_torch(odd)
    assert same(ours, {name: tensor.detach().numpy() for name, tensor in odd.items()})
    ours["w"][...] = 7
    assert grown.sum() == 15
    theirs = interop.to_torch({"w": ours["w"]})
    theirs["w"][...] = 1
    assert (ours["w"] == 7).all()


@pytest.mark.oracle
def test_of_tensors_that_share_memory_the_first_stays_but_an_lstm_keeps_its_parts(torch: Any) -> None:
    tied, empty = torch.ones(3, 2), torch.ones(0)
    found = interop.from_torch({"a.weight": tied, "b.weight": tied, "b.turned": tied.t(), "c": empty, "d": empty})
    assert set(found) == {"a.weight", "b.turned", "c", "d"}
    module = torch.nn.LSTM(3, 2)
    module.bias_hh_l0 = module.bias_ih_l0
    ours = interop.from_torch(module.state_dict())
    assert (ours["bias"] == 2 * module.bias_ih_l0.detach().numpy()).all()
    same_array = np.ones(2)
    assert set(interop.from_torch({"a": same_array, "b": same_array})) == {"a", "b"}


@pytest.mark.oracle
def test_tensors_that_are_refused(torch: Any) -> None:
    bad: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: torch.ones(2, dtype=torch.bfloat16),
        "float8_e4m3fn": lambda: torch.ones(2).to(torch.float8_e4m3fn),
        "int64": lambda: torch.arange(3),
        "Sparse": lambda: torch.ones(2, 2).to_sparse(),
        "meta": lambda: torch.ones(2, device="meta"),
        "complex64": lambda: torch.ones(2, dtype=torch.complex64),
    }
    for word, make in bad.items():
        with refuses(ValueError, "'a.w'", word):
            interop.from_torch({"a.w": make()})
    for word in ("bfloat16", "float8_e4m3fn"):
        with refuses(ValueError, ".float()"):
            interop.from_torch({"a.w": bad[word]()})
    with refuses(ValueError, "direction"):
        interop.from_torch(torch.nn.LSTM(2, 3, bidirectional=True).state_dict())
    with refuses(ValueError, "proj_size"):
        interop.from_torch(torch.nn.LSTM(2, 3, proj_size=2).state_dict())
    for kind in ("GRU", "RNN", "LSTMCell"):
        with refuses(ValueError, kind):
            interop.from_torch(getattr(torch.nn, kind)(2, 3).state_dict())
    with refuses(TypeError, "state_dict", "Linear"):
        interop.from_torch(torch.nn.Linear(2, 3))


NAMES = st.text("abl_.01", max_size=6).map(lambda name: f"{name}.weight")
FLOATS = st.sampled_from(["f2", "f4", "f8"])
TENSORS = arrays_of.arrays(FLOATS, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))


@st.composite
def state_dicts(draw: Any) -> dict[str, np.ndarray]:
    """LSTMs at different places, of any sizes, and other tensors around them; NaN, infinities and -0.0 as well."""
    found = draw(st.dictionaries(NAMES, TENSORS, max_size=3))
    for prefix in draw(st.lists(st.sampled_from(["", "a.", "a.0.", "a.1.", "b.lstm."]), unique=True, max_size=3)):
        dtype, wide, units = draw(FLOATS), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        shapes = {"weight_ih": (4 * units, wide), "weight_hh": (4 * units, units), "bias": (4 * units,)}
        found |= {prefix + name: draw(arrays_of.arrays(dtype, shape)) for name, shape in shapes.items()}
    return found


@given(state_dicts())
def test_what_goes_to_pytorchs_names_and_back_is_the_same_to_the_bit(ours: dict[str, np.ndarray]) -> None:
    assert same(interop._ours(interop._theirs(ours, False), False), ours)


@pytest.mark.oracle
@given(ours=state_dicts())
def test_what_goes_to_pytorch_and_back_is_the_same_to_the_bit(torch: Any, ours: dict[str, np.ndarray]) -> None:
    assert same(interop.from_torch(interop.to_torch(ours)), ours)
