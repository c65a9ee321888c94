"""Bad values by kind of argument, which test_bad_input_library.py passes to every parameter of every public function.

A kind is called with a good value and returns rows of (description, bad value, the error it must raise).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

Row = tuple[str, Any, type[Exception]]
Kind = Callable[[Any], list[Row]]

HUGE = 2**62  # no array can have this many items


def rows(error: type[Exception], **values: Any) -> list[Row]:
    return [(what, value, error) for what, value in values.items()]


NO_NUMBERS = {"None": None, "text": "1", "bytes": b"1", "bool": True, "numpy bool": np.True_, "list": [1]}
NO_NUMBERS |= {"array": np.ones(2), "array of one": np.ones(1, int), "complex": 1j, "object": object()}
NO_RANDOM = {"text": "a", "float": 1.5, "bool": True, "list": [1], "module": np.random, "random": random.Random(0)}


def integer(low: int) -> Kind:
    floats = {"float": 2.5, "whole float": 2.0, "NaN": float("nan"), "numpy float": np.float32(2)}
    return lambda _: rows(TypeError, **NO_NUMBERS, **floats) + rows(ValueError, below=low - 1, negative=-5)


def size(_: Any) -> list[Row]:
    """A dimension of an array to be created."""
    return integer(1)(None) + rows(MemoryError, huge=HUGE, beyond=2**63, far_beyond=10**40)


def number(
    low: float, high: float | None = None, *, open_low: bool = True, none: bool = False, infinite: bool = False
) -> Kind:
    out = {"NaN": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "below": low - 1, "huge int": 10**309}
    if infinite:
        del out["inf"], out["huge int"]
    if open_low:
        out["low"] = low
    if high is not None:
        out |= {"high": high, "above": high + 1}
    wrong = {name: value for name, value in NO_NUMBERS.items() if name != "None" or not none}
    return lambda _: rows(TypeError, **wrong) + rows(ValueError, **out)


def rng(_: Any) -> list[Row]:
    return rows(TypeError, **NO_RANDOM) + rows(ValueError, negative=-1)


def dtype(_: Any) -> list[Row]:
    names = {"None": None, "half": "float16", "int": "int32", "unknown": "single precision", "type": int, "number": 3}
    return rows(TypeError, **names, complex=np.complex64)


def backend(_: Any) -> list[Row]:
    return rows(ValueError, **{"None": None, "unknown": "tpu", "empty": "", "number": 3, "list": ["numpy"]})


def casts(good: np.ndarray, *kinds: str) -> dict[str, np.ndarray]:
    return {name: good.astype(name) for name in kinds}


def matrix(good: np.ndarray, *, fixed_rows: bool = False, fixed_width: bool = True, lists: bool = False) -> list[Row]:
    """An (N, width) array of one float dtype."""
    found = rows(TypeError, **{"None": None, "text": "x", "set": {1.0}})
    found += rows(TypeError, **casts(good, "bool", "int64", "object", "complex128", "U8"))
    found += rows(ValueError if lists else TypeError, number=1.0)
    if not lists:
        found += rows(TypeError, list=good.tolist(), **casts(good, "float16", "longdouble"))
    found += rows(ValueError, **{"0-d": np.array(1.0, good.dtype), "1-D": good[0], "3-D": good[None]})
    found += rows(ValueError, **{"no rows": good[:0], "no columns": good[:, :0]})
    if fixed_width:
        found += rows(TypeError, **{"another float": good.astype("f4" if good.dtype == "f8" else "f8")})
        found += rows(ValueError, wider=np.hstack([good, good]), narrower=good[:, :-1])
    if fixed_rows:
        found += rows(ValueError, **{"a row less": good[:-1], "a row more": np.vstack([good, good[:1]])})
    return found


def upstream(good: np.ndarray) -> list[Row]:
    return matrix(good, fixed_rows=True)


def any_width(good: np.ndarray) -> list[Row]:
    return matrix(good, fixed_width=False)


def ids(limit: int, *, fixed_rows: bool = False) -> Kind:
    def kind(good: np.ndarray) -> list[Row]:
        found = rows(TypeError, **{"None": None, "text": "x", "ragged": [[1], [1, 2]], "words": ["a"], "set": {1}})
        found += rows(TypeError, **casts(good, "float32", "bool", "complex64"))
        found += rows(TypeError, **{"some None": [*good[:-1].tolist(), None]})
        found += rows(ValueError, **{"number": 1, "2-D": good[None], "empty": good[:0], "empty list": []})
        if fixed_rows:
            found += rows(ValueError, **{"one less": good[:-1], "one more": [*good, 0]})
        beyond = {"limit": limit, "negative": -1, "int64": HUGE}
        return found + rows(IndexError, **{name: [*good[:-1].tolist(), value] for name, value in beyond.items()})

    return kind


def batch_sizes(good: list[int]) -> list[Row]:
    """The good value is [2, 2, 1], for five rows."""
    wrong = {"None": None, "text": "221", "number": 5, "floats": [2.0, 2.0, 1.0], "bools": [*good[:-1], True]}
    wrong |= {"None within": [2, 2, None], "2-D": np.array([good]), "float array": np.array([2.0, 2, 1])}
    values = {"empty": [], "too few": [2, 2], "too many": [2, 2, 1, 1], "rising": [1, 2, 2], "negative": [3, 3, -1]}
    values |= {"zero at the end": [3, 2, 0], "zero within": [3, 0, 2], "huge": [HUGE, 2, 1], "beyond": [10**40, 1]}
    return rows(TypeError, **wrong) + rows(ValueError, **values)


def packing(good: Any) -> list[Row]:
    """A Packing of five rows; messages about its sizes name batch_sizes."""
    found = rows(TypeError, **{"None": None, "text": "221", "number": 5, "list": list(good.batch_sizes)})
    sizes = batch_sizes(list(good.batch_sizes))
    return found + [(f"sizes {what}", good._replace(batch_sizes=value), error) for what, value, error in sizes]


def pair(*, exact: bool) -> Kind:
    """A state (h, c) of two sequences."""

    def kind(good: tuple[np.ndarray, np.ndarray]) -> list[Row]:
        h, c = good
        found = rows(TypeError, **{"text": "hc", "number": 1, "array": np.stack(good), "one": (h,), "three": (h, c, c)})
        parts = matrix(h, fixed_rows=exact)
        found += [(f"h {what}", (value, c), error) for what, value, error in parts]
        return found + [(f"c {what}", (h, value), error) for what, value, error in matrix(c, fixed_rows=True)]

    return kind


def cache(_: Any) -> list[Row]:
    return rows(TypeError, **{"None": None, "text": "x", "tuple": (1, 2), "array": np.ones(3), "pair": ("y", "cache")})


def parameters(good: Any) -> list[Row]:
    import minidl

    other = minidl.Parameter(np.zeros(2, "f4" if good[0].data.dtype == "f8" else "f8"))
    found = rows(TypeError, **{"None": None, "number": 3, "text": "weights", "one": good[0], "arrays": [np.ones(2)]})
    found += rows(TypeError, layer=minidl.Linear(2, 2), names=[("w", good[0])], mixed=[*good, other])
    return found + rows(ValueError, empty=[], twice=[good[0], good[0]])


def mapping(good: dict[str, np.ndarray]) -> list[Row]:
    """A state_dict."""
    name, array = next((name, array) for name, array in good.items() if array.ndim)
    found = rows(TypeError, **{"None": None, "text": "x", "list": [1], "pairs": list(good.items()), "number": 1})
    fewer = {key: value for key, value in good.items() if key != name}
    wrong: dict[str, Any] = {"int keys": {3: array}, "missing": fewer, "more": {**good, "more": array}, "empty": {}}
    wrong |= {"renamed": {**fewer, "x": array}, "a key of another kind": {**good, 3: array}}
    for what, value in {
        "None": None,
        "text": "x",
        "number": 1.0,
        "set": {1},
        "ints": array.astype(int),
        "objects": array.astype(object),
        "complex": array.astype(complex),
        "bools": array.astype(bool),
        "another shape": array[..., None],
        "too short": array[:-1],
        "ragged": [[1.0], [1.0, 2.0]],
    }.items():
        wrong[f"a value that is {what}"] = {**good, name: value}
    return found + rows(ValueError, **wrong)


def path(_: Any) -> list[Row]:
    return rows(TypeError, **{"None": None, "number": 3, "bytes": b"x", "list": ["x"]})


def shape(dimensions: int | None = None) -> Kind:
    def kind(_: Any) -> list[Row]:
        found = rows(TypeError, **{"None": None, "number": 3, "text": "23", "floats": (2.0, 3.0), "bools": (True, 3)})
        found += rows(ValueError, zero=(0, 3), negative=(-1, 3)) + rows(TypeError, **{"None within": (None, 3)})
        if dimensions:
            found += rows(ValueError, **{"1-D": (3,), "3-D": (2, 3, 4), "0-d": ()})
        return found + rows(MemoryError, huge=(HUGE, 3), product=(2**40, 2**40), beyond=(10**40, 1))

    return kind
