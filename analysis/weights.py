"""The weights that layers multiply by, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.recurrence import RECURRENT
from ..graph.source import source_layer
from .moments.blocks import mean_square
from .moments.quadrature import Array
from .prediction import Prediction
from .profile import LAYER_OPS
from .trunk import initializer_of

__all__ = ["LayerWeight", "layer_weights", "trunk_weights"]

_OF_STATES = 2
_PLACES = {**dict.fromkeys(LAYER_OPS, (1,)), **dict.fromkeys(RECURRENT, (1, _OF_STATES))}
"""Where a node has its weights; a recurrent one those of its input and those of its states."""


@dataclass(frozen=True)
class LayerWeight:
    """A trained weight that a layer multiplies by.

    Attributes:
        name: Of the parameter.
        layer: Of the node.
        node: The first node that multiplies by it; a recurrent one does so at every step.
        scale: Standard deviation about 0, times the square root of the number of inputs of an output: sqrt(2) by He's rule.
    """

    name: str
    layer: str
    node: ir.Node
    scale: float


def layer_weights(prediction: Prediction) -> list[LayerWeight]:
    """The weights of all layers, in the order of the graph; one that is used again counts once."""
    return _weights(prediction, prediction.state.nodes, _PLACES)


def trunk_weights(prediction: Prediction, *causes: str) -> list[LayerWeight]:
    """The weights that the trunk's steps with one of these causes pass, in backward order."""
    nodes = (step.nodes[0] for step in prediction.steps if step.cause in causes)
    return _weights(prediction, nodes, {**_PLACES, **dict.fromkeys(RECURRENT, (_OF_STATES,))})


def _weights(
    prediction: Prediction, nodes: Iterable[ir.Node], places: Mapping[str, Sequence[int]]
) -> list[LayerWeight]:
    found: dict[str, LayerWeight] = {}
    for node in nodes:
        for place in places.get(node.op_type, ()):
            value = node.inputs[place]
            weight = None if value is None else _weight(prediction, node, value)
            if weight is not None:
                found.setdefault(weight.name, weight)
    return list(found.values())


def _weight(prediction: Prediction, node: ir.Node, value: ir.Value) -> LayerWeight | None:
    state, initializer = prediction.state, initializer_of(value)
    used = state.values.get(value)
    name, tensor = ("", None) if initializer is None else (initializer.name or "", initializer.const_value)
    if name not in state.gradients.gradients or tensor is None or not isinstance(used, np.ndarray):
        return None
    square = mean_square(tensor.numpy())
    return LayerWeight(
        name, source_layer(node) or node.name or "", node, float(np.sqrt(square * _fan_in(node, used)))
    )


def _fan_in(node: ir.Node, weight: Array) -> int:
    """How many products are summed up for an output."""
    if node.op_type == "Conv":
        return int(weight[0].size)
    if node.op_type == "ConvTranspose":
        return int(weight.size // weight.shape[1])
    gemm = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    transposed = gemm or node.op_type in RECURRENT
    return int(weight.shape[-1] if transposed or weight.ndim < 2 else weight.shape[-2])
