"""Both losses and their gradients against NumPy from equal values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import agree
from test_gpu_layers import both_dtypes, normal
from twins import gradients_agree, there, twins, zero_grads

import minidl

pytestmark = pytest.mark.gpu
# rows, features, classes
SIZES = [(1, 1, 2), (5, 3, 4), (33, 8, 65), (70, 20, 1030)]
ids_on_both = pytest.mark.parametrize("ids_on", ["host", "device"])


def targets_of(rows: int, classes: int) -> np.ndarray:
    targets = np.random.default_rng(3).integers(0, classes, rows)
    targets[-1] = classes - 1
    return targets


@both_dtypes
@ids_on_both
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize(("rows", "_", "classes"), SIZES)
def test_softmax_cross_entropy(rows: int, _: int, classes: int, scale: float, ids_on: str, dtype: str) -> None:
    logits, targets = normal((rows, classes), dtype, scale=scale), targets_of(rows, classes)
    loss, dlogits = minidl.softmax_cross_entropy(logits, targets)
    given = there(targets) if ids_on == "device" else targets
    loss2, dlogits2 = minidl.softmax_cross_entropy(there(logits), given)
    agree("softmax_cross_entropy loss", loss2, loss, dtype=dtype)
    agree("softmax_cross_entropy gradient", dlogits2, dlogits, "dlogits")


def test_softmax_cross_entropy_with_forbidden_classes() -> None:
    logits = normal((6, 9), "float32")
    logits[:, ::2] = -np.inf
    targets = np.array([1, 3, 5, 7, 1, 3])
    loss, dlogits = minidl.softmax_cross_entropy(logits, targets)
    loss2, dlogits2 = minidl.softmax_cross_entropy(there(logits), targets)
    agree("softmax_cross_entropy loss", loss2, loss, dtype="float32")
    agree("softmax_cross_entropy gradient", dlogits2, dlogits, "dlogits")


@both_dtypes
@ids_on_both
@pytest.mark.parametrize("total", [None, 1000.0])
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize(("rows", "features", "classes"), SIZES)
def test_linear_cross_entropy(
    rows: int, features: int, classes: int, scale: float, total: float | None, ids_on: str, dtype: str
) -> None:
    host, device = twins(minidl.LinearCrossEntropy, features, classes, dtype=dtype)
    x, targets = normal((rows, features), dtype, scale=scale), targets_of(rows, classes)
    given = there(targets) if ids_on == "device" else targets
    agree("LinearCrossEntropy loss", device(there(x), given, total), host(x, targets, total), dtype=dtype)
    agree("LinearCrossEntropy logits", device.logits(there(x)), host.logits(x))
    for _ in range(2):
        loss, dx = host.forward_backward(x, targets, total)
        loss2, dx2 = device.forward_backward(there(x), given, total)
        agree("LinearCrossEntropy loss", loss2, loss, dtype=dtype)
        agree("LinearCrossEntropy gradient", dx2, dx, "dx")
        gradients_agree("LinearCrossEntropy gradient", device, host)


def test_linear_cross_entropy_where_the_exponentials_would_overflow() -> None:
    host, device = twins(minidl.LinearCrossEntropy, 5, 40)
    x, targets = normal((9, 5), "float32", scale=1e3), targets_of(9, 40)
    agree("LinearCrossEntropy loss", device(there(x), targets), host(x, targets), dtype="float32")
    loss, dx = device.forward_backward(there(x), targets)
    agree("LinearCrossEntropy loss", loss, host(x, targets), dtype="float32")
    assert np.isfinite(minidl.to_host(dx)).all()


def test_of_one_class_nothing_is_to_be_learnt() -> None:
    head = minidl.LinearCrossEntropy(3, 1, backend="cupy", rng=0)
    loss, dx = head.forward_backward(there(normal((4, 3), "float32")), np.zeros(4, np.int32))
    results = [minidl.to_host(value) for value in (loss, dx, head.weight.grad, head.bias.grad)]
    assert max(float(np.abs(values).max()) for values in results) < 1e-6


@both_dtypes
def test_linear_cross_entropy_with_the_embeddings_weight(dtype: str) -> None:
    embeddings = twins(minidl.Embedding, 7, 4, dtype=dtype)
    places: Any = (np.asarray, there)
    x, targets, ids, dy = normal((9, 4), dtype), targets_of(9, 7), np.arange(5), normal((5, 4), dtype, 1)
    heads = []
    for embedding, place, backend in zip(embeddings, places, ("numpy", "cupy"), strict=True):
        head = minidl.LinearCrossEntropy(4, 7, weight=embedding.weight, rng=2, dtype=dtype, backend=backend)
        zero_grads(head)
        embedding.backward(place(dy), embedding.forward(ids)[1])
        head.forward_backward(place(x), targets)
        heads.append(head)
    gradients_agree("tied weights", heads[1], heads[0])


def test_the_head_takes_its_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from minidl.kernels.cuda import softmax

    host, device = twins(minidl.LinearCrossEntropy, 6, 50, dtype="float32")
    x, targets = normal((23, 6), "float32"), targets_of(23, 50)
    loss, dx = host.forward_backward(x, targets)
    monkeypatch.setattr(softmax, "BLOCK_BYTES", 5 * 50 * 4)
    assert len(softmax._blocks(x, 50)) == 5
    loss2, dx2 = device.forward_backward(there(x), targets)
    agree("LinearCrossEntropy loss", loss2, loss, dtype="float32")
    agree("LinearCrossEntropy gradient", dx2, dx, "dx")
    gradients_agree("LinearCrossEntropy gradient", device, host)
