"""Matrices that multiply the flow again and again, as a recurrent layer's does at every time step.

The gradient that flows back through k uses of a matrix W, with nothing but sums and activations of slope 1 at most between
them, grows at most as the k-th power of W does: as the k-th power of its spectral radius, in the long run. Where the activation
saturates it grows less. The moments say how much at the present weights; the power says what a later step may meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.gradient_graph import GradientGraph
from ..graph.gradients.engine import DIFFERENTIATES
from .trunk import initializer_of

__all__ = ["Recurrence", "recurrences"]

_BETWEEN = ("Add", "Identity", "Relu", "Reshape", "Sigmoid", "Squeeze", "Sum", "Tanh", "Unsqueeze")


@dataclass(frozen=True)
class Recurrence:
    """A square matrix that is used in a chain.

    Attributes:
        parameter: Its name.
        radius: Its spectral radius.
        steps: Length of the chain, at least 2.
    """

    parameter: str
    radius: float
    steps: int

    @property
    def growth(self) -> float:
        """radius^steps; infinite where that is beyond float64."""
        with np.errstate(over="ignore"):
            return float(np.float64(self.radius) ** self.steps)


def recurrences(gradients: GradientGraph) -> list[Recurrence]:
    """The recurrences that are written out step by step; a loop's body is not looked into."""
    found = []
    for weight, nodes in _users(gradients).items():
        depths: dict[ir.Node, int] = {}
        for node in nodes:
            depths[node] = 1 + max(
                (depths[before] for before in _before(node) if before in depths), default=0
            )
        if (steps := max(depths.values())) > 1 and weight.const_value is not None:
            array = weight.const_value.numpy()
            matrix = array.reshape(array.shape[-2:]).astype(np.float64)
            radius = float(np.abs(np.linalg.eigvals(matrix)).max()) if np.isfinite(matrix).all() else np.inf
            found.append(Recurrence(weight.name or "", radius, steps))
    return found


def _users(gradients: GradientGraph) -> dict[ir.Value, list[ir.Node]]:
    """The forward products with each square matrix, in order."""
    users: dict[ir.Value, list[ir.Node]] = {}
    for node in gradients.onnx.graph:
        if node.op_type not in ("MatMul", "Gemm") or DIFFERENTIATES in node.metadata_props:
            continue
        weight = initializer_of(node.inputs[1])
        shape = () if weight is None or weight.const_value is None else weight.const_value.shape.numpy()
        if weight is not None and len(shape) > 1 and shape[-1] == shape[-2] and np.prod(shape[:-2]) == 1:
            users.setdefault(weight, []).append(node)
    return users


def _before(node: ir.Node) -> Iterator[ir.Node]:
    """The products that the factor of a product is made of by sums and activations."""
    level, seen = [node.inputs[0]], set[ir.Value]()
    while level:
        value = level.pop()
        if value is None or value in seen or (producer := value.producer()) is None:
            continue
        seen.add(value)
        if producer.op_type in ("MatMul", "Gemm"):
            yield producer
        elif producer.op_type in _BETWEEN:
            level.extend(producer.inputs)
