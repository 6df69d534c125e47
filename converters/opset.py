"""Moving a graph to another opset, without carrying its weights along."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ..graph.errors import ConversionError, InputError
from ..graph.files import MAX_IR_VERSION
from ..graph.lowering import OPSETS

__all__ = ["check_opset", "to_opset"]

_WEIGHT = 1024
"""Elements from which an initializer is a weight, rather than axes or pads that the conversion reads."""


def check_opset(opset: int) -> None:
    """Raise InputError unless a converted model may have that opset."""
    if opset not in OPSETS:
        raise InputError(f"opset {opset}", expected=f"{OPSETS[0]} to {OPSETS[-1]}")


def to_opset(model: ir.Model, opset: int) -> ir.Model:
    """The same graph at that opset of the standard; the model itself where it has it already.

    Raises:
        ConversionError: An op has no counterpart there.
    """
    if model.opset_imports.get("") == opset:
        return model
    clone = model.clone()
    inputs, initializers = list(clone.graph.inputs), clone.graph.initializers
    weights = [
        value for value in initializers.values() if value.const_value and value.const_value.size >= _WEIGHT
    ]
    for value in weights:
        del initializers[value.name or ""]
        if value not in inputs:
            clone.graph.inputs.append(value)
    tensors = {value.name: value.const_value for value in weights}
    clone.ir_version = MAX_IR_VERSION
    try:
        proto = onnx.version_converter.convert_version(ir.serde.serialize_model(clone), opset)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        reason = str(error).strip().splitlines()[0].rpartition(" failed: ")[2]
        raise ConversionError(
            f"cannot move the model from opset {model.opset_imports.get('')} to {opset}: {reason}",
            expected=f"opset {OPSETS[0]} to {OPSETS[-1]}",
            remedy="export it again at such an opset",
        ) from error
    result = ir.serde.deserialize_model(proto)
    names = {value.name for value in inputs}
    for value in list(result.graph.inputs):
        if value.name in tensors:
            value.const_value = tensors[value.name]
            result.graph.register_initializer(value)
            if value.name not in names:
                result.graph.inputs.remove(value)
    return result
