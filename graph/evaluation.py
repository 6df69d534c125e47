"""Running a graph once, on whichever ONNX runtime is installed; training has its own session (`runtime/`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from .errors import ConversionError
from .rewriting import without_weights

__all__ = ["evaluate"]


_FED = 1 << 18
"""Elements from which a weight is handed to onnxruntime as an input: no copy, and no limit of 2 GiB on the graph."""


def evaluate(model: ir.Model, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Every output of `model` by name, computed by onnxruntime, or by ONNX's slow reference evaluator without it.

    Args:
        model: A complete graph of any size.
        feeds: An array for each input without a default.

    Raises:
        ConversionError: onnxruntime refuses the graph, or fails to run it.
    """
    light, weights = without_weights(model, _FED)
    feeds = {**{name: tensor.numpy() for name, tensor in weights.items()}, **feeds}
    serialized = ir.serde.serialize_model(light).SerializeToString()
    names = [output.name or "" for output in model.graph.outputs]
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        results = ReferenceEvaluator(serialized).run(names, feeds)
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, too; defaults among the inputs are warnings
        try:
            session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
            results = session.run(names, feeds)
        except Exception as error:  # onnxruntime has exceptions of its own for each status
            raise ConversionError(f"onnxruntime cannot run the graph: {_reason(error)}") from error
    return dict(zip(names, results, strict=True))


def _reason(error: Exception) -> str:
    """What onnxruntime says, without the status and the place in its own source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+:\d+ .*?\) (?=\w)", "", lines[0])
