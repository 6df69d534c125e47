"""Markers: layers that a traced TensorFlow graph would lose, kept through tf2onnx.

A layer of Keras that TensorFlow takes apart (BatchNormalization into means, an LSTM into a loop, dropout into random numbers)
leaves a Print op in the traced graph instead, which no optimizer removes or merges, and whose message says which mark it stands
for. tf2onnx makes it a node of the mark's type; when it has done its work, the mark completes the node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.model import FROZEN
from .frameworks import require

__all__ = ["Complete", "Mark", "Markers", "batch_norm", "dropout", "normal"]

Complete: TypeAlias = Callable[[ir.Node, Builder], None]

_MESSAGE = "gradfuse:"


@dataclass(frozen=True)
class Mark:
    """What a marker stands for.

    Attributes:
        op_type: What tf2onnx takes it for.
        complete: Gives the node its attributes, of which tf2onnx keeps none, or puts other nodes in its place.
        axis: The axis of its channels, which become axis 1.
    """

    op_type: str
    complete: Complete
    axis: int = 1


class Markers:
    """The marks left in one trace."""

    def __init__(self) -> None:
        self._left: list[Mark] = []
        self._of_node: dict[str, Mark] = {}

    def leave(self, mark: Mark, x: Any, *others: Any) -> Any:
        """A tensor of the shape of `x`: the first output of a node with inputs `x` and `others`."""
        self._left.append(mark)
        tf = require("tensorflow")
        return tf.raw_ops.Print(input=x, data=others, message=f"{_MESSAGE}{len(self._left) - 1}")

    def handle(self, graph: Any, node: Any, name: str, arguments: Any) -> None:
        """tf2onnx's handler of Print: the node that the marker stands for, channels on axis 1."""
        message = node.get_attr_value("message", b"").decode()
        if not message.startswith(_MESSAGE):
            node.type, node.input = "Identity", node.input[:1]
            return
        mark = self._of_node[node.name] = self._left[int(message.removeprefix(_MESSAGE))]
        node.type = mark.op_type
        if mark.axis != 1:
            _channels_first(graph, node, mark.axis)

    def complete(self, node: ir.Node, builder: Builder) -> None:
        """Complete a node, if a marker became it."""
        if (mark := self._of_node.get(node.name or "")) is not None:
            node.name = builder.unique_name((node.name or "").removesuffix("Print") + mark.op_type)
            node.outputs[0].name = node.name
            mark.complete(node, builder)


def _channels_first(graph: Any, node: Any, axis: int) -> None:
    shape = graph.get_shape(node.input[0])
    to_front = [0, axis, *(other for other in range(1, len(shape)) if other != axis)]
    graph.insert_new_node_on_input(node, "Transpose", node.input[0], perm=to_front)
    back = graph.insert_new_node_on_output("Transpose", node.output[0], perm=np.argsort(to_front).tolist())
    graph.set_shape(node.output[0], [shape[axis] for axis in to_front])
    graph.set_shape(back.output[0], shape)


def batch_norm(axis: int, epsilon: float, momentum: float, frozen: bool) -> Mark:
    """BatchNormalization of x, scale, bias, mean and variance; frozen, its statistics never move."""

    def complete(node: ir.Node, builder: Builder) -> None:
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
        node.attributes["momentum"] = ir.AttrFloat32("momentum", momentum)
        if frozen:
            node.metadata_props[FROZEN] = "true"

    return Mark("BatchNormalization", complete, axis)


def dropout(rate: float) -> Mark:
    """Dropout of x."""

    def complete(node: ir.Node, builder: Builder) -> None:
        node.resize_inputs(2)
        node.replace_input_with(1, builder.constant(rate, ir.DataType.FLOAT).value)

    return Mark("Dropout", complete)


def normal() -> Mark:
    """Standard normal numbers in the shape of x."""
    return Mark("RandomNormalLike", lambda node, builder: None)
