"""Layer: finding and naming parameters, and state_dict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses

import minidl


class Block(minidl.Layer):
    def __init__(self, rng: int) -> None:
        super().__init__()
        self.name = "no parameter"
        self.linear = minidl.Linear(2, 3, dtype="float64", rng=rng)
        self.dropout = minidl.Dropout(0.5)


class Model(minidl.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(0), Block(1)]
        self.by_name = {"out": minidl.Linear(3, 2, bias=False, dtype="float64", rng=2)}
        self.scale = minidl.Parameter(np.ones(2))
        self.again = self.blocks[0].linear
        self.pair = (self.scale, minidl.Parameter(np.zeros(1)))


NAMES = [
    "blocks.0.linear.weight",
    "blocks.0.linear.bias",
    "blocks.1.linear.weight",
    "blocks.1.linear.bias",
    "by_name.out.weight",
    "scale",
    "pair.1",
]


def test_parameters_are_found_in_order_of_assignment_each_once() -> None:
    model = Model()
    named = model.named_parameters()
    assert [name for name, _ in named] == NAMES
    assert [p for _, p in named] == model.parameters()
    assert named[0][1] is model.again.weight and named[5][1] is model.scale


def test_the_built_in_layers_names() -> None:
    names = {
        "Embedding": (minidl.Embedding(3, 2), ["weight"]),
        "Linear": (minidl.Linear(3, 2), ["weight", "bias"]),
        "Linear without bias": (minidl.Linear(3, 2, bias=False), ["weight"]),
        "LSTM": (minidl.LSTM(3, 2), ["weight_ih", "weight_hh", "bias"]),
        "Dropout": (minidl.Dropout(0.5), []),
        "LinearCrossEntropy": (minidl.LinearCrossEntropy(3, 2), ["weight", "bias"]),
    }
    for layer, expected in names.values():
        assert [name for name, _ in layer.named_parameters()] == expected


def test_the_shapes_are_pytorchs() -> None:
    shapes = {
        **{f"lstm.{name}": values.shape for name, values in minidl.LSTM(3, 2).state_dict().items()},
        **{f"linear.{name}": values.shape for name, values in minidl.Linear(3, 2).state_dict().items()},
        **{f"embedding.{name}": values.shape for name, values in minidl.Embedding(3, 2).state_dict().items()},
        **{f"head.{name}": values.shape for name, values in minidl.LinearCrossEntropy(3, 2).state_dict().items()},
    }
    assert shapes == {
        "lstm.weight_ih": (8, 3),
        "lstm.weight_hh": (8, 2),
        "lstm.bias": (8,),
        "linear.weight": (2, 3),
        "linear.bias": (2,),
        "embedding.weight": (3, 2),
        "head.weight": (2, 3),
        "head.bias": (2,),
    }


def test_state_dict_round_trip_and_independence() -> None:
    model, twin = filled(Model(), seed=1), filled(Model(), seed=2)
    state = model.state_dict()
    assert list(state) == NAMES
    twin.load_state_dict(state)
    for name, parameter in twin.named_parameters():
        assert parameter.data.tobytes() == state[name].tobytes()
        assert not np.shares_memory(parameter.data, state[name])
    state["scale"][...] = 99
    assert not (model.scale.data == 99).any() and not (twin.scale.data == 99).any()


def test_load_state_dict_writes_into_the_shared_buffer_and_casts() -> None:
    layer: Any = minidl.Linear(2, 3)
    minidl.flatten(layer.parameters())
    place = layer.weight.data
    layer.load_state_dict({"weight": np.arange(6.0).reshape(3, 2), "bias": np.ones(3, np.float16)})
    assert layer.weight.data is place and place.dtype == np.float32
    assert place.tolist() == [[0, 1], [2, 3], [4, 5]] and (layer.bias.data == 1).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bias": None}, ValueError, ["missing ['bias']"]),
        ({"extra": np.zeros(1)}, ValueError, ["unexpected ['extra']"]),
        ({"bias": np.zeros(4)}, ValueError, ["bias", "(3,)", "(4,)"]),
        ({"bias": np.zeros((3, 1))}, ValueError, ["bias", "(3,)", "(3, 1)"]),
        ({"bias": np.float64(1)}, ValueError, ["bias", "(3,)", "()"]),
        ({"bias": np.zeros(3, int)}, ValueError, ["bias", "floating point", "int64"]),
        ({"bias": np.zeros(3, complex)}, ValueError, ["bias", "floating point", "complex"]),
    ],
)
def test_load_state_dict_refuses_what_does_not_fit(change: Any, error: type[Exception], words: list[str]) -> None:
    layer = filled(minidl.Linear(2, 3, dtype="float64"))
    state = {"weight": np.ones((3, 2)), "bias": np.ones(3)} | change
    state = {name: values for name, values in state.items() if values is not None}
    with refuses(error, *words, keep=layer):
        layer.load_state_dict(state)


def test_load_state_dict_refuses_values_that_would_become_infinite() -> None:
    layer = filled(minidl.Linear(2, 3))
    largest = float(np.finfo(np.float32).max)
    with refuses(ValueError, "bias", "float32", "-1e+39", keep=layer):
        layer.load_state_dict({"weight": np.ones((3, 2)), "bias": np.array([1.0, largest, -1e39])})
    layer.load_state_dict({"weight": np.ones((3, 2)), "bias": np.array([0.0, largest, -largest])})
    assert np.isfinite(layer.bias.data).all()


def test_the_base_class_has_no_forward() -> None:
    with refuses(NotImplementedError, "Layer", "forward"):
        minidl.Layer()(np.zeros(2))


def test_a_model_is_called_like_a_layer() -> None:
    class Twice(minidl.Layer):
        def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
            return 2 * x, packing

    assert Twice()(np.ones(2)).tolist() == [2.0, 2.0]


def test_a_call_hands_the_packing_on_without_the_step() -> None:
    class Asks(minidl.Layer):
        def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
            return packing, None

    rows = np.arange(3)
    batch = minidl.pack([[1, 2], [3]])
    for packing in (minidl.Packing([2, 1], rows=rows), batch._replace(rows=rows)):
        given = Asks()(rows, packing._replace(step=4))
        assert type(given) is type(packing) and given.step is None and given.rows is rows
        assert Asks()(rows, packing) is packing


class WithDropout(minidl.Layer):
    def __init__(self, p: float) -> None:
        self.linear = minidl.Linear(3, 3, rng=0)
        self.dropouts = [minidl.Dropout(p, rng=0)]

    def forward(self, x: Any, packing: Any = None) -> tuple[Any, Any]:
        y, cache = self.linear.forward(x)
        return self.dropouts[0].forward(y, packing)[0], cache


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize(
    "packing", [None, minidl.Packing([2]), minidl.Packing([2], step=3)], ids=["none", "bare", "step"]
)
def test_a_layer_with_dropout_has_to_say_what_its_inference_is(packing: Any, p: float) -> None:
    with refuses(TypeError, "Dropout.forward", "packing.step", "for inference call the layer"):
        WithDropout(p)(np.ones((2, 3), np.float32), packing)


def test_two_parameters_of_one_name_are_refused() -> None:
    model = minidl.Layer()
    model.blocks = {1: minidl.Linear(2, 2, rng=0), "1": minidl.Linear(2, 2, rng=1)}  # type: ignore[attr-defined]
    with refuses(ValueError, "two parameters", "blocks.1.weight"):
        model.state_dict()


def test_a_child_may_know_its_parent() -> None:
    parent, child = minidl.Layer(), minidl.Linear(2, 2, rng=0)
    parent.child, child.parent = child, parent  # type: ignore[attr-defined]
    assert [name for name, _ in parent.named_parameters()] == ["child.weight", "child.bias"]


def test_parameters_know_the_kind_of_layer_they_are_of() -> None:
    """An error about a gradient names its parameter so."""
    layers = [minidl.LSTM(2, 3), minidl.Embedding(2, 3), minidl.Linear(2, 3), minidl.LinearCrossEntropy(2, 3)]
    assert [parameter.name for layer in layers for parameter in layer.parameters()] == [
        *("LSTM.weight_ih", "LSTM.weight_hh", "LSTM.bias"),
        *("Embedding.weight", "Linear.weight", "Linear.bias"),
        *("LinearCrossEntropy.weight", "LinearCrossEntropy.bias"),
    ]
    assert minidl.Parameter(np.zeros(1)).name == "parameter"


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (minidl.LSTM(3, 4), "LSTM(input_size=3, hidden_size=4, dtype=float32, backend=numpy, weights=128)"),
        (minidl.Linear(30, 50, bias=False, dtype="float64"), "in_features=30, out_features=50, dtype=float64"),
        (
            minidl.LinearCrossEntropy(30, 50),
            "in_features=30, num_classes=50, dtype=float32, backend=numpy, weights=1,550",
        ),
        (minidl.Embedding(7, 2), "Embedding(num_embeddings=7, embedding_dim=2, dtype=float32"),
        (minidl.Dropout(0.25), "Dropout(p=0.25)"),
        (minidl.Layer(), "Layer()"),
    ],
)
def test_a_layer_prints_its_sizes(layer: minidl.Layer, shown: str) -> None:
    assert shown in repr(layer) and "\n" not in repr(layer)


def test_a_model_prints_every_layer_under_its_name_and_counts_shared_weights_once() -> None:
    model = Model()
    first, *lines = repr(model).splitlines()
    assert first == "Model(dtype=float64, backend=numpy, weights=27)"  # 2 times 9, 6, 2 and 1
    assert [line.split(":")[0] for line in lines] == [
        *("  blocks.0", "  blocks.0.linear", "  blocks.0.dropout", "  blocks.1", "  blocks.1.linear"),
        *("  blocks.1.dropout", "  by_name.out"),
    ]
    assert lines[1].endswith("Linear(in_features=2, out_features=3, dtype=float64, backend=numpy, weights=9)")


def test_a_layer_prints_no_arrays_that_it_was_made_with() -> None:
    class Scale(minidl.Layer):
        def __init__(self, start: Any, pair: Any, mode: str = "plain") -> None:
            self.start, self.pair, self.mode = start, pair, mode

    assert repr(Scale(np.ones(5), (np.ones(5), 1))) == "Scale(mode='plain')"
    assert repr(Scale(2.5, (1, 2))) == "Scale(start=2.5, pair=(1, 2), mode='plain')"


def test_printing_never_fails() -> None:
    class Odd(minidl.Layer):
        def __init__(self, size: int, many: Any, *rest: Any, **options: Any) -> None:
            self.many = many
            self.around: list[Any] = []
            self.around.append(self.around)
            self.inner = minidl.Linear(2, 2, dtype="float64")
            self.other = minidl.Linear(2, 2)

        @property
        def size(self) -> int:
            raise RuntimeError("not built yet")

    first, *_ = repr(Odd(3, tuple(range(100_000)))).splitlines()
    assert first == "Odd(many=(0, 1, 2, 3, 4, 5, ...), dtype=float64/float32, backend=numpy, weights=12)"
    assert len(Odd(3, 0).parameters()) == 4


def test_an_optimizer_and_a_schedule_print_before_they_are_made() -> None:
    assert repr(minidl.SGD.__new__(minidl.SGD)) == "SGD()"
    assert repr(minidl.OneCycle.__new__(minidl.OneCycle)) == "OneCycle()"
