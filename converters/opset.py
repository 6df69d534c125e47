"""Moving a graph to another opset, without carrying its weights along."""

from __future__ import annotations

from collections.abc import Mapping, Set

import onnx
import onnx_ir as ir

from ..graph.errors import ConversionError, InputError
from ..graph.files import MAX_IR_VERSION
from ..graph.lowering import OPSETS, infer_shapes, inline_standard_functions
from ..graph.rewriting import without_weights

__all__ = ["check_opset", "to_opset"]

_WEIGHT = 1024
"""Elements from which an initializer is a weight, rather than axes or pads that the conversion reads."""

_LAST_WITHOUT_MODES = 10
"""The last opset whose Resize has no coordinate_transformation_mode."""


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
    light, weights = without_weights(model, _WEIGHT)
    light.ir_version = MAX_IR_VERSION
    _lower_new_functions(light, opset)
    resized = _resized_by_corners(light)
    try:
        proto = onnx.version_converter.convert_version(ir.serde.serialize_model(light), opset)
    except (RuntimeError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0].rpartition(" failed: ")[2]
        raise ConversionError(
            f"cannot move the model from opset {model.opset_imports.get('')} to {opset}: {reason}",
            expected=f"opset {OPSETS[0]} to {OPSETS[-1]}",
            remedy="export it again at such an opset",
        ) from error
    result = ir.serde.deserialize_model(proto)
    _attach_weights(result.graph, weights, {value.name for value in model.graph.inputs})
    _restore_metadata(model.graph, result.graph)
    _resize_by_corners(result, resized)
    return result


def _lower_new_functions(model: ir.Model, opset: int) -> None:
    """Write out, in place, the ops that `opset` does not have yet and that the standard defines by others, as Attention."""
    new = [
        node
        for node in model.graph
        if node.domain == "" and not onnx.defs.has(node.op_type, opset) and onnx.defs.has(node.op_type)
    ]
    if new:
        infer_shapes(model)
        inline_standard_functions(model, new)


def _resized_by_corners(model: ir.Model) -> set[str | None]:
    """What is resized as all is up to opset 10: a pixel's place is its corner's, and the nearest is the one before."""
    if (model.opset_imports.get("") or 0) > _LAST_WITHOUT_MODES:
        return set()
    nodes = [node for node in model.graph.all_nodes() if node.op_type in ("Resize", "Upsample")]
    return {node.outputs[0].name for node in nodes}


def _resize_by_corners(model: ir.Model, outputs: Set[str | None]) -> None:
    """Say so: ONNX's converter (seen in 1.23) leaves the later default for interpolation, pixels' centres."""
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and node.outputs[0].name in outputs:
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes[name] = ir.AttrString(name, value)


def _attach_weights(
    graph: ir.Graph, tensors: Mapping[str, ir.TensorProtocol], inputs: Set[str | None]
) -> None:
    """Undo `without_weights`; `inputs` names those that were inputs before."""
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
