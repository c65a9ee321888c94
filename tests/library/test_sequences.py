"""pack, unpack and bucketed_batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st

import minidl

lengths_lists = st.lists(st.integers(1, 8), min_size=1, max_size=9)


def test_the_example_of_the_docstring() -> None:
    batch = minidl.pack([[5, 6], [1, 2, 3], [9]])
    assert batch.data.tolist() == [1, 5, 9, 2, 6, 3]
    assert batch.batch_sizes.tolist() == [3, 2, 1]
    assert batch.sorted_indices.tolist() == [1, 0, 2] and batch.unsorted_indices.tolist() == [1, 0, 2]
    assert [part.tolist() for part in minidl.unpack(batch)] == [[5, 6], [1, 2, 3], [9]]


@given(lengths=lengths_lists, width=st.integers(0, 2))
def test_unpack_undoes_pack(lengths: list[int], width: int) -> None:
    """Width 0: 1-D ids; otherwise rows."""
    rng = np.random.default_rng([*lengths, width])
    shape = (width,) if width else ()
    sequences = [rng.integers(0, 1000, (length, *shape)) for length in lengths]
    batch = minidl.pack(sequences)
    for got, expected in zip(minidl.unpack(batch), sequences, strict=True):
        assert (got == expected).all() and got.shape == expected.shape
    rows = np.arange(sum(lengths)) * 1.5
    unpacked = minidl.unpack(batch._replace(data=rows))
    assert [len(part) for part in unpacked] == lengths
    assert (np.sort(np.concatenate(unpacked)) == rows).all()


@given(lengths=lengths_lists)
def test_rows_are_time_major_sorted_by_falling_length_and_without_holes(lengths: list[int]) -> None:
    """Item t of sequence b is named (b, t): row by row they must be where the definition has them."""
    batch = minidl.pack([[100 * b + t for t in range(length)] for b, length in enumerate(lengths)])
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])  # Python's sort is stable
    expected = [100 * b + t for t in range(max(lengths)) for b in order if lengths[b] > t]
    assert batch.data.tolist() == expected and batch.data.dtype == np.int32
    assert batch.sorted_indices.tolist() == order
    assert batch.batch_sizes.tolist() == [sum(n > t for n in lengths) for t in range(max(lengths))]
    assert (batch.sorted_indices[batch.unsorted_indices] == np.arange(len(lengths))).all()
    assert (np.diff(batch.batch_sizes) <= 0).all() and batch.batch_sizes.sum() == len(batch.data)


def test_packs_of_the_same_lengths_line_up() -> None:
    inputs = minidl.pack([[1, 2], [3], [4, 5], [6]])
    targets = minidl.pack([[2, 0], [0], [5, 0], [0]])
    assert inputs.sorted_indices.tolist() == targets.sorted_indices.tolist() == [0, 2, 1, 3]
    pairs = dict(zip(inputs.data.tolist(), targets.data.tolist(), strict=True))
    assert pairs == {1: 2, 2: 0, 3: 0, 4: 5, 5: 0, 6: 0}


def test_a_layers_rows_come_back_in_the_callers_order() -> None:
    embedding = minidl.Embedding(10, 2, dtype="float64", rng=0)
    sequences = [[5, 6], [1, 2, 3], [9]]
    batch = minidl.pack(sequences)
    rows = minidl.unpack(batch._replace(data=embedding(batch.data)))
    for got, ids in zip(rows, sequences, strict=True):
        assert (got == embedding.weight.data[ids]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_keep_their_dtype(dtype: Any) -> None:
    assert minidl.pack([np.ones((2, 3), dtype), np.zeros((1, 3), dtype)]).data.dtype == dtype


def test_the_callers_arrays_are_copied() -> None:
    ids = np.array([1, 2, 3], np.int32)
    batch = minidl.pack([ids])
    batch.data[...] = 7
    assert ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("sequences", "error", "words"),
    [
        ([], ValueError, ["sequences", "empty"]),
        ([[1], []], ValueError, ["sequences[1]", "at least one item"]),
        ([[1], 2], ValueError, ["sequences[1]"]),
        ([[[1, 2]], [[1, 2, 3]]], ValueError, ["sequences[1]", "(3,)", "(2,)"]),
        ([[1], [[1]]], ValueError, ["sequences[1]", "(1,)", "()"]),
        ([["a"]], TypeError, ["sequences[0]", "integers or floats"]),
        ([[True]], TypeError, ["sequences[0]", "bool"]),
        ([[1], [None]], TypeError, ["sequences[1]", "object"]),
        ([[2**31]], ValueError, ["int32"]),
        ([[-(2**31) - 1]], ValueError, ["int32"]),
        ([np.array([2**64 - 1], np.uint64)], ValueError, ["int32"]),
    ],
)
def test_what_cannot_be_packed_is_refused(sequences: Any, error: type[Exception], words: list[str]) -> None:
    with refuses(error, *words):
        minidl.pack(sequences)


def test_ids_of_different_integer_types_stay_integers() -> None:
    """NumPy joins int64 and uint64 into float64, which no Embedding takes."""
    batch = minidl.pack([np.array([1, 2], np.int64), np.array([3], np.uint64)])
    assert batch.data.dtype == np.int32 and batch.data.tolist() == [1, 3, 2]


@pytest.mark.parametrize("sizes", [[3, 2], [1, 2, 3], []])
def test_unpack_refuses_sizes_that_do_not_fit(sizes: list[int]) -> None:
    batch = minidl.pack([[5, 6], [1, 2, 3], [9]])
    with refuses(ValueError, "batch_sizes", keep=batch.data):
        minidl.unpack(batch._replace(batch_sizes=np.array(sizes, int)))


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_bucketed_batches_hold_all_once_with_near_lengths(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = minidl.bucketed_batches(lengths, batch_size, rng=seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = sorted(len(batch) for batch in batches)
    assert sizes[1:] == [batch_size] * (len(sizes) - 1) and 1 <= sizes[0] <= batch_size
    # Sorted by length, batches follow each other without overlap: no neighbours could be nearer.
    spans = sorted((min(found), max(found)) for found in ([lengths[i] for i in batch] for batch in batches))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_bucketed_batches_are_shuffled_among_equals_and_among_batches() -> None:
    lengths = [3] * 40 + [9] * 40
    first, second = (minidl.bucketed_batches(lengths, 10, rng=seed) for seed in (0, 1))
    assert [b.tolist() for b in first] == [b.tolist() for b in minidl.bucketed_batches(lengths, 10, rng=0)]
    assert {frozenset(b.tolist()) for b in first} != {frozenset(b.tolist()) for b in second}
    order = [lengths[batch[0]] for batch in first]
    assert order != sorted(order) and order != sorted(order, reverse=True)
    assert first[0].tolist() != sorted(first[0].tolist())


def test_where_the_short_batch_comes_is_left_to_chance() -> None:
    places = {
        next(k for k, batch in enumerate(minidl.bucketed_batches(range(1, 12), 4, rng=seed)) if len(batch) < 4)
        for seed in range(20)
    }
    assert places == {0, 1, 2}


@pytest.mark.parametrize("lengths", [[], [[1, 2]], [1.5, 2.0], 3, "abc"])
def test_bad_lengths_are_refused(lengths: Any) -> None:
    with refuses(ValueError, "lengths", "ints"):
        minidl.bucketed_batches(lengths, 2)


def test_a_bad_batch_size_is_refused() -> None:
    with refuses(ValueError, "batch_size", "at least 1", "0"):
        minidl.bucketed_batches([1, 2], 0)
    with refuses(TypeError, "batch_size", "int", "float"):
        minidl.bucketed_batches([1, 2], 2.0)  # type: ignore[arg-type]
    with refuses(TypeError, "rng", "str"):
        minidl.bucketed_batches([1, 2], 2, rng="x")  # type: ignore[arg-type]


def test_the_shuffle_decides_among_equals() -> None:
    lengths = np.tile([2, 1], 300)
    order = np.random.default_rng(0).permutation(600)
    (batch,) = minidl.bucketed_batches(lengths, 600, rng=0)
    assert batch.tolist() == [*order[lengths[order] == 1], *order[lengths[order] == 2]]


# From one array


@given(lengths=lengths_lists, width=st.integers(0, 2), dtype=st.sampled_from(["uint8", "int64", "uint64", "float32"]))
def test_pack_rows_packs_what_pack_does(lengths: list[int], width: int, dtype: str) -> None:
    rng = np.random.default_rng([*lengths, width])
    rows = rng.integers(0, 200, (12, width) if width else 12).astype(dtype)
    starts = [int(rng.integers(0, 13 - length)) for length in lengths]  # they may overlap
    packed = minidl.pack_rows(rows, starts, lengths)
    expected = minidl.pack([rows[start : start + length] for start, length in zip(starts, lengths, strict=True)])
    assert packed.data.dtype == expected.data.dtype
    for got, wanted in zip(packed[:4], expected[:4], strict=True):
        assert (got == wanted).all() and got.shape == wanted.shape


def test_pack_rows_leaves_a_mapped_file_where_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(1000, dtype=np.uint16))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert minidl.pack_rows(mapped, [990, 3], [2, 3]).data.tolist() == [3, 990, 4, 991, 5]


def test_pack_rows_needs_no_more_memory_than_there_are_rows() -> None:
    """One long sequence among many short ones: a mask of all steps and sequences would have 10 ** 10 places."""
    lengths = np.ones(100_000, int)
    lengths[7] = 100_000
    packed = minidl.pack_rows(np.arange(100_000), np.zeros(100_000, int), lengths)
    assert len(packed.data) == 199_999 and packed.batch_sizes.tolist()[:3] == [100_000, 1, 1]


@pytest.mark.parametrize(
    ("starts", "lengths", "words"),
    [
        ([0, 8], [2, 2], ["starts + lengths", "at most 9", "got 10"]),
        ([-1], [2], ["starts", "0 to 9", "got -1"]),
        ([0], [0], ["lengths", "1 to 9", "got 0"]),
        ([0, 1], [1], ["same length", "2 and 1"]),
        ([], [], ["starts", "non-empty"]),
    ],
)
def test_what_pack_rows_refuses(starts: list[int], lengths: list[int], words: list[str]) -> None:
    with refuses(ValueError, *words):
        minidl.pack_rows(np.arange(9), starts, lengths)
