"""Changes to a model that a remedy would make, as edits of a copy of the graph that its moments follow (`forward_graph`).

The backward part of the copy is left as it is, since moments flow through the forward nodes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..graph.gradient_graph import GradientGraph
from ..graph.gradients.engine import DIFFERENTIATES
from ..graph.gradients.normalization import BATCH_STATISTICS
from .moments.forward_graph import has_recurrent_nodes
from .moments.quadrature import Array
from .trunk import Step

__all__ = [
    "with_batch_norm",
    "with_layer_norm",
    "with_orthogonal_weights",
    "with_relu",
    "with_scaled_branches",
    "with_scaled_weights",
]


def with_scaled_weights(gradients: GradientGraph, factors: Mapping[str, float]) -> GradientGraph:
    """Initializers multiplied by these factors."""
    return _with_weights(gradients, factors, lambda array, factor: array * factor)


def with_orthogonal_weights(gradients: GradientGraph, gains: Mapping[str, float]) -> GradientGraph:
    """Matrices with orthonormal columns, or rows where those are fewer, times these gains in place of initializers."""
    return _with_weights(gradients, gains, lambda array, gain: gain * _orthogonal(array.shape))


def _with_weights(
    gradients: GradientGraph, numbers: Mapping[str, float], change: Callable[[Array, float], Array]
) -> GradientGraph:
    copy = gradients.clone()
    for name, number in numbers.items():
        value = copy.onnx.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            value.const_value = ir.tensor(change(array, number).astype(array.dtype), name=name)
    return copy


def _orthogonal(shape: tuple[int, ...]) -> Array:
    """By the QR decomposition of normal matrices (Saxe 2014); of all gates at once, as PyTorch and Keras draw them."""
    *count, rows, columns = shape
    normal = np.random.default_rng(0).standard_normal((*count, max(rows, columns), min(rows, columns)))
    orthogonal, _ = np.linalg.qr(normal)
    return np.asarray(orthogonal if rows >= columns else np.swapaxes(orthogonal, -1, -2))


def with_relu(gradients: GradientGraph, steps: Iterable[Step]) -> GradientGraph:
    """A ReLU in place of each of these chains of elementwise ops."""
    return _edited(
        gradients,
        ((step.before, step.after) for step in steps),
        lambda graph, latent, name: ir.node("Relu", [latent], num_outputs=1, name=name),
    )


def with_layer_norm(
    gradients: GradientGraph, places: Iterable[tuple[ir.Value, ir.Value]], axis: int
) -> GradientGraph:
    """A LayerNormalization of the first tensor of each place, over the axes from `axis` on, in place of the second."""

    def node(graph: ir.Graph, latent: ir.Value, name: str) -> ir.Node:
        shape = [dim if isinstance(dim, int) else 1 for dim in (latent.shape or [1])][axis:]
        parts = [
            _initializer(graph, f"{name}/{part}", np.full(shape, fill, np.float32))
            for part, fill in (("scale", 1.0), ("bias", 0.0))
        ]
        return ir.node("LayerNormalization", [latent, *parts], {"axis": axis}, num_outputs=1, name=name)

    return _edited(gradients, places, node)


def with_batch_norm(gradients: GradientGraph, places: Iterable[tuple[ir.Value, ir.Value]]) -> GradientGraph:
    """A BatchNormalization over axis 1, by the statistics of the batch, in the same way."""

    def node(graph: ir.Graph, latent: ir.Value, name: str) -> ir.Node:
        dims = list(latent.shape or [])
        size = dims[1] if len(dims) > 1 and isinstance(dims[1], int) else 1
        parts = [
            _initializer(graph, f"{name}/{part}", np.full(size, fill, np.float32))
            for part, fill in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        ]
        batch_norm = ir.node("BatchNormalization", [latent, *parts], num_outputs=1, name=name)
        batch_norm.metadata_props[BATCH_STATISTICS] = "true"
        return batch_norm

    return _edited(gradients, places, node)


def with_scaled_branches(
    gradients: GradientGraph, branches: Iterable[ir.Value], factor: float
) -> GradientGraph:
    """Each of these tensors multiplied by a factor."""

    def node(graph: ir.Graph, branch: ir.Value, name: str) -> ir.Node:
        scale = _initializer(graph, f"{name}/scale", np.array(factor, np.float32))
        return ir.node("Mul", [branch, scale], num_outputs=1, name=name)

    return _edited(gradients, ((branch, branch) for branch in branches), node)


def _edited(
    gradients: GradientGraph,
    places: Iterable[tuple[ir.Value, ir.Value]],
    node: Callable[[ir.Graph, ir.Value, str], ir.Node],
) -> GradientGraph:
    """A copy in which, at each place, a node takes the first tensor, and its output replaces the second.

    A place that only the lowered form of a recurrent network has is left alone.
    """
    copy = gradients.clone()
    if has_recurrent_nodes(gradients):
        copy = replace(copy, source=replace(copy.source, onnx=copy.source.onnx.clone()))
    graph = copy.source.onnx.graph if has_recurrent_nodes(gradients) else copy.onnx.graph
    values = {value.name or "": value for node in graph for value in node.outputs}
    values.update({value.name or "": value for value in graph.inputs})
    for before, after in places:
        if before.name in values and after.name in values:
            taken, replaced = values[before.name], values[after.name]
            # A source does not write down every shape; the graph that the places are from has inferred them.
            taken.shape, replaced.shape = before.shape, after.shape
            _insert(graph, node(graph, taken, f"what_if/{replaced.name}"), replaced)
    graph.sort()
    return copy


def _initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value


def _insert(graph: ir.Graph, node: ir.Node, replaced: ir.Value) -> None:
    """Let the forward nodes that took `replaced` take the node's output, and the graph return it."""
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{node.name}/output", replaced.type, replaced.shape
    for user, index in tuple(replaced.uses()):
        if user is not node and DIFFERENTIATES not in user.metadata_props:
            user.replace_input_with(index, output)
    graph.outputs[:] = [output if value is replaced else value for value in graph.outputs]
    graph.append(node)
