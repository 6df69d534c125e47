"""Changes to a model that a remedy would make, as edits of a copy of its gradient graph's forward part.

The backward part of the copy is left as it is, since moments flow through the forward nodes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from ..graph.gradient_graph import GradientGraph
from ..graph.gradients.engine import DIFFERENTIATES
from .moments.quadrature import Array
from .profile import Step

__all__ = ["with_layer_norm", "with_relu", "with_scaled_weights"]


def with_scaled_weights(gradients: GradientGraph, factors: Mapping[str, float]) -> GradientGraph:
    """Initializers multiplied by these factors."""
    copy = gradients.clone()
    for name, factor in factors.items():
        value = copy.onnx.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        value.const_value = ir.tensor((array * factor).astype(array.dtype), name=name)
    return copy


def with_relu(gradients: GradientGraph, steps: Iterable[Step]) -> GradientGraph:
    """A ReLU in place of each of these chains of elementwise ops."""
    copy = gradients.clone()
    values = _values(copy)
    for step in steps:
        latent, end = values[step.before.name or ""], values[step.after.name or ""]
        _insert(copy, ir.node("Relu", [latent], num_outputs=1, name=f"what_if/{end.name}"), end)
    return copy


def with_layer_norm(gradients: GradientGraph, steps: Iterable[Step]) -> GradientGraph:
    """A LayerNormalization over all elements of an example before each of these chains of elementwise ops."""
    copy = gradients.clone()
    values = _values(copy)
    for step in steps:
        latent = values[step.before.name or ""]
        shape = [dim if isinstance(dim, int) else 1 for dim in (latent.shape or [1])][1:]
        name = f"what_if/{latent.name}"
        scale, bias = (
            _initializer(copy, f"{name}/{part}", np.full(shape, fill, np.float32))
            for part, fill in (("scale", 1.0), ("bias", 0.0))
        )
        _insert(
            copy,
            ir.node("LayerNormalization", [latent, scale, bias], {"axis": 1}, num_outputs=1, name=name),
            latent,
        )
    return copy


def _values(gradients: GradientGraph) -> dict[str, ir.Value]:
    graph = gradients.onnx.graph
    produced = {value.name or "": value for node in graph for value in node.outputs}
    return {**produced, **{value.name or "": value for value in graph.inputs}}


def _initializer(gradients: GradientGraph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    gradients.onnx.graph.register_initializer(value)
    return value


def _insert(gradients: GradientGraph, node: ir.Node, replaced: ir.Value) -> None:
    """Let the forward nodes that took `replaced` take the node's output, and the graph return it."""
    output, graph = node.outputs[0], gradients.onnx.graph
    output.name, output.type, output.shape = f"{node.name}/output", replaced.type, replaced.shape
    for user, index in tuple(replaced.uses()):
        if user is not node and DIFFERENTIATES not in user.metadata_props:
            user.replace_input_with(index, output)
    graph.outputs[:] = [output if value is replaced else value for value in graph.outputs]
    graph.append(node)
    graph.sort()
