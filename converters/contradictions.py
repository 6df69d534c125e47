"""Files whose shapes contradict themselves: products of lengths that do not meet run nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..graph.errors import InputError
from ..graph.source import describe_node

__all__ = ["refuse_contradictions"]


def refuse_contradictions(model: ir.Model) -> None:
    """Refuse matrix products and convolutions whose known inner lengths differ.

    Raises:
        InputError: There is one.
    """
    for node in model.graph.all_nodes():
        met = _inner_lengths(node)
        if met is not None and all(isinstance(length, int) for length in met) and met[0] != met[1]:
            shapes = " and ".join(str(value.shape) for value in node.inputs[:2] if value is not None)
            raise InputError(
                f"{describe_node(node)} multiplies tensors of the shapes {shapes},"
                f" whose inner lengths {met[0]} and {met[1]} differ",
                expected="shapes that can be multiplied",
                remedy="export the model again",
            )


def _inner_lengths(node: ir.Node) -> tuple[object, object] | None:
    """Those that must be equal; None where a shape is not known, or the op is another."""
    if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    shapes = [None if value is None or value.shape is None else value.shape.dims for value in node.inputs[:2]]
    if any(not shape for shape in shapes):
        return None
    return _meeting(node, *(shape for shape in shapes if shape))


def _meeting(node: ir.Node, a: Sequence[object], b: Sequence[object]) -> tuple[object, object] | None:
    if node.op_type == "MatMul":
        return a[-1], b[max(len(b) - 2, 0)]
    if node.op_type == "Gemm":
        trans = [node.attributes.get_int(name, 0) != 0 for name in ("transA", "transB")]
        return (a[1 - trans[0]], b[trans[1]]) if len(a) == len(b) == 2 else None
    channels = b[1] if len(a) > 1 and len(b) > 1 else None
    return (a[1], channels * node.attributes.get_int("group", 1)) if isinstance(channels, int) else None
