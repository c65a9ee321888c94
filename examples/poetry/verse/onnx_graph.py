"""A PoemModel as an ONNX graph, for inference engines in Python, a browser or elsewhere.

    inputs   ids (T, B) int64; h and c (L, B, H), the states of all L LSTMs, both zeros at first
    outputs  logits (T, B, V) of the next token after each place, next_h and next_c

T and B are dynamic: the same graph reads complete poems, or writes one step at a time. It uses Gather for the
embedding, one LSTM operator per layer, MatMul and Add for the projection; a tied model's table is stored once. The
operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Mapping

from model import PoemModel

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import minidl

OPSET, IR = 17, 8  # from 2022: every recent engine reads them
LARGEST = 2**31 - 2**24  # bytes of weights: a protobuf file holds at most 2 GiB, and names take room too
FLOAT = TensorProto.FLOAT


def poem_graph(model: PoemModel, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model with its float32 weights and `metadata`, checked by ONNX's own checker; ValueError if too large."""
    size = sum(parameter.data.nbytes for parameter in model.parameters())
    if size > LARGEST:
        raise ValueError(f"its weights take {size:,} bytes, but an ONNX file holds at most {LARGEST:,}")
    V = model.embedding.weight.data.shape[0]
    L, H = len(model.lstms), model.lstms[0].hidden_size
    nodes, weights = _nodes(model)
    graph = helper.make_graph(
        nodes,
        "poem",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["time", "batch"]),
            helper.make_tensor_value_info("h", FLOAT, [L, "batch", H]),
            helper.make_tensor_value_info("c", FLOAT, [L, "batch", H]),
        ],
        [
            helper.make_tensor_value_info("logits", FLOAT, ["time", "batch", V]),
            helper.make_tensor_value_info("next_h", FLOAT, [L, "batch", H]),
            helper.make_tensor_value_info("next_c", FLOAT, [L, "batch", H]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="minidl",
        producer_version=minidl.__version__,
    )
    helper.set_model_props(made, dict(metadata))
    onnx.checker.check_model(made, full_check=True)
    return made


def _nodes(model: PoemModel) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The operators in order, and the arrays that they refer to by name."""
    node, named, layers = helper.make_node, model.state_dict(), range(len(model.lstms))
    weights = {name: array for name, array in named.items() if not name.startswith("lstms.")}
    weights["time_direction"] = np.array([1], np.int64)  # the axis of Y (T, 1, B, H) to squeeze
    nodes = [
        node("Gather", ["embedding.weight", "ids"], ["x.0"]),  # (T, B, E)
        node("Split", ["h"], [f"h.{layer}" for layer in layers], axis=0),  # (1, B, H) each
        node("Split", ["c"], [f"c.{layer}" for layer in layers], axis=0),
    ]
    for layer in layers:
        parts = lstm_weights(*(named[f"lstms.{layer}.{part}"] for part in ("weight_ih", "weight_hh", "bias")))
        names = [f"lstms.{layer}.{part}" for part in "WRB"]
        weights |= dict(zip(names, parts, strict=True))
        inputs = [f"x.{layer}", *names, "", f"h.{layer}", f"c.{layer}"]  # no lengths: all B run for T steps
        outputs = [f"y.{layer}", f"next_h.{layer}", f"next_c.{layer}"]
        nodes.append(node("LSTM", inputs, outputs, hidden_size=model.lstms[layer].hidden_size))
        nodes.append(node("Squeeze", [f"y.{layer}", "time_direction"], [f"x.{layer + 1}"]))  # (T, B, H)
    head = "head.weight" if "head.weight" in named else "embedding.weight"
    nodes += [
        node("Transpose", [head], ["projection"], perm=[1, 0]),  # engines do this once, when they load the graph
        node("MatMul", [f"x.{len(layers)}", "projection"], ["products"]),
        node("Add", ["products", "head.bias"], ["logits"]),
        node("Concat", [f"next_h.{layer}" for layer in layers], ["next_h"], axis=0),
        node("Concat", [f"next_c.{layer}" for layer in layers], ["next_c"], axis=0),
    ]
    return nodes, weights


def lstm_weights(
    weight_ih: np.ndarray, weight_hh: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ONNX's W (1, 4H, I), R (1, 4H, H) and B (1, 8H), gates i, o, f, g, from minidl's, gates i, f, g, o.

    B holds an input bias and a recurrent bias; the latter is zero here. ONNX calls gate g `c`.
    """

    def reordered(array: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])

    biases = np.concatenate([reordered(bias), np.zeros_like(bias)])
    return reordered(weight_ih)[None], reordered(weight_hh)[None], biases[None]
