"""The gradient grows with depth.

## What it sees
The gradient's RMS at the model's output and at the first layer's, as predicted from the graph and its weights, and the
norm of all parameters' gradients together; with a probe, as measured. A growth of `GF101.growth` (100) or a norm of
`GF101.norm` (100) is an error, a growth of `GF101.warning` (10) a warning. What the growth is put down to stands in the
attribution: for each layer, the decades that its weights, activation, normalisation, residual sum and recurrence add.

## Why it is bad
Each layer multiplies the squared gradient by chi = sigma_w^2 E[phi'^2]. Over L layers that is chi^L: the update of the first
layers is so large that the loss jumps or becomes NaN, while a learning rate that is small enough for them hardly moves
the last.

## Example
Twenty ReLU layers whose weights have a standard deviation of 2.1 / sqrt(inputs): chi = 2.1^2 / 2 = 2.2, so that the
gradient's RMS grows by 1.48 per layer, and 2,700-fold in all. With sqrt(2 / inputs), He's initialisation, chi is 1.

## Cure
In this order: weights at the scale that makes chi 1 (the finding says which); a normalisation where the recomputed
gain falls with it (LayerNorm; BatchNorm holds the activations, yet in a plain deep network it makes gradients grow
1.2-fold per ReLU layer); residual branches. A fuse, that is gradient clipping, bounds the update and not the
propagation: training stays finite, and the first layers still see gradients out of proportion. A smaller or decaying
learning rate does not touch the gradient at all. A LeakyReLU or PReLU in place of a ReLU raises the gradient unless
the weights are rescaled by sqrt(2 / (1 + a^2)).

## References
Glorot and Bengio 2010; He et al. 2015; Poole et al. 2016; Schoenholz et al. 2017 (deep information propagation); Yang
et al. 2019 (a mean field theory of batch normalization); Pascanu et al. 2013 (clipping).
"""

from __future__ import annotations

import math

from ..attribution import by_cause
from ..evidence import Evidence
from ..findings import Finding
from ..wording import factor, number, power
from .rule import Rule, finding

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding for the whole graph, at the layer that adds most to the growth."""
    severity = _severity(evidence)
    if severity is None:
        return []
    summary, prediction = evidence.summary, evidence.prediction
    step = max(prediction.steps, key=lambda step: step.log10_gain, default=None)
    numbers = {
        "log10_gain": summary.log10_gain,
        "global_norm": summary.global_norm,
        "rare_log10": summary.rare_log10,
        "layers": _layers(evidence),
        "overflow": summary.overflow,
        "causes": by_cause(prediction.attribution),
    }
    remedies = evidence.remedies()
    return [
        finding("GF101", severity, step.nodes[0] if step else None, _message(evidence), numbers, remedies)
    ]


RULE = Rule("GF101", check, __doc__)

_RARE = 0.5
"""Decades from which on rare examples are worth a word."""


def _severity(evidence: Evidence) -> str | None:
    summary = evidence.summary
    if summary.verdict == "explodes":
        return "error"
    return "warning" if summary.log10_gain >= math.log10(evidence.threshold("GF101.warning")) else None


def _message(evidence: Evidence) -> str:
    summary = evidence.summary
    parts = []
    if summary.log10_gain >= math.log10(evidence.threshold("GF101.warning")):
        parts.append(
            f"the gradient's RMS grows {factor(summary.log10_gain)} from the output back to the first of"
            f" {_layers(evidence)} layers"
        )
    if not summary.global_norm < evidence.threshold("GF101.norm"):
        parts.append(f"the norm of all parameters' gradients is {number(summary.global_norm)}")
    if summary.rare_log10 >= _RARE:
        parts.append(
            f"rare examples of the first steps raise it {factor(summary.rare_log10)} more, through activations that grow fast"
        )
    if summary.overflow:
        kind = "value" if summary.overflow_phase == "forward" else "gradient"
        parts.append(f"float32 overflows at the {kind} of {summary.overflow}")
    return "; ".join([*parts, *_why(evidence)])


def _why(evidence: Evidence) -> list[str]:
    """What each cause does to the gradient, the largest first, and where the first of them does it most."""
    attribution = evidence.prediction.attribution
    causes = sorted(by_cause(attribution).items(), key=lambda item: -item[1])
    main, gain = causes[0]
    if gain <= 0:
        return []
    worst = max(attribution, key=lambda row: getattr(row, main))
    parts = [f"{cause} {power(part)}" for cause, part in causes if abs(part) >= 0.05]
    return [
        f"factors: {', '.join(parts)}; layer {worst.layer} has the largest {main} factor, {power(getattr(worst, main))}"
    ]


def _layers(evidence: Evidence) -> int:
    return max((entry.depth for entry in evidence.prediction.profile), default=0)
