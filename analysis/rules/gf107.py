"""Many blocks are normalised behind their residual sum (post-LN).

## What it sees
Layer normalisations that take a residual sum on the path of the largest gradients: `GF107.blocks` (12) or more are a note,
and a warning where the gradient also changes 10-fold or more from the last layer to the first.

## Why it is bad
Behind every sum the normalisation divides skip and branch alike, so that no path carries the gradient unchanged: at the
beginning the last layers have large gradients and the first ones a share that shrinks with depth. Such transformers train
only with a warm-up of the learning rate, and beyond some 12 blocks often not at all.

## Example
A BERT-like encoder with 24 layers, which has 48 normalisations behind sums.

## Cure
Pre-LN: normalise at the entrance of each branch, and once at the end. Where the architecture is given: a warm-up over some
thousand steps, or DeepNorm's scaling of the skip.

## References
Xiong et al. 2020 (on layer normalization in the transformer architecture); Wang et al. 2022 (DeepNet); Liu et al. 2020 (Admin).
"""

from __future__ import annotations

from itertools import pairwise

from ..evidence import Evidence
from ..findings import Finding
from ..wording import factor
from .rule import Rule, finding

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the last normalisation."""
    pairs = pairwise(evidence.prediction.steps)
    nodes = [
        step.nodes[0]
        for step, before in pairs
        if step.cause == "normalisation" and before.cause == "residual"
    ]
    if len(nodes) < evidence.threshold("GF107.blocks"):
        return []
    gain = evidence.summary.log10_gain
    severity = "warning" if abs(gain) >= 1.0 else "note"
    message = (
        f"{len(nodes)} normalisations stand behind residual sums (post-LN): expect to need a warm-up of the learning rate;"
        f" the gradient changes {factor(gain)} from the last layer to the first"
    )
    remedies = evidence.remedies("residual") if severity == "warning" else []
    return [
        finding("GF107", severity, nodes[0], message, {"blocks": len(nodes), "log10_gain": gain}, remedies)
    ]


RULE = Rule("GF107", check, __doc__)
