"""Computing in advance what a graph computes from constants: exporters write axes, pads and shapes as little programs.

    before                                          after
    Shape(x)[1:3] where those lengths are static    initializer
    Size(x) where all lengths are static            initializer
    Reshape(Constant 1, [-1])                       initializer [1]

Only integers and truth values are folded, so that no weight can be: folding a weight's Transpose would lose the weight's name.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graph.lowering import infer_shapes
from .parity import Array

__all__ = ["fold_integers"]

_RANDOM = ("Bernoulli", "Multinomial")

_GROWING = ("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample")

_LARGEST = 1 << 16
"""Elements of the largest result that a growing op is evaluated for; a file of a few bytes can ask for terabytes."""

Results: TypeAlias = "list[Array]"


def fold_integers(model: ir.Model) -> None:
    """Replace, in place, nodes that compute integers from constants by initializers."""
    infer_shapes(model)
    graph, opset = model.graph, model.opset_imports.get("", 0)
    graph.sort()
    for node in list(graph):
        if node.domain == "" and node.inputs and not any(output in graph.outputs for output in node.outputs):
            for output, result in zip(
                node.outputs, _static_shape(node) or _evaluated(node, opset), strict=False
            ):
                _replace(graph, output, result)
    RemoveUnusedNodesPass()(model)


def _static_shape(node: ir.Node) -> Results:
    """The result of a Shape or Size whose lengths are static; empty for any other node."""
    x = node.inputs[0] if node.op_type in ("Shape", "Size") else None
    if x is None or x.shape is None:
        return []
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    lengths = list(x.shape)[node.attributes.get_int("start", 0) : end]
    static = [length for length in lengths if isinstance(length, int)]
    if len(static) < len(lengths):
        return []
    return [np.array(static if node.op_type == "Shape" else math.prod(static), np.int64)]


def _evaluated(node: ir.Node, opset: int) -> Results:
    """The outputs of a node that computes integers from constants; empty for any other node."""
    present = [value for value in node.inputs if value is not None]
    tensors = {value.name or "": ir.convenience.get_const_tensor(value) for value in present}
    # A subgraph may use values that are no inputs of the node.
    subgraphs = any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    )
    if subgraphs or node.op_type in _RANDOM or not all(map(_is_integer, node.outputs)):
        return []
    feeds = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    if len(feeds) < len(tensors) or _may_be_large(node, feeds):
        return []
    from onnx.reference import ReferenceEvaluator

    inputs, outputs = (
        [onnx.ValueInfoProto(name=value.name) for value in ends] for ends in (present, node.outputs)
    )
    graph = onnx.helper.make_graph([ir.serde.serialize_node(node)], "constants", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", opset)]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, feeds)
        except (
            Exception
        ):  # whatever an op raises on numbers that it does not expect: then nothing is known in advance
            return []
    return [np.asarray(result) for result in results]


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)


def _may_be_large(node: ir.Node, feeds: Mapping[str, Array]) -> bool:
    """Whether a node could make a large tensor of small ones: the product of its numbers bounds the result."""
    numbers = [abs(int(number)) for array in feeds.values() for number in array.flat[:_LARGEST]]
    return node.op_type in _GROWING and math.prod(max(number, 1) for number in numbers) > _LARGEST


def _replace(graph: ir.Graph, output: ir.Value, result: Array) -> None:
    """Make `output` an initializer; its node, unused then, is removed later."""
    tensor = ir.tensor(result, name=output.name)
    constant = ir.val(output.name, const_value=tensor)
    output.name = f"{output.name}/folded"
    graph.register_initializer(constant)
    for node, index in tuple(output.uses()):
        node.replace_input_with(index, constant)
