"""Training on CuPy's double: NumPy's numbers, no hidden waits, and gradients that are not finite are never applied."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import device_double
import numpy as np
import pytest
from checkpoint_helpers import same
from helpers import filled, refuses
from small_model import cut_for

import minidl

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: minidl.SGD(params, lr=0.1),
    "SGD with momentum": lambda params: minidl.SGD(params, lr=0.1, momentum=0.9),
    "AdaGrad": lambda params: minidl.AdaGrad(params, lr=0.1),
    "Adadelta": lambda params: minidl.Adadelta(params),
    "Adam": lambda params: minidl.Adam(params, lr=0.01),
    "AdamW": lambda params: minidl.AdamW(params, lr=0.01, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())

INPUTS = [[0, 1, 2, 2, 4], [4], [3, 3, 0]]
TARGETS = [[1, 2, 2, 4, 0], [1], [3, 0, 4]]


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    return device_double.install(monkeypatch)


class Model(minidl.Layer):
    """Embedding, LSTM, dropout, and a head that shares the embedding's weight."""

    def __init__(self, backend: str, dtype: str) -> None:
        options: Any = {"backend": backend, "dtype": dtype}
        self.embedding = minidl.Embedding(5, 4, rng=0, **options)
        self.lstm = minidl.LSTM(4, 4, rng=1, **options)
        self.dropout = minidl.Dropout(0.25, rng=2, **options)
        self.head = minidl.LinearCrossEntropy(4, 5, weight=self.embedding.weight, rng=3, **options)

    def forward_backward(self, batch: Any, targets: Any, step: int) -> Any:
        packing = batch._replace(step=step)
        x, embedded = self.embedding.forward(batch.data, packing)
        y, walked = self.lstm.forward(x, packing)
        h, dropped = self.dropout.forward(y, packing)
        loss, dh = self.head.forward_backward(h, targets)
        dx = self.lstm.backward(self.dropout.backward(dh, dropped), walked)
        self.embedding.backward(dx, embedded)
        return loss


def train(model: Model, optimizer: Any, steps: int, ids_on: str) -> list[Any]:
    """The loss of each step, left where it was computed."""
    batch, targets = minidl.pack(INPUTS, backend=ids_on), minidl.pack(TARGETS, backend=ids_on).data
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(model.forward_backward(batch, targets, step))
        minidl.clip_grad_norm(model.parameters(), 0.5)
        optimizer.step()
    return losses


@every_optimizer
@pytest.mark.parametrize("ids_on", ["numpy", "cupy"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_a_training_run_gives_what_numpy_gives_and_never_waits(
    make: Any, ids_on: str, dtype: str, tolerance: float, cupy: Any
) -> None:
    host, device = Model("numpy", dtype), Model("cupy", dtype)
    host_optimizer, optimizer = make(host.parameters()), make(device.parameters())
    expected = train(host, host_optimizer, 4, "numpy")
    cupy.syncs.clear()
    losses = train(device, optimizer, 4, ids_on)
    assert cupy.syncs == [], "something in a training step made the host wait"

    np.testing.assert_allclose([float(loss) for loss in losses], expected, rtol=tolerance)
    for (name, values), (_, wanted) in zip(device.state_dict().items(), host.state_dict().items(), strict=True):
        assert values.dtype == dtype
        np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance, err_msg=name)
    for name, wanted in host_optimizer.state_dict().items():
        got = optimizer.state_dict()[name]
        np.testing.assert_allclose(got, wanted, rtol=100 * tolerance, atol=tolerance, err_msg=name)


def test_the_hosts_threads_leave_a_device_alone(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs one kernel after the other whoever asks, so a cut only makes more of them, and smaller ones."""
    gemm, products = cupy.cuda.cublas.dgemm, []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        products.append(threading.current_thread())
        return gemm(*arguments, **keywords)

    monkeypatch.setattr(cupy.cuda.cublas, "dgemm", counted)
    counts, losses = [], []
    for n in (1, 3):
        products.clear()
        with cut_for(n):
            model = Model("cupy", "float64")
            losses.append([float(loss) for loss in train(model, minidl.Adam(model.parameters()), 2, "cupy")])
        assert set(products) == {threading.current_thread()}
        counts.append(len(products))
    assert counts[0] == counts[1] > 0
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)


def test_reading_the_loss_waits_once(cupy: Any) -> None:
    model = Model("cupy", "float32")
    (loss,) = train(model, minidl.SGD(model.parameters(), lr=0.1), 1, "cupy")
    assert cupy.syncs == []
    assert float(loss) > 0 and cupy.syncs == ["float"]


def test_states_and_chunks_stay_on_the_device(cupy: Any) -> None:
    layers = [filled_on(backend, minidl.LSTM(3, 4, backend=backend, dtype="float64")) for backend in ("numpy", "cupy")]
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(8, 3)), rng.normal(size=(8, 4))
    state, dstate = ((rng.normal(size=(4, 4)), rng.normal(size=(4, 4))) for _ in range(2))
    results = []
    for backend, lstm in zip(("numpy", "cupy"), layers, strict=True):

        def there(array: np.ndarray, backend: str = backend) -> Any:
            return minidl.to_backend(array, backend)

        given, asked = (tuple(map(there, pair)) for pair in (state, dstate))
        cupy.syncs.clear()
        y1, first = lstm.forward(there(x[:5]), minidl.Packing([3, 2]), given)
        y2, second = lstm.forward(there(x[5:]), minidl.Packing([2, 1]), first.state)
        dx2 = lstm.backward(there(dy[5:]), second, asked)
        dx1 = lstm.backward(there(dy[:5]), first, second.dstate)
        again = lstm(there(x[:5]), minidl.Packing([3, 2]))
        assert cupy.syncs == []
        grads = [p.grad for p in lstm.parameters()]
        arrays = (y1, y2, *first.state, *second.state, dx1, dx2, *second.dstate, *first.dstate, again, *grads)
        results.append([minidl.to_host(array) for array in arrays])
    for got, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def filled_on(backend: str, layer: Any) -> Any:
    """`helpers.filled` for either backend: values are written through the host."""
    twin = filled(minidl.LSTM(3, 4, dtype="float64"))
    layer.load_state_dict(twin.state_dict())
    return layer


def test_linear_and_the_textbook_loss(cupy: Any) -> None:
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(6, 3)), rng.integers(0, 4, 6)
    host, device = (minidl.Linear(3, 4, rng=1, dtype="float64", backend=name) for name in ("numpy", "cupy"))
    cupy.syncs.clear()
    logits, cache = device.forward(minidl.to_backend(x, "cupy"))
    loss, dlogits = minidl.softmax_cross_entropy(logits, targets)
    dx = device.backward(dlogits, cache)
    assert cupy.syncs == []
    expected_logits, host_cache = host.forward(x)
    expected_loss, expected_dlogits = minidl.softmax_cross_entropy(expected_logits, targets)
    np.testing.assert_allclose(float(loss), expected_loss, rtol=1e-13)
    np.testing.assert_allclose(dx.get(), host.backward(expected_dlogits, host_cache), rtol=1e-12)
    for p, q in zip(device.parameters(), host.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.get(), q.grad, rtol=1e-12, atol=1e-15)


def test_the_same_seed_gives_the_same_model_and_the_same_mask() -> None:
    host, device = Model("numpy", "float32"), Model("cupy", "float32")
    for name, values in host.state_dict().items():
        assert values.tobytes() == device.state_dict()[name].tobytes(), name
    x = np.ones((50, 20), np.float32)
    packing, both = minidl.Packing([50], step=3), ((host, x), (device, minidl.to_backend(x, "cupy")))
    masks = [model.dropout.forward(there, packing)[0] for model, there in both]
    assert (minidl.to_host(masks[1]) == masks[0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [True, False])
@every_optimizer
def test_a_gradient_that_is_not_finite_is_left_out_and_reported_with_the_next_value(
    make: Any, clip: bool, value: float, cupy: Any
) -> None:
    model = Model("cupy", "float32")
    optimizer = make(model.parameters())
    losses = train(model, optimizer, 2, "cupy")
    before = [array.get().tobytes() for array in (*(p.data for p in model.parameters()), *optimizer.state.values())]

    cupy.syncs.clear()
    model.lstm.bias.grad[3:4] = value
    if clip:
        minidl.clip_grad_norm(model.parameters(), 0.5)
    optimizer.step()
    assert cupy.syncs == [], "looking whether the gradient was finite made the host wait"

    after = [array.get().tobytes() for array in (*(p.data for p in model.parameters()), *optimizer.state.values())]
    assert after == before
    with refuses(FloatingPointError, "not finite", "1 optimizer step"):
        minidl.to_host(losses[-1])
    assert optimizer.steps == 2, "the step that was left out must not count"
    assert minidl.to_host(losses[-1]) > 0  # reported once
    train(model, optimizer, 1, "cupy")
    assert optimizer.steps == 3
    assert all(np.isfinite(values).all() for values in model.state_dict().values())


def test_several_bad_steps_are_reported_together_and_good_ones_in_between_count() -> None:
    model = Model("cupy", "float32")
    optimizer = minidl.Adam(model.parameters())
    for value in (1.0, np.nan, 1.0, np.inf, np.nan):
        model.lstm.bias.grad[...] = value
        optimizer.step()
    with refuses(FloatingPointError, "3 optimizer step"):
        minidl.to_host(model.lstm.bias.data)
    assert optimizer.steps == 2


def test_a_bad_step_is_reported_before_a_checkpoint_is_made_of_it() -> None:
    for make in OPTIMIZERS.values():
        model = Model("cupy", "float32")
        optimizer = make(model.parameters())
        model.lstm.bias.grad[...] = np.nan
        optimizer.step()
        with refuses(FloatingPointError, "not finite"):
            optimizer.state_dict()
        assert int(optimizer.state_dict()["steps"]) == 0


def test_a_state_that_is_loaded_forgets_bad_steps_before_it() -> None:
    model = Model("cupy", "float32")
    optimizer = minidl.Adam(model.parameters())
    train(model, optimizer, 2, "cupy")
    good = optimizer.state_dict()
    model.lstm.bias.grad[...] = np.nan
    optimizer.step()
    optimizer.load_state_dict(good)
    minidl.to_host(model.lstm.bias.data)
    assert optimizer.steps == 2


def test_printing_never_waits(cupy: Any) -> None:
    model = Model("cupy", "float32")
    optimizer = minidl.Adam(model.parameters())
    cupy.syncs.clear()
    shown = [*repr(model).splitlines(), repr(optimizer)]
    assert len(shown) > 4 and all("backend=cupy" in line for line in shown if "Dropout" not in line)
    assert cupy.syncs == []


class Bounded(minidl.SGD):
    """A rule of one's own, which has no kernel: p = p - lr g / (|g| + 1)."""

    def _update(self, n: Any, data: Any, grad: Any, *state: Any) -> None:
        data -= n.lr * grad / (abs(grad) + 1)


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_a_rule_of_ones_own_runs_on_a_device_as_it_stands(backend: str, cupy: Any) -> None:
    parameter = minidl.Parameter(minidl.to_backend(np.zeros(3), backend))
    optimizer = Bounded([parameter], lr=0.5)
    gradient = minidl.to_backend(np.array([3.0, -1.0, 0.0]), backend)
    parameter.grad[...] = gradient
    optimizer.step()
    assert minidl.to_host(parameter.data).tolist() == [-0.375, 0.25, 0.0]
    assert not {"sgd", "momentum"} & set(cupy.calls)


def test_two_models_parameters_in_one_optimizer_are_one_step_still(cupy: Any) -> None:
    """In several flat pieces, as after another optimizer moved a part of them: all are left out, and counted once."""
    params = [minidl.Parameter(minidl.to_backend(np.zeros(3), "cupy")) for _ in range(3)]
    optimizer = minidl.Adam(params, lr=1.0)
    minidl.flatten([params[2], params[0]])
    params[2].grad[...] = np.nan
    minidl.clip_grad_norm(params[:2], 1.0)
    optimizer.step()
    assert cupy.calls.count("adam") == cupy.calls.count("find_bad") == 3
    with refuses(FloatingPointError, "1 optimizer step"):
        minidl.to_host(params[0].data)
    assert all((minidl.to_host(p.data) == 0).all() for p in params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [True, False])
def test_large_gradients_are_applied_or_reported_but_never_dropped(clip: bool, dtype: str) -> None:
    """Finite, though their squares overflow: NumPy applies them, a device may leave them out and say so."""
    large = 1e30 if dtype == "float32" else 1e200
    parameter = minidl.Parameter(minidl.to_backend(np.ones(4, dtype), "cupy"))
    optimizer = minidl.SGD([parameter], lr=1.0 if clip else 0.5 / large)
    parameter.grad[...] = large
    if clip:
        minidl.clip_grad_norm([parameter], 1.0)
    optimizer.step()
    try:
        values = minidl.to_host(parameter.data)
    except FloatingPointError:
        values = minidl.to_host(parameter.data)
        assert (values == 1).all() and optimizer.steps == 0
    else:
        np.testing.assert_allclose(values, 0.5, rtol=1e-5)


def test_a_resume_continues_on_the_device_bit_for_bit() -> None:
    whole, first, second = (Model("cupy", "float32") for _ in range(3))
    whole_optimizer, first_optimizer, second_optimizer = (minidl.Adam(m.parameters()) for m in (whole, first, second))
    train(whole, whole_optimizer, 2, "cupy")
    train(whole, whole_optimizer, 2, "cupy")
    train(first, first_optimizer, 2, "cupy")
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    train(second, second_optimizer, 2, "cupy")
    for name, values in whole.state_dict().items():
        assert values.tobytes() == second.state_dict()[name].tobytes(), name
    assert second_optimizer.steps == 4


@pytest.mark.parametrize(("made_on", "loaded_on"), [("numpy", "cupy"), ("cupy", "numpy"), ("cupy", "cupy")])
@every_optimizer
def test_a_checkpoint_of_either_side_is_loaded_on_the_other_bit_for_bit(
    make: Any, made_on: str, loaded_on: str, tmp_path: Any
) -> None:
    model = Model(made_on, "float32")
    optimizer = make(model.parameters())
    train(model, optimizer, 2, made_on)
    saved = [model.state_dict(), optimizer.state_dict()]
    for number, tensors in enumerate(saved):
        minidl.save(tmp_path / str(number), tensors, {})
    again = Model(loaded_on, "float32")
    resumed = make(again.parameters())
    for number, part in enumerate((again, resumed)):
        part.load_state_dict(minidl.load(tmp_path / str(number))[0])
    for before, after in zip(saved, (again.state_dict(), resumed.state_dict()), strict=True):
        assert before.keys() == after.keys()
        for name, values in before.items():
            assert values.dtype == after[name].dtype and values.tobytes() == after[name].tobytes(), name


def test_a_file_is_the_same_to_the_byte_from_either_side(tmp_path: Any) -> None:
    """Arrays of the device itself, one of them not contiguous, are saved as those of the host are."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for backend in ("numpy", "cupy"):
        there = minidl.to_backend(array, backend)
        minidl.save(tmp_path / backend, {"a": there, "transposed": there.T}, {"step": 1})
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / "cupy").read_bytes()


def test_nan_on_a_device_is_not_saved(tmp_path: Any) -> None:
    with refuses(minidl.CheckpointError, "'a'", "not finite"):
        minidl.save(tmp_path / "c", {"a": minidl.to_backend(np.array([1.0, np.nan]), "cupy")}, {})
    assert not any(tmp_path.iterdir())


def test_parameters_on_a_device_are_flattened_and_checkpointed(tmp_path: Any) -> None:
    model = Model("cupy", "float32")
    minidl.flatten(model.parameters())
    minidl.save(tmp_path / "c", {name: p.data for name, p in model.named_parameters()}, {})
    tensors, _ = minidl.load(tmp_path / "c")
    host = Model("numpy", "float32")
    host.load_state_dict(tensors)
    for name, values in model.state_dict().items():
        assert values.tobytes() == host.state_dict()[name].tobytes()


@pytest.mark.parametrize(("made_on", "loaded_on"), [("numpy", "cupy"), ("cupy", "numpy"), ("cupy", "cupy")])
@every_optimizer
def test_a_checkpoint_of_either_side_is_loaded_bit_for_bit(
    make: Any, made_on: str, loaded_on: str, tmp_path: Any
) -> None:
    model, again = Model(made_on, "float32"), Model(loaded_on, "float32")
    for parameter in again.parameters():
        parameter.data[...] = 0
    optimizer, optimizer_again = make(model.parameters()), make(again.parameters())
    train(model, optimizer, 2, made_on)
    for name, whole, part in (("m", model, again), ("o", optimizer, optimizer_again)):
        minidl.save(tmp_path / name, whole.state_dict(), {"made on": made_on})
        part.load_state_dict(minidl.load(tmp_path / name)[0])
        assert same(part.state_dict(), whole.state_dict())
    assert all(minidl.backend.is_device(p.data) == (loaded_on == "cupy") for p in again.parameters())
    for trained, by, where in ((model, optimizer, made_on), (again, optimizer_again, loaded_on)):
        train(trained, by, 1, where)
    for name, values in model.state_dict().items():  # it resumes where it stopped
        np.testing.assert_allclose(again.state_dict()[name], values, rtol=1e-4, atol=1e-5)


def test_what_is_sampled_or_unpacked_comes_to_the_host_once(cupy: Any) -> None:
    logits = minidl.to_backend(np.log([[0.5, 0.5], [1e-30, 1.0]]), "cupy")
    cupy.syncs.clear()
    assert minidl.sample(logits, rng=0)[1] == 1 and cupy.syncs == ["get"]
    batch = minidl.pack(INPUTS, backend="cupy")
    cupy.syncs.clear()
    parts = minidl.unpack(batch)
    assert cupy.syncs == [] and [part.get().tolist() for part in parts] == INPUTS


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_ids_from_the_host_are_checked_before_the_device_would_wrap_them(backend: str) -> None:
    layer = minidl.Embedding(5, 4, backend=backend)
    head = minidl.LinearCrossEntropy(4, 5, backend=backend)
    x = minidl.to_backend(np.ones((2, 4), np.float32), backend)
    for bad in (5, -1):
        with refuses(IndexError, "ids", bad):
            layer.forward([0, bad])
        with refuses(IndexError, "targets", bad):
            head.forward_backward(x, [0, bad])


def layers_and_arrays(backend: str) -> dict[str, tuple[Any, Callable[[Any], Any], Any]]:
    """name: (layer of `backend`, a call that takes one array, that array on the host)."""
    rows = np.ones((2, 3), np.float32)
    linear, lstm = minidl.Linear(3, 3, backend=backend), minidl.LSTM(3, 3, backend=backend)
    head, embedding = (
        minidl.LinearCrossEntropy(3, 3, backend=backend),
        minidl.Embedding(3, 3, backend=backend),
    )
    there = minidl.to_backend(rows, backend)
    linear_cache, embedding_cache = linear.forward(there)[1], embedding.forward([0, 1])[1]
    packing = minidl.Packing([2])
    lstm_cache = lstm.forward(there, packing)[1]
    return {
        "x of Linear": (linear, linear.forward, rows),
        "dy of Linear": (linear, lambda dy: linear.backward(dy, linear_cache), rows),
        "x of LSTM": (lstm, lambda x: lstm.forward(x, packing), rows),
        "h of LSTM": (lstm, lambda h: lstm.forward(there, packing, (h, there)), rows),
        "c of LSTM": (lstm, lambda c: lstm.forward(there, packing, (there, c)), rows),
        "dy of LSTM": (lstm, lambda dy: lstm.backward(dy, lstm_cache), rows),
        "dstate of LSTM": (lstm, lambda dc: lstm.backward(there, lstm_cache, (there, dc)), rows),
        "x of a step": (lstm, lstm.step, rows),
        "h of a step": (lstm, lambda h: lstm.step(there, (h, there)), rows),
        "c of a step": (lstm, lambda c: lstm.step(there, (there, c)), rows),
        "x of the head": (head, lambda x: head.forward_backward(x, [0, 1]), rows),
        "dy of Embedding": (embedding, lambda dy: embedding.backward(dy, embedding_cache), rows),
    }


@pytest.mark.parametrize("name", layers_and_arrays("numpy"))
@pytest.mark.parametrize(("backend", "other"), [("numpy", "cupy"), ("cupy", "numpy")])
def test_arrays_of_the_other_library_are_refused(name: str, backend: str, other: str) -> None:
    layer, call, rows = layers_and_arrays(backend)[name]
    before = [minidl.to_host(p.grad).tobytes() for p in layer.parameters()]
    with refuses(TypeError, f"is a {other} array", f"is a {backend} array"):
        call(minidl.to_backend(rows, other))
    assert [minidl.to_host(p.grad).tobytes() for p in layer.parameters()] == before


def test_ids_on_a_device_do_not_reach_a_layer_on_the_host(cupy: Any) -> None:
    ids = cupy.asarray(np.array([0, 1]))
    with refuses(TypeError, "ids is a cupy array", "numpy"):
        minidl.Embedding(3, 3).forward(ids)
    with refuses(TypeError, "targets is a cupy array", "numpy"):
        minidl.softmax_cross_entropy(np.ones((2, 3)), ids)
    with refuses(TypeError, "batch_sizes", "host"):
        minidl.LSTM(3, 3).forward(np.ones((1, 3), np.float32), minidl.Packing(cupy.asarray(np.array([1]))))


def test_what_the_host_must_have_is_asked_for_in_one_line(cupy: Any) -> None:
    ids = cupy.asarray(np.array([0, 1]))
    with refuses(TypeError, "ids must be a 1-D array of integers", "PackedSequence"):
        minidl.Embedding(3, 3, backend="cupy").forward(minidl.pack([[0, 1]], backend="cupy"))
    for backend in ("numpy", "cupy"):
        with refuses(TypeError, "sequences[1] is a cupy array", "minidl.to_host"):
            minidl.pack([[0], ids], backend=backend)
    with refuses(TypeError, "packing.rows must be on the host"):
        minidl.Dropout(0.5).forward(cupy.ones((2, 3)), minidl.Packing([2], step=0, rows=ids))
    for arguments in (
        (minidl.Linear(3, 2, dtype="float64", backend="cupy"), cupy.ones((2, 3))),
        (minidl.softmax_cross_entropy, cupy.ones((2, 3)), [0, 1]),
    ):
        with refuses(TypeError, "gradcheck works on the host", "input 0 is a cupy array"):
            minidl.gradcheck(*arguments)


def test_a_copied_optimizer_reports_bad_steps_too() -> None:
    optimizer = copy.deepcopy(minidl.SGD([minidl.Parameter(minidl.to_backend(np.ones(3), "cupy"))], 0.1))
    optimizer.params[0].grad[...] = np.nan
    optimizer.step()
    with refuses(FloatingPointError, "1 optimizer step"):
        minidl.to_host(optimizer.params[0].data)


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
@every_optimizer
def test_an_empty_parameter_takes_part(make: Any, backend: str) -> None:
    params = [minidl.Parameter(minidl.to_backend(np.ones(shape, np.float32), backend)) for shape in (3, (0, 2))]
    for parameters in (params, params[1:]):
        for parameter in parameters:
            parameter.grad[...] = 1
        norm = minidl.clip_grad_norm(parameters, 10.0)  # of parameters that share no memory yet, and of some that do
        assert float(minidl.to_host(norm)) == pytest.approx(3**0.5 if parameters is params else 0)
        make(parameters).step()
    assert (minidl.to_host(params[0].data) < 1).all()


def test_dropout_refuses_a_dy_of_the_other_library() -> None:
    layer = minidl.Dropout(0.5, rng=0)
    _, cache = layer.forward(np.ones((2, 3)), minidl.Packing([2], step=0))
    with refuses(TypeError, "dy", "cupy", "numpy"):
        layer.backward(minidl.to_backend(np.ones((2, 3)), "cupy"), cache)


def test_parameters_of_two_libraries_share_nothing() -> None:
    params = [minidl.Parameter(np.ones(2)), minidl.Parameter(minidl.to_backend(np.ones(2), "cupy"))]
    for use in (minidl.flatten, lambda p: minidl.SGD(p, lr=1), lambda p: minidl.clip_grad_norm(p, 1.0)):
        with refuses(TypeError, "cupy array", "numpy array", "params[1]"):
            use(params)


def test_a_weight_of_the_other_library_cannot_be_shared() -> None:
    embedding = minidl.Embedding(5, 4, backend="cupy")
    with refuses(TypeError, "weight", "cupy", "numpy"):
        minidl.LinearCrossEntropy(4, 5, weight=embedding.weight)


def test_values_from_the_host_are_not_written_into_a_device_array_by_accident() -> None:
    parameter = minidl.Linear(3, 2, backend="cupy").weight
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray"):
        parameter.data[...] = np.ones((2, 3))
    parameter.data[...] = minidl.to_backend(np.ones((2, 3), np.float32), "cupy")
    assert minidl.to_host(parameter.data).sum() == 6


def test_parameters_on_two_sides_are_refused_by_their_numbers() -> None:
    here, there = (minidl.Linear(2, 2, backend=backend, rng=0).weight for backend in ("numpy", "cupy"))
    with refuses(TypeError, "params[1] is a cupy array", "params[0] is a numpy array"):
        minidl.SGD([here, there], lr=1.0)


LAUNCHED = """typedef double real;
extern "C" __global__ void sum_losses(const real* losses, double* result, long long N, double total) { }"""


def test_the_double_is_as_strict_as_it_says(cupy: Any) -> None:
    """Were it lax, the tests above would prove nothing."""
    device, host = cupy.asarray(np.arange(4.0)), np.arange(4.0)
    cupy.syncs.clear()
    for mixed in (lambda: device + host, lambda: host + device, lambda: device @ host, lambda: device < host):
        with pytest.raises(TypeError):
            mixed()
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(device)
    with pytest.raises(TypeError):
        cupy.multiply(device, host)
    with pytest.raises(TypeError):
        np.multiply(device, 2)
    with pytest.raises(TypeError):
        host += device
    with pytest.raises(TypeError, match="where"):
        cupy.exp(device, where=device > 1)
    assert cupy.syncs == []
    assert type(device.sum()) is type(device) and device.sum().shape == ()
    assert device[cupy.asarray(np.array([5, -1]))].get().tolist() == [1.0, 3.0], "ids wrap around"
    cupy.syncs.clear()
    if device.sum() > 1:
        float(device[0]), int(device[0]), device[device > 1]
    assert cupy.syncs == ["bool", "float", "int", "mask"]
    assert np.isnan(cupy.empty(3).get()).all()
    for first, second in zip(*[cupy.zeros((2, 3)) for _ in range(2)], strict=True):
        first[...], second[0] = 1, 2  # views of rows that go at once
    stack, matrix = cupy.asarray(np.ones((4, 3, 2))), cupy.asarray(np.ones((5, 3)))
    for bad, error in (
        (lambda: stack.sum(axis=0, out=cupy.empty((4, 3, 2))), ValueError),
        (lambda: iter(device.sum()), TypeError),
        (lambda: cupy.ascontiguousarray(host), TypeError),
    ):
        with pytest.raises(error):
            bad()
    square, factors = cupy.empty((5, 5)), np.array([0.0, 1.0])  # NaN, which is not read where nothing is added to it
    zero, one, m, c = factors.ctypes.data, factors.ctypes.data + 8, matrix.data.ptr, square.data.ptr
    cupy.cuda.cublas.dgemm("cublas", 1, 0, 5, 5, 3, one, m, 3, m, 3, zero, c, 5)
    cupy.cuda.cublas.dgemm("cublas", 1, 0, 5, 5, 3, one, m, 3, m, 3, one, c, 5)
    assert (square.get() == 6).all()
    for beyond in ((m + 8, c), (m, c + 8), (m, factors.ctypes.data)):
        with pytest.raises(AssertionError):
            cupy.cuda.cublas.dgemm("cublas", 1, 0, 5, 5, 3, one, m, 3, beyond[0], 3, zero, beyond[1], 5)
    kernel = cupy.RawKernel(LAUNCHED, "sum_losses")
    losses, result = cupy.asarray(np.arange(4.0)), cupy.zeros(())
    kernel((1,), (256,), (losses, result, np.int64(4), np.float64(2)))
    assert float(result) == 3
    for arguments in (
        (losses, result, 4, np.float64(2)),
        (losses, result, np.int32(4), np.float64(2)),
        (losses, result, np.int64(4), 2.0),
        (losses.astype(np.float32), result, np.int64(4), np.float64(2)),
        (matrix[:, 0], result, np.int64(5), np.float64(2)),
        (losses, result, np.int64(3), np.float64(2)),
    ):
        with pytest.raises(AssertionError):
            kernel((1,), (256,), arguments)
    raised: list[str] = []

    def elsewhere() -> None:
        try:
            cupy.tanh(device)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(raised) == 1 and "current device" in raised[0]


def test_the_loss_alone_is_the_hosts() -> None:
    x, targets = np.random.default_rng(0).normal(size=(3, 4)), np.array([1, 0, 4])
    values = []
    for name in ("numpy", "cupy"):
        head = minidl.LinearCrossEntropy(4, 5, dtype="float64", backend=name, rng=0)
        loss = head(minidl.to_backend(x, name), minidl.to_backend(targets, name), total=2)
        values.append(float(minidl.to_host(loss)))
    assert values[1] == pytest.approx(values[0], rel=1e-12)


def test_dropout_on_a_device_takes_the_rows_it_is_given() -> None:
    packing, masks = minidl.Packing([3], step=2, rows=np.array([7, 0, 2**40])), []
    for name in ("numpy", "cupy"):
        layer = minidl.Dropout(0.5, dtype="float64", backend=name, rng=0)
        masks.append(minidl.to_host(layer.forward(minidl.to_backend(np.ones((3, 40)), name), packing)[0]))
    assert np.array_equal(*masks)


def test_every_piece_of_a_gradient_on_a_device_is_zeroed() -> None:
    params = [minidl.Parameter(minidl.to_backend(np.zeros(3), "cupy")) for _ in range(3)]
    optimizer = minidl.SGD(params, lr=1.0)
    minidl.flatten([params[2], params[0]])
    for parameter in params:
        parameter.grad[...] = 5.0
    optimizer.zero_grad()
    assert all((minidl.to_host(parameter.grad) == 0).all() for parameter in params)


class Averaged(minidl.SGD):
    """A rule of one's own with a state: v = 0.5 v + g, p = p - lr v."""

    def _update(self, n: Any, data: Any, grad: Any, *state: Any) -> None:
        state[0][...] = 0.5 * state[0] + grad
        data -= n.lr * state[0]


def test_a_rule_of_ones_own_counts_its_steps_and_those_left_out() -> None:
    parameter = minidl.Parameter(minidl.to_backend(np.zeros(1), "cupy"))
    optimizer = Averaged([parameter], lr=1.0, momentum=0.5)
    for gradient in (1.0, np.nan, 2.0, np.inf, 4.0):
        parameter.grad[...] = gradient
        optimizer.step()
    assert optimizer.steps == 5
    with refuses(FloatingPointError, "2 optimizer step"):
        optimizer.raise_found()
    assert optimizer.steps == 3 and minidl.to_host(parameter.data).tolist() == [-(1 + 2.5 + 5.25)]


def test_a_single_step_of_inference_is_the_hosts() -> None:
    x, outputs = np.random.default_rng(0).normal(size=(2, 3)), []
    for name in ("numpy", "cupy"):
        lstm = minidl.LSTM(3, 4, dtype="float64", backend=name, rng=0)
        state = lstm.step(minidl.to_backend(x, name))
        y = lstm(minidl.to_backend(x, name), minidl.Packing([2]))
        outputs.append([minidl.to_host(array) for array in (*state, y)])
    assert np.allclose(outputs[0], outputs[1], rtol=0, atol=1e-14)
