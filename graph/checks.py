"""Checks, in a graph that runs, of operands that may turn out empty where onnxruntime does not survive that (`empty`).

before          after
TopK(x, k)      TopK(Reshape(x, Shape(x) + Gather([0], Size(x) == 0)), k): the index 1 is an error, by the name of the Gather

Only what follows on an op that can leave nothing, as a Slice whose bounds are computed, is checked: ordinary models run as they
are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from .builder import Builder
from .empty import CONSEQUENCE, needed_operands
from .errors import ConversionError
from .source import describe_node

__all__ = ["check_elements", "empty_operand"]

_SHRINKING = {
    *("AveragePool", "Bernoulli", "CenterCropPad", "Col2Im", "Compress", "ConstantOfShape", "Conv"),
    *("ConvTranspose", "Expand", "If", "Loop", "LpPool", "MaxPool", "MelWeightMatrix"),
    *("Multinomial", "NonMaxSuppression", "NonZero", "OneHot", "OptionalGetElement", "Pad"),
    *("RandomNormal", "RandomUniform", "Range", "Resize", "Scan", "SequenceEmpty", "Slice"),
    *("Split", "SplitToSequence", "StringNormalizer", "StringSplit", "Tile", "TopK", "Upsample"),
}
"""Ops whose results may have no elements though all that they take has some."""

_CHECK = "no elements in "
"""How the name of a check begins; it goes on: <value>, which <node> takes."""


def check_elements(model: ir.Model) -> ir.Model:
    """The model, or where onnxruntime may not survive an operand that turns out empty, a copy that fails instead.

    The inputs are taken to have elements. `empty_operand` tells what such a failure says.
    """
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    if any(True for _ in _doubtful_operands(model.graph)):
        model = model.clone()
        builder = Builder(model.graph)
        for node, value in list(_doubtful_operands(model.graph)):
            _check(node, value, builder)
    return model


def empty_operand(error: Exception) -> ConversionError | None:
    """What a failed check of `check_elements` says; None of any other error that onnxruntime raises."""
    found = re.search(rf"Name:'({_CHECK}.* takes)\S*' Status Message", str(error))
    return None if found is None else ConversionError(found[1], **CONSEQUENCE)


def _doubtful_operands(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Nodes that onnxruntime may not survive, each with a value that it takes and that may be empty."""
    lengths = {str(dim) for value in graph.inputs for dim in value.shape or () if dim != ir.SymbolicDim(None)}
    doubtful: set[ir.Value] = set()

    def has_elements(value: ir.Value) -> bool:
        return value.shape is not None and all(
            dim > 0 if isinstance(dim, int) else str(dim) in lengths for dim in value.shape
        )

    return _walk(graph, doubtful, has_elements)


def _walk(
    graph: ir.Graph, doubtful: set[ir.Value], has_elements: Callable[[ir.Value], bool]
) -> Iterator[tuple[ir.Node, ir.Value]]:
    """What `_doubtful_operands` finds in a graph or a body; the values of it that may be empty are added to `doubtful`."""
    for node in graph:
        for body in (
            attr.as_graph() for attr in node.attributes.values() if attr.type is ir.AttributeType.GRAPH
        ):
            doubtful.update(value for value in body.inputs if not has_elements(value))
            yield from _walk(body, doubtful, has_elements)
        yield from ((node, value) for value in needed_operands(node) if value in doubtful)
        if node.domain or node.op_type in _SHRINKING or not doubtful.isdisjoint(node.inputs):
            doubtful.update(value for value in node.outputs if not has_elements(value))


def _check(node: ir.Node, value: ir.Value, builder: Builder) -> None:
    """Let `node` take `value` by way of a check."""
    body = node.graph
    assert isinstance(body, ir.Graph)
    message = builder.unique_name(f"{_CHECK}{value.name!r}, which {describe_node(node)} takes")
    zero = ir.node("Constant", [], {"value": ir.tensor(np.zeros(1, np.int64))})
    size = ir.node("Size", [value])
    some = ir.node("Cast", size.outputs, {"to": ir.DataType.BOOL})
    none = ir.node("Not", some.outputs)
    index = ir.node("Cast", none.outputs, {"to": ir.DataType.INT64})
    check = ir.node("Gather", [zero.outputs[0], index.outputs[0]], name=message)
    shape = ir.node("Shape", [value])
    same = ir.node("Add", [shape.outputs[0], check.outputs[0]])
    checked = ir.node("Reshape", [value, same.outputs[0]])
    nodes = [zero, size, some, none, index, check, shape, same, checked]
    for added in nodes:
        added.outputs[0].name = builder.unique_name(f"{value.name}/checked")
        added.name = added.name or added.outputs[0].name
    checked.outputs[0].type, checked.outputs[0].shape = value.type, value.shape
    body.insert_before(node, nodes)
    node.replace_input_with(node.inputs.index(value), checked.outputs[0])
