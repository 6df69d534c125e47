"""Running a graph on whichever ONNX runtime is installed; training has its own session (`runtime/`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from .checks import check_elements, empty_operand
from .errors import ConversionError
from .rewriting import without_weights

__all__ = ["Evaluator", "evaluate", "evaluator"]

Arrays: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"

Evaluator: TypeAlias = "Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]"
"""From an array for each input without a default to every output, by name."""


def evaluate(model: ir.Model, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Every output of `model` by name, computed by onnxruntime, or by ONNX's slow reference evaluator without it.

    Args:
        model: A complete graph of any size.
        feeds: An array for each input without a default.

    Raises:
        ConversionError: onnxruntime refuses the graph, or fails to run it.
    """
    return evaluator(model)(feeds)


def evaluator(model: ir.Model) -> Evaluator:
    """What `evaluate` does, for several runs of one graph.

    Raises:
        ConversionError: onnxruntime refuses the graph; the evaluator raises it where a run fails, or a tensor is empty that
            onnxruntime needs elements of.
    """
    light, tensors = without_weights(check_elements(model))
    weights = {name: np.require(tensor.numpy(), requirements="A") for name, tensor in tensors.items()}
    names = [output.name or "" for output in model.graph.outputs]
    is_double = any(value.dtype == ir.DataType.DOUBLE for value in model.graph.inputs)
    run = _runner(ir.serde.serialize_model(light).SerializeToString(), is_double)
    return lambda feeds: dict(zip(names, run(names, {**weights, **feeds}), strict=True))


def _runner(serialized: bytes, is_double: bool) -> Callable[[list[str], dict[str, Any]], list[Any]]:
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        reference: Any = ReferenceEvaluator(serialized)
        return lambda names, feeds: list(reference.run(names, feeds))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is raised, too; defaults among the inputs are warnings
    if (
        is_double
    ):  # its extended fusions put in kernels that float64 does not have (seen in 1.19: FusedMatMul)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    providers = ["CPUExecutionProvider"]
    session = _attempt(lambda: onnxruntime.InferenceSession(serialized, options, providers=providers))
    return lambda names, feeds: _attempt(lambda: session.run(names, feeds))


def _attempt(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # onnxruntime has exceptions of its own for each status
        if empty := empty_operand(error):
            raise empty from error
        missing = "Could not find an implementation" in str(error)
        raise ConversionError(
            f"onnxruntime cannot run the graph: {_reason(error)}",
            expected="element types that it has kernels for, as float32" if missing else "",
            remedy="export the model in float32; a report without --probe runs nothing" if missing else "",
        ) from error


def _reason(error: Exception) -> str:
    """What onnxruntime says, without the status and the place in its own source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+:\d+ .*?\) (?=\w)", "", lines[0])
