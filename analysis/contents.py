"""What a report holds: what was predicted, why, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph.fuses import Fuse
from .attribution import Attribution
from .findings import Finding
from .plan import FusePlan
from .probe import Measurement
from .profile import ProfileEntry, without_noise
from .verdict import Summary

__all__ = ["ReportContents"]


@dataclass(frozen=True)
class ReportContents:
    """A report on one model at its present weights.

    Attributes:
        tool: Name and version.
        model: Source, SHA-256 of the graph, opset, counts.
        assumptions: What the prediction takes for granted.
        summary: The verdict: on what was measured where there was a probe, else on the prediction.
        predicted: The verdict on the prediction alone.
        measurement: What the probe measured; None without one.
        profile: The prediction for every parameter and activation.
        attribution: Each layer's gain put down to causes, in forward order.
        findings: The gravest first.
        not_recomputed: Which remedies the budget left out, in a sentence; empty where none.
        plan: The fuse plan.
    """

    tool: Mapping[str, str]
    model: Mapping[str, Any]
    assumptions: Mapping[str, Any]
    summary: Summary
    predicted: Summary
    measurement: Measurement | None
    profile: Sequence[ProfileEntry]
    attribution: Sequence[Attribution]
    findings: Sequence[Finding]
    not_recomputed: str
    plan: FusePlan

    @property
    def fuses(self) -> Sequence[Fuse]:
        """Those of the plan; none for a model that needs none."""
        return self.plan.fuses

    @property
    def disagreements(self) -> list[ProfileEntry]:
        """Parameters whose measured gradient is more than twice or less than half the predicted one, the worst first."""
        found = [
            e
            for e in without_noise(self.profile)
            if e.kind == "parameter" and e.disagreement > math.log10(2.0)
        ]
        return sorted(found, key=lambda entry: -entry.disagreement)
