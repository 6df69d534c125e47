"""Which axis of a parameter numbers its output units, and which parameters the last layer has: what `adaptive` must know."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from ..model import TrainableModel

__all__ = ["last_layer", "summed_axes"]

_LINEAR = ("Gemm", "MatMul", "Conv", "ConvTranspose", "Einsum", "RNN", "GRU", "LSTM")

_MOVING = ("Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Cast")
"""Ops between a parameter and the layer that uses it."""


def summed_axes(model: TrainableModel, name: str) -> list[int]:
    """The axes of a parameter that belong to one output unit: all but the units' own; all of a vector.

    Units are numbered by more than one axis where a layer merges them: those of an attention's query by head and depth.
    """
    units = _unit_axes(model, name)
    return [axis for axis in range(len(model.onnx.graph.initializers[name].shape or ())) if axis not in units]


def _unit_axes(model: TrainableModel, name: str) -> tuple[int, ...]:
    """The axes of a parameter along which its output units lie; none where it has one axis at most.

    They are read from the op that uses the parameter, through transposes and through reshapes that merge axes; where that op
    does not tell, they are the framework's convention: the last axis in Keras, the first elsewhere.
    """
    value = model.onnx.graph.initializers[name]
    shape = [length for length in value.shape or () if isinstance(length, int)]
    if sum(length != 1 for length in shape) <= 1:
        return ()
    axes: list[tuple[int, ...]] | None = [(axis,) for axis in range(len(shape))]
    found = value
    while (node := _only_user(found)) is not None and node.op_type in ("Transpose", "Identity", "Reshape"):
        axes = _moved(axes, shape, node)
        found = node.outputs[0]
    position = None if node is None else _unit_position(node, found)
    if position is not None and axes is not None:
        return axes[position]
    return (len(shape) - 1,) if model.framework == "keras" else (0,)


def _moved(
    axes: list[tuple[int, ...]] | None, shape: list[int], node: ir.Node
) -> list[tuple[int, ...]] | None:
    """Which axes of the parameter each axis of the node's output holds; None where one of them is cut."""
    if axes is None or node.op_type == "Identity":
        return axes
    if node.op_type == "Transpose":
        return [
            axes[position] for position in node.attributes.get_ints("perm", tuple(range(len(axes)))[::-1])
        ]
    merged, waiting = list[tuple[int, ...]](), list(axes)
    for length in node.outputs[0].shape or ():
        group: tuple[int, ...] = ()
        while waiting and math.prod(shape[axis] for axis in group) != length:
            group += waiting.pop(0)
        merged.append(group)
    lengths = [math.prod(shape[axis] for axis in group) for group in merged]
    return merged if not waiting and lengths == list(node.outputs[0].shape or ()) else None


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
