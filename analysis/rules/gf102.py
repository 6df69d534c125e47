"""An activation grows faster than linearly.

## What it sees
Elementwise functions (one op, or a chain of them) which, at the predicted distribution of their input, more than
double where the input doubles: exponentials, squares, higher powers. It is an error where float32 overflows behind
one, or where the report says `explodes` and the attribution puts part of the growth down to it; a warning where the
function alone raises the gradient's RMS by a tenth of a decade or more.

## Why it is bad
The slope of such a function grows with its input, so that large inputs bring both larger outputs and larger gradients. In a
stack the effect compounds doubly exponentially: e^e^e^x overflows float32 at x = 1.5. No initialisation is stable,
since the growth depends on the data and not on the weights' scale alone.

## Example
`x ** 3` on a standard Gaussian input: the RMS of its slope 3 x^2 is sqrt(27) = 5.2, so each layer multiplies the
gradient by 5.2.

## Cure
An activation that grows linearly or saturates (ReLU, GELU, tanh), with the initialisation that belongs to it; or a
normalisation right before the function, so that its input stays within the range where it is tame. Clipping bounds the
update, and cannot help where the forward values are infinite.

## References
Glorot and Bengio 2010; Poole et al. 2016; Schoenholz et al. 2017.
"""

from __future__ import annotations

import math

import numpy as np

from ..evidence import Evidence
from ..findings import Finding
from ..moments import Moments
from ..moments.quadrature import NODES, Array
from ..profile import Step
from ..remedies import activation_remedy, fuse_remedy
from ..wording import factor
from .rule import Rule

__all__ = ["RULE", "growth_exponent"]

FAST = 1.5
"""Power of its input beyond which a function counts as fast-growing: between linear and quadratic."""

_NOTICEABLE = 0.1
"""Decades by which an activation must raise the gradient to be worth a warning."""


def check(evidence: Evidence) -> list[Finding]:
    """One finding for all fast-growing activations, at the one that raises the gradient most."""
    found = [(step, exponent) for step in evidence.steps if (exponent := _exponent(evidence, step)) > FAST]
    if not found:
        return []
    step, exponent = max(found, key=lambda pair: _gain(pair[0]))
    total = sum(_gain(step) for step, _ in found)
    overflow = evidence.summary.overflow
    severe = bool(overflow) or (evidence.summary.verdict == "explodes" and total > 0)
    if not severe and _gain(step) < _NOTICEABLE:
        return []
    ops = [node.op_type for node in reversed(step.nodes)]
    remedies = [activation_remedy(evidence, [step for step, _ in found]), fuse_remedy(evidence)]
    return [
        Finding(
            "GF102",
            "error" if severe else "warning",
            step.nodes[0].name or "",
            step.nodes[0].op_type,
            "forward" if evidence.summary.overflow_phase == "forward" else "backward",
            _message(step, exponent, len(found), total, overflow),
            {
                "layers": [step.layer for step, _ in reversed(found)],
                "ops": ops,
                "growth_exponent": exponent,
                "log10_gain": _gain(step),
                "log10_gain_of_all": total,
                "overflow": overflow,
            },
            [remedy for remedy in remedies if remedy is not None],
        )
    ]


RULE = Rule("GF102", check, __doc__)


def _message(step: Step, exponent: float, count: int, total: float, overflow: str) -> str:
    kind = "exponentially" if exponent > 8 else f"like the power {exponent:.1f} of its input"
    text = f"the activation of layer {step.layer} grows {kind} and raises the gradient {factor(_gain(step))}"
    if count > 1:
        text += f"; {count} layers have such activations, together {factor(total)}"
    return text + (f"; float32 overflows at {overflow}" if overflow else "")


def _gain(step: Step) -> float:
    return math.inf if math.isnan(step.log10_gain) else step.log10_gain


def _exponent(evidence: Evidence, step: Step) -> float:
    moments = evidence.state.values[step.after]
    if step.cause != "activation" or not isinstance(moments, Moments) or moments.curve is None:
        return 0.0
    return growth_exponent(moments.curve.values)


def growth_exponent(curve: Array) -> float:
    """Power p of |f| ~ |xi|^p from half the range of the nodes to its end, in the steeper direction, of the median channel."""
    low = len(NODES) // 4
    with np.errstate(all="ignore"):
        sides = [(curve[0], curve[low], NODES[low]), (curve[-1], curve[-1 - low], NODES[-1 - low])]
        powers = [_power(np.abs(outer), np.abs(inner), NODES[-1] / abs(node)) for outer, inner, node in sides]
        grown = [
            np.where(np.abs(outer) > 0.5 * np.abs(curve).max(0), p, 0.0)
            for p, (outer, _, _) in zip(powers, sides, strict=True)
        ]
    return float(np.median(np.maximum(*grown)))


def _power(outer: Array, inner: Array, ratio: float) -> Array:
    grown = np.nan_to_num(outer / np.maximum(inner, np.finfo(float).tiny), nan=np.inf, posinf=np.inf)
    return np.asarray(np.log(grown) / math.log(ratio))
