"""The weights that the trunk of the backward flow multiplies by, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .moments.quadrature import Array
from .prediction import Prediction
from .profile import LAYER_OPS
from .trunk import Step, initializer_of

__all__ = ["TrunkWeight", "trunk_weights"]


@dataclass(frozen=True)
class TrunkWeight:
    """One trained weight.

    Attributes:
        name: Of the parameter.
        layer: Of the step that multiplies by it.
        node: Its node.
        scale: Standard deviation about 0, times the square root of the number of inputs of an output: sqrt(2) by He's rule.
    """

    name: str
    layer: str
    node: ir.Node
    scale: float


def trunk_weights(prediction: Prediction, *causes: str) -> list[TrunkWeight]:
    """The weights of the steps with one of these causes, in backward order; a weight that is used again counts once."""
    found: dict[str, TrunkWeight] = {}
    for step in prediction.steps:
        weight = _weight(step, prediction) if step.cause in causes else None
        if weight is not None:
            found.setdefault(weight.name, weight)
    return list(found.values())


def _weight(step: Step, prediction: Prediction) -> TrunkWeight | None:
    node, state = step.nodes[0], prediction.state
    initializer = initializer_of(node.inputs[1]) if node.op_type in LAYER_OPS else None
    if initializer is None or initializer.const_value is None:
        return None
    name = initializer.name or ""
    used = state.values[node.inputs[1]]  # type: ignore[index]
    if name not in state.gradients.gradients or not isinstance(used, np.ndarray):
        return None
    square = np.mean(np.square(initializer.const_value.numpy(), dtype=np.float64))
    return TrunkWeight(name, step.layer, node, float(np.sqrt(square * _fan_in(node, used))))


def _fan_in(node: ir.Node, weight: Array) -> int:
    """How many products are summed up for an output."""
    if node.op_type == "Conv":
        return int(weight[0].size)
    if node.op_type == "ConvTranspose":
        return int(weight.size // weight.shape[1])
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return int(weight.shape[-1] if transposed or weight.ndim < 2 else weight.shape[-2])
