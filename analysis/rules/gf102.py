"""An activation grows faster than linearly.

## What it sees
Elementwise functions (one op, or a chain of them) which, at the predicted distribution of their input, grow faster than
the power `GF102.exponent` (1.5) of it: exponentials, squares, higher powers. It is an error where float32 overflows
behind one, or where the report says `explodes` and the attribution, or what rare examples add, puts part of the growth down to
it; a warning where one of them alone raises the gradient's RMS `GF102.gain` (1.26) times or more.

## Why it is bad
The slope of such a function grows with its input, so that large inputs bring both larger outputs and larger gradients. In a
stack the effect compounds doubly exponentially: e^e^e^x overflows float32 at x = 1.5. No initialisation is stable,
since the growth depends on the data and not on the weights' scale alone: one example of a thousand that is a third larger
than the others has, behind four cubes, a gradient 3^4 powers of that away. What such examples add to the mean over the first
16 batches (`rare_log10`) counts for verdict and risk, beside the gain of the ordinary example.

## Example
`x ** 3` on a standard Gaussian input: the RMS of its slope 3 x^2 is sqrt(27) = 5.2, so each layer multiplies the
gradient by 5.2.

## Cure
An activation that grows linearly or saturates (ReLU, GELU, tanh), with the initialisation that belongs to it; or a
normalisation right before the function, so that its input stays within the range where it is tame. Clipping bounds the
update, and cannot help where the forward values are infinite.

## References
Glorot and Bengio 2010; Poole et al. 2016; Schoenholz et al. 2017; Hanin 2018 (heavy tails at finite width).
"""

from __future__ import annotations

import math

from ..activations import fast_steps
from ..evidence import Evidence
from ..findings import Finding
from ..trunk import Step
from ..wording import factor
from .rule import Rule, finding

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding for all fast-growing activations, at the one that raises the gradient most."""
    prediction = evidence.prediction
    found = fast_steps(prediction.state, prediction.steps, prediction.thresholds)
    if not found:
        return []
    step, exponent = max(found, key=lambda pair: (_gain(pair[0]), pair[1]))
    total, overflow = sum(_gain(step) for step, _ in found), evidence.summary.overflow
    grows = total > 0 or evidence.summary.rare_log10 > 0
    severe = bool(overflow) or (evidence.summary.verdict == "explodes" and grows)
    if not severe and _gain(step) < math.log10(evidence.threshold("GF102.gain")):
        return []
    numbers = {
        "layers": [step.layer for step, _ in reversed(found)],
        "ops": [node.op_type for node in reversed(step.nodes)],
        "growth_exponent": exponent,
        "log10_gain": _gain(step),
        "log10_gain_of_all": total,
        "overflow": overflow,
    }
    message = _message(step, exponent, len(found), total, overflow)
    phase = "forward" if evidence.summary.overflow_phase == "forward" else "backward"
    remedies = evidence.remedies("activation")
    severity = "error" if severe else "warning"
    return [finding("GF102", severity, step.nodes[0], message, numbers, remedies, phase)]


RULE = Rule("GF102", check, __doc__)


def _message(step: Step, exponent: float, count: int, total: float, overflow: str) -> str:
    kind = "exponentially" if exponent > 8 else f"like the power {exponent:.1f} of its input"
    text = f"the activation of layer {step.layer} grows {kind} and raises the gradient {factor(_gain(step))}"
    if count > 1:
        text += f"; {count} layers have such activations, together {factor(total)}"
    return text + (f"; float32 overflows at {overflow}" if overflow else "")


def _gain(step: Step) -> float:
    return math.inf if math.isnan(step.log10_gain) else step.log10_gain
