"""The report as JSON, schema `gradfuse-report/1`: strict, deterministic, numbers that are infinite or undefined as null."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from ..contents import ReportContents
from ..trunk import CAUSES

__all__ = ["SCHEMA", "render_json"]

SCHEMA = "gradfuse-report/1"
"""Name of the schema."""

_SUMMARY = ("verdict", "risk", "log10_gain", "global_norm", "overflow", "overflow_phase", "basis")
_PROFILE = (
    "tensor", "kind", "depth", "grad_rms", "low", "high", "value_rms", "measured_grad_rms", "measured_value_rms",
)  # fmt: skip


def render_json(report: ReportContents) -> str:
    """The report as one JSON object, two spaces of indentation, ending in a newline."""
    document = {
        "schema": SCHEMA,
        "tool": report.tool,
        "model": report.model,
        "assumptions": report.assumptions,
        "summary": {key: getattr(report.summary, key) for key in _SUMMARY},
        "probe": _probe(report),
        "profile": [{key: getattr(entry, key) for key in _PROFILE} for entry in report.profile],
        "attribution": [
            {key: getattr(row, key) for key in ("layer", "log10_gain", *CAUSES)} for row in report.attribution
        ],
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "not_recomputed": report.not_recomputed,
        "fuses": [
            {key: getattr(fuse, key) for key in ("name", "kind", "target", "threshold", "reason")}
            for fuse in report.fuses
        ],
        "fuse_plan": report.plan.reason,
    }
    return json.dumps(_finite(document), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _probe(report: ReportContents) -> dict[str, Any] | None:
    """What was measured beside what was predicted; null without a probe."""
    if report.measurement is None:
        return None
    return {
        "batches": report.measurement.batches,
        "inputs": report.measurement.inputs,
        "loss": report.measurement.loss,
        "predicted": {key: getattr(report.predicted, key) for key in _SUMMARY},
        "disagreements": [entry.tensor for entry in report.disagreements],
    }


def _finite(part: Any) -> Any:
    if isinstance(part, dict):
        return {str(key): _finite(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_finite(value) for value in part]
    if isinstance(part, float):
        return float(f"{part:.6g}") if math.isfinite(part) else None
    return part
