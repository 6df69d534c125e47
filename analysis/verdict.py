"""From predictions, or from what a probe measured, to one word and one number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .attribution import Attribution
from .moments import Propagation
from .moments.overflow import overflows
from .probe import Measurement
from .profile import ProfileEntry
from .trunk import Step

__all__ = ["Summary", "measured_summary", "predicted_summary"]

_STEEPNESS = 4.0
"""Natural log of the odds of risk for each decade of danger."""

_SAMPLING = 0.1
"""Decades by which a few batches may miss the mean over many."""


@dataclass(frozen=True)
class Summary:
    """The verdict.

    Attributes:
        verdict: `explodes`: the gradient is beyond the threshold GF101.growth or GF101.norm, or not finite; `at-risk`: the
            interval reaches one; `vanishes`: it shrinks beyond GF108.shrink, or is zero; else `stable`.
        risk: 0 to 1, monotone in the danger; 0.5 at the thresholds.
        log10_gain: Growth of the gradient's RMS from the output back to the first layer, in decades.
        global_norm: Euclidean norm of all parameters' gradients.
        overflow: Name of the first tensor whose values, or else gradients, exceed float32; empty if there is none.
        overflow_phase: `forward` or `backward`.
        basis: `predicted` or `measured`.
        danger: Decades beyond the nearer threshold of growth; negative below both, infinite where float32 overflows.
    """

    verdict: str
    risk: float
    log10_gain: float
    global_norm: float
    overflow: str = ""
    overflow_phase: str = ""
    basis: str = "predicted"
    danger: float = -math.inf


def predicted_summary(
    state: Propagation,
    profile: Sequence[ProfileEntry],
    attribution: Sequence[Attribution],
    thresholds: Mapping[str, float],
) -> Summary:
    """Judge a prediction."""
    overflow, phase = overflows(state)
    finite = all(math.isfinite(entry.grad_rms) for entry in profile)
    gain = sum(row.log10_gain for row in attribution) if finite else math.inf
    gain = math.inf if math.isnan(gain) else gain
    parameters = [entry for entry in profile if entry.kind == "parameter"]
    norm = _norm((entry.grad_rms, entry.size) for entry in parameters)
    high = _norm((entry.high, entry.size) for entry in parameters)
    widths = [math.log10(entry.high / entry.grad_rms) for entry in profile if 0 < entry.grad_rms < math.inf]
    danger = math.inf if overflow else _danger(gain, norm, thresholds)
    reach = max(danger, _danger(gain + max(widths, default=0.0), high, thresholds))
    verdict = _verdict(danger, reach, gain if norm else -math.inf, thresholds)
    return Summary(verdict, _risk(danger), gain, norm, overflow, phase, "predicted", danger)


def measured_summary(
    measurement: Measurement, steps: Sequence[Step], thresholds: Mapping[str, float]
) -> Summary:
    """Judge what a probe measured, along the same trunk."""
    gain = _measured_gain(measurement, steps)
    danger = math.inf if measurement.overflow else _danger(gain, measurement.global_norm, thresholds)
    shrinks = gain if measurement.global_norm else -math.inf
    return Summary(
        _verdict(danger, danger + _SAMPLING, shrinks, thresholds),
        _risk(danger),
        gain,
        measurement.global_norm,
        measurement.overflow,
        measurement.overflow_phase,
        "measured",
        danger,
    )


def _measured_gain(measurement: Measurement, steps: Sequence[Step]) -> float:
    if measurement.overflow:
        return math.inf
    ends = [
        measurement.gradients.get(value.name or "", 0.0)
        for step in steps
        for value in (step.after, step.before)
    ]
    if not ends or not 0 < ends[0] < math.inf:
        return 0.0
    return -math.inf if ends[-1] == 0 else math.log10(ends[-1] / ends[0])


def _danger(gain: float, norm: float, thresholds: Mapping[str, float]) -> float:
    """Decades beyond the nearer threshold."""
    beyond = math.log10(norm / thresholds["GF101.norm"]) if norm > 0 else -math.inf
    return max(gain - math.log10(thresholds["GF101.growth"]), beyond)


def _verdict(danger: float, reach: float, gain: float, thresholds: Mapping[str, float]) -> str:
    if danger >= 0:
        return "explodes"
    if reach >= 0:
        return "at-risk"
    return "vanishes" if gain <= -math.log10(thresholds["GF108.shrink"]) else "stable"


def _risk(danger: float) -> float:
    """Logistic in the decades beyond the thresholds."""
    return 1.0 / (1.0 + math.exp(-_STEEPNESS * max(min(danger, 8.0), -8.0)))


def _norm(parts: Iterable[tuple[float, int]]) -> float:
    """Euclidean norm of tensors of these RMS and sizes."""
    return math.hypot(*(rms * math.sqrt(size) for rms, size in parts))
