"""The element types of an ONNX file.

before                                      after
float16 and bfloat16 values, weights        float32: a step of lr 1e-3 is smaller than what float16 resolves
Cast(x, to=float16)                         Cast(x, to=float32)
int8, float8: quantised                     refused
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.errors import UnsupportedError
from ..graph.source import describe_node

__all__ = ["is_half_precision", "refuse_quantised", "to_float32"]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_QUANTISED = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
)

_DTYPE_ATTRIBUTES = ("to", "dtype")
"""Attributes that name the element type of an output."""


def refuse_quantised(model: ir.Model) -> None:
    """Raise UnsupportedError where the model computes with quantised numbers."""
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in _QUANTISED:
            raise UnsupportedError(
                f"{describe_node(node)}: the model is quantised, and rounded numbers have no gradient",
                expected="weights of floating-point numbers",
                remedy="train the model that was quantised, and quantise it again afterwards",
            )


def is_half_precision(model: ir.Model) -> bool:
    """Whether any value or weight is float16 or bfloat16."""
    values = (value for graph in model.graphs() for value in _values(graph))
    return any(value.dtype in _HALF for value in values)


def to_float32(model: ir.Model) -> None:
    """Turn all that is float16 or bfloat16 into float32, in place."""
    for graph in model.graphs():
        for value in _values(graph):
            if value.dtype in _HALF:
                # A new type: clones share the old one.
                value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None:
                value.const_value = _widened(value.const_value)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
                elif name in _DTYPE_ATTRIBUTES and attribute.value in _HALF:
                    node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _values(graph: ir.Graph) -> list[ir.Value]:
    outputs = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *outputs]


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _HALF:
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
