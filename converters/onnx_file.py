"""From any ONNX file to a TrainableModel.

A file that gradfuse wrote says what its parameters are. In any other, a floating-point initializer is a parameter if an op uses
it as a weight, directly or through ops that only rearrange it; the running statistics of BatchNormalization never are.

    before                                             after
    opset below 18 or above 21                         18 or 21
    model-local functions                              inlined
    Constant of more than one element                  initializer
    BatchNormalization, training_mode=1                inference form; those without it are then marked FROZEN
    Dropout(x, ratio, true)                            Dropout(x, ratio); those without `true` are then marked FROZEN
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from ..graph.errors import InputError, some
from ..graph.files import MAX_IR_VERSION, load_model
from ..graph.lowering import OPSETS
from ..graph.model import FROZEN, TrainableModel
from .folding import fold_integers
from .opset import to_opset

__all__ = ["choose_parameters", "from_onnx"]

_WEIGHT_INPUTS = {
    **dict.fromkeys(("Add", "Sub", "Mul", "MatMul", "Einsum"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(
        ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"), (1, 2)
    ),
    **dict.fromkeys(("GRU", "RNN"), (1, 2, 3)),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "LSTM": (1, 2, 3, 7),
    "PRelu": (1,),
}
"""Where ops take their weights."""

_REARRANGING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def from_onnx(path: str | Path, *, train: Sequence[str] | None = None) -> TrainableModel:
    """Read an ONNX file.

    Args:
        path: The file.
        train: Patterns that choose among its parameters, as `["layer4.*"]`; by default all train.

    Raises:
        ConversionError: An op has no counterpart at a supported opset.
        InputError: The file is missing or damaged, has no parameters, or none that a pattern chooses.
    """
    model = load_model(path)
    if TrainableModel.is_recorded(model):
        return choose_parameters(TrainableModel.from_recorded(model), train)
    InlinePass()(model)
    opset = model.opset_imports.get("", OPSETS[0])
    model = to_opset(model, min(max(opset, OPSETS[0]), OPSETS[-1]))
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    # A Constant of one element is a number of the formula, rather than a weight.
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=2)(model)
    _to_inference_form(model)
    fold_integers(model)
    weights = set(_weights(model.graph))
    parameters = tuple(name for name in model.graph.initializers if name in weights)
    if not parameters:
        raise InputError(
            f"{path} has no parameters to train",
            expected="floating-point initializers that a layer uses as weights",
            remedy="export the model with its weights in it",
        )
    return choose_parameters(TrainableModel(model, parameters, "onnx", str(path)), train)


def choose_parameters(model: TrainableModel, patterns: Sequence[str] | None) -> TrainableModel:
    """The model with only those parameters that match one of the patterns; all of them for None.

    Raises:
        InputError: A pattern matches none.
    """
    if patterns is None:
        return model
    for pattern in patterns:
        if not fnmatch.filter(model.parameters, pattern):
            raise InputError(
                f"no parameter matches {pattern!r}", expected=f"a pattern for {some(model.parameters)}"
            )
    chosen = [name for name in model.parameters if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    return replace(model, parameters=tuple(chosen))


def _to_inference_form(model: ir.Model) -> None:
    nodes = [
        node
        for node in model.graph
        if node.domain == "" and node.op_type in ("BatchNormalization", "Dropout")
    ]
    training = [_is_training(node) for node in nodes]
    for node, trains in zip(nodes, training, strict=True):
        if any(training) and not trains:
            node.metadata_props[FROZEN] = "true"
        if node.op_type == "Dropout":
            node.resize_inputs(min(len(node.inputs), 2))
        else:
            node.attributes.pop("training_mode", None)
            _drop_statistics(node, model.graph)


def _is_training(node: ir.Node) -> bool:
    if node.op_type == "BatchNormalization":
        return bool(node.attributes.get_int("training_mode", 0))
    value = node.inputs[2] if len(node.inputs) > 2 else None
    mode = None if value is None else ir.convenience.get_const_tensor(value)
    return mode is not None and bool(mode.numpy().item())


def _drop_statistics(node: ir.Node, graph: ir.Graph) -> None:
    """Remove the outputs for new running statistics: the training form computes them."""
    statistics = node.outputs[1:]
    if any(value.uses() for value in statistics):
        raise InputError(
            f"the new statistics of BatchNormalization node {node.name!r} are used inside the graph",
            expected="graph outputs, or nothing",
            remedy="export the model in inference form",
        )
    kept = [output for output in graph.outputs if output not in statistics]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    node.resize_outputs(1)


def _weights(graph: ir.Graph) -> Iterator[str]:
    """Names of the initializers that ops use as weights."""
    for node in graph:
        for index in _WEIGHT_INPUTS.get(node.op_type, ()) if node.domain == "" else ():
            value = _origin(node.inputs[index]) if index < len(node.inputs) else None
            name = "" if value is None else value.name or ""
            if name in graph.initializers and _is_weight(graph.initializers[name]):
                yield name


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value that `value` is a rearrangement of."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _REARRANGING:
        value = node.inputs[0]
    return value


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 0
