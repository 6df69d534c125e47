"""What a rule says about a model, and what it offers to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SEVERITIES", "Finding", "FindingsError", "Remedy"]

SEVERITIES = ("note", "warning", "error")
"""From the mildest to the gravest."""


@dataclass(frozen=True)
class Remedy:
    """One thing to do about a finding.

    Attributes:
        kind: `init`, `activation`, `normalisation`, `residual`, `learning-rate` or `fuse`.
        text: What it does, in a sentence.
        gradfuse: The line to write here; empty where the model itself must change.
        pytorch: The line to write in PyTorch.
        keras: The line to write in Keras.
        predicted_log10_gain: The report's `log10_gain` with it, recomputed.
        predicted_global_norm: The norm of all parameters' gradients with it, recomputed.
        cures: Whether the gradients are within the thresholds with it, by the prediction.
    """

    kind: str
    text: str
    gradfuse: str
    pytorch: str
    keras: str
    predicted_log10_gain: float
    predicted_global_norm: float
    cures: bool


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
        remedies: Those that cure first; clipping, which bounds the update only, last.
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
