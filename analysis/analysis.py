"""From a gradient graph to a report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.errors import InputError
from ..graph.gradient_graph import GradientGraph
from ..graph.mapping import release
from ..graph.rewriting import without_weights
from .evidence import Evidence, TrainingSetup
from .findings import SEVERITIES, Finding
from .moments import Assumptions
from .plan import plan_fuses
from .prediction import Prediction, predict
from .probe import Measurement
from .report import RiskReport
from .rules import RULES
from .sample import check_lengths, describe_inputs
from .thresholds import thresholds_with
from .verdict import measured_summary

__all__ = ["analyse"]


def analyse(
    gradients: GradientGraph,
    assumptions: Assumptions | None = None,
    *,
    measurement: Measurement | None = None,
    thresholds: Mapping[str, float] | None = None,
    setup: TrainingSetup | None = None,
) -> RiskReport:
    """Predict the gradients of a model at its present weights, and say where they explode or vanish, and why.

    Nothing is executed: moments of values and gradients are carried through the graph with its actual weights. Inputs are taken
    as independent and normal, targets of regression as N(0, 1).

    Args:
        gradients: The model's gradient graph, with its loss.
        assumptions: Batch size, inputs and labels; None: batches of 32, N(0, 1), all classes alike.
        measurement: What a probe measured; it then decides the verdict.
        thresholds: Thresholds in place of the defaults, by name: see THRESHOLDS.
        setup: How the model will be trained; None: SGD with learning rate 0.01 and momentum 0.9, in float32.

    Raises:
        InputError: A number is out of range, or does not fit the model, or a length of its inputs is not known.
    """
    assumptions = assumptions or Assumptions()
    _check(assumptions)
    check_lengths(gradients)
    prediction = predict(gradients, assumptions, thresholds_with(thresholds), measurement)
    summary = prediction.summary
    if measurement is not None:
        summary = measured_summary(measurement, prediction.steps, prediction.thresholds)
    evidence = Evidence(prediction, summary, plan_fuses(prediction, summary), setup or TrainingSetup())
    findings = _findings(evidence)
    return RiskReport(
        tool={"name": "gradfuse", "version": _version()},
        model=_model_facts(gradients),
        assumptions=_assumed(prediction),
        summary=summary,
        predicted=prediction.summary,
        measurement=measurement,
        profile=prediction.profile,
        attribution=prediction.attribution,
        findings=findings,
        not_recomputed=evidence.not_recomputed,
        plan=evidence.plan,
    )


def _check(assumptions: Assumptions) -> None:
    if assumptions.batch_size < 1:
        raise InputError(f"batch size {assumptions.batch_size}", expected="at least 1")
    if not np.all(np.asarray(assumptions.variance) >= 0):
        least = float(np.min(assumptions.variance))
        raise InputError(f"input variance {least:g}", expected="numbers that are not negative")


def _assumed(prediction: Prediction) -> dict[str, Any]:
    state = prediction.state
    assumed, carried = state.assumptions, list(state.full_covariance.values())
    return {
        "input": describe_inputs(assumed),
        "loss": state.gradients.loss,
        "batch_size": assumed.batch_size,
        "labels": "uniform" if assumed.label_frequencies is None else "by frequency",
        "full_covariance": f"{sum(carried)} of {len(carried)} layers",
        "thresholds": prediction.thresholds,
    }


@np.errstate(all="ignore")
def _findings(evidence: Evidence) -> list[Finding]:
    """The gravest first; of one severity, in the order of the rules."""
    found = [finding for rule in RULES for finding in rule.check(evidence)]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def _version() -> str:
    try:
        return version("gradfuse")
    except PackageNotFoundError:
        return "unknown"


def _model_facts(gradients: GradientGraph) -> dict[str, Any]:
    model = gradients.source
    return {
        "path": model.source,
        "framework": model.framework,
        "sha256": _sha256(model.onnx),
        "parity": model.parity or "not compared with its source",
        "opset": model.onnx.opset_imports.get("", 0),
        "parameters": sum(model.sizes.values()),
        "parameter_tensors": len(model.parameters),
        "nodes": model.onnx.graph.num_nodes(),
    }


def _sha256(model: ir.Model) -> str:
    """Of the graph, then of its large weights."""
    light, tensors = without_weights(model)
    digest = hashlib.sha256(ir.serde.serialize_model(light).SerializeToString())
    for tensor in tensors.values():
        array = tensor.numpy()
        digest.update(array.reshape(-1).view(np.uint8).data)
        release(array)
    return digest.hexdigest()
