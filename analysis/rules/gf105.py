"""The residual stream grows.

## What it sees
The part of the growth that the attribution puts down to residual sums: `GF105.growth` (10) or more. An error where the report
says `explodes`, else a warning.

## Why it is bad
x + f(x) adds the branch's variance to the stream, and on the way back the branch's gradient to the skip's. Where a branch
keeps the scale of its input, each block doubles the squared gradient: 1,000-fold in RMS over 20 blocks. A normalisation at
the branch's entrance makes the growth linear in depth instead of exponential.

## Example
Twenty blocks x + W2 relu(W1 x) with He's initialisation and no normalisation.

## Cure
Multiply every branch by 1 / sqrt(number of blocks), or begin with 0 (SkipInit, Fixup, ReZero: a last weight of zeros in
each branch); or normalise at the entrance of the branches (pre-LN).

## References
Hanin and Rolnick 2018; Zhang et al. 2019 (Fixup); De and Smith 2020 (SkipInit); Xiong et al. 2020 (pre-LN).
"""

from __future__ import annotations

import math

from ..attribution import by_cause
from ..evidence import Evidence
from ..findings import Finding
from ..wording import factor
from .rule import Rule, finding, grave

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the sum that adds most."""
    steps = [step for step in evidence.prediction.steps if step.cause == "residual"]
    gain = by_cause(evidence.prediction.attribution)["residual"]
    if not steps or gain < math.log10(evidence.threshold("GF105.growth")):
        return []
    step = max(steps, key=lambda step: step.log10_gain)
    numbers = {"log10_gain_of_residuals": gain, "blocks": len(steps), "log10_gain_of_each": gain / len(steps)}
    message = (
        f"{len(steps)} residual sums raise the gradient {factor(gain)}, {10 ** (gain / len(steps)):.2f}-fold each,"
        f" that of {step.layer} most"
    )
    remedies = evidence.remedies("residual")
    return [finding("GF105", grave(evidence), step.nodes[0], message, numbers, remedies)]


RULE = Rule("GF105", check, __doc__)
