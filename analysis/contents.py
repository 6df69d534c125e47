"""What a report holds: what was predicted, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph.fuses import Fuse
from .attribution import Attribution
from .findings import Finding
from .profile import ProfileEntry
from .verdict import Summary

__all__ = ["ReportContents"]


@dataclass(frozen=True)
class ReportContents:
    """A report on one model at its present weights.

    Attributes:
        tool: Name and version.
        model: Source, SHA-256 of the graph, opset, counts.
        assumptions: What the prediction takes for granted.
        summary: The verdict.
        profile: The prediction for every parameter and activation.
        attribution: Each layer's gain put down to causes, in forward order.
        findings: The gravest first.
        fuses: The fuse plan; empty for a model that needs none.
    """

    tool: Mapping[str, str]
    model: Mapping[str, Any]
    assumptions: Mapping[str, Any]
    summary: Summary
    profile: Sequence[ProfileEntry]
    attribution: Sequence[Attribution]
    findings: Sequence[Finding]
    fuses: Sequence[Fuse]
