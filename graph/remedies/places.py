"""What the remedies share: which nodes are activations, where a user points, and new initializers with a framework's names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..errors import InputError, some
from ..model import TrainableModel
from ..source import source_layer

__all__ = ["Array", "add_initializer", "chosen", "layer_of", "moved_from", "stands_alone"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_MOVING = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Constant")


def stands_alone(node: ir.Node) -> bool:
    """Whether an op is an activation of its own: no part of SiLU, x sigmoid(x), or of Keras's PReLU, relu(x) - a relu(-x)."""
    x, y = node.inputs[0], node.outputs[0]
    if node.domain != "" or x is None:
        return False
    negated = [user for user, _ in x.uses() if user.op_type == "Neg"]
    negated += [producer] if (producer := x.producer()) is not None and producer.op_type == "Neg" else []
    gates = any(user.op_type == "Mul" and x in user.inputs for user, _ in y.uses())
    return not gates and not (node.op_type == "Relu" and negated)


def chosen(nodes: Sequence[ir.Node], at: Sequence[str] | None, what: str) -> list[ir.Node]:
    """The nodes whose layer or name matches a pattern; all without patterns.

    Raises:
        InputError: There is none.
    """
    found = [
        node
        for node in nodes
        if not at
        or any(
            fnmatch.fnmatchcase(name, pattern)
            for name in (node.name or "", source_layer(node))
            for pattern in at
        )
    ]
    if not found:
        place = f" at {', '.join(at)}" if at and nodes else ""
        expected = f"a pattern for one of {some(dict.fromkeys(map(layer_of, nodes)))}" if nodes else ""
        raise InputError(f"the model has no {what}{place}", expected=expected)
    return found


def layer_of(node: ir.Node) -> str:
    """The source layer of a node; its own name where that is unknown."""
    return source_layer(node) or node.name or node.op_type


def moved_from(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a value is, or is made of by moving its elements; None where it depends on the data."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in _MOVING:
            return None
        value = producer.inputs[0] if producer.inputs else None
    return value if value is not None and value.is_initializer() else None


def add_initializer(model: TrainableModel, name: str, array: Array) -> ir.Value:
    """A new initializer; a number is appended to a name that the graph has already."""
    graph = model.onnx.graph
    taken = {*graph.initializers, *(value.name for node in graph for value in node.outputs)}
    unique = next(candidate for candidate in _candidates(name) if candidate not in taken)
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(
        name=unique, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value


def _candidates(name: str) -> Iterator[str]:
    yield name
    count = 2
    while True:
        yield f"{name}_{count}"
        count += 1
