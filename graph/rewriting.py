"""What rewrites of a graph have in common."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from .builder import Tensor
from .mapping import LARGE, is_large

__all__ = ["order_by_use", "replace_node", "without_weights"]


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


def order_by_use(graph: ir.Graph) -> None:
    """Put the nodes of a graph into an order in which what is computed is used up soon, in place.

    Of the nodes whose operands are there, the last one comes next: a parameter's update directly after its gradient, which then
    need not be kept until all gradients are there.
    """
    nodes = list(graph)
    index = {node: position for position, node in enumerate(nodes)}
    producers = [{index[node] for node in _operand_nodes(node) if node in index} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for position, needed in enumerate(producers):
        for producer in needed:
            users[producer].append(position)
    ready, order = [-position for position, needed in enumerate(producers) if not needed], []
    heapq.heapify(ready)
    while ready:
        position = -heapq.heappop(ready)
        order.append(nodes[position])
        for user in users[position]:
            producers[user].discard(position)
            if not producers[user]:
                heapq.heappush(ready, -user)
    graph.extend(order)


def _operand_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that compute what a node takes, the bodies of its attributes included."""
    graphs = [
        attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type is ir.AttributeType.GRAPH
    ]
    for inner in (node, *(inner for graph in graphs for inner in graph.all_nodes())):
        for value in inner.inputs:
            producer = None if value is None else value.producer()
            if producer is not None:
                yield producer
