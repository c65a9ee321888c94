"""Sequences of different lengths as packed rows, without padding.

Sorted by decreasing length and laid out time-major: all first items, then all second items, and so on.

    pack([[5, 6], [1, 2, 3], [9]])   data         1 5 9 | 2 6 | 3
                                     batch_sizes  3       2     1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import checks
from .backend import Array, Rng, generator, get, is_device, of, to_backend


class RowsById(NamedTuple):
    """The rows of a batch of ids (N,), sorted by id; rows of one id keep their order."""

    rows: Array  # (N,) int32
    starts: Array  # (R + 1,) int32: where each of the R distinct ids begins in `rows`, and the end
    largest: int  # largest and smallest id: what a layer needs in order to trust them
    smallest: int


class Packing(NamedTuple):
    """What accompanies a batch's rows through all layers; each layer takes from it what it needs."""

    batch_sizes: Sequence[int] | np.ndarray  # (T,) on the host: sequences alive at each step; never increases
    order: RowsById | None = None  # of ids on a GPU, sorted on the host: for Embedding
    step: int | None = None  # the training step's number, for Dropout; None means inference
    rows: np.ndarray | None = None  # (N,) on the host: the rows' positions in a larger batch, if this is part of one


class PackedSequence(NamedTuple):
    """Packed rows and their Packing; the first four fields are PyTorch's PackedSequence."""

    data: Array  # (N,) ids or (N, ...) rows, on the backend it was packed for
    batch_sizes: np.ndarray  # this field and the last three are as in Packing
    sorted_indices: np.ndarray  # (B,): the caller's index of each sequence in packed order
    unsorted_indices: np.ndarray  # (B,): the packed place of each of the caller's sequences
    order: RowsById | None = None
    step: int | None = None
    rows: np.ndarray | None = None


AnyPacking = Packing | PackedSequence


def pack(sequences: Sequence[Array], backend: str = "numpy") -> PackedSequence:
    """Pack 1-D id arrays, or (length, ...) arrays of rows, each with at least one item.

    Sequences of equal length keep the caller's order, so two packs of the same lengths line up. Ids become
    int32, and go to a GPU in one upload together with their order. Raises ValueError for an empty list or an empty
    sequence, TypeError for anything that is not numeric.
    """
    try:
        sequences = list(sequences)
    except TypeError:
        raise TypeError(f"sequences must be a list of arrays, got {type(sequences).__name__}") from None
    for index, sequence in enumerate(sequences):
        if is_device(sequence):
            raise TypeError(f"sequences[{index}] is a cupy array; sequences are packed on the host: minidl.to_host")
    arrays = [_array(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("sequences is empty; expected at least one")
    for index, array in enumerate(arrays):
        if array.dtype.kind not in "iuf":
            raise TypeError(f"sequences[{index}] must be integers or floats, got {array.dtype}")
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"sequences[{index}] is empty or not a sequence; expected at least one item")
        if array.shape[1:] != arrays[0].shape[1:]:
            shapes = f"{array.shape[1:]}, the first has {arrays[0].shape[1:]}"
            raise ValueError(f"sequences[{index}] has items of shape {shapes}")
    if all(array.dtype.kind in "iu" for array in arrays):
        arrays = [_int32("sequences", array) for array in arrays]
    lengths = np.array([len(array) for array in arrays])
    return _packed(np.concatenate(arrays), np.cumsum(lengths) - lengths, lengths, backend)


def pack_rows(ids: Array, starts: Array, lengths: Array, backend: str = "numpy") -> PackedSequence:
    """Pack slices of one array, ids[starts[b] : starts[b] + lengths[b]], without a Python loop.

    The result is that of `pack` for these slices, which may overlap. ids (M,), or rows (M, ...), are on the host and
    may be mapped from a file; starts and lengths (B,) are integers. Raises ValueError for a slice that is empty or not
    within ids, TypeError for anything that is not numeric.
    """
    if is_device(ids):
        raise TypeError("ids is a cupy array; sequences are packed on the host: minidl.to_host")
    rows = _array(ids)
    if rows.dtype.kind not in "iuf" or rows.ndim == 0:
        raise TypeError(f"ids must be an array of integers or floats, got {type(ids).__name__}")
    places = {"starts": _array(starts), "lengths": _array(lengths)}
    for name, array in places.items():
        if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be a non-empty list of ints, one per sequence")
        low = int(name == "lengths")
        if int(array.min()) < low or int(array.max()) > len(rows):
            wrong = array.min() if int(array.min()) < low else array.max()
            raise ValueError(f"{name} must be {low} to {len(rows)}, the length of ids, got {wrong}")
        places[name] = array.astype(np.int64)
    first, count = places.values()
    if len(first) != len(count):
        raise ValueError(f"starts and lengths must be of the same length, got {len(first)} and {len(count)}")
    end = int((first + count).max())
    if end > len(rows):
        raise ValueError(f"starts + lengths must be at most {len(rows)}, the length of ids, got {end}")
    return _packed(rows, first, count, backend)


def _packed(rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray, backend: str) -> PackedSequence:
    order = np.argsort(-lengths, kind="stable")
    batch_sizes = np.cumsum(np.bincount(lengths)[::-1])[::-1][1:]  # entry t: number of sequences longer than t
    data = rows[_time_major(starts[order], batch_sizes)]
    if data.dtype.kind in "iu":
        data = _int32("ids", data)
    places = (batch_sizes, order, np.argsort(order, kind="stable"))
    if backend == "cupy" and data.ndim == 1 and data.dtype == np.int32:
        by_id, (data,) = upload(data)
        return PackedSequence(data, *places, by_id)
    return PackedSequence(to_backend(data, backend), *places)


def place(ids: np.ndarray, *others: np.ndarray, like: Array) -> tuple[RowsById | None, list[Array]]:
    """Move `ids` and `others`, integer arrays on the host, to the backend of `like`: (order, [ids, *others]).

    A GPU gets them as int32 in one upload, together with the order of `ids`: with it in the packing, `Embedding` need
    not check or sort the ids. On NumPy order is None.
    """
    return upload(ids, *others) if is_device(like) else (None, [ids, *others])


def upload(ids: np.ndarray, *others: np.ndarray) -> tuple[RowsById, list[Array]]:
    """`place` for a GPU, and its order."""
    rows = np.argsort(_narrow(ids), kind="stable").astype(np.int32)
    ordered = ids[rows]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True]))).astype(np.int32)
    parts = [rows, starts, *(_int32("ids", array) for array in (ids, *others))]
    whole = get("cupy").asarray(np.concatenate(parts))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    there = [whole[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]
    return RowsById(there[0], there[1], int(ordered[-1]), int(ordered[0])), there[2:]


def _narrow(ids: np.ndarray) -> np.ndarray:
    """The narrowest dtype that fits: small integers sort in linear time."""
    return ids if ids.min() < 0 else ids.astype(np.min_scalar_type(int(ids.max())))


def unpack(batch: PackedSequence) -> list[Array]:
    """The sequences in the caller's order. To unpack a layer's rows y, use `batch._replace(data=y)`."""
    if not isinstance(batch, PackedSequence):
        raise TypeError(f"batch must be a PackedSequence, got {type(batch).__name__}")
    checks.array("batch.data", batch.data)
    if batch.data.ndim == 0:
        raise ValueError("batch.data must have rows, got shape ()")
    sizes = np.array(checks.batch_sizes(batch.batch_sizes, len(batch.data)))
    order = np.asarray(batch.unsorted_indices)
    if order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), np.arange(sizes[0])):
        raise ValueError(f"batch.unsorted_indices must contain 0 to {sizes[0] - 1}, each once")
    lengths = (sizes[None, :] > np.arange(sizes[0])[:, None]).sum(axis=1)  # in packed order
    ends = np.cumsum(lengths)
    place = np.argsort(_time_major(ends - lengths, sizes), kind="stable")  # the inverse permutation
    rows = batch.data[of(batch.data).asarray(place)]
    return [rows[ends[index] - lengths[index] : ends[index]] for index in order]


def bucketed_batches(lengths: Sequence[int] | np.ndarray, batch_size: int, rng: Rng = None) -> list[np.ndarray]:
    """All sequences in random batches of similar lengths: a list of index arrays.

    Sequences are shuffled, sorted by length (the shuffle decides among equal lengths), cut into batches of
    `batch_size`, and the batches are shuffled. Every sequence occurs once; the short batch can be anywhere.
    """
    sizes = _array(lengths)
    if sizes.ndim != 1 or len(sizes) == 0 or sizes.dtype.kind not in "iu":
        raise ValueError("lengths must be a non-empty list of ints, one per sequence")
    batch_size, rng = checks.size("batch_size", batch_size), generator(rng)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(sizes[order], kind="stable")]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def _array(values: Array) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # a list of lists of different lengths
        return np.asarray(None)


def _time_major(starts: np.ndarray, batch_sizes: np.ndarray) -> np.ndarray:
    """The source of each packed row (N,), for sequences in order of decreasing length that begin at `starts` (B,)."""
    times = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    sequences = np.arange(len(times)) - np.repeat(np.cumsum(batch_sizes) - batch_sizes, batch_sizes)
    return starts[sequences] + times


def _int32(name: str, ids: np.ndarray) -> np.ndarray:
    """`ids` as int32. One out of range would wrap around to another id, which nothing on a device checks."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    narrow = ids.astype(np.int32, copy=False)
    if not np.can_cast(ids.dtype, np.int32) and not np.array_equal(narrow, ids):
        raise ValueError(f"{name} must be within the range of int32")
    return narrow
