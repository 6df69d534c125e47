"""The fuse plan: the fewest fuses with which every training step stays finite and bounded.

A fuse bounds the update; it does not mend the propagation. Where the predicted norm of all parameters' gradients is
beyond the limit, one `global-norm` fuse bounds every update. Where that norm's square would overflow float32, a `norm`
fuse on the gradient of the model's output keeps the whole backward flow in range: the flow is linear in that gradient,
so it keeps its direction. Where the forward values overflow, no fuse can help, and none is planned.
"""

from __future__ import annotations

import math

from ..graph.fuses import ALL_PARAMETERS, Fuse
from .moments import Propagation
from .profile import gradient_rms
from .thresholds import THRESHOLDS
from .verdict import Summary

__all__ = ["GLOBAL_NORM_THRESHOLD", "plan_fuses"]

GLOBAL_NORM_THRESHOLD = 1.0
"""The customary threshold (Pascanu 2013); it is planned for norms beyond GF101.norm only."""

_FLOW_LIMIT = 1e12
"""Predicted global norm beyond which the backward flow is fused: its square, and that of a much larger batch, stay finite."""

_SMALLEST_FLOW = 1e-30
"""The least norm at the output that float32 can carry back to the parameters."""


def plan_fuses(state: Propagation, summary: Summary) -> list[Fuse]:
    """Fuses for a model that explodes; none for any other."""
    if summary.verdict != "explodes" or summary.overflow_phase == "forward":
        return []
    fuses = []
    if not summary.global_norm <= _FLOW_LIMIT:
        fuses.append(Fuse("norm", state.output.name or "", _flow_threshold(state, summary)))
    if not summary.global_norm < THRESHOLDS["GF101.norm"]:
        fuses.append(Fuse("global-norm", ALL_PARAMETERS, GLOBAL_NORM_THRESHOLD))
    return fuses


def _flow_threshold(state: Propagation, summary: Summary) -> float:
    """The norm at the output that brings the predicted global norm to _FLOW_LIMIT."""
    size = state.arrived[state.output].mean.size * state.assumptions.batch_size
    norm = gradient_rms(state, state.output) * math.sqrt(size)
    return max(float(f"{norm * _FLOW_LIMIT / summary.global_norm:.1e}"), _SMALLEST_FLOW)
