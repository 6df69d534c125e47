"""Fuses inside the body of a Scan: on the gradient that it hands from iteration to iteration.

The fuse stands in the body, so that it clips at every step. That it bit comes out as one bool for each iteration, and whether
it did in any of them is worked out beside the Scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import onnx_ir as ir

__all__ = ["add_bits", "body_of", "remove_bits"]

_SIDES = ("scan_output_axes", "scan_output_directions")


def body_of(graph: ir.Graph, value_name: str) -> tuple[ir.Node, ir.Value] | None:
    """The Scan whose body gives a value of this name, and the value."""
    for node in _scans(graph):
        for value in node.attributes["body"].as_graph().outputs:
            if value.name == value_name:
                return node, value
    return None


def add_bits(graph: ir.Graph, scan: ir.Node, bit: ir.Value, name: str) -> ir.Value:
    """Let a Scan give a bool of its body as a further output.

    Returns:
        The value called `name`: whether it was true in any iteration.
    """
    scan.attributes["body"].as_graph().outputs.append(bit)
    for side in _SIDES:
        if side in scan.attributes:
            scan.attributes[side] = ir.AttrInt64s(side, [*scan.attributes[side].as_ints(), 0])
    scan.resize_outputs(len(scan.outputs) + 1)
    bits = scan.outputs[-1]
    bits.name, bits.type, bits.shape = f"{name}s", ir.TensorType(ir.DataType.BOOL), ir.Shape([None])
    counted = ir.node("Cast", [bits], {"to": ir.DataType.INT32.value}, name=f"{name}/counted")
    most = ir.node("ReduceMax", counted.outputs, {"keepdims": 0}, name=f"{name}/most")
    some = ir.node("Cast", most.outputs, {"to": ir.DataType.BOOL.value}, name=name)
    counts, bools = ir.TensorType(ir.DataType.INT32), ir.TensorType(ir.DataType.BOOL)
    for node, dtype, shape in ((counted, counts, [None]), (most, counts, []), (some, bools, [])):
        value = node.outputs[0]
        value.name, value.type, value.shape = node.name, dtype, ir.Shape(shape)
        graph.append(node)
    return some.outputs[0]


def remove_bits(graph: ir.Graph, bit: ir.Value) -> None:
    """Undo `add_bits` for this value of a body."""
    scan = next(s for s in _scans(graph) if bit in s.attributes["body"].as_graph().outputs)
    body = scan.attributes["body"].as_graph()
    index = body.outputs.index(bit)
    node: ir.Node | None = next(iter(scan.outputs[index].uses()))[0]
    chain = []
    while node is not None:
        chain.append(node)
        node = next((user for user, _ in node.outputs[0].uses()), None)
    graph.remove(chain[::-1], safe=True)
    del body.outputs[index]
    for before, after in pairwise(scan.outputs[index:]):
        before.name, before.type, before.shape = after.name, after.type, after.shape
        after.replace_all_uses_with(before)
    scan.resize_outputs(len(scan.outputs) - 1)
    for side in _SIDES:
        if side in scan.attributes:
            scan.attributes[side] = ir.AttrInt64s(side, scan.attributes[side].as_ints()[:-1])


def _scans(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for node in graph if node.op_type == "Scan" and node.domain == "")
