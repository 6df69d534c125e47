"""The weights that layers multiply by, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.source import source_layer
from .moments.quadrature import Array
from .prediction import Prediction
from .profile import LAYER_OPS
from .trunk import initializer_of

__all__ = ["LayerWeight", "layer_weights", "trunk_weights"]


@dataclass(frozen=True)
class LayerWeight:
    """A trained weight that a layer multiplies by.

    Attributes:
        name: Of the parameter.
        layer: Of the node.
        node: The first node that multiplies by it.
        scale: Standard deviation about 0, times the square root of the number of inputs of an output: sqrt(2) by He's rule.
    """

    name: str
    layer: str
    node: ir.Node
    scale: float


def layer_weights(prediction: Prediction) -> list[LayerWeight]:
    """The weights of all layers, in the order of the graph; one that is used again counts once."""
    return _weights(prediction, prediction.state.nodes)


def trunk_weights(prediction: Prediction, *causes: str) -> list[LayerWeight]:
    """The weights of the trunk's steps with one of these causes, in backward order."""
    return _weights(prediction, (step.nodes[0] for step in prediction.steps if step.cause in causes))


def _weights(prediction: Prediction, nodes: Iterable[ir.Node]) -> list[LayerWeight]:
    found: dict[str, LayerWeight] = {}
    for node in nodes:
        initializer = initializer_of(node.inputs[1]) if node.op_type in LAYER_OPS else None
        if initializer is not None and initializer.name not in found:
            weight = _weight(prediction, node, initializer)
            found.update({} if weight is None else {weight.name: weight})
    return list(found.values())


def _weight(prediction: Prediction, node: ir.Node, initializer: ir.Value) -> LayerWeight | None:
    state, name, tensor = prediction.state, initializer.name or "", initializer.const_value
    weight = node.inputs[1]
    used = None if weight is None else state.values.get(weight)
    if name not in state.gradients.gradients or tensor is None or not isinstance(used, np.ndarray):
        return None
    square = np.mean(tensor.numpy().astype(np.float64) ** 2)
    return LayerWeight(
        name, source_layer(node) or node.name or "", node, float(np.sqrt(square * _fan_in(node, used)))
    )


def _fan_in(node: ir.Node, weight: Array) -> int:
    """How many products are summed up for an output."""
    if node.op_type == "Conv":
        return int(weight[0].size)
    if node.op_type == "ConvTranspose":
        return int(weight.size // weight.shape[1])
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return int(weight.shape[-1] if transposed or weight.ndim < 2 else weight.shape[-2])
