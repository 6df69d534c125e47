"""From predictions, or from what a probe measured, to one word and one number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .attribution import Attribution
from .followed import rests_on_little
from .moments import Propagation
from .moments.overflow import overflows
from .probe import Measurement
from .profile import ProfileEntry
from .rare_examples import RareExamples
from .trunk import Step

__all__ = ["Summary", "measured_summary", "predicted_summary"]

_STEEPNESS = 4.0
"""Natural log of the odds of risk for each decade of danger."""

_LARGEST = 300.0
"""Decades that a float64 can be multiplied by."""

_SAMPLING = 0.1
"""Decades by which a few batches may miss the mean over many."""


@dataclass(frozen=True)
class Summary:
    """The verdict.

    Attributes:
        verdict: `explodes`: the gradient is beyond the threshold GF101.growth or GF101.norm, or not finite; `at-risk`: the
            interval reaches one, or most parameters lie behind ops that the prediction does not follow;
            `vanishes`: it shrinks beyond GF108.shrink from layer to layer, or is zero; else `stable`.
            What it shrinks over the steps of a recurrent layer does not count: all steps train the same weights.
        risk: 0 to 1, monotone in the danger; 0.5 at the thresholds.
        log10_gain: Growth of the gradient's RMS from the output back to the first layer, in decades.
        through_time: Decades of it that lie between the time steps of recurrences.
        global_norm: Euclidean norm of all parameters' gradients.
        overflow: Name of the first tensor whose values, or else gradients, exceed float32; empty if there is none.
        overflow_phase: `forward` or `backward`.
        basis: `predicted` or `measured`.
        danger: Decades beyond the nearer threshold of growth; negative below both, infinite where float32 overflows.
        rare_log10: Decades that the danger, and not the gain, reckons with for rare examples (`rare_examples`).
    """

    verdict: str
    risk: float
    log10_gain: float
    through_time: float
    global_norm: float
    overflow: str = ""
    overflow_phase: str = ""
    basis: str = "predicted"
    danger: float = -math.inf
    rare_log10: float = 0.0


def predicted_summary(
    state: Propagation,
    profile: Sequence[ProfileEntry],
    attribution: Sequence[Attribution],
    thresholds: Mapping[str, float],
    rare: RareExamples,
) -> Summary:
    """Judge a prediction; rare examples count for the danger, and not for the gain that layers share out."""
    overflow, phase = overflows(state)
    finite = all(math.isfinite(entry.grad_rms) for entry in profile)
    gain = sum(row.log10_gain for row in attribution) if finite else math.inf
    gain = math.inf if math.isnan(gain) else gain
    parameters = [entry for entry in profile if entry.kind == "parameter"]
    norm = _norm((entry.grad_rms, entry.size) for entry in parameters)
    high = _norm((entry.high, entry.size) for entry in parameters)
    widths = [math.log10(entry.high / entry.grad_rms) for entry in profile if 0 < entry.grad_rms < math.inf]
    rarely = _norm((entry.grad_rms * _raised(state, entry, rare), entry.size) for entry in parameters)
    danger = math.inf if overflow else _danger(gain + rare.growth, rarely, thresholds)
    reach = max(danger, _danger(gain + max(widths, default=0.0), high, thresholds))
    through_time = sum(row.recurrence for row in attribution)
    verdict = _verdict(danger, reach, gain - min(through_time, 0.0) if norm else -math.inf, thresholds)
    if verdict == "stable" and rests_on_little(state):
        verdict = "at-risk"
    rare_log10 = max(rare.growth, rare.norm)
    return Summary(
        verdict, _risk(danger), gain, through_time, norm, overflow, phase, "predicted", danger, rare_log10
    )


def measured_summary(
    measurement: Measurement, steps: Sequence[Step], thresholds: Mapping[str, float]
) -> Summary:
    """Judge what a probe measured, along the same trunk."""
    gains = _measured_gains(measurement, steps)
    gain = math.inf if measurement.overflow else sum(gains)
    through_time = sum(part for part, step in zip(gains, steps, strict=True) if step.cause == "recurrence")
    danger = math.inf if measurement.overflow else _danger(gain, measurement.global_norm, thresholds)
    shrinks = gain - min(through_time, 0.0) if measurement.global_norm else -math.inf
    return Summary(
        _verdict(danger, danger + _SAMPLING, shrinks, thresholds),
        _risk(danger),
        gain,
        through_time,
        measurement.global_norm,
        measurement.overflow,
        measurement.overflow_phase,
        "measured",
        danger,
    )


def _measured_gains(measurement: Measurement, steps: Sequence[Step]) -> list[float]:
    """Decades over each step. A tensor whose gradient a run does not give is passed over, the states in a loop's body too."""
    known = [measurement.gradients.get(step.before.name or "") for step in steps]
    level = measurement.gradients.get(steps[0].after.name or "", 0.0) if steps else 0.0
    gains = []
    for gradient in known:
        now = level if gradient is None else gradient
        gains.append(_log10(now) - _log10(level) if 0 < level < math.inf else 0.0)
        level = now
    return gains


def _log10(number: float) -> float:
    return math.log10(number) if number > 0 else -math.inf


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


def _raised(state: Propagation, entry: ProfileEntry, rare: RareExamples) -> float:
    """Factor that rare examples put on the gradient of what multiplies values; a bias has none."""
    shape = state.graph.initializers[entry.tensor].shape
    return 10 ** min(rare.norm, _LARGEST) if shape is not None and len(shape) > 1 else 1.0


def _norm(parts: Iterable[tuple[float, int]]) -> float:
    """Euclidean norm of tensors of these RMS and sizes."""
    return math.hypot(*(rms * math.sqrt(size) for rms, size in parts))
