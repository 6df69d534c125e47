"""What rewrites of a graph have in common."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from .builder import Tensor
from .mapping import LARGE, is_large

__all__ = ["replace_node", "use_early", "without_weights"]


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


def use_early(graph: ir.Graph, first: int) -> None:
    """Move each node from position `first` on to where its operands are there, in place; the others keep their order.

    So a parameter's update follows directly on its gradient, which need not be kept until all gradients are there.
    """
    nodes = list(graph)
    position = {node: index for index, node in enumerate(nodes)}
    missing = [{position[node] for node in _operand_nodes(node) if node in position} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for index, operands in enumerate(missing):
        for operand in operands:
            users[operand].append(index)
    # Keys of the nodes to move are negative, and so come before all others.
    ready, order = [_key(index, first) for index, operands in enumerate(missing) if not operands], []
    heapq.heapify(ready)
    while ready:
        index = abs(heapq.heappop(ready))
        order.append(nodes[index])
        for user in users[index]:
            missing[user].discard(index)
            if not missing[user]:
                heapq.heappush(ready, _key(user, first))
    graph.extend(order)


def _key(index: int, first: int) -> int:
    return -index if index >= first else index


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
