"""Activations are saturated.

## What it sees
For functions that are flat on both sides (tanh, sigmoid, hard versions of them), the share of their inputs, under the
predicted distribution, at which the slope is below a twentieth of the steepest. A share of `GF109.share` (0.5) or more
is a warning. RNN, LSTM and GRU nodes are looked into: all gates of the last step are taken together (of a GRU those of
update and reset).

## Why it is bad
A saturated unit passes nearly no gradient, and what it passes depends on a few examples. Its layer does not learn, and
neither does what lies before it.

## Example
tanh behind weights of standard deviation 10 / sqrt(inputs): the pre-activations have a standard deviation of 10, and 83 % of
them lie where tanh is flat.

## Cure
Smaller weights, or a normalisation before the function, so that its inputs have a standard deviation near 1; inputs of the
model scaled to variance 1. Gates of an LSTM may be saturated on purpose (a forget bias): one of four alone makes no finding.

## References
Glorot and Bengio 2010; LeCun et al. 1998 (efficient backprop).
"""

from __future__ import annotations

from ..activations import activations, saturated_share
from ..evidence import Evidence
from ..findings import Finding
from .rule import Rule, finding

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding for all saturated functions, at the worst."""
    threshold = evidence.threshold("GF109.share")
    shares = [(a.node, saturated_share(a.curve)) for a in activations(evidence.prediction.state)]
    found = [(node, share) for node, share in shares if share >= threshold]
    if not found:
        return []
    node, share = max(found, key=lambda pair: pair[1])
    numbers = {"share": share, "nodes": [node.name or "" for node, _ in found]}
    message = f"{share:.0%} of the inputs of {node.op_type} {node.name} lie where it is flat"
    if len(found) > 1:
        message += f"; {len(found)} activations are saturated"
    return [finding("GF109", "warning", node, message, numbers, phase="forward")]


RULE = Rule("GF109", check, __doc__)
