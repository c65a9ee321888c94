"""Kernel launches on CuPy's double: what is refused, how many there are, and the order of ids on a device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import device_double
import device_kernels
import numpy as np
import pytest
from helpers import refuses

import minidl
import minidl.kernels.cuda as kernels
from minidl.kernels.cuda import embedding, launch, optimizers, product


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    return device_double.install(monkeypatch)


SOURCES = kernels.sources(*device_kernels.optimizers_rules())


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_whole_and_has_its_formula(name: str) -> None:
    source, kernel = SOURCES[name], name.split()[0]
    assert re.search(rf'extern "C" __global__ void {kernel}\(', source)
    assert source.count("{") == source.count("}")
    assert ("typedef double real;" in source) == name.endswith("float64")
    for missing in ("#include", "std::", "INFINITY", "__shfl"):
        assert missing not in source
    assert callable(getattr(device_kernels, kernel))


def test_every_optimizers_rule_has_a_kernel() -> None:
    rules = {"sgd", "momentum", "adagrad", "adadelta", "adam", "adamw"}
    assert {f"{name} {dtype}" for name in rules for dtype in ("float32", "float64")} <= SOURCES.keys()


SCALE = launch.Kernel(r"""
extern "C" __global__ void sum_losses(  // borrows the formula of that name
    const real* losses,  // (N, 1)
    double* result,
    long long N,
    double total)
{ }
""")


def test_a_launch_converts_its_numbers(cupy: Any) -> None:
    losses, result = cupy.asarray(np.arange(4, dtype=np.float32)), cupy.zeros(())
    SCALE.on(losses, result)(1, 4, 2)  # ints, of which the second becomes a double
    assert float(result) == 3.0
    assert cupy.calls == ["upload", "memset", "sum_losses"]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda cupy: (cupy.zeros(4), cupy.zeros(4, "float32")), TypeError, ("result must be float64", "float32")),
        (lambda cupy: (cupy.zeros(4, "int32"), cupy.zeros(())), TypeError, ("sum_losses", "int32")),
        (lambda cupy: (cupy.zeros((4, 2))[:, 0], cupy.zeros(())), ValueError, ("losses must be C-contiguous",)),
        (lambda cupy: (cupy.zeros(4), np.zeros(())), TypeError, ("result must be a cupy array", "ndarray")),
        (lambda cupy: (cupy.zeros(4), 1.0), TypeError, ("result must be a cupy array", "float")),
    ],
)
def test_a_launch_refuses_what_the_kernel_would_misread(
    make: Callable[[Any], Any], error: type[Exception], words: tuple[str, ...], cupy: Any
) -> None:
    arrays = make(cupy)
    cupy.calls.clear()
    with refuses(error, *words):
        SCALE.on(*arrays)
    assert cupy.calls == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", ["NN", "NT", "TN", "TT"])
def test_a_product_is_numpys(transposed: str, dtype: str, cupy: Any) -> None:
    rng = np.random.default_rng(0)
    a, b, start = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((3, 2), (2, 5), (3, 5)))
    there = [cupy.asarray(x if letter == "N" else x.T.copy()) for x, letter in zip((a, b), transposed, strict=True)]
    out = cupy.asarray(start)
    product.product(*there, out, add=True, transposed=transposed)
    assert (out.get() == start + a @ b).all()
    product.product(cupy.asarray(a)[:, ::-1], cupy.asarray(b[::-1].copy()), out)  # copied, since it has gaps
    assert (out.get() == a @ b).all()


def test_products_of_rows_touch_no_others(cupy: Any) -> None:
    a, b = np.arange(12.0).reshape(6, 2), np.arange(10.0).reshape(5, 2)
    out = cupy.zeros((4, 5))
    multiply = product.products_of_rows(cupy.asarray(a), cupy.asarray(b), out, add=True, transposed="T")
    multiply(2, 3, 1)
    multiply(1, 0, 2)
    expected = np.zeros((4, 5))
    expected[1:3] += a[3:5] @ b.T
    expected[2:3] += a[:1] @ b.T
    assert (out.get() == expected).all()


@pytest.mark.parametrize(
    ("a", "b", "out", "error", "words"),
    [
        ((2, 3), (3, 4), (2, 5), ValueError, "(2, 5)"),
        ((2, 3), (4, 3), (2, 3), ValueError, "(4, 3)"),
        ((2, 3), (3, 4), "gaps", ValueError, "out must be C-contiguous"),
        ((2, 3), (3, 4), "float32", TypeError, "a must be float32"),
        ((2, 3), (3, 4), "host", TypeError, "out must be a cupy array"),
    ],
)
def test_a_product_refuses_what_it_would_misread(
    a: Any, b: Any, out: Any, error: type[Exception], words: str, cupy: Any
) -> None:
    special = {"gaps": cupy.zeros((2, 5))[:, :4], "float32": cupy.zeros((2, 4), "float32"), "host": np.zeros((2, 4))}
    target = special[out] if isinstance(out, str) else cupy.zeros(out)
    with refuses(error, words):
        product.product(cupy.zeros(a), cupy.zeros(b), target)
    with refuses(error, words):
        product.products_of_rows(cupy.zeros(a), cupy.zeros(b), target)
    assert "product" not in cupy.calls


def test_work_on_another_gpu_than_the_current_one_is_refused(cupy: Any) -> None:
    layer = minidl.LSTM(3, 4, backend="cupy")
    x, grad = cupy.ones((2, 3), "float32"), cupy.ones(3, "float32")
    cupy.cuda.runtime.getDevice = lambda: 1
    cupy.calls.clear()
    words = "an array on GPU 0 while GPU 1 is current", "`with cupy.cuda.Device(0):`"
    with refuses(ValueError, "the product", *words):
        layer.forward(x, minidl.Packing([2]))
    with refuses(ValueError, "sum_squares", *words):
        optimizers.clip_grad_norm([grad], 1.0)
    assert not {"product", "lstm_forward", "sum_squares"} & set(cupy.calls)


def test_a_batch_of_another_shape_reaches_no_kernel(cupy: Any) -> None:
    layer, head = minidl.Embedding(5, 4, backend="cupy"), minidl.LinearCrossEntropy(4, 5, backend="cupy")
    batch, other = minidl.pack([[0, 1, 4]], backend="cupy"), minidl.pack([[0, 1]], backend="cupy")
    _, cache = layer.forward(batch.data, other)
    cupy.calls.clear()
    with refuses(ValueError, "order.rows", "(3,)", "(2,)"):
        layer.backward(cupy.zeros((3, 4), "float32"), cache)
    with refuses(ValueError, "targets", "3 ids", "2"):
        head.forward_backward(cupy.zeros((3, 4), "float32"), other.data)
    assert not {"embedding_runs", "softmax_rows"} & set(cupy.calls)


@pytest.mark.parametrize("wrong", [5, -1])
def test_a_target_out_of_range_that_only_the_device_knows_shows_in_the_loss(wrong: int, cupy: Any) -> None:
    head = minidl.LinearCrossEntropy(4, 5, backend="cupy", rng=0)
    optimizer = minidl.Adam(head.parameters())
    x, before = minidl.to_backend(np.ones((2, 4), np.float32), "cupy"), head.state_dict()
    loss, _ = head.forward_backward(x, cupy.asarray(np.array([0, wrong])))
    optimizer.step()
    assert np.isnan(float(loss))
    with refuses(FloatingPointError, "not finite"):
        minidl.to_host(loss)
    assert all((values == before[name]).all() for name, values in head.state_dict().items())


IDS = [[3, 0, 3, 3, 1], [0, 3], [4]]


def gradient(ids: Any, order: Any, rows: np.ndarray) -> np.ndarray:
    layer = minidl.Embedding(6, 37, dtype="float64", backend="cupy", rng=0)
    layer.weight.grad[...] = 0.5
    _, cache = layer.forward(ids, minidl.Packing([len(ids)], order))
    layer.backward(minidl.to_backend(rows, "cupy"), cache)
    return minidl.to_host(layer.weight.grad)


def test_the_gradient_of_an_embedding_is_the_same_by_every_way(cupy: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 37))
    host, device = minidl.pack(IDS), minidl.pack(IDS, backend="cupy")
    expected = np.full((6, 37), 0.5)
    np.add.at(expected, host.data, rows)
    for ids, order, kernel in (
        (device.data, device.order, "embedding_runs"),
        (host.data, None, "embedding_runs"),
        (host.data.tolist(), None, "embedding_runs"),
        (device.data, None, "embedding_search"),
        (cupy.asarray(host.data.astype(np.int64)), None, "embedding_search"),
    ):
        cupy.calls.clear()
        np.testing.assert_allclose(gradient(ids, order, rows), expected, rtol=1e-14)
        assert kernel in cupy.calls and cupy.calls.count("upload") == 2 + (ids is not device.data and kernel[-1] == "s")


def test_packing_for_a_device_is_one_upload_of_ids_in_their_order(cupy: Any) -> None:
    cupy.calls.clear()
    batch = minidl.pack(IDS, backend="cupy")
    assert cupy.calls == ["upload"] and cupy.syncs == []
    assert batch.data.dtype == np.int32 and batch.data.get().tolist() == [3, 0, 4, 0, 3, 3, 3, 1]
    assert batch.order is not None and (batch.order.smallest, batch.order.largest) == (0, 4)
    assert batch.order.rows.get().tolist() == [1, 3, 7, 0, 4, 5, 6, 2]
    assert batch.order.starts.get().tolist() == [0, 2, 3, 7, 8]
    assert minidl.pack(IDS).order is None
    assert minidl.pack([np.ones((2, 3))], backend="cupy").order is None


@pytest.mark.parametrize(("ids", "wrong"), [([[1, 7], [6]], 7), ([[-1, 2]], -1)])
def test_ids_out_of_range_are_known_by_their_order(ids: list[list[int]], wrong: int) -> None:
    batch = minidl.pack(ids, backend="cupy")
    with refuses(IndexError, "ids", wrong, "0 to 5"):
        minidl.Embedding(6, 3, backend="cupy").forward(batch.data, batch)


def test_ids_that_int32_cannot_hold_do_not_come_round_as_others(cupy: Any) -> None:
    weight, ids = cupy.zeros((6, 3)), np.array([0, 1])
    for wrong in (np.array([2**32 + 1, 0]), np.array([2**31, 0], np.uint32), np.array([2**64 - 1, 0], np.uint64)):
        with refuses(ValueError, "range of int32"):
            minidl.sequences.place(ids, wrong, like=weight)
        with refuses(ValueError, "range of int32"):
            minidl.sequences.place(wrong, like=weight)
    with refuses(TypeError, "integers", "float64"):
        minidl.sequences.place(ids, np.ones(2), like=weight)


class Model(minidl.Layer):
    """As the poems' model, with as many layers in the middle as one likes."""

    def __init__(self, layers: int) -> None:
        options: Any = {"backend": "cupy", "rng": 0}
        self.embedding, self.head = minidl.Embedding(9, 6, **options), minidl.LinearCrossEntropy(6, 9, **options)
        self.dropout = minidl.Dropout(0.5, **options)
        self.lstms = [minidl.LSTM(6, 6, **options) for _ in range(layers)]
        self.body = minidl.Sequential(self.embedding, self.dropout, *self.lstms, self.dropout)

    def forward_backward(self, ids: Any, targets: Any, packing: minidl.Packing) -> Any:
        h, caches = self.body.forward(ids, packing)
        loss, dh = self.head.forward_backward(h, targets)
        self.body.backward(dh, caches)
        return loss


def calls_of_a_training_step(cupy: Any, lengths: list[int], layers: int = 1) -> list[str]:
    model = Model(layers)
    optimizer = minidl.Adam(model.parameters())
    x, y = (minidl.pack([np.arange(length) % 9 for length in lengths]) for _ in range(2))
    calls: list[str] = []
    for step in range(3):
        cupy.calls.clear(), cupy.syncs.clear()
        order, (ids, targets) = minidl.sequences.place(x.data, y.data, like=model.head.bias.data)
        optimizer.zero_grad()
        model.forward_backward(ids, targets, minidl.Packing(x.batch_sizes, order, step))
        minidl.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        calls = list(cupy.calls)
        assert cupy.syncs == []
    return calls


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [7, 4, 4, 1]])
def test_the_calls_of_a_training_step_keep_to_the_budget(lengths: list[int], cupy: Any) -> None:
    """Two a time step forward (a product and a kernel), two backward, and 40 for all else."""
    counts = Counter(calls_of_a_training_step(cupy, lengths))
    steps = max(lengths)
    assert counts["lstm_forward"] == counts["lstm_backward"] == steps
    assert counts["upload"] == 1
    assert sum(counts.values()) - 4 * steps <= 30, counts


def test_a_time_step_more_costs_four_calls_and_a_parameter_more_none_of_the_optimizer(cupy: Any) -> None:
    first, second = (Counter(calls_of_a_training_step(cupy, [length, 3])) for length in (8, 9))
    assert second - first == {"product": 2, "lstm_forward": 1, "lstm_backward": 1}
    third = Counter(calls_of_a_training_step(cupy, [8, 3], layers=3))
    for name in ("adam", "find_bad", "sum_squares", "clip_norm"):
        assert third[name] == first[name] == 1


def test_rows_of_ids_are_sorted_like_numpys_stable_sort(cupy: Any) -> None:
    ids = np.random.default_rng(0).integers(-3, 70_000, 500)
    order, (there, again) = embedding.upload(ids, ids)
    assert order.rows.get().tolist() == np.argsort(ids, kind="stable").tolist()
    assert there.get().tolist() == again.get().tolist() == ids.tolist()
    assert len(order.starts) == len(set(ids.tolist())) + 1
