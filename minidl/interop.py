"""Converts state dicts between minidl and PyTorch, in memory and as plain safetensors files.

    minidl                      PyTorch
    lstm.weight_ih (4H, I)      lstm.weight_ih_l0
    lstm.weight_hh (4H, H)      lstm.weight_hh_l0
    lstm.bias (4H,)             lstm.bias_ih_l0, with zeros as lstm.bias_hh_l0; on the way back their sum, or zeros
                                for bias=False
    lstms.0.weight_ih, ...      lstms.0.weight_ih_l0, ...   of a ModuleList of one-layer LSTMs
    lstms.1.weight_ih, ...      lstms.1.weight_ih_l0, ...
    anything else               the same: Embedding and Linear have PyTorch's names and shapes

An LSTM is recognised by a weight_hh of shape (4H, H). Other arrays with such names, for example those of your own GRU,
keep their names, and a UserWarning lists them.

Gates have the order i, f, g, o in both libraries, so no row moves. An nn.LSTM with several layers, lstms.weight_ih_l0,
lstms.weight_ih_l1, ..., always becomes a list, lstms.0.weight_ih, lstms.1.weight_ih, ...; the reverse is
`to_torch(..., stacked=True)`. With `stacked=True`, `from_torch` also turns a single layer into a list.

A tied weight occurs once in a minidl state dict, under its first name: a module that ties it too needs
`load_state_dict(..., strict=False)`, or `safetensors.torch.load_model` for a file. On the way back, of several names
that share memory only the first is kept. PyTorch's two biases get the same gradient, so their sum moves twice as far
in a training step: to continue training there as here, freeze the second one at zero.

Values are copied bit for bit, including NaN and infinity, but files refuse those, as `minidl.save` does.
Unsupported features raise a ValueError, one line with the name and the reason: bidirectional LSTMs and LSTMs with
projections, nn.GRU and nn.RNN, names of Keras and ONNX, dtypes other than float16, float32 and float64.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import backend, checkpoint
from .backend import Array

FLOATS = {np.dtype(code) for code in "efd"}
WEIGHTS, BIASES = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")
NUMBER = "(0|[1-9][0-9]*)"
THEIRS = re.compile(rf"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l{NUMBER}(_reverse)?")  # after the prefix
IN_LIST = re.compile(rf"((?:.*\.)?){NUMBER}\.", re.DOTALL)  # the prefix of the list, and the index in it

Arrays = dict[str, np.ndarray]


def to_torch(state_dict: Mapping[str, Array], *, stacked: bool = False) -> dict[str, Any]:
    """PyTorch tensors on the CPU by PyTorch's names: `module.load_state_dict(to_torch(model.state_dict()))`.

    With `stacked`, a list of LSTMs becomes one nn.LSTM with several layers. Tensors and arrays share no memory.
    """
    import torch

    theirs = _theirs(_host(state_dict), stacked)
    return {name: torch.from_numpy(array.copy()) for name, array in theirs.items()}


def from_torch(state_dict: Mapping[str, Any], *, stacked: bool = False) -> Arrays:
    """NumPy arrays by minidl's names: `model.load_state_dict(from_torch(module.state_dict()))`.

    Tensors may be on any device and require a gradient; arrays, as from `safetensors.numpy`, work too. With `stacked`,
    an nn.LSTM with one layer becomes a list of one. Arrays and tensors share no memory.
    """
    return {name: array.copy() for name, array in _ours(_host(state_dict), stacked).items()}


def write_safetensors(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    stacked: bool = False,
) -> None:
    """Write the result of `to_torch` as a file for `safetensors.torch.load_file`; does not need PyTorch.

    Written atomically, like `minidl.save`, but without its checksum; `metadata` is text by name. Raises
    CheckpointError, and leaves `path` unchanged, for everything that `to_torch` and `minidl.save` refuse.
    """
    path = checkpoint.as_path(path)
    arrays = checkpoint.writable(path, "state_dict", state_dict)
    if not isinstance(metadata, (Mapping, type(None))):
        raise TypeError(f"metadata must be a dict of text by name, got {type(metadata).__name__}")
    metadata = {"format": "pt"} | dict(metadata or {})  # some readers require it
    if not all(isinstance(text, str) and checkpoint.is_text(text) for pair in metadata.items() for text in pair):
        raise checkpoint.CheckpointError(f"{path}: not written, metadata must be text by name")
    if "minidl" in metadata:  # `read_safetensors` would refuse it
        raise checkpoint.CheckpointError(f"{path}: not written, metadata has 'minidl', the key of checkpoints")
    try:
        theirs = _theirs(_host(arrays), stacked)
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{path}: not written, {error}") from None
    checkpoint.write(path, theirs, metadata)


def read_safetensors(path: str | os.PathLike[str], *, stacked: bool = False) -> Arrays:
    """`from_torch` of a safetensors file with PyTorch's names; does not need PyTorch.

    Raises CheckpointError for everything that `from_torch` refuses, for other or visibly damaged files (the format has
    no checksum), for NaN and infinity, and for minidl's own checkpoints, which `minidl.load` reads.
    """
    path = checkpoint.as_path(path)
    arrays, entries = checkpoint.read(path)
    if "minidl" in entries:
        raise checkpoint.CheckpointError(f"{path}: a minidl checkpoint; read it with minidl.load")
    try:
        ours = _ours(_host(arrays), stacked)
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{path}: {error}") from None
    fault = checkpoint.fault(ours)
    if fault:
        raise checkpoint.CheckpointError(f"{path}: {fault}")
    return ours


def _host(state_dict: Mapping[str, Any]) -> Arrays:
    """Floats on the host by name; of tensors that share memory only the first, unless they belong to an LSTM."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a dict of tensors by name, got {type(state_dict).__name__}")
    arrays: Arrays = {}
    seen = set()
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise ValueError(f"state_dict must have names as its keys, got {name!a}")
        array = _floats(name, value)
        if hasattr(value, "data_ptr") and array.size and not THEIRS.fullmatch(_split(name)[1]):
            place = str(value.device), value.data_ptr(), value.shape, value.stride()
            if place in seen:
                continue
            seen.add(place)
        arrays[name] = array
    return arrays


def _floats(name: str, value: Any) -> np.ndarray:
    """An array or a PyTorch tensor as an array, without importing PyTorch."""
    dtype = getattr(value, "dtype", None)
    if "float8" in str(dtype) or "bfloat16" in str(dtype):
        raise ValueError(f"{_shown(name)} is {dtype}, which NumPy does not have: convert it with .float()")
    try:
        array = value.numpy(force=True) if hasattr(value, "numpy") else backend.to_host(value)
    except (TypeError, RuntimeError) as error:  # not a tensor, a sparse tensor, or one without values
        gist = " ".join(str(error).split())[:200]
        raise ValueError(f"{_shown(name)} must be a tensor or an array of floats ({gist})") from None
    native = array.dtype.newbyteorder("=")
    if native not in FLOATS:
        raise ValueError(f"{_shown(name)} must be float16, float32 or float64, got {array.dtype}")
    return array.astype(native, copy=False)


def _theirs(arrays: Arrays, stacked: bool) -> Arrays:
    """From minidl's names to PyTorch's."""
    prefixes = [_split(name)[0] for name in arrays if _split(name)[1] == "weight_hh" and _is_lstm(arrays, name)]
    for prefix in prefixes:
        _check_lstm(arrays, *(prefix + part for part in (*WEIGHTS, "bias")))
    places = {prefix: (prefix, 0) for prefix in prefixes} | (_stacks(prefixes, arrays) if stacked else {})
    found: Arrays = {}
    passed = []
    for name, array in arrays.items():
        prefix, part = _split(name)
        theirs = THEIRS.fullmatch(part)
        if theirs and _is_lstm(arrays, f"{prefix}weight_hh_l{theirs[2]}{theirs[3] or ''}"):
            raise ValueError(f"{_shown(name)} is already PyTorch's name")
        start, layer = places.get(prefix, ("", 0))
        if prefix not in places or part not in (*WEIGHTS, "bias"):
            _put(found, name, array)
            if theirs or part in WEIGHTS:
                passed.append(name)
        elif part == "bias":
            _put(found, f"{start}bias_ih_l{layer}", array)
            _put(found, f"{start}bias_hh_l{layer}", np.zeros_like(array))
        else:
            _put(found, f"{start}{part}_l{layer}", array)
    _tell_passed(passed, arrays)
    return found


def _stacks(prefixes: Iterable[str], arrays: Arrays) -> dict[str, tuple[str, int]]:
    """(list prefix, layer) of the LSTMs in lists; ValueError if a list cannot be one nn.LSTM."""
    lists: dict[str, dict[int, str]] = {}
    for prefix in prefixes:
        match = IN_LIST.fullmatch(prefix)
        if match:
            lists.setdefault(match[1], {})[int(match[2])] = prefix
    for start, layers in lists.items():
        _check_layers(start, layers)
        H = arrays[f"{layers[0]}weight_hh"].shape[1]
        for layer in range(1, len(layers)):
            for name in (layers[layer] + part for part in WEIGHTS):
                if arrays[name].shape != (4 * H, H):
                    stack = f"to stack on the {H} units of layer 0"
                    raise ValueError(f"{_shown(name)} must have shape {(4 * H, H)} {stack}, got {arrays[name].shape}")
    return {prefix: (start, layer) for start, layers in lists.items() for layer, prefix in layers.items()}


def _ours(arrays: Arrays, stacked: bool) -> Arrays:
    """From PyTorch's names to minidl's."""
    lstms: dict[str, dict[int, Arrays]] = {}  # by prefix and layer
    passed = []
    for name, array in arrays.items():
        _refuse_foreign(name, arrays)
        prefix, part = _split(name)
        if part in WEIGHTS:
            passed.append(name)
        match = THEIRS.fullmatch(part)
        if match:
            lstms.setdefault(prefix, {}).setdefault(int(match[2]), {})[match[1]] = array
    found: Arrays = {}
    for prefix, layers in lstms.items():
        _check_layers(prefix, layers)
        for layer, parts in sorted(layers.items()):
            start = f"{prefix}{layer}." if stacked or len(layers) > 1 else prefix
            biases = BIASES if parts.keys() & set(BIASES) else ()
            _check_lstm(arrays, *(f"{prefix}{part}_l{layer}" for part in (*WEIGHTS, *biases)))
            for part in WEIGHTS:
                _put(found, start + part, parts[part])
            _put(found, f"{start}bias", _bias(prefix, parts))
    for name, array in arrays.items():
        if not THEIRS.fullmatch(_split(name)[1]):
            _put(found, name, array)
    _tell_passed(passed, arrays)
    return found


def _bias(prefix: str, parts: Arrays) -> np.ndarray:
    """The sum of an LSTM's two biases, bit for bit if one of them is zero; zeros if there are none."""
    if "bias_ih" not in parts:
        return np.zeros(len(parts["weight_hh"]), parts["weight_hh"].dtype)
    first, second = parts["bias_ih"], parts["bias_hh"]
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.where(second == 0, first, first + second)  # -0.0 + 0.0 would be 0.0
    if np.isinf(total[np.isfinite(first) & np.isfinite(second)]).any():
        raise ValueError(f"{_shown(f'{prefix}bias')}, the sum of two biases, does not fit into {total.dtype}")
    return total


def _refuse_foreign(name: str, arrays: Arrays) -> None:
    """ValueError if `name` belongs to a module that minidl does not have."""
    prefix, part = _split(name)
    match = THEIRS.fullmatch(part)
    keras = re.split(r"[./]", name)[-1].partition(":")[0]
    if match and match[3]:
        raise ValueError(f"{_shown(name)} belongs to a bidirectional LSTM; minidl's has one direction")
    if match and match[1] == "weight_hr":
        raise ValueError(f"{_shown(name)} belongs to an LSTM with a projection (proj_size), which minidl does not have")
    if part in WEIGHTS and _is_lstm(arrays, f"{prefix}weight_hh"):
        raise ValueError(f"{_shown(name)} has no layer suffix ({part}_l0): it is minidl's own name or an LSTMCell's")
    if keras in ("kernel", "recurrent_kernel"):
        raise ValueError(f"{_shown(name)} is a Keras name; Keras kernels are transposed, (inputs, outputs)")
    if part in ("W", "R", "B") and {f"{prefix}W", f"{prefix}R"} <= arrays.keys():
        raise ValueError(f"{_shown(name)} is an ONNX name; ONNX orders the gates differently, i, o, f, c")


def _is_lstm(arrays: Arrays, weight_hh: str) -> bool:
    """Whether this weight exists and has an LSTM's shape (4H, H)."""
    shape = arrays[weight_hh].shape if weight_hh in arrays else ()
    return len(shape) == 2 and shape[0] == 4 * shape[1]


def _tell_passed(names: list[str], arrays: Arrays) -> None:
    if names:
        shown = ", ".join(f"{_shown(name)} {arrays[name].shape}" for name in names[:10])
        shown += f" and {len(names) - 10} more" if len(names) > 10 else ""
        message = f"not part of an LSTM, so passed through unchanged: {shown}"
        warnings.warn(message, UserWarning, stacklevel=4)  # the caller of to_torch or another public function


def _check_lstm(arrays: Arrays, weight_ih: str, weight_hh: str, *biases: str) -> None:
    """Check that an LSTM's parts, given by name, all exist and fit each other."""
    names = (weight_ih, weight_hh, *biases)
    missing = [name for name in names if name not in arrays]
    if missing:
        there = next(name for name in names if name in arrays)
        raise ValueError(f"{_shown(there)} is present but {_shown(missing[0])} is missing")
    shape = arrays[weight_hh].shape
    H = shape[-1] if shape else 0
    if shape != (4 * H, H):
        kind = {(3 * H, H): ", a GRU's", (H, H): ", an RNN's"}.get(shape, "")
        raise ValueError(f"{_shown(weight_hh)} must have an LSTM's shape (4H, H), got {shape}{kind}")
    if arrays[weight_ih].ndim != 2 or len(arrays[weight_ih]) != 4 * H:
        raise ValueError(f"{_shown(weight_ih)} must have shape ({4 * H}, I), got {arrays[weight_ih].shape}")
    for name in biases:
        if arrays[name].shape != (4 * H,):
            raise ValueError(f"{_shown(name)} must have shape ({4 * H},), got {arrays[name].shape}")


def _check_layers(prefix: str, layers: Mapping[int, Any]) -> None:
    missing = min(set(range(len(layers))) - layers.keys(), default=None)
    if missing is not None:
        raise ValueError(f"the LSTM {_shown(prefix)} has a layer {max(layers)} but no layer {missing}")


def _split(name: str) -> tuple[str, str]:
    """Splits "lstm.weight_ih" into ("lstm.", "weight_ih")."""
    prefix, dot, part = name.rpartition(".")
    return prefix + dot, part


def _put(found: Arrays, name: str, array: np.ndarray) -> None:
    if name in found:
        raise ValueError(f"two tensors would have the name {_shown(name)}")
    found[name] = array


def _shown(name: str) -> str:
    return ascii(name[:100])
