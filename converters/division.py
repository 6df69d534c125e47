"""Integer division by zero ends the process in onnxruntime's kernels: no file may get that far.

before          after
Div(a, b)       Div(a, Where(b == 0, 1, b)) where b is not known beforehand
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.errors import InputError
from ..graph.source import describe_node

__all__ = ["guard_division"]


def guard_division(model: ir.Model) -> None:
    """Guard, in place, every integer division; shapes and types must have been inferred.

    Raises:
        InputError: A divisor is a constant that holds 0.
    """
    for node in list(model.graph.all_nodes()):
        divisor = node.inputs[1] if len(node.inputs) > 1 else None
        if node.domain or node.op_type not in ("Div", "Mod") or divisor is None:
            continue
        if divisor.dtype is not None and divisor.dtype.is_integer():
            _guard(node, divisor)


def _guard(node: ir.Node, divisor: ir.Value) -> None:
    known = ir.convenience.get_const_tensor(divisor)
    if known is None:
        node.replace_input_with(1, _never_zero(node, divisor))
    elif known.dtype.is_integer() and (known.numpy() == 0).any():
        raise InputError(f"{describe_node(node)} divides by zero", expected="divisors other than 0")


def _never_zero(node: ir.Node, divisor: ir.Value) -> ir.Value:
    """The divisor, or 1 where it is 0; computed before `node`, in whichever graph that stands."""
    assert divisor.dtype is not None  # an integer
    zero, one = (
        ir.node("Constant", [], {"value": ir.tensor(np.array(value, divisor.dtype.numpy()))})
        for value in (0, 1)
    )
    is_zero = ir.node("Equal", [divisor, zero.outputs[0]])
    safe = ir.node("Where", [is_zero.outputs[0], one.outputs[0], divisor])
    nodes = [zero, one, is_zero, safe]
    for index, added in enumerate(nodes):
        added.name = added.outputs[0].name = f"{node.outputs[0].name}/divisor_{index}"
    safe.outputs[0].type, safe.outputs[0].shape = divisor.type, divisor.shape
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, nodes)
    return safe.outputs[0]
