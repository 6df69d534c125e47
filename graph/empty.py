"""Empty tensors, which onnxruntime (seen in 1.19) does not always survive: it ends the process, or never returns.

What is known to be empty is refused when a model is lowered; what may turn out empty only when the graph runs is checked by the
graph that runs (`checks`).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .builder import Builder
from .errors import UnsupportedError
from .source import describe_node

__all__ = ["CONSEQUENCE", "guard_empty", "needed_operands"]

_NEVER_EMPTY = {
    **dict.fromkeys(("Einsum", "Gemm", "LpNormalization", "MatMul", "STFT", "TopK"), slice(None)),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), slice(None)),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin"), slice(0, 1)),
    **dict.fromkeys(("DFT", "GRU", "GatherND", "GridSample", "LRN", "LSTM", "RNN", "Unique"), slice(0, 1)),
    "Col2Im": slice(2, 3),
    "Conv": slice(1, 2),
    "ConvTranspose": slice(0, 2),
}
"""By op, which of its operands must have elements: of a reduction's not the axes, of a Conv's only the kernel.

Each was seen to end the process, to hang, or to leave its result unset: on some axis, in some version of the op.
"""

_REDUCTIONS = ("ReduceL1", "ReduceL2")
"""Ops that read beyond an empty tensor unless they are told the axes."""

CONSEQUENCE = {
    "expected": "at least one element, without which onnxruntime fails",
    "remedy": "leave the node out of the model, or export it for a batch of at least one example",
}
"""What is said of an empty operand beside what it is."""


def needed_operands(node: ir.Node) -> list[ir.Value]:
    """The operands without whose elements onnxruntime may not survive the node."""
    if node.domain:
        return []
    if node.op_type in _REDUCTIONS and len(node.inputs) == 1:
        return [value for value in node.inputs if value is not None]
    return [value for value in node.inputs[_NEVER_EMPTY.get(node.op_type, slice(0, 0))] if value is not None]


def guard_empty(model: ir.Model) -> None:
    """Refuse what is known to be empty where it must not be, and give the axes to reductions that need them, in place.

    Raises:
        UnsupportedError: By the shapes inferred, a node takes an empty tensor that onnxruntime does not survive.
    """
    builder = Builder(model.graph)
    for node in (node for node in model.graph.all_nodes() if node.domain == ""):
        if node.op_type in _REDUCTIONS:
            _name_axes(node, builder)
        for value in needed_operands(node):
            if 0 in _needed_lengths(node, value):
                raise UnsupportedError(
                    f"{describe_node(node)} takes {value.name!r} of shape {value.shape}, which has no elements",
                    **CONSEQUENCE,
                )


def _needed_lengths(node: ir.Node, value: ir.Value) -> Sequence[object]:
    """A ConvTranspose of no examples gives none."""
    dims = () if value.shape is None else value.shape.dims
    return dims[1:] if node.op_type == "ConvTranspose" else dims


def _name_axes(node: ir.Node, builder: Builder) -> None:
    """All axes as an input, where there is none and that means all."""
    x, given = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if (
        given is not None
        or x is None
        or x.shape is None
        or node.attributes.get_int("noop_with_empty_axes", 0) != 0
    ):
        return
    node.resize_inputs(2)
    node.replace_input_with(1, builder.ints(*range(x.shape.rank())).value)
