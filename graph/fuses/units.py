"""Which axis of a parameter numbers its output units, and which parameters the last layer has: what `adaptive` must know."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..model import TrainableModel

__all__ = ["last_layer", "summed_axes"]

_LINEAR = ("Gemm", "MatMul", "Conv", "ConvTranspose", "Einsum", "RNN", "GRU", "LSTM")

_MOVING = ("Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Cast")
"""Ops between a parameter and the layer that uses it."""


def summed_axes(model: TrainableModel, name: str) -> list[int]:
    """The axes of a parameter that belong to one output unit: all but the units' own; all of a vector."""
    unit = _unit_axis(model, name)
    return [axis for axis in range(len(model.onnx.graph.initializers[name].shape or ())) if axis != unit]


def _unit_axis(model: TrainableModel, name: str) -> int | None:
    """The axis of a parameter along which its output units lie; None where it has one axis at most.

    It is read from the op that uses the parameter, through transposes; where that op does not tell, it is the framework's
    convention: the last axis in Keras, the first elsewhere.
    """
    value = model.onnx.graph.initializers[name]
    rank = len(value.shape or ())
    if sum(length != 1 for length in value.shape or ()) <= 1:
        return None
    axes, found = list(range(rank)), value
    while (node := _only_user(found)) is not None and node.op_type in ("Transpose", "Identity"):
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(range(rank))[::-1])
            axes = [axes[position] for position in perm]
        found = node.outputs[0]
    position = None if node is None else _unit_position(node, found)
    if position is not None:
        return axes[position]
    return rank - 1 if model.framework == "keras" else 0


def _only_user(value: ir.Value) -> ir.Node | None:
    users = {node for node, _ in value.uses()}
    return users.pop() if len(users) == 1 else None


def _unit_position(node: ir.Node, weight: ir.Value) -> int | None:
    """The axis of `weight` that the node's output units lie along; None where the node does not tell."""
    if len(node.inputs) < 2 or node.inputs[1] is not weight:
        return None
    if node.op_type == "MatMul":
        return -1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) == 1:
        return 1
    return 0 if node.op_type == "Conv" else None


def last_layer(model: TrainableModel) -> tuple[str, ...]:
    """The parameters of the layer that gives the model's first output: weights and bias of the last linear op."""
    found: dict[str, None] = {}
    level, seen = [model.onnx.graph.outputs[0]], set[ir.Value]()
    while level:
        nodes = dict.fromkeys(node for value in level if (node := value.producer()) is not None)
        used = {node: dict.fromkeys(_parameters(node, model)) for node in nodes}
        for names in used.values():
            found.update(names)
        if any(names and node.op_type in _LINEAR for node, names in used.items()):
            break
        seen.update(level)
        level = [v for node in nodes for v in node.inputs if v is not None and v not in seen]
    return tuple(found)


def _parameters(node: ir.Node, model: TrainableModel) -> Iterator[str]:
    """The parameters that a node takes, directly or moved."""
    for value in node.inputs:
        while (
            value is not None and (producer := value.producer()) is not None and producer.op_type in _MOVING
        ):
            value = producer.inputs[0]
        if value is not None and value.name in model.parameters:
            yield value.name
