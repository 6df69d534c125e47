"""What rewrites of a graph have in common."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .builder import Tensor
from .mapping import LARGE, is_large

__all__ = ["replace_node", "without_weights"]


def replace_node(node: ir.Node, results: Sequence[Tensor | None]) -> None:
    """Remove a node; each result takes the place, the name and the type of one of its outputs, None that of an unused one."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for output, result in zip(node.outputs, results, strict=True):
        if result is None:
            continue
        name, output.name = output.name, f"{output.name}/replaced"
        result.value.name, result.value.shape, result.value.type = name, output.shape, output.type
        output.replace_all_uses_with(result.value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def without_weights(model: ir.Model, above: int = LARGE) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """A copy whose large initializers are inputs without a value, so that it is small whatever the model's size.

    Args:
        model: The model.
        above: Elements from which an initializer is large.

    Returns:
        The copy, and the tensors by name.
    """
    clone = model.clone()
    tensors = {
        name: value.const_value
        for name, value in clone.graph.initializers.items()
        if value.const_value is not None and is_large(value.const_value, above)
    }
    for name in tensors:
        value = clone.graph.initializers.pop(name)
        value.const_value = None
        if value not in clone.graph.inputs:
            clone.graph.inputs.append(value)
    return clone, tensors
