"""Moving a graph to another opset, without carrying its weights along."""

from __future__ import annotations

from collections.abc import Mapping, Set

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
    clone.ir_version = MAX_IR_VERSION
    weights = _detach_weights(clone.graph)
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
    _attach_weights(result.graph, weights, {value.name for value in model.graph.inputs})
    _restore_metadata(model.graph, result.graph)
    return result


def _detach_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn large initializers into inputs, and return their tensors."""
    tensors = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.size >= _WEIGHT
    }
    for name in tensors:
        value = graph.initializers.pop(name)
        if value not in graph.inputs:
            graph.inputs.append(value)
    return tensors


def _attach_weights(
    graph: ir.Graph, tensors: Mapping[str, ir.TensorProtocol], inputs: Set[str | None]
) -> None:
    """Undo `_detach_weights`; `inputs` names those that were inputs before."""
    for value in list(graph.inputs):
        if (tensor := tensors.get(value.name or "")) is not None:
            value.const_value = tensor
            graph.register_initializer(value)
            if value.name not in inputs:
                graph.inputs.remove(value)


def _restore_metadata(before: ir.Graph, after: ir.Graph) -> None:
    """Give nodes the metadata back, which ONNX's converter drops; it keeps the names of what they compute."""
    metadata = {output.name: node.metadata_props for node in before for output in node.outputs}
    for node in after:
        for output in node.outputs:
            node.metadata_props.update(metadata.get(output.name, {}))
