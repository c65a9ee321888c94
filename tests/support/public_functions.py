"""Every public function of minidl with good arguments, and the kind of bad values for each argument.

test_bad_input_library.py calls them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import bad_values as bad
import numpy as np
from bad_values import HUGE, Kind, Row, rows
from helpers import filled

import minidl
from minidl.schedules import Schedule

OPTIONS: dict[str, tuple[Any, Kind]] = {  # of every layer
    "dtype": ("float64", bad.dtype),
    "backend": ("numpy", bad.backend),
    "rng": (None, bad.rng),  # a generator that must not advance
}
SIZES = [2, 2, 1]
NO_INPUT = {  # why these functions have no Subject
    "Layer.forward": "for subclasses",
    "Layer.backward": "for subclasses",
    "Layer.__call__": "calls forward",
    "LinearCrossEntropy.forward": "has forward_backward instead",
    "LinearCrossEntropy.backward": "has forward_backward instead",
    "Dropout.load_state_dict": "has no parameters",
    "interop.to_torch": "needs PyTorch; refuses what interop.write_safetensors does, see test_interop.py",
}


class Subject(NamedTuple):
    """A public function with good arguments, and the kind of bad values for each argument."""

    call: Callable[..., Any]
    arguments: dict[str, tuple[Any, Kind]]
    keep: tuple[Any, ...] = ()  # what else must not change
    words: dict[str, str] | None = None  # how messages name a parameter, if not by its own name


def nothing(_: Any) -> list[Row]:
    """A parameter that accepts anything."""
    return []


def layer(make: Any, **arguments: tuple[Any, Kind]) -> Callable[[], Subject]:
    return lambda: Subject(make, {**arguments, **OPTIONS})


def rows_of(width: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, width))


def linear() -> Any:
    return filled(minidl.Linear(3, 4, dtype="float64"))


def lstm() -> Any:
    return filled(minidl.LSTM(3, 4, dtype="float64"))


def embedding() -> Any:
    return filled(minidl.Embedding(7, 3, dtype="float64"))


def head() -> Any:
    return filled(minidl.LinearCrossEntropy(3, 7, dtype="float64"))


def backward(
    make: Callable[[], Any], width: int, *forward: Any, caches: Kind = bad.cache, **more: tuple[Any, Kind]
) -> Callable[[], Subject]:
    def subject() -> Subject:
        made = make()
        cache = made.forward(*forward)[1]
        return Subject(made.backward, {"dy": (rows_of(width), bad.upstream), "cache": (cache, caches), **more}, (made,))

    return subject


def method(make: Callable[[], Any], name: str, **arguments: tuple[Any, Kind]) -> Callable[[], Subject]:
    def subject() -> Subject:
        made = make()
        words = {"x": "ids"} if isinstance(made, minidl.Embedding) else {}
        return Subject(getattr(made, name), arguments, (made,), words)

    return subject


def loaded(make: Callable[[], Any]) -> Callable[[], Subject]:
    """load_state_dict with the result of state_dict."""

    def subject() -> Subject:
        made = make()
        kept = made if not isinstance(made, Schedule) else (made.optimizer, made.steps, made.lr)
        kind = bad.mapping if not isinstance(made, (Schedule, minidl.SGD)) else scalars
        return Subject(made.load_state_dict, {"tensors": (made.state_dict(), kind)}, (kept,), {"tensors": ""})

    return subject


def scalars(good: dict[str, np.ndarray]) -> list[Row]:
    """The state of a schedule, or of an optimizer without arrays: {"steps": ..., "lr": ...}."""
    found = rows(TypeError, **{"None": None, "text": "x", "list": [1], "number": 1})
    wrong: dict[str, Any] = {"empty": {}, "no lr": {"steps": good["steps"]}, "more": {**good, "more": np.ones(1)}}
    for name, values in {
        "steps": {
            "None": None,
            "text": "x",
            "float": np.array(1.5),
            "bool": np.array(True),
            "negative": np.array(-1),
            "array": np.array([1]),
            "ragged": [[1], [1, 2]],
        },
        "lr": {
            "None": None,
            "text": "x",
            "NaN": np.array(np.nan),
            "inf": np.array(np.inf),
            "negative": np.array(-1.0),
            "array": np.array([0.1]),
            "complex": np.array(1j),
            "int": np.array(1),
        },
    }.items():
        wrong |= {f"{name} is {what}": {**good, name: value} for what, value in values.items()}
    return found + rows(ValueError, **wrong)


def optimizer(make: Any, **arguments: tuple[Any, Kind]) -> Callable[[], Subject]:
    def subject() -> Subject:
        model = lstm()
        params = {"params": (model.parameters(), bad.parameters), "lr": (0.1, bad.number(0, open_low=False))}
        return Subject(make, {**params, **arguments}, (model,))

    return subject


def ready(make: Any = minidl.Adam, **options: Any) -> Any:
    """An optimizer with gradients, after one step."""
    model = lstm()
    made = make(model.parameters(), lr=0.1, **options)
    for parameter in model.parameters():
        parameter.grad[...] = 0.5
    made.step()
    return made


def no_optimizer(_: Any) -> list[Row]:
    return rows(TypeError, **{"None": None, "text": "adam", "number": 0.1, "class": minidl.Adam, "layer": linear()})


def schedule(make: Any, **arguments: tuple[Any, Kind]) -> Callable[[], Subject]:
    return lambda: Subject(make, {"optimizer": (ready(), no_optimizer), **arguments})


def pairs(good: Any) -> list[Row]:
    number = bad.number(0, 1, open_low=False)(None)
    found = rows(TypeError, **{"None": None, "number": 0.9, "text": "ab", "set": {0.9, 0.99}, "array": np.ones(2)})
    found += rows(ValueError, one=(0.9,), three=(0.9, 0.99, 0.999), none=())
    found += [(f"first {what}", (value, 0.99), error) for what, value, error in number]
    return found + [(f"second {what}", (0.9, value), error) for what, value, error in number]


def weights(good: Any) -> list[Row]:
    single, other = minidl.Parameter(np.zeros((7, 3), "f4")), minidl.Parameter(np.zeros((3, 7)))
    found = rows(TypeError, **{"array": np.zeros((7, 3)), "text": "w", "layer": embedding(), "single": single})
    return found + rows(ValueError, transposed=other)


def sequences(good: Any) -> list[Row]:
    found = rows(
        TypeError, **{"None": None, "number": 3, "text within": ["ab"], "None within": [None], "bools": [[True]]}
    )
    found += rows(TypeError, **{"objects": [np.array([1], object)], "complex": [[1j]], "ragged": [[[1], [1, 2]]]})
    found += rows(TypeError, **{"0-d": np.array(1)})
    found += rows(
        ValueError,
        **{"numbers": [1, 2], "none": [], "empty": [[]], "one empty": [[1], []], "other items": [[[1.0]], [1.0]]},
    )
    return found + rows(ValueError, **{"beyond int32": [[2**31]], "int64": [[HUGE]], "other widths": [[[1]], [[1, 2]]]})


def batches(good: minidl.PackedSequence) -> list[Row]:
    found = rows(TypeError, **{"None": None, "text": "x", "array": good.data, "list": [1], "tuple": tuple(good)})
    found += rows(TypeError, **{"data is a list": good._replace(data=good.data.tolist())})
    found += rows(TypeError, **{"data is None": good._replace(data=None)})
    found += rows(
        ValueError, **{"0-d data": good._replace(data=np.array(1)), "fewer rows": good._replace(data=good.data[:-1])}
    )
    sizes = rows(TypeError, none=good._replace(batch_sizes=None))
    sizes += rows(ValueError, rising=good._replace(batch_sizes=[1, 2, 2]))
    orders = {
        "beyond": [0, 2],
        "negative": [0, -1],
        "twice": [0, 0],
        "fewer": [0],
        "more": [0, 1, 2],
        "floats": [0.0, 1.0],
        "None": None,
    }
    return (
        found
        + sizes
        + rows(
            ValueError,
            **{
                f"order {what}": good._replace(unsorted_indices=order if order is None else np.array(order))
                for what, order in orders.items()
            },
        )
    )


def lengths(good: Any) -> list[Row]:
    wrong = {"None": None, "number": 3, "text": "abc", "floats": [1.0, 2.0], "bools": [True], "ragged": [[1], [1, 2]]}
    return rows(ValueError, **wrong, empty=[], **{"2-D": [[1, 2]], "objects": [None]})


def logits(good: np.ndarray) -> list[Row]:
    """sample accepts lists and every float dtype."""
    wrong = rows(ValueError, NaN=good * np.nan, inf=good + np.inf, **{"all -inf": good - np.inf})
    return [row for row in bad.matrix(good, fixed_width=False, lists=True)] + wrong


def share(_: Any) -> list[Row]:
    wrong = {name: value for name, value in bad.NO_NUMBERS.items() if name != "None"}
    return rows(TypeError, **wrong) + rows(ValueError, zero=0, above=1.5, negative=-0.5, NaN=np.nan, inf=np.inf)


def unless_none(kind: Kind) -> Kind:
    """`kind` without None, which means the default."""
    return lambda good: [row for row in kind(good) if row[0] != "None"]


def tensors(good: Any) -> list[Row]:
    found = rows(TypeError, **{"None": None, "text": "x", "list": [np.ones(2)], "array": np.ones(2)})
    values = {
        "None": None,
        "text": "x",
        "objects": np.array([1], object),
        "complex": np.array([1j]),
        "ragged": [[1], [1, 2]],
    }
    values |= {"dates": np.array(["2000-01-01"], "M8[D]"), "NaN": np.array([np.nan]), "inf": np.array([np.inf])}
    values |= {"records": np.zeros(1, [("a", "f4")]), "longdouble": np.ones(1, "longdouble")}
    names: list[Any] = [3, None, b"x", "__metadata__", "\ud800"]
    found += rows(minidl.CheckpointError, **{f"a value that is {what}": {"w": value} for what, value in values.items()})
    return found + rows(minidl.CheckpointError, **{f"the name {name!a}": {name: np.ones(2)} for name in names})


def metadata(good: Any) -> list[Row]:
    values = {"set": {1}, "array": np.ones(2), "object": object(), "bytes": b"x", "NaN": np.nan}
    values |= {"half a character": "\ud800", "path": Path("x"), "tuple keys": {(1, 2): 3}}
    found = rows(minidl.CheckpointError, **{"None": None, "text": "x", "list": [1], "number": 3, "int keys": {3: 1}})
    return found + rows(
        minidl.CheckpointError, **{f"a value that is {what}": {"a": value} for what, value in values.items()}
    )


def unwritable(good: Path) -> list[Row]:
    (good.parent / "folder").mkdir(exist_ok=True)
    (good.parent / "file").write_bytes(b"")
    wrong = {
        "a folder": good.parent / "folder",
        "under a file": good.parent / "file" / "x",
        "no folder": good.parent / "a" / "x",
    }
    wrong |= {"NUL": f"{good}\0", "empty": ""}
    return bad.path(good) + rows(minidl.CheckpointError, **wrong)


def unreadable(good: Path) -> list[Row]:
    files = {
        "empty": b"",
        "text": b"hello\n",
        "NULs": bytes(1000),
        "half": good.read_bytes()[:-1],
        "ones": b"\xff" * 1000,
    }
    files |= {"a header beyond the file": b"\xff\xff\xff\0\0\0\0\0{}", "json": b"{}", "utf-16": "甲".encode("utf-16")}
    for name, content in files.items():
        (good.parent / f"bad {name}").write_bytes(content)
    found = unwritable(good) + rows(minidl.CheckpointError, missing=good.parent / "missing")
    return found + rows(minidl.CheckpointError, **{name: good.parent / f"bad {name}" for name in files})


def travelling(error: type[Exception]) -> Kind:
    """A state dict to or from PyTorch; `good` holds an LSTM in the source's format."""

    def kind(good: dict[str, np.ndarray]) -> list[Row]:
        first, array = next(iter(good.items()))
        found = rows(TypeError, **{"None": None, "text": "x", "list": [1], "pairs": list(good.items()), "number": 1})
        wrong: dict[str, Any] = {"a key that is no name": {**good, 3: array}, "bytes": {**good, b"x": array}}
        needed = [name for name in list(good)[:2] if name != "weight_hh"]  # without it, minidl sees no LSTM
        wrong |= {f"without {name}": {key: good[key] for key in good if key != name} for name in needed}
        values = {"None": None, "text": "x", "number": 1.0, "set": {1}, "ragged": [[1.0], [1.0, 2.0]]}
        values |= {"objects": array.astype(object), "longer": np.concatenate([array, array]), "3-D": array[..., None]}
        values |= bad.casts(array, "int64", "complex64", "bool", "longdouble", "U8")
        wrong |= {f"a value that is {what}": {**good, first: value} for what, value in values.items()}
        return found + rows(error, **wrong)

    return kind


def texts(good: Any) -> list[Row]:
    wrong = {"a number": {"a": 3}, "None within": {"a": None}, "a key": {3: "a"}, "half a character": {"a": "\ud800"}}
    return rows(minidl.CheckpointError, **wrong) + rows(TypeError, text="x", number=3, list=["ab"])


def flat_ids(_: Any) -> list[Row]:
    wrong = {"None": None, "text": "x", "number": 3, "bool": np.ones(9, bool), "complex": np.ones(9, complex)}
    beyond = rows(ValueError, short=np.arange(5), huge=np.full(9, 2**40), empty=np.zeros(0, int))
    return rows(TypeError, ragged=[[1], [1, 2]], **wrong) + beyond


def places_of(low: int) -> Kind:
    """The starts or lengths of two sequences within 9 ids."""

    def kind(_: Any) -> list[Row]:
        wrong: dict[str, Any] = {"None": None, "text": "x", "number": 3, "floats": [0.0, 4.0], "nested": [[0, 4]]}
        wrong |= {"empty": [], "too few": [1], "too many": [1, 1, 1], "below": [low - 1, 1], "above": [1, 10]}
        return rows(ValueError, bools=[True, True], huge=np.array([1, 2**64 - 1], np.uint64), beyond=[1, 9], **wrong)

    return kind


def no_layer(_: Any) -> list[Row]:
    single = minidl.Linear(2, 2)
    found = rows(
        TypeError, **{"None": None, "text": "x", "array": np.ones(2), "class": minidl.Linear, "float32": single}
    )
    return found + rows(minidl.GradientError, **{"no pair": lambda x: 1.0, "three": lambda x: (1.0, x, x)})


def values(good: Any) -> list[Row]:
    return rows(TypeError, **{"None": None, "text": "x", "object": object(), "dict": {}, "ragged": [[1], [1, 2]]})


def of_parameter(good: np.ndarray) -> list[Row]:
    found = rows(TypeError, **{"None": None, "text": "x", "list": [1.0], "number": 1.0, "scalar": np.float32(1)})
    return found + rows(TypeError, **bad.casts(good, "int64", "bool", "float16", "complex64", "object", "longdouble"))


def saved() -> Path:
    minidl.save("good", {"w": np.ones(3)}, {})
    return Path("good")


def theirs() -> dict[str, np.ndarray]:
    """A PyTorch state dict as returned by safetensors.numpy."""
    ours = lstm().state_dict()
    return {
        "weight_ih_l0": ours["weight_ih"],
        "weight_hh_l0": ours["weight_hh"],
        "bias_ih_l0": ours["bias"],
        "bias_hh_l0": ours["bias"],
    }


def plain() -> Path:
    minidl.interop.write_safetensors("good", {"w": np.ones(3)})
    return Path("good")


OPTIMIZERS: dict[str, tuple[Any, dict[str, tuple[Any, Kind]]]] = {
    "SGD": (minidl.SGD, {"momentum": (0.5, bad.number(0, 1, open_low=False))}),
    "AdaGrad": (minidl.AdaGrad, {"eps": (1e-8, bad.number(0))}),
    "Adadelta": (minidl.Adadelta, {"rho": (0.9, bad.number(0, 1, open_low=False)), "eps": (1e-8, bad.number(0))}),
    "Adam": (minidl.Adam, {"betas": ((0.9, 0.99), pairs), "eps": (1e-8, bad.number(0))}),
    "AdamW": (
        minidl.AdamW,
        {
            "betas": ((0.9, 0.99), pairs),
            "eps": (1e-8, bad.number(0)),
            "weight_decay": (0.1, bad.number(0, open_low=False)),
        },
    ),
}
SCHEDULES: dict[str, tuple[Any, dict[str, tuple[Any, Kind]]]] = {
    "Constant": (minidl.Constant, {"warmup": (1, bad.integer(0))}),
    "ExponentialDecay": (minidl.ExponentialDecay, {"gamma": (0.9, bad.number(0))}),
    "StepDecay": (minidl.StepDecay, {"every": (3, bad.integer(1)), "gamma": (0.9, bad.number(0))}),
    "OneCycle": (
        minidl.OneCycle,
        {
            "max_lr": (0.1, bad.number(0)),
            "total_steps": (9, bad.integer(1)),
            "warmup": (0.1, bad.number(0, 1, open_low=False)),
        },
    ),
}
LAYERS: dict[str, Callable[[], Any]] = {
    "Layer": lambda: lstm(),
    "Linear": linear,
    "LSTM": lstm,
    "Embedding": embedding,
    "LinearCrossEntropy": head,
    "Sequential": lambda: sequential(),
}
PACKING = (minidl.Packing(SIZES), bad.packing)
X, STATE, DSTATE = (rows_of(3), bad.matrix), (rows_of(4, 3), rows_of(4, 3)), (rows_of(4, 2), rows_of(4, 2))
IDS, TARGETS = (np.array([0, 6, 3]), bad.ids(7)), (np.array([0, 6, 3, 3, 1]), bad.ids(7, fixed_rows=True))
TOTAL = (2.5, bad.number(0, none=True))
SHAPE = ((2, 3), bad.shape())


def places(good: np.ndarray) -> list[Row]:
    wrong = {"text": "x", "number": 1, "fewer": good[:-1], "2-D": good[None], "floats": good * 1.0, "bools": good > 0}
    return rows(ValueError, **wrong, negative=-1 - good, ragged=[[1], [1, 2]])


def dropouts_packing(good: minidl.Packing) -> list[Row]:
    """Bad steps and rows; Dropout ignores batch_sizes."""
    found = rows(TypeError, **{"None": None, "text": "x", "list": SIZES, "no step": good._replace(step=None)})
    found += [(f"step {what}", good._replace(step=value), error) for what, value, error in bad.integer(0)(None)]
    return found + [(f"rows {what}", good._replace(rows=value), error) for what, value, error in places(good.rows)]


def sequential() -> Any:
    made = minidl.Linear(3, 3, dtype="float64"), minidl.LSTM(3, 4, dtype="float64"), minidl.Dropout(0.0)
    return filled(minidl.Sequential(*made))


def no_layers(_: Any) -> list[Row]:
    return rows(TypeError, **{"None": None, "text": "x", "list": [linear()], "class": minidl.Linear, "function": abs})


def caches(good: list[Any]) -> list[Row]:
    found = bad.cache(good) + rows(ValueError, fewer=good[:-1], more=[*good, None], none=[])
    return found + rows(TypeError, **{"of other layers": good[::-1]})


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every public function, by name."""
    found: dict[str, Callable[[], Subject]] = {
        "Linear.__init__": layer(
            minidl.Linear, in_features=(3, bad.size), out_features=(4, bad.size), bias=(True, nothing)
        ),
        "Linear.forward": method(linear, "forward", x=X, packing=(None, nothing)),
        "Linear.__call__": method(linear, "__call__", x=X, packing=(None, nothing)),
        "Linear.backward": backward(linear, 4, rows_of(3)),
        "LSTM.__init__": layer(minidl.LSTM, input_size=(3, bad.size), hidden_size=(4, bad.size)),
        "LSTM.forward": method(lstm, "forward", x=X, packing=PACKING, state=(STATE, bad.pair(exact=False))),
        "LSTM.__call__": method(lstm, "__call__", x=X, packing=PACKING),
        "LSTM.step": method(lstm, "step", x=(rows_of(3, 2), bad.matrix), state=(DSTATE, bad.pair(exact=True))),
        "LSTM.backward": backward(lstm, 4, rows_of(3), PACKING[0], dstate=(DSTATE, bad.pair(exact=True))),
        "Embedding.__init__": layer(minidl.Embedding, num_embeddings=(7, bad.size), embedding_dim=(3, bad.size)),
        "Embedding.forward": method(embedding, "forward", x=IDS, packing=(None, nothing)),  # packing is for a GPU
        "Embedding.__call__": method(embedding, "__call__", x=IDS, packing=(None, nothing)),
        "Embedding.backward": backward(embedding, 3, np.array([0, 6, 3, 3, 1])),
        "Dropout.__init__": layer(minidl.Dropout, p=(0.5, bad.number(0, 1, open_low=False))),
        "Dropout.forward": method(
            lambda: minidl.Dropout(0.5, rng=0),
            "forward",
            x=(rows_of(3), bad.any_width),
            packing=(minidl.Packing(SIZES, step=3, rows=np.array([3, 1, 2, 0, 9])), dropouts_packing),
        ),
        "Dropout.__call__": method(
            lambda: minidl.Dropout(0.5, rng=0), "__call__", x=(rows_of(3), bad.any_width), packing=(None, nothing)
        ),
        "Dropout.backward": backward(lambda: minidl.Dropout(0.5, rng=0), 3, rows_of(3), minidl.Packing(SIZES, step=3)),
        "Sequential.__init__": lambda: Subject(
            minidl.Sequential, {"layers": (linear(), no_layers)}, words={"layers": "layer"}
        ),
        "Sequential.forward": method(sequential, "forward", x=X, packing=(PACKING[0]._replace(step=1), bad.packing)),
        "Sequential.__call__": method(sequential, "__call__", x=X, packing=PACKING),
        "Sequential.backward": backward(sequential, 4, rows_of(3), PACKING[0]._replace(step=1), caches=caches),
        "LinearCrossEntropy.__init__": layer(
            minidl.LinearCrossEntropy, in_features=(3, bad.size), num_classes=(7, bad.size), weight=(None, weights)
        ),
        "LinearCrossEntropy.forward_backward": method(head, "forward_backward", x=X, targets=TARGETS, total=TOTAL),
        "LinearCrossEntropy.__call__": method(head, "__call__", x=X, targets=TARGETS, total=TOTAL),
        "LinearCrossEntropy.logits": method(head, "logits", x=X),
        "softmax_cross_entropy": lambda: Subject(
            minidl.softmax_cross_entropy, {"logits": (rows_of(7), bad.any_width), "targets": TARGETS}
        ),
        "clip_grad_norm": lambda: Subject(
            minidl.clip_grad_norm,
            {"params": (ready().params, bad.parameters), "max_norm": (1.0, bad.number(0, infinite=True))},
        ),
        "flatten": lambda: Subject(minidl.flatten, {"params": (ready().params, bad.parameters)}),
        "Parameter.__init__": lambda: Subject(
            minidl.Parameter, {"data": (np.ones((2, 3)), of_parameter), "name": ("w", nothing)}, words={"data": "w"}
        ),
        "sample": lambda: Subject(
            minidl.sample,
            {
                "logits": (rows_of(7), logits),
                "temperature": (0.7, bad.number(0)),
                "top_k": (3, unless_none(bad.integer(1))),
                "top_p": (0.9, share),
                "rng": (None, bad.rng),
            },
        ),
        "pack": lambda: Subject(
            minidl.pack, {"sequences": ([[5, 6], [1, 2, 3]], sequences), "backend": ("numpy", bad.backend)}
        ),
        "pack_rows": lambda: Subject(
            minidl.pack_rows,
            {
                "ids": (np.arange(9), flat_ids),
                "starts": (np.array([0, 4]), places_of(0)),
                "lengths": (np.array([4, 2]), places_of(1)),
                "backend": ("numpy", bad.backend),
            },
        ),
        "unpack": lambda: Subject(
            minidl.unpack, {"batch": (minidl.pack([[5, 6], [1, 2, 3]]), batches)}, words={"batch": "batch"}
        ),
        "bucketed_batches": lambda: Subject(
            minidl.bucketed_batches,
            {
                "lengths": ([3, 1, 2], lengths),
                "batch_size": (2, bad.integer(1)),
                "rng": (None, bad.rng),
            },
        ),
        "save": lambda: Subject(
            minidl.save,
            {
                "path": (saved(), unwritable),
                "tensors": ({"w": np.ones(3)}, tensors),
                "metadata": ({"a": 1}, metadata),
            },
            words={"path": "", "tensors": ""},
        ),
        "load": lambda: Subject(minidl.load, {"path": (saved(), unreadable)}, words={"path": ""}),
        "interop.from_torch": lambda: Subject(
            minidl.interop.from_torch,
            {"state_dict": (theirs(), travelling(ValueError)), "stacked": (False, nothing)},
            words={"state_dict": ""},
        ),
        "interop.write_safetensors": lambda: Subject(
            minidl.interop.write_safetensors,
            {
                "path": (saved(), unwritable),
                "state_dict": (lstm().state_dict(), travelling(minidl.CheckpointError)),
                "metadata": ({"a": "b"}, texts),
                "stacked": (False, nothing),
            },
            words={"path": "", "state_dict": ""},
        ),
        "interop.read_safetensors": lambda: Subject(
            minidl.interop.read_safetensors,
            {"path": (plain(), unreadable), "stacked": (False, nothing)},
            words={"path": ""},
        ),
        "gradcheck": lambda: Subject(
            minidl.gradcheck,
            {
                "layer": (minidl.Linear(3, 2, dtype="float64"), no_layer),
                "inputs": X,
                "rng": (0, bad.rng),
                "state": (None, nothing),  # validated by the layer
            },
            words={"layer": "", "inputs": ""},
        ),
        "set_num_threads": lambda: Subject(minidl.set_num_threads, {"n": (minidl.get_num_threads(), bad.integer(1))}),
        "to_host": lambda: Subject(minidl.to_host, {"array": (np.ones(2), values)}),
        "to_backend": lambda: Subject(
            minidl.to_backend,
            {"values": (np.ones(2), values), "name": ("numpy", bad.backend)},
            words={"values": "array", "name": "backend"},
        ),
        "initializers.zeros": lambda: Subject(minidl.initializers.zeros, {"shape": SHAPE}),
        "initializers.uniform": lambda: Subject(
            minidl.initializers.uniform,
            {
                "shape": SHAPE,
                "bound": (0.5, bad.number(0, open_low=False)),
                "rng": (None, bad.rng),
            },
        ),
        "initializers.normal": lambda: Subject(
            minidl.initializers.normal,
            {
                "shape": SHAPE,
                "std": (0.5, bad.number(0, open_low=False)),
                "rng": (None, bad.rng),
            },
        ),
    }
    for name in ("xavier_uniform", "orthogonal"):
        call = getattr(minidl.initializers, name)
        arguments = {"shape": ((2, 3), bad.shape(2)), "rng": (None, bad.rng)}
        found[f"initializers.{name}"] = functools.partial(Subject, call, arguments)
    for name, (make, more) in OPTIMIZERS.items():
        found[f"{name}.__init__"] = optimizer(make, **more)
        found[f"{name}.load_state_dict"] = loaded(functools.partial(ready, make))
    for name, (make, more) in SCHEDULES.items():
        found[f"{name}.__init__"] = schedule(make, **more)
        options = {key: good for key, (good, _) in more.items()}
        found[f"{name}.load_state_dict"] = loaded(
            functools.partial(lambda make, options: make(ready(), **options), make, options)
        )
        found[f"{name}.rate"] = method(
            functools.partial(lambda make, options: make(ready(), **options), make, options), "rate", step=(1, nothing)
        )
    for name, build in LAYERS.items():
        found[f"{name}.load_state_dict"] = loaded(build)
    return found


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function that takes arguments: module functions, and methods of classes, inherited ones included."""
    for name in minidl.__all__:
        value = getattr(minidl, name)
        if isinstance(value, ModuleType):
            members = {
                key: item for key, item in vars(value).items() if getattr(item, "__module__", "") == value.__name__
            }
        elif inspect.isclass(value):
            if issubclass(value, Exception):
                continue
            members = {key: item for key, item in inspect.getmembers(value, inspect.isfunction) if of_minidl(item)}
        else:
            members = {"": value}
        for key, item in members.items():
            if (key in ("__init__", "__call__") or not key.startswith("_")) and parameters(item):
                yield f"{name}.{key}".rstrip("."), item


def of_minidl(item: Any) -> bool:
    return str(item.__module__).startswith("minidl")


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "options")]
