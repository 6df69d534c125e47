"""Running a graph once, on whichever ONNX runtime is installed; training has its own session (`runtime/`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["evaluate"]


def evaluate(model: ir.Model, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Every output of `model` by name, computed by onnxruntime, or by ONNX's slow reference evaluator without it.

    Args:
        model: A complete graph of at most 2 GiB.
        feeds: An array for each input without a default.
    """
    serialized = ir.serde.serialize_model(model).SerializeToString()
    names = [output.name or "" for output in model.graph.outputs]
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        results = ReferenceEvaluator(serialized).run(names, dict(feeds))
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # every default value among the inputs is a warning below that
        session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        results = session.run(names, dict(feeds))
    return dict(zip(names, results, strict=True))
