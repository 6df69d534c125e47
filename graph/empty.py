"""Empty tensors, which onnxruntime (seen in 1.19) does not always survive: it ends the process, or never returns.

What is known to be empty is refused when a model is lowered (`guard_empty`). What may turn out empty only when the graph runs,
as a slice whose bounds are computed, is looked at by the graph that runs (`check_elements`):

before          after
TopK(x, k)      TopK(Reshape(x, Shape(x) + Gather([0], Size(x) == 0)), k): the index 1 is an error, by the name of the Gather
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from .builder import Builder
from .errors import ConversionError, UnsupportedError
from .source import describe_node

__all__ = ["check_elements", "empty_operand", "guard_empty"]

_NEVER_EMPTY = {
    **dict.fromkeys(("Col2Im", "Einsum", "Gemm", "LpNormalization", "MatMul", "STFT", "TopK"), slice(None)),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), slice(None)),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin"), slice(0, 1)),
    **dict.fromkeys(("DFT", "GRU", "GatherND", "GridSample", "LRN", "LSTM", "RNN", "Unique"), slice(0, 1)),
    "Conv": slice(1, 2),
    "ConvTranspose": slice(0, 2),
}
"""By op, which of its operands must have elements: of a reduction's not the axes, of a Conv's only the kernel.

Each was seen to end the process, or to hang, on an empty operand: on some axis, in some version of the op.
"""

_REDUCTIONS = ("ReduceL1", "ReduceL2")
"""Ops that read beyond an empty tensor unless they are told the axes."""

_SHRINKING = frozenset(
    (
        *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Col2Im", "Resize", "Upsample"),
        *(
            "Slice",
            "Split",
            "SplitToSequence",
            "Pad",
            "CenterCropPad",
            "Compress",
            "NonZero",
            "TopK",
            "OneHot",
        ),
        *(
            "NonMaxSuppression",
            "StringNormalizer",
            "StringSplit",
            "Bernoulli",
            "Multinomial",
            "MelWeightMatrix",
        ),
        *(
            "ConstantOfShape",
            "Expand",
            "Tile",
            "Range",
            "RandomNormal",
            "RandomUniform",
            "If",
            "Loop",
            "Scan",
        ),
        *("SequenceEmpty", "OptionalGetElement"),
    )
)
"""Ops whose results may have no elements though all that they take has some."""

_CHECK = "no elements in "
"""How the name of a check begins; it goes on: <value>, which <node> takes."""

_CONSEQUENCE = {
    "expected": "at least one element, without which onnxruntime fails",
    "remedy": "leave the node out of the model, or export it for a batch of at least one example",
}


def guard_empty(model: ir.Model) -> None:
    """Refuse what is known to be empty where it must not be, and give the axes to reductions that need them, in place.

    Raises:
        UnsupportedError: By the shapes inferred, a node takes an empty tensor that onnxruntime does not survive.
    """
    builder = Builder(model.graph)
    for node in (node for node in model.graph.all_nodes() if node.domain == ""):
        operands = node.inputs[_NEVER_EMPTY[node.op_type]] if node.op_type in _NEVER_EMPTY else ()
        if empty := _first_empty(operands):
            raise UnsupportedError(
                f"{describe_node(node)} takes {empty.name!r} of shape {empty.shape}, which has no elements",
                **_CONSEQUENCE,
            )
        if node.op_type in _REDUCTIONS:
            _name_axes(node, builder)


def _first_empty(values: Iterable[ir.Value | None]) -> ir.Value | None:
    return next(
        (value for value in values if value is not None and value.shape is not None and 0 in value.shape),
        None,
    )


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
    return None if found is None else ConversionError(found[1], **_CONSEQUENCE)


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
        yield from ((node, value) for value in _vulnerable(node) if value in doubtful)
        if node.domain or node.op_type in _SHRINKING or not doubtful.isdisjoint(node.inputs):
            doubtful.update(value for value in node.outputs if not has_elements(value))


def _vulnerable(node: ir.Node) -> list[ir.Value]:
    """The operands without whose elements onnxruntime may not survive the node."""
    if node.domain == "" and node.op_type in _REDUCTIONS and len(node.inputs) == 1:
        operands = node.inputs
    else:
        operands = node.inputs[_NEVER_EMPTY.get(node.op_type, slice(0, 0))] if node.domain == "" else ()
    return [value for value in operands if value is not None]


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
