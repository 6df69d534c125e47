"""Types and shapes of what the bodies of Scan and Loop receive, which ONNX's own inference does not write down.

A Scan hands its body the states, and one element of each scanned input. A Loop hands its body the states too, but their shape
may change from one iteration to the next: a dimension is kept only where the body gives it back as it came.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["describe_bodies"]


def describe_bodies(graph: ir.Graph) -> bool:
    """Write what is known about the inputs of every body in `graph`; whether that was anything new."""
    nodes = [node for node in graph.all_nodes() if node.domain == "" and "body" in node.attributes]
    changed = [_DESCRIBED[node.op_type](node) for node in nodes if node.op_type in _DESCRIBED]
    return any(changed)


def _describe_scan(node: ir.Node) -> bool:
    body, count = node.attributes["body"].as_graph(), node.attributes.get_int("num_scan_inputs", 0)
    n = len(node.inputs) - count
    axes = node.attributes.get_ints("scan_input_axes", (0,) * count)
    changed = [
        _write(inner, outer.type, outer.shape)
        for inner, outer in zip(body.inputs[:n], node.inputs[:n], strict=False)
        if outer is not None
    ]
    changed += [
        _write(inner, outer.type, _without(outer.shape, axis))
        for inner, outer, axis in zip(body.inputs[n:], node.inputs[n:], axes, strict=False)
        if outer is not None
    ]
    return any(changed)


def _describe_loop(node: ir.Node) -> bool:
    body = node.attributes["body"].as_graph()
    changed = [
        _write(inner, ir.TensorType(dtype), ir.Shape([]))
        for inner, dtype in zip(body.inputs[:2], (ir.DataType.INT64, ir.DataType.BOOL), strict=False)
    ]
    for inner, outer, end in zip(body.inputs[2:], node.inputs[2:], body.outputs[1:], strict=False):
        if outer is not None:
            changed += [_write(inner, outer.type, outer.shape), _forget_changing(inner, outer, end)]
    return any(changed)


_DESCRIBED = {"Scan": _describe_scan, "Loop": _describe_loop}


def _without(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    dims = list(shape)
    del dims[axis]
    return ir.Shape(dims)


def _write(value: ir.Value, kind: ir.TypeProtocol | None, shape: ir.Shape | None) -> bool:
    """Fill in what is not known yet."""
    before = value.type, value.shape
    value.type, value.shape = value.type or kind, shape if value.shape is None else value.shape
    return (value.type, value.shape) != before


def _forget_changing(state: ir.Value, first: ir.Value, end: ir.Value) -> bool:
    """Let go of the dimensions of a state that are not the same before and after an iteration."""
    if state.shape is None or first.shape is None or end.shape is None:
        return False
    if len({len(state.shape), len(first.shape), len(end.shape)}) > 1:
        return False
    changes = [
        axis
        for axis, dim in enumerate(state.shape)
        # Inference has a new symbol for a dimension that was let go of; only one taken from outside can be let go of.
        if dim != ir.SymbolicDim(None) and dim == first.shape[axis] and dim != end.shape[axis]
    ]
    dims = [None if axis in changes else dim for axis, dim in enumerate(state.shape)]
    state.shape = ir.Shape(dims)
    return bool(changes)
