"""From predictions to one word and one number. Every threshold stands here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .attribution import Attribution
from .moments import Propagation
from .moments.overflow import overflows
from .profile import ProfileEntry

__all__ = ["GLOBAL_NORM_LIMIT", "GROWTH_LIMIT", "GROWTH_WARNING", "SHRINK_LIMIT", "Summary", "summarise"]

GROWTH_LIMIT = 100.0
"""Growth of the gradient from the last layer to the first beyond which training is expected to fail."""

GROWTH_WARNING = 10.0
"""Growth that deserves a look."""

SHRINK_LIMIT = 100.0
"""Shrinking from the last layer to the first beyond which the first layers hardly learn."""

GLOBAL_NORM_LIMIT = 100.0
"""Euclidean norm of all parameters' gradients together, at the first step, beyond which training is expected to fail."""

_STEEPNESS = 4.0
"""Natural log of the odds of risk for each decade of danger."""


@dataclass(frozen=True)
class Summary:
    """The verdict.

    Attributes:
        verdict: `explodes`: the predicted gradient is beyond a limit; `at-risk`: the interval reaches one; `vanishes`: it
            shrinks beyond SHRINK_LIMIT; else `stable`.
        risk: 0 to 1, monotone in the predicted danger; 0.5 at the limits.
        log10_gain: Growth of the gradient's RMS from the output back to the first layer, in decades.
        global_norm: Predicted Euclidean norm of all parameters' gradients.
        overflow: Name of the first tensor whose values, or else gradients, exceed float32; empty if there is none.
        overflow_phase: `forward` or `backward`.
    """

    verdict: str
    risk: float
    log10_gain: float
    global_norm: float
    overflow: str = ""
    overflow_phase: str = ""


def summarise(
    state: Propagation, profile: Sequence[ProfileEntry], attribution: Sequence[Attribution]
) -> Summary:
    """Judge a prediction."""
    overflow, phase = overflows(state)
    finite = all(math.isfinite(entry.grad_rms) for entry in profile)
    gain = sum(row.log10_gain for row in attribution) if finite else math.inf
    parameters = [entry for entry in profile if entry.kind == "parameter"]
    norm = _norm((entry.grad_rms, entry.size) for entry in parameters)
    high = _norm((entry.high, entry.size) for entry in parameters)
    danger = max(gain - math.log10(GROWTH_LIMIT), _decades_beyond(norm, GLOBAL_NORM_LIMIT))
    danger = math.inf if overflow else danger
    widest = max(
        (entry.high / entry.grad_rms for entry in profile if 0 < entry.grad_rms < math.inf), default=1.0
    )
    reach = max(danger + math.log10(widest), _decades_beyond(high, GLOBAL_NORM_LIMIT))
    return Summary(_verdict(danger, reach, gain), _risk(danger), gain, norm, overflow, phase)


def _verdict(danger: float, reach: float, gain: float) -> str:
    if danger >= 0:
        return "explodes"
    if reach >= 0:
        return "at-risk"
    return "vanishes" if gain <= -math.log10(SHRINK_LIMIT) else "stable"


def _risk(danger: float) -> float:
    """Logistic in the decades beyond the limits."""
    return 1.0 / (1.0 + math.exp(-_STEEPNESS * max(min(danger, 8.0), -8.0)))


def _decades_beyond(number: float, limit: float) -> float:
    return math.log10(number / limit) if number > 0 else -math.inf


def _norm(parts: Iterable[tuple[float, int]]) -> float:
    """Euclidean norm of tensors of these RMS and sizes."""
    return math.hypot(*(rms * math.sqrt(size) for rms, size in parts))
