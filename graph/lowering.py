"""Rewriting a forward graph, in place, until every op on the way to the loss has a gradient.

In this order:
1. model-local functions are inlined: exporters write whole layers as functions;
2. Constant nodes become initializers, so that rules can read axes, pads and shapes;
3. shapes are inferred;
4. auto_pad=SAME_* becomes explicit pads;
5. an op that the table lacks, but that the standard defines by a function body (HardSwish, Mish, GroupNormalization, ...), is
   replaced by that body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    ShapeInferencePass,
)

from .errors import UnsupportedError
from .gradients import TABLE
from .source import describe_node

__all__ = ["infer_shapes", "lower"]

_PADDED_OPS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


def lower(model: ir.Model) -> None:
    """Rewrite the graph of `model` in place.

    Raises:
        UnsupportedError: Padding depends on a dynamic shape in a way that the op cannot take.
    """
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.graph.sort()
    _name_nodes(model.graph)
    infer_shapes(model)
    _inline_standard_functions(model)
    for node in list(model.graph):
        if node.domain == "" and node.op_type in _PADDED_OPS:
            _make_pads_explicit(node)


def infer_shapes(model: ir.Model) -> None:
    """Fill in element types and shapes as far as ONNX can infer them."""
    ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a name of its own: gradients, findings and fuses refer to nodes by name."""
    seen: set[str] = set()
    for index, node in enumerate(graph):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}"
        seen.add(node.name)


def _inline_standard_functions(model: ir.Model) -> None:
    opset = model.opset_imports[""]
    missing = [node for node in model.graph if node.domain == "" and ("", node.op_type) not in TABLE]
    for node in missing:
        body = _function_body(node, opset)
        if body is not None:
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
    """Compute the pads of auto_pad=SAME_UPPER or SAME_LOWER: enough that the output has ceil(length / stride) elements."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return
    x, kernel = node.inputs[0], _kernel(node)
    if node.op_type == "ConvTranspose" or x is None or x.shape is None:
        raise UnsupportedError(
            f"{describe_node(node)} has auto_pad={mode}",
            expected="explicit pads",
            remedy="export it with pads",
        )
    strides = node.attributes.get_ints("strides", (1,) * len(kernel))
    dilations = node.attributes.get_ints("dilations", (1,) * len(kernel))
    begins, ends = [], []
    for length, taps, stride, dilation in zip(x.shape.dims[2:], kernel, strides, dilations, strict=True):
        extent = (taps - 1) * dilation + 1
        if isinstance(length, int):
            total = max((-(-length // stride) - 1) * stride + extent - length, 0)
        elif stride == 1:
            total = extent - 1
        else:
            raise UnsupportedError(
                f"{describe_node(node)} has auto_pad={mode}, stride {stride} and a dynamic image size",
                expected="a static image size, since the padding depends on it",
                remedy="export the model for one image size",
            )
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *ends])


def _kernel(node: ir.Node) -> Sequence[int]:
    weight = node.inputs[1] if node.op_type.startswith("Conv") else None
    if weight is not None and weight.shape is not None and weight.shape.is_static():
        return weight.shape.numpy()[2:]
    return node.attributes.get_ints("kernel_shape", ())
