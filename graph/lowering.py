"""Rewriting a forward graph, in place, until every op on the way to the loss has a gradient.

In this order:
1. model-local functions are inlined: exporters write whole layers as functions;
2. Constant nodes become initializers, so that rules can read axes, pads and shapes;
3. shapes are inferred;
4. LSTM, GRU and RNN nodes become their steps, or a Scan (`recurrence`), and sequences of tensors become Split and Concat;
5. what onnxruntime does not survive of empty tensors is refused, or written otherwise (`empty`);
6. an op that the table lacks, but that the standard defines by a function body (HardSwish, Mish, GroupNormalization, ...), is
   replaced by that body;
7. auto_pad=SAME_* and the output_shape of ConvTranspose become explicit pads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    ShapeInferencePass,
)

from .bodies import describe_bodies
from .builder import Builder
from .empty import guard_empty
from .errors import UnsupportedError
from .gradients import TABLE
from .recurrence import RECURRENT, write_out
from .rewriting import replace_node
from .source import describe_node

__all__ = ["OPSETS", "infer_shapes", "inline_standard_functions", "lower", "pad_before_pooling"]

OPSETS = range(18, 22)
"""The opsets of models that can be differentiated: gradients are written in ops as opset 18 defines them."""

_PADDED_OPS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


def lower(model: ir.Model, keep: Sequence[str] = ()) -> None:
    """Rewrite the graph of `model` in place.

    Args:
        model: The model.
        keep: Op types that are left as they are.

    Raises:
        UnsupportedError: The opset is not one of `OPSETS`, or padding depends on a dynamic shape.
    """
    opset = model.opset_imports.get("")
    if opset not in OPSETS:
        raise UnsupportedError(
            f"the model has {'no opset' if opset is None else f'opset {opset}'}",
            expected=f"opset {OPSETS.start} to {OPSETS.stop - 1}",
            remedy="convert it with gradfuse first",
        )
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.graph.sort()
    _name_nodes(model.graph)
    infer_shapes(model)
    _write_out(model, keep)
    guard_empty(model)
    everything = model.graph.all_nodes()
    missing = [node for node in everything if node.domain == "" and ("", node.op_type) not in TABLE]
    inline_standard_functions(model, missing)
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in _PADDED_OPS:
            _make_pads_explicit(node)


def infer_shapes(model: ir.Model) -> None:
    """Fill in element types and shapes as far as ONNX can infer them, in the bodies of control flow too."""
    infer = ShapeInferencePass(check_type=False, strict_mode=False)
    news = True
    while news:
        infer(model)
        for node in model.graph.all_nodes():
            if node.domain == "" and node.op_type in _SEQUENCE_OPS:
                _restore_sequence_type(node.outputs[0])
        news = describe_bodies(model.graph)


_SEQUENCE_OPS = ("SequenceConstruct", "SequenceErase", "SequenceInsert", "SplitToSequence")


def _restore_sequence_type(value: ir.Value) -> None:
    """A sequence of tensors: onnx_ir (seen in 1.1) takes the inferred type of the elements for that of the sequence."""
    if isinstance(value.type, ir.TensorType):
        value.type, value.shape = ir.SequenceType(value.type), None


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a name of its own: gradients, findings and fuses refer to nodes by name."""
    seen: set[str] = set()
    for index, node in enumerate(graph.all_nodes()):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}"
        seen.add(node.name)


def _write_out(model: ir.Model, keep: Sequence[str]) -> None:
    """Replace recurrent nodes, sequences whose elements are taken by number, and padding that counts."""
    ops = _WRITTEN_OUT.keys() - keep
    nodes = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type in ops]
    if not nodes:
        return
    outermost = Builder(model.graph)
    for node in nodes:
        assert isinstance(node.graph, ir.Graph)
        builder = outermost.inside(node.graph)
        with builder.scope(node.name or node.op_type, node.metadata_props):
            try:
                _WRITTEN_OUT[node.op_type](node, builder)
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise UnsupportedError(
                    f"{describe_node(node)}: its attributes or shapes contradict the ONNX standard ({error})"
                ) from error
    model.graph.sort()
    infer_shapes(model)


def _split_sequence(node: ir.Node, builder: Builder) -> None:
    """SequenceAt(SplitToSequence(x), i) with a constant i is output i of a Split."""
    x, takers = node.inputs[0], node.outputs[0].consumers()
    lengths = _split_lengths(node)
    positions = [_numbers(taker.inputs[1]) for taker in takers if taker.op_type == "SequenceAt"]
    if x is None or lengths is None or len(positions) < len(takers) or None in positions:
        return
    axis, sizes = node.attributes.get_int("axis", 0), builder.ints(*lengths)
    parts = builder.ops("Split", builder.tensor(x), sizes, dtypes=[None] * len(lengths), axis=axis)
    for taker, position in zip(takers, positions, strict=True):
        part = builder.op("Identity", parts[(position or [0])[0]])
        squeezed = node.attributes.get_int("keepdims", 1) == 0 and len(node.inputs) == 1
        replace_node(taker, [part.squeeze(axis) if squeezed else part])
    builder.graph.remove(node, safe=True)


def _split_lengths(node: ir.Node) -> list[int] | None:
    """The lengths of the parts; None where they depend on the run."""
    x, given = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    sizes = _numbers(given) if given is not None else [1]
    if sizes is None or (given is not None and given.shape is not None and given.shape.rank() == 1):
        return sizes
    length = None if x is None or x.shape is None else x.shape[node.attributes.get_int("axis", 0)]
    if not isinstance(length, int):
        return None
    return [min(sizes[0], length - start) for start in range(0, length, sizes[0])]


def _numbers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant; None where it is none."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().flatten()]


def pad_before_pooling(node: ir.Node, builder: Builder) -> None:
    """AveragePool with ceil_mode and padding that counts: pad first, then nothing but the ceiling lies outside.

    onnxruntime (seen in 1.19) divides the windows that reach beyond the padding by their full size, which the standard forbids.
    """
    if not (node.attributes.get_int("ceil_mode", 0) and node.attributes.get_int("count_include_pad", 0)):
        return
    pads, x = node.attributes.pop("pads", None), node.inputs[0]
    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
    if pads is None or x is None or not any(pads.as_ints()):
        return
    amounts = pads.as_ints()
    axes = range(2, 2 + len(amounts) // 2)
    padded = builder.op("Pad", builder.tensor(x), builder.ints(*amounts), None, builder.ints(*axes))
    node.replace_input_with(0, padded.value)


_WRITTEN_OUT = {
    **dict.fromkeys(RECURRENT, write_out),
    "SplitToSequence": _split_sequence,
    "AveragePool": pad_before_pooling,
}


def inline_standard_functions(model: ir.Model, nodes: Iterable[ir.Node]) -> None:
    """Replace, in place, those of the nodes that the standard defines by a function body."""
    opset = model.opset_imports[""]
    for node in nodes:
        body = _function_body(node, opset)
        if body is not None and body.node:
            _drop_absent_outputs(body)
            function = ir.serde.deserialize_function(body)
            # One function for each node: a body may depend on the node's attributes and input types.
            function.domain, function.name = "gradfuse.lowering", f"{node.op_type}_{len(model.functions)}"
            # A body is stated for the opset that introduced it; it holds until a later one replaces it.
            function.opset_imports[""] = opset
            model.functions[function.identifier()] = function
            node.domain, node.op_type = function.domain, function.name
    if model.functions:
        model.opset_imports["gradfuse.lowering"] = 1
        InlinePass()(model)
        model.functions.clear()
        del model.opset_imports["gradfuse.lowering"]
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _name_nodes(model.graph)
        infer_shapes(model)


def _drop_absent_outputs(body: onnx.FunctionProto) -> None:
    """The body that onnx (seen in 1.23) makes for a node lists outputs that the node lacks, and does not compute them."""
    computed = {output for node in body.node for output in node.output}
    body.output[:] = [output for output in body.output if output in computed]


def _function_body(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """The standard's definition of a differentiable op in terms of others."""
    if not any(value.dtype is None or value.dtype.is_floating_point() for value in node.outputs):
        return None
    if not onnx.defs.has(node.op_type, opset):
        return None
    # The stubs of onnx.defs do not list what OpSchema knows of function bodies.
    schema: Any = onnx.defs.get_schema(node.op_type, opset)
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)
    if versions := _until(opset, schema.function_opset_versions):
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(versions[-1]))
    if versions := _until(opset, schema.context_dependent_function_opset_versions):
        proto = ir.serde.serialize_node(node).SerializeToString()
        types = [_serialized_type(value) for value in node.inputs]
        return onnx.FunctionProto.FromString(
            schema.get_context_dependent_function_with_opset_version(versions[-1], proto, types)
        )
    return None


def _until(opset: int, versions: Sequence[int]) -> list[int]:
    return sorted(version for version in versions if version <= opset)


def _serialized_type(value: ir.Value | None) -> bytes:
    if value is None or value.type is None:
        return onnx.TypeProto().SerializeToString()
    return ir.serde.serialize_type(value.type).SerializeToString()


def _make_pads_explicit(node: ir.Node) -> None:
    """Compute the pads of auto_pad=SAME_UPPER or SAME_LOWER, and those that a ConvTranspose's output_shape implies."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    same, x = mode in ("SAME_UPPER", "SAME_LOWER"), node.inputs[0]
    if not same and "output_shape" not in node.attributes:
        return
    if x is None or x.shape is None:
        raise _pads_unknown(node, "an input of unknown rank")
    total = _transposed_padding if node.op_type == "ConvTranspose" else _same_padding
    pads = [total(node, axis, length) for axis, length in enumerate(x.shape.dims[2:])]
    # Where the padding is odd, SAME_UPPER has one more at the end; everything else has it at the beginning.
    begins = [amount // 2 if mode == "SAME_UPPER" else amount - amount // 2 for amount in pads]
    ends = [amount - begin for amount, begin in zip(pads, begins, strict=True)]
    node.attributes.pop("output_shape", None)
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *ends])


def _same_padding(node: ir.Node, axis: int, length: int | ir.SymbolicDim) -> int:
    """So much that the output has ceil(length / stride) elements."""
    stride, extent = _stride(node, axis), _extent(node, axis)
    if isinstance(length, int):
        return max((-(-length // stride) - 1) * stride + extent - length, 0)
    if stride > 1:
        raise _pads_unknown(node, f"stride {stride} and a dynamic image size")
    return extent - 1


def _transposed_padding(node: ir.Node, axis: int, length: int | ir.SymbolicDim) -> int:
    """What the output must lose to have the length asked for, which is the input's times the stride for SAME."""
    stride, extent = _stride(node, axis), _extent(node, axis)
    extra = _spatial(node, "output_padding", axis, 0)
    if "output_shape" not in node.attributes:
        return max(extent + extra - stride, 0)
    if not isinstance(length, int):
        raise _pads_unknown(node, "output_shape and a dynamic image size")
    wanted = node.attributes["output_shape"].as_ints()[axis - len(_kernel(node))]
    return max(stride * (length - 1) + extra + extent - wanted, 0)


def _extent(node: ir.Node, axis: int) -> int:
    return (_kernel(node)[axis] - 1) * _spatial(node, "dilations", axis, 1) + 1


def _stride(node: ir.Node, axis: int) -> int:
    return _spatial(node, "strides", axis, 1)


def _spatial(node: ir.Node, name: str, axis: int, default: int) -> int:
    return node.attributes[name].as_ints()[axis] if name in node.attributes else default


def _pads_unknown(node: ir.Node, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{describe_node(node)} pads automatically with {why}",
        expected="a static image size, since the padding depends on it",
        remedy="export the model with explicit pads or for one image size",
    )


def _kernel(node: ir.Node) -> Sequence[int]:
    weight = node.inputs[1] if node.op_type.startswith("Conv") else None
    if weight is not None and weight.shape is not None and weight.shape.is_static():
        return weight.shape.numpy()[2:]
    return node.attributes.get_ints("kernel_shape", ())
