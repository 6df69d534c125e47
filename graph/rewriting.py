"""What rewrites of a forward graph have in common."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .builder import Tensor

__all__ = ["replace_node"]


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
