"""Parameter (an array and its gradient) and the flat buffer that a model's parameters share."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from . import backend, checks
from .backend import Array
from .kernels.cpu.workspace import ALIGNMENT, own_memory


class Parameter:
    """A weight array with the gradient that backward passes add into.

    `data` and `grad` have the same shape and dtype. `flatten` moves them into a shared buffer, so always access them
    through the Parameter, and write with `parameter.data[...] = values`. A copied or unpickled Parameter has its own
    arrays.
    """

    def __init__(self, data: Array, name: str = "parameter") -> None:
        self.name = name
        checks.array(name, data)
        checks.float_dtype(data.dtype, name)
        xp = backend.of(data)
        self._data = data
        self._grad = xp.zeros(data.shape, data.dtype)  # in C order, so that it has a flat view
        self._slot: Slot | None = None

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        self._require_in_place(value, self._data, "data")

    @property
    def grad(self) -> Array:
        return self._grad

    @grad.setter
    def grad(self, value: Array) -> None:
        self._require_in_place(value, self._grad, "grad")

    def _require_in_place(self, value: Array, current: Array, attribute: str) -> None:
        # `p.data *= 2` calls this setter with the same array; a new array would not be in the flat buffer.
        if value is not current:
            raise AttributeError(f"{self.name}.{attribute} is written in place: use .{attribute}[...] = values")

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "_data": self._data.copy(), "_grad": self._grad.copy(), "_slot": None}

    def __repr__(self) -> str:
        return f"Parameter({self.name}, shape={self._data.shape}, dtype={self._data.dtype})"


def create(name: str, draw: Callable[[], np.ndarray], dtype: object, backend_name: str) -> Parameter:
    """A Parameter with initial values from `draw`, cast to `dtype`, in the library called `backend_name`.

    They are drawn last: a wrong dtype or name does not advance the caller's generator.
    """
    dtype, xp = checks.float_dtype(dtype), backend.get(backend_name)
    return Parameter(xp.asarray(draw().astype(dtype)), name)


def describe(owner: object, params: Sequence[Parameter] = (), **more: object) -> str:
    """The repr of an owner of parameters: its constructor arguments and its number of weights."""
    import inspect  # only here: it is slow to import

    arguments = inspect.signature(type(owner).__init__).parameters
    facts = {name: vars(owner).get(name) for name in arguments} | more  # not getattr: a property may not be ready yet
    words = [f"{name}={reprlib.repr(value)}" for name, value in facts.items() if _is_plain(value)]
    if params:
        dtypes = dict.fromkeys(str(parameter.data.dtype) for parameter in params)
        words += [f"dtype={'/'.join(dtypes)}", f"backend={backend.of(params[0].data).__name__}"]
        words.append(f"weights={sum(parameter.data.size for parameter in params):,}")
    return f"{type(owner).__name__}({', '.join(words)})"


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) or (isinstance(value, tuple) and all(map(_is_plain, value)))


class Slot(NamedTuple):
    """Where a parameter is stored: the two shared buffers, and its first element in them."""

    data: Array
    grad: Array
    offset: int


class FlatView(NamedTuple):
    """A contiguous run of parameters as flat arrays; `start` counts elements in the layout of the whole list."""

    data: Array
    grad: Array
    start: int


def layout(params: Sequence[Parameter]) -> tuple[list[int], int]:
    """The first element of every parameter in an aligned flat buffer for all of them, and the buffer's length."""
    step = ALIGNMENT // params[0].data.dtype.itemsize
    offsets, length = [], 0
    for parameter in params:
        offsets.append(length)
        length += -(-parameter.data.size // step) * step
    return offsets, length


def flatten(params: Sequence[Parameter]) -> None:
    """Move `params` into one contiguous, aligned buffer for the values and one for the gradients.

    Values and gradients are kept, and nothing moves if the parameters are already adjacent in this order.
    """
    params = check_parameters(params)
    if len(flat_views(params)) == 1 and params[0]._slot is not None:
        return
    offsets, length = layout(params)
    data, grad = (_zeros(length, params[0].data) for _ in range(2))
    for parameter, offset in zip(params, offsets, strict=True):
        place = slice(offset, offset + parameter.data.size)
        for buffer, attribute in ((data, "_data"), (grad, "_grad")):
            view = buffer[place].reshape(parameter.data.shape)
            view[...] = getattr(parameter, attribute)
            setattr(parameter, attribute, view)
        parameter._slot = Slot(data, grad, offset)


def flat_views(params: Sequence[Parameter]) -> list[FlatView]:
    """`params` as the fewest flat pieces: one for a flattened model, at most one per parameter.

    They are computed at each call, so it does not matter if a parameter was moved in between. Alignment gaps contain
    zeros and stay zero under every optimizer.
    """
    offsets, length = layout(params)
    ends = [*offsets[1:], length]

    def run(index: int) -> object:  # neighbours in a buffer have the same distance from their place in the list
        slot = params[index]._slot
        return index if slot is None else (id(slot.data), slot.offset - offsets[index])

    pieces = []
    for _, members in itertools.groupby(range(len(params)), run):
        first, *rest = members
        parameter, slot, start = params[first], params[first]._slot, offsets[first]
        if slot is None:
            pieces.append(FlatView(parameter.data.reshape(-1), parameter.grad.reshape(-1), start))
        else:
            place = slice(slot.offset, slot.offset + ends[rest[-1] if rest else first] - start)
            pieces.append(FlatView(slot.data[place], slot.grad[place], start))
    return pieces


def check_parameters(params: Sequence[Parameter]) -> list[Parameter]:
    """`params` as a list of distinct Parameters of one dtype and one library."""
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(
            f"params must be a list of Parameters, as returned by layer.parameters(), got {type(params).__name__}"
        )
    params = list(params)
    if not params:
        raise ValueError("params is empty; expected the parameters of a model")
    for index, parameter in enumerate(params):
        if not isinstance(parameter, Parameter):
            raise TypeError(f"params[{index}] must be a Parameter, got {type(parameter).__name__}")
        if parameter.data.dtype != params[0].data.dtype:
            raise TypeError(
                f"params must share one dtype, got {params[0].data.dtype} ({params[0].name}) "
                f"and {parameter.data.dtype} ({parameter.name})"
            )
        backend.require_same(**{"params[0]": params[0].data, f"params[{index}]": parameter.data})
    if len({id(parameter) for parameter in params}) != len(params):
        raise ValueError("params contains the same Parameter twice")
    return params


def _zeros(length: int, like: Array) -> Array:
    """Aligned zeros, not from the pool of work arrays: they live as long as the model."""
    if backend.is_device(like):
        return backend.of(like).zeros(length, like.dtype)
    buffer = own_memory(length * like.dtype.itemsize).view(like.dtype)
    buffer[...] = 0
    return buffer
