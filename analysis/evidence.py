"""Everything that was predicted of a model: what rules judge, and remedies start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .attribution import Attribution
from .moments import Propagation
from .profile import ProfileEntry, Step
from .verdict import Summary

__all__ = ["Evidence"]


@dataclass(frozen=True)
class Evidence:
    """Everything that was predicted.

    Attributes:
        state: Moments of every tensor.
        steps: The trunk of the backward flow, in backward order.
        profile: RMS of every value and gradient.
        attribution: Each layer's gain by cause.
        summary: The verdict.
    """

    state: Propagation
    steps: Sequence[Step]
    profile: Sequence[ProfileEntry]
    attribution: Sequence[Attribution]
    summary: Summary
