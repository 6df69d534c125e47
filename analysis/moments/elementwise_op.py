"""Elementwise ops on arrays: their values, and their partial derivatives taken from the table of gradients.

For each node a small graph is written - the node, and its entry of the table with an incoming gradient of 1 - and evaluated in
float64. So a new activation needs an entry in the table of gradients, and nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ...graph.builder import Builder, Tensor
from ...graph.gradients import TABLE
from ...graph.gradients.engine import Adjoint
from .errors import UnknownTransferError
from .quadrature import Array

__all__ = ["evaluate_node", "is_floating", "partial_derivatives"]


class Erf(OpRun):
    """erf by Abramowitz and Stegun 7.1.26, error below 1.5e-7; onnx's own calls Python for every element."""

    _COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0)

    def _run(self, x: Array) -> tuple[Array]:
        t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
        return ((np.sign(x) * (1.0 - np.polyval(self._COEFFICIENTS, t) * np.exp(-(x**2)))).astype(x.dtype),)


def evaluate_node(node: ir.Node, operands: Sequence[Array | None]) -> list[Array]:
    """The outputs of `node` for these operands.

    Raises:
        UnknownTransferError: It has none: its shape belongs to a whole batch, or the evaluator lacks the op.
    """
    graph, clone = _graph_of(node, operands)
    graph.outputs.extend(clone.outputs)
    return _run(graph, operands)


def partial_derivatives(node: ir.Node, operands: Sequence[Array | None]) -> list[Array | None]:
    """d output / d operand of an elementwise node, each of the output's shape; None where there is none."""
    entry = TABLE.get((node.domain, node.op_type))
    if entry is None or not is_floating(node.outputs[0]):
        return [None for _ in operands]
    graph, clone = _graph_of(node, operands)
    builder = Builder(graph)
    one = builder.constant(1.0, ir.DataType.DOUBLE)
    inputs = tuple(None if value is None else builder.tensor(value) for value in clone.inputs)
    outputs = tuple(builder.tensor(value) for value in clone.outputs)
    partials = list(entry.rule(Adjoint(clone, inputs, outputs, (one,), builder)))
    present = [tensor for tensor in partials if tensor is not None]
    graph.outputs.extend(_output(tensor) for tensor in present)
    arrays = iter(_run(graph, operands))
    shape = np.broadcast_shapes(*(operand.shape for operand in operands if operand is not None))
    found = [None if tensor is None else np.broadcast_to(next(arrays), shape) for tensor in partials]
    return [*found, *[None] * (len(operands) - len(found))][: len(operands)]


def is_floating(value: ir.Value) -> bool:
    """Whether it holds floating-point numbers, or may."""
    return value.dtype is None or value.dtype.is_floating_point()


def _output(tensor: Tensor) -> ir.Value:
    """A value that may be a graph output: not an initializer, and not one that is listed twice."""
    return tensor.builder.op("Identity", tensor).value


def _graph_of(node: ir.Node, operands: Sequence[Array | None]) -> tuple[ir.Graph, ir.Node]:
    """A graph of the node alone, in float64, whose operands are initializers: some rules ask for an exponent's value."""
    initializers = [
        None
        if operand is None
        else ir.Value(
            name=f"operand_{index}",
            const_value=ir.tensor(_double(operand)),
            type=ir.TensorType(ir.DataType.from_numpy(_double(operand).dtype)),
            shape=ir.Shape(operand.shape),
        )
        for index, operand in enumerate(operands)
    ]
    clone = ir.node(
        node.op_type, initializers, domain=node.domain, num_outputs=len(node.outputs), name="node"
    )
    clone.attributes.update(node.attributes)
    for index, (value, original) in enumerate(zip(clone.outputs, node.outputs, strict=True)):
        value.name = f"output_{index}"
        value.type = ir.TensorType(
            ir.DataType.DOUBLE if is_floating(original) else original.dtype or ir.DataType.BOOL
        )
        value.shape = original.shape
    if node.op_type == "Cast" and is_floating(node.outputs[0]):
        clone.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    graph = ir.Graph(
        [],
        [],
        nodes=[clone],
        initializers=[value for value in initializers if value is not None],
        opset_imports={"": 20},
    )
    return graph, clone


def _double(operand: Array) -> Array:
    return operand.astype(np.float64) if operand.dtype.kind == "f" else operand


def _run(graph: ir.Graph, operands: Sequence[Array | None]) -> list[Array]:
    """Evaluate with the operands as inputs, so that their bytes are not copied into a protobuf."""
    names = [f"operand_{index}" for index, operand in enumerate(operands) if operand is not None]
    for name in names:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    for value in (*graph.inputs, *graph.outputs):
        value.shape = None
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    feeds = {f"operand_{i}": _double(operand) for i, operand in enumerate(operands) if operand is not None}
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(result) for result in _evaluator(proto.SerializeToString()).run(None, feeds)]
    except Exception as error:  # the evaluator's ops raise whatever numpy does
        raise UnknownTransferError("it cannot be evaluated for one example") from error


@lru_cache(maxsize=512)
def _evaluator(serialized: bytes) -> ReferenceEvaluator:
    """Making one takes longer than most of its runs, and the graphs of all nodes of an op are the same."""
    return ReferenceEvaluator(serialized, new_ops=[Erf])
