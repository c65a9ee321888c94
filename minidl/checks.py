"""Checks of arguments: each raises one line with the argument's name, what came and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from . import backend
from .backend import Array


def size(name: str, value: int) -> int:
    """`value` as an int of at least 1."""
    return integer(name, value, 1)


def integer(name: str, value: int, low: int) -> int:
    """`value` as an int of at least `low`."""
    try:
        number = _index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return number


def _index(value: object) -> int:
    """`value` as an int; TypeError for anything else, including True and False, which Python accepts as 1 and 0."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError
    return operator.index(value)  # type: ignore[arg-type]


def number(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    infinite: bool = False,
) -> float:
    """`value` as a finite float in [low, high), or in (low, high) with open_low; with `infinite` it may be inf."""
    try:
        if isinstance(value, (str, bytes, bool, np.bool_)) or getattr(value, "ndim", None):  # float() accepts these
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    except OverflowError:  # of a huge int
        result = math.inf
    in_range = low <= result < high or (infinite and result == math.inf)
    if not in_range or (open_low and result == low):
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"{name} must be {'' if infinite else 'finite, '}{bounds}, got {value}")
    return result


def float_dtype(dtype: object, name: str = "dtype") -> np.dtype:
    """`dtype` as float32 or float64, the two dtypes that layers support."""
    try:
        # np.dtype(None) would be float64
        result = np.dtype(object if dtype is None else dtype)  # type: ignore[call-overload]
    except TypeError:
        result = np.dtype(object)
    if result.name not in ("float32", "float64"):
        raise TypeError(f"{name} must be 'float32' or 'float64', got {dtype!s}")
    return result


def fits(name: str, value: np.ndarray, dtype: np.dtype) -> None:
    """Check that no finite value of `value` becomes infinite as `dtype`."""
    if value.dtype.itemsize > dtype.itemsize:
        with np.errstate(over="ignore"):
            beyond = np.isinf(value.astype(dtype)) & np.isfinite(value)
        if beyond.any():
            raise ValueError(f"{name} must fit into {dtype}, got {value[beyond][0]:g}")


def array(name: str, value: Array) -> None:
    """Check that `value` is an array, not a list or a scalar."""
    if not (isinstance(value, np.ndarray) or backend.is_device(value)):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")


def cache(value: object, kind: type) -> None:
    """Check that `value` is a cache of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"cache must be the {kind.__name__} that forward returned, got {type(value).__name__}")


def matrix(name: str, value: Array, width: int, like: Array, rows: int | None = None) -> None:
    """Check that `value` is (N, width) with N >= 1 (or N == rows), with the library and dtype of the weights `like`."""
    array(name, value)
    backend.require_same(weight=like, **{name: value})
    expected = f"({'N' if rows is None else rows}, {width})"
    if value.ndim != 2 or value.shape[1] != width or (rows is not None and value.shape[0] != rows):
        raise ValueError(f"{name} must have shape {expected}, got {value.shape}")
    if value.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch; expected shape {expected} with at least one row")
    if value.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} like the layer, got {value.dtype}")


def ids(name: str, values: Array, limit: int, like: Array, rows: int | None = None) -> Array:
    """`values` as a 1-D integer array on the backend of `like`, each in [0, limit).

    Ids from the host are checked and, for a layer on a GPU, uploaded. Ids already on the device are trusted: checking
    them would make the host wait.
    """
    on_device = backend.is_device(values)
    try:
        array = values if on_device else np.asarray(values)
        if array.dtype.kind not in "biufc":  # None, text
            raise TypeError
    except (TypeError, ValueError):  # ragged lists, lists of device arrays, a PackedSequence
        raise TypeError(f"{name} must be a 1-D array of integers, got {type(values).__name__}") from None
    if on_device and not backend.is_device(like):
        raise TypeError(f"{name} is a cupy array but the layer's weight is a numpy array")
    if array.ndim != 1:
        raise ValueError(f"{name} must be 1-D, one id per row, got shape {array.shape}")
    if rows is not None and array.shape[0] != rows:
        raise ValueError(f"{name} must contain {rows} ids, one per row, got {array.shape[0]}")
    if array.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch; expected at least one id")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if on_device:
        return array
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        raise IndexError(f"{name} contains the id {low if low < 0 else high}; expected 0 to {limit - 1}")
    if array.dtype == np.uint64:
        array = array.astype(np.int64)  # NumPy 1 does not index with uint64
    return backend.of(like).asarray(array)


def packing(value: object, rows: int) -> list[int]:
    """The checked batch_sizes of a Packing, a PackedSequence or the like, for `rows` rows."""
    if not hasattr(value, "batch_sizes"):
        given = f"got {type(value).__name__}"
        raise TypeError(f"packing must be a PackedSequence or a minidl.Packing(batch_sizes), {given}")
    return batch_sizes(value.batch_sizes, rows)


def state(name: str, value: object, rows: int, width: int, like: Array, exact: bool = False) -> tuple[Array, Array]:
    """`value` as an LSTM's (h, c), each with `rows` rows (exact) or at least as many, on the backend of `like`."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise TypeError(f"{name} must be a pair (h, c), got {type(value).__name__}")
    h, c = value
    matrix(f"{name} h", h, width, like=like, rows=rows if exact else None)
    matrix(f"{name} c", c, width, like=like, rows=len(h))
    if len(h) < rows:
        raise ValueError(f"{name} must have at least the {rows} rows of batch_sizes[0], got {len(h)}")
    return h, c


def batch_sizes(values: Sequence[int] | Array, rows: int) -> list[int]:
    """`values` as a list of ints that never increase, are at least 1 and sum to `rows`."""
    if backend.is_device(values):
        raise TypeError("batch_sizes must be on the host, got a cupy array")
    try:
        sizes = [_index(value) for value in values]
    except TypeError:
        shown = " ".join(repr(values).split())[:100]
        raise TypeError(f"batch_sizes must be a sequence of ints, got {shown}") from None
    if not sizes:
        raise ValueError("batch_sizes is empty; expected one size per time step")
    if sizes[-1] < 1:
        raise ValueError(f"batch_sizes must be at least 1 at every step, got {sizes[-1]} at the last")
    for step, (before, after) in enumerate(pairwise(sizes)):
        if after > before:
            raise ValueError(f"batch_sizes must not increase, got {before} then {after} at step {step + 1}")
    if sum(sizes) != rows:
        raise ValueError(f"batch_sizes must sum to the {rows} rows of x, got {sum(sizes)}")
    return sizes


def state_dict(
    owner: object, tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], integers: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """`tensors` on the host, checked for names and shapes; all floating point except `integers`."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a dict as returned by state_dict, got {type(tensors).__name__}")
    missing, surplus = sorted(shapes.keys() - tensors.keys()), sorted(map(str, tensors.keys() - shapes.keys()))
    if missing or surplus:
        raise ValueError(f"state_dict does not fit {type(owner).__name__}: missing {missing}, unexpected {surplus}")
    host = {}
    for name, shape in shapes.items():
        try:
            host[name] = backend.to_host(tensors[name])
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from None
        if host[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {host[name].shape}")
        if host[name].dtype.kind not in ("iu" if name in integers else "f"):
            expected = "an integer" if name in integers else "floating point"
            raise ValueError(f"{name} must be {expected}, got {host[name].dtype}")
    return host
