"""The fuse plan: the fewest fuses with which every training step stays finite and bounded, and the reason for each.

A fuse bounds the update; it does not mend the propagation.

- The report says `explodes`: one `global-norm` fuse at 1, the customary threshold (Pascanu 2013), bounds every update. Where
  the square of the predicted norm would overflow float32, a `norm` fuse on the gradient of the model's output keeps the whole
  backward flow in range as well: the flow is linear in that gradient, so it keeps its direction.
- The interval reaches a threshold (`at-risk`), or a recurrent matrix could raise the gradient beyond GF101.growth over its
  steps although it does not at the present weights: one `global-norm` fuse at the predicted norm, or at 1 where that is less.
  It leaves a training alone whose gradients stay as they are.
- Anything else needs none. Where the forward values overflow, none can help, and none is planned.
"""

from __future__ import annotations

import math

from ..graph.fuses import ALL_PARAMETERS, Fuse
from .moments import Propagation
from .profile import gradient_rms
from .recurrence import recurrences
from .thresholds import THRESHOLDS
from .verdict import Summary
from .wording import number

__all__ = ["GLOBAL_NORM_THRESHOLD", "plan_fuses"]

GLOBAL_NORM_THRESHOLD = 1.0
"""The customary threshold, and the least that is planned."""

_FLOW_LIMIT = 1e12
"""Predicted global norm beyond which the backward flow is fused: its square, and that of a much larger batch, stay finite."""

_SMALLEST_FLOW = 1e-30
"""The least norm at the output that float32 can carry back to the parameters."""


def plan_fuses(state: Propagation, summary: Summary) -> list[Fuse]:
    """The fuses that a model needs; none for a healthy one."""
    if summary.overflow_phase == "forward":
        return []
    if summary.verdict == "explodes":
        return _against_explosion(state, summary)
    reason = _risk_of(state, summary)
    return [Fuse("global-norm", ALL_PARAMETERS, _usual_norm(summary), reason)] if reason else []


def _against_explosion(state: Propagation, summary: Summary) -> list[Fuse]:
    norm = number(summary.global_norm)
    fuses = []
    if not summary.global_norm <= _FLOW_LIMIT:
        reason = f"the norm of all gradients is {norm}, and its square overflows float32"
        fuses.append(Fuse("norm", state.output.name or "", _flow_threshold(state, summary), reason))
    reason = (
        f"the norm of all gradients is {norm}, their growth {10 ** min(summary.log10_gain, 300):.3g}-fold"
    )
    return [*fuses, Fuse("global-norm", ALL_PARAMETERS, GLOBAL_NORM_THRESHOLD, reason)]


def _risk_of(state: Propagation, summary: Summary) -> str:
    """Why gradients may explode although they do not at present; empty where nothing says so."""
    for recurrence in recurrences(state.gradients):
        if recurrence.growth >= THRESHOLDS["GF101.growth"]:
            return (
                f"{recurrence.parameter} has a spectral radius of {recurrence.radius:.2f}, which over {recurrence.steps} steps"
                f" can raise the gradient {number(recurrence.growth)}-fold"
            )
    if summary.verdict == "at-risk":
        return f"the norm of all gradients is {number(summary.global_norm)}, and its interval reaches the threshold"
    return ""


def _usual_norm(summary: Summary) -> float:
    """The predicted norm, to two digits."""
    return max(float(f"{summary.global_norm:.1e}"), GLOBAL_NORM_THRESHOLD)


def _flow_threshold(state: Propagation, summary: Summary) -> float:
    """The norm at the output that brings the predicted global norm to _FLOW_LIMIT."""
    size = state.arrived[state.output].mean.size * state.assumptions.batch_size
    norm = gradient_rms(state, state.output) * math.sqrt(size)
    return max(float(f"{norm * _FLOW_LIMIT / summary.global_norm:.1e}"), _SMALLEST_FLOW)
