"""The report: what was predicted, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..graph.errors import InputError
from ..graph.fuses import Fuse
from .attribution import Attribution
from .profile import ProfileEntry
from .verdict import Summary

__all__ = ["SEVERITIES", "Finding", "FindingsError", "Remedy", "RiskReport"]

SEVERITIES = ("note", "warning", "error")
"""From the mildest to the gravest."""


@dataclass(frozen=True)
class Remedy:
    """One thing to do about a finding.

    Attributes:
        kind: `fuse`, `init`, `normalisation` or `activation`.
        text: What it does, in a sentence.
        gradfuse: The line to write here.
        pytorch: The line to write in PyTorch.
        keras: The line to write in Keras.
        predicted_log10_gain: The report's `log10_gain` with it, recomputed.
    """

    kind: str
    text: str
    gradfuse: str
    pytorch: str
    keras: str
    predicted_log10_gain: float


@dataclass(frozen=True)
class Finding:
    """One thing that a rule saw.

    Attributes:
        code: The rule, as `GF101`.
        severity: One of SEVERITIES.
        node: Name of the node it is about; empty where it is about the whole graph.
        op_type: That node's operator.
        phase: `forward` or `backward`.
        message: Which layer, what number, why.
        evidence: The numbers that prove it.
        remedies: The most effective first.
    """

    code: str
    severity: str
    node: str
    op_type: str
    phase: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    remedies: Sequence[Remedy] = ()


class FindingsError(AssertionError):
    """A report has findings at or above the severity that the caller does not accept; the text is the report's gist."""


@dataclass(frozen=True)
class RiskReport:
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

    def render(self, format: str = "text") -> str:
        """The report in one of RENDERERS' formats.

        Raises:
            InputError: There is no such format.
        """
        from .renderers import RENDERERS

        if format not in RENDERERS:
            raise InputError(f"unknown report format {format!r}", expected=f"one of {', '.join(RENDERERS)}")
        return RENDERERS[format](self)

    def failures(self, fail_on: str = "error") -> list[Finding]:
        """The findings of this severity or above; `never` accepts all.

        Raises:
            InputError: There is no such severity.
        """
        if fail_on == "never":
            return []
        if fail_on not in SEVERITIES:
            raise InputError(
                f"unknown severity {fail_on!r}", expected=f"one of {', '.join(SEVERITIES)}, never"
            )
        least = SEVERITIES.index(fail_on)
        return [finding for finding in self.findings if SEVERITIES.index(finding.severity) >= least]

    def fails(self, fail_on: str = "error") -> bool:
        """Whether there is a finding of this severity or above."""
        return bool(self.failures(fail_on))

    def check(self, fail_on: str = "error") -> None:
        """Do nothing where there is no finding of this severity or above; made for tests.

        Raises:
            FindingsError: There is one.
            InputError: There is no such severity.
        """
        if failures := self.failures(fail_on):
            from .renderers.text import gist

            raise FindingsError(gist(self, failures))
