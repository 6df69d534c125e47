"""Which values are never negative, as the graph tells: a normal law in the place of theirs gives negative numbers, too."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["is_never_negative"]

_NEVER_NEGATIVE = {
    *("Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid"),
    *("Softmax", "Softplus", "Sqrt"),
}

_AS_OPERANDS = {
    *("Add", "AveragePool", "Cast", "CastLike", "Concat", "CumSum", "Div", "Expand", "Flatten", "Gather"),
    *("GlobalAveragePool", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Mul", "Pow", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Sign", "Slice", "Squeeze", "Sum", "Transpose"),
    "Unsqueeze",
}
"""Ops whose result is not negative where none of their floating-point operands is."""

_STEPS = 12
"""How far back the graph is asked."""


def is_never_negative(value: ir.Value | None, steps: int = _STEPS) -> bool:
    """Whether no element can be below 0; False where that is not known."""
    if value is None or steps == 0:
        return False
    constant, node = ir.convenience.get_const_tensor(value), value.producer()
    if constant is not None:
        return bool((constant.numpy() >= 0).all())
    if node is None or node.domain:
        return False
    if node.op_type in _NEVER_NEGATIVE or _is_even_power(node):
        return True
    operands = [v for v in node.inputs if v is not None and (v.dtype is None or v.dtype.is_floating_point())]
    return node.op_type in _AS_OPERANDS and all(is_never_negative(v, steps - 1) for v in operands)


def _is_even_power(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op_type != "Pow" or node.inputs[1] is None:
        return False
    exponent = ir.convenience.get_const_tensor(node.inputs[1])
    return exponent is not None and bool((exponent.numpy() % 2 == 0).all())
