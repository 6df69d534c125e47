"""Recurrent layers of Keras in a traced graph: one ONNX node each, where ONNX has the layer, else their steps one by one.

Keras and ONNX order and place the weights differently. With kernel [I, G H], recurrent kernel [H, G H], and G gates:

               Keras                                         ONNX: W [1, G H, I], R [1, G H, H], B [1, 2 G H]
    SimpleRNN  bias [H]                                      B = bias, 0
    GRU        gates z r h; bias [2, 3 H] (reset_after)      z r h; B = bias, linear_before_reset = 1
               bias [3 H] (without)                          B = bias, 0, linear_before_reset = 0
    LSTM       gates i f c o; bias [4 H]                     i o f c; B = bias, 0

Keras has the batch first; ONNX has the time first, and returns every step and the last states at once. The marker has one
output, so what is needed of these is put side by side along the time, and cut apart by whoever asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import onnx_ir as ir

from ..graph.builder import Builder, Tensor
from ..graph.errors import UnsupportedError
from ..graph.rewriting import replace_node
from .frameworks import require
from .keras_markers import Mark, Markers

__all__ = ["recurrent_loop"]

_OPS = {"SimpleRNN": "RNN", "GRU": "GRU", "LSTM": "LSTM"}
_GATE_ORDER = {"RNN": [0], "GRU": [0, 1, 2], "LSTM": [0, 3, 1, 2]}
_ACTIVATIONS = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
"""By the name of Keras's function; the others have other parameters than ONNX's, or no counterpart."""


def recurrent_loop(markers: Markers, steps: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the place of `inner_loop` of all recurrent layers; `steps` is that of the class RNN."""

    def loop(layer: Any, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if sequences.shape[1] is None:
            raise UnsupportedError(
                f"the {type(layer).__name__} layer {layer.name!r} runs over a dynamic number of steps",
                expected="a static sequence length",
                remedy="give keras.Input the length, or convert with an example input or --input-shape",
            )
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        if mask is None and _has_node(layer, training):
            return _as_node(markers, layer, sequences, initial_state, training)
        with mock.patch.object(layer, "unroll", True):
            return steps(layer, sequences, initial_state, mask, training=training)

    return loop


def _has_node(layer: Any, training: bool) -> bool:
    """Whether ONNX has a node that computes what the layer does."""
    layers, cell = require("tensorflow", "keras").layers, layer.cell
    if type(layer) not in (layers.SimpleRNN, layers.GRU, layers.LSTM) or (
        training and cell.recurrent_dropout
    ):
        return False
    one_mask = not cell.dropout or getattr(cell, "dropout_mask_count", None) is None
    return one_mask and all(name in _ACTIVATIONS for name in _activations(cell))


def _activations(cell: Any) -> list[str]:
    """Names of Keras's functions in the order of ONNX's."""
    gates = [cell.recurrent_activation] if hasattr(cell, "recurrent_activation") else []
    outputs = [cell.activation] * (2 if "LSTM" in type(cell).__name__ else 1)
    return [getattr(function, "__name__", "") for function in (*gates, *outputs)]


def _as_node(markers: Markers, layer: Any, sequences: Any, initial_state: Any, training: bool) -> Any:
    """The last output, all outputs, and the last states, as `inner_loop` returns them."""
    keras, tf = require("tensorflow", "keras"), require("tensorflow")
    cell, op_type = layer.cell, _OPS[type(layer).__name__]
    if layer.go_backwards:
        sequences = keras.ops.flip(sequences, axis=1)
    if training and cell.dropout:
        sequences = sequences * cell.get_dropout_mask(sequences[:, 0, :])[:, None]
    states = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
    wanted = _wanted(layer, op_type)
    lengths = [sequences.shape[1] if index == 0 else 1 for index in wanted]
    shape = [keras.ops.shape(sequences)[0], sum(lengths), cell.units]
    bias = [] if cell.bias is None else [cell.bias]
    weights = [tf.convert_to_tensor(weight) for weight in (cell.kernel, cell.recurrent_kernel, *bias)]
    mark = Mark(f"Keras{op_type}", _completion(op_type, cell, wanted))
    joined = markers.leave(mark, keras.ops.zeros(shape), sequences, *states, *weights)
    parts = dict(zip(wanted, tf.split(joined, lengths, axis=1), strict=True))
    last = parts[1][:, 0] if 1 in parts else parts[0][:, -1]
    new_states = [last, parts[2][:, 0]] if 2 in parts else [last] * len(states)
    return last, parts.get(0, last[:, None]), new_states


def _wanted(layer: Any, op_type: str) -> list[int]:
    """Which outputs of the ONNX node are needed: 0 all steps, 1 the last output, 2 an LSTM's last cell state."""
    states = layer.return_state or layer.stateful
    wanted = {
        0: layer.return_sequences,
        1: states or not layer.return_sequences,
        2: states and op_type == "LSTM",
    }
    return [index for index, needed in wanted.items() if needed]


def _completion(op_type: str, cell: Any, wanted: Sequence[int]) -> Callable[[ir.Node, Builder], None]:
    attributes: dict[str, Any] = {
        "hidden_size": cell.units,
        "activations": [_ACTIVATIONS[name] for name in _activations(cell)],
    }
    if op_type == "GRU":
        attributes["linear_before_reset"] = int(cell.reset_after)

    def complete(node: ir.Node, builder: Builder) -> None:
        inputs = [builder.tensor(value) for value in node.inputs[1:] if value is not None]
        with builder.scope(node.name or op_type, node.metadata_props):
            outputs = _node(builder, op_type, inputs, attributes)
            parts = [outputs[index] for index in wanted]
            replace_node(node, [parts[0] if len(parts) == 1 else builder.op("Concat", *parts, axis=1)])

    return complete


def _node(builder: Builder, op_type: str, inputs: list[Tensor], attributes: dict[str, Any]) -> list[Tensor]:
    """The node's outputs, each [N, T or 1, H], from inputs as Keras has them: x, states, kernels, perhaps a bias."""
    count, order = 2 if op_type == "LSTM" else 1, _GATE_ORDER[op_type]
    x, states, weights = inputs[0], inputs[1 : 1 + count], inputs[1 + count :]
    kernels = [_gates(weight, order, 1).transpose(1, 0).unsqueeze(0) for weight in weights[:2]]
    bias = _bias(weights[2], order) if len(weights) > 2 else None
    initial = [state.unsqueeze(0) for state in states]
    results = builder.ops(
        op_type,
        x.transpose(1, 0, 2),
        *kernels,
        bias,
        None,
        *initial,
        dtypes=[None] * (1 + count),
        **attributes,
    )
    return [results[0].squeeze(1).transpose(1, 0, 2), *(state.transpose(1, 0, 2) for state in results[1:])]


def _bias(bias: Tensor, order: Sequence[int]) -> Tensor:
    """[1, 2 G H] from [G H], or from [2, G H], whose gates are in ONNX's order already."""
    if bias.rank == 2:
        return bias.reshape(1, -1)
    ordered = _gates(bias, order, 0)
    return bias.builder.op("Concat", ordered, ordered.zeros_like(), axis=0).unsqueeze(0)


def _gates(weight: Tensor, order: Sequence[int], axis: int) -> Tensor:
    """The parts of an axis, one for each gate, in another order."""
    if list(order) == sorted(order):
        return weight
    length, builder = weight.length(axis), weight.builder
    assert isinstance(length, int)
    sizes = builder.ints(*[length // len(order)] * len(order))
    parts = builder.ops("Split", weight, sizes, dtypes=[None] * len(order), axis=axis)
    return builder.op("Concat", *(parts[gate] for gate in order), axis=axis)
