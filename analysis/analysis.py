"""From a gradient graph to a report."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import onnx_ir as ir

from ..graph.errors import InputError
from ..graph.gradient_graph import GradientGraph
from .attribution import attribute
from .evidence import Evidence
from .findings import SEVERITIES, Finding
from .moments import Assumptions, propagate
from .plan import plan_fuses
from .profile import make_profile, trunk
from .report import RiskReport
from .rules import RULES
from .verdict import summarise

__all__ = ["analyse"]


def analyse(
    gradients: GradientGraph, *, batch_size: int = 32, mean: float = 0.0, variance: float = 1.0
) -> RiskReport:
    """Predict the gradients of a model at its present weights, and say where they explode or vanish, and why.

    Nothing is executed: moments of values and gradients are carried through the graph with its actual weights. Inputs are taken
    as independent and normal, labels as drawn uniformly, targets of regression as N(0, 1).

    Args:
        gradients: The model's gradient graph, with its loss.
        batch_size: Examples in a batch, at least 1.
        mean: Mean of every input element.
        variance: Variance of every input element, not negative.

    Raises:
        InputError: A number is out of range.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}", expected="at least 1")
    if not variance >= 0:
        raise InputError(f"input variance {variance}", expected="a number that is not negative")
    state = propagate(gradients, Assumptions(batch_size, mean, variance))
    steps, profile = trunk(state), make_profile(state)
    attribution = attribute(steps)
    summary = summarise(state, profile, attribution)
    evidence = Evidence(state, steps, profile, attribution, summary)
    return RiskReport(
        tool={"name": "gradfuse", "version": _version()},
        model=_model_facts(gradients),
        assumptions={
            "input": f"N({mean:g},{variance:g})",
            "loss": gradients.loss,
            "batch_size": batch_size,
            "labels": "uniform",
        },
        summary=summary,
        profile=profile,
        attribution=attribution,
        findings=_findings(evidence),
        fuses=plan_fuses(state, summary),
    )


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
    sizes = [_size(model.onnx.graph.initializers[name]) for name in model.parameters]
    return {
        "path": model.source,
        "framework": model.framework,
        "sha256": hashlib.sha256(ir.serde.serialize_model(model.onnx).SerializeToString()).hexdigest(),
        "opset": model.onnx.opset_imports.get("", 0),
        "parameters": sum(sizes),
        "parameter_tensors": len(sizes),
        "nodes": model.onnx.graph.num_nodes(),
    }


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size
