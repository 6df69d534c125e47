"""Units are dead.

## What it sees
Units that give exactly zero for all but one in a thousand of their inputs, under the predicted distribution. A share of
`GF110.share` (0.5) of an activation's units is a warning.

## Why it is bad
A ReLU that gives zero for every example passes no gradient, so that its weights never change again: the layer has fewer
units than it seems, and the initialisation's balance is lost.

## Example
ReLU behind a layer with a bias of -4 and weights of standard deviation 1 / sqrt(inputs).

## Cure
Biases that begin at 0 or slightly above; inputs with mean 0; a smaller learning rate, where a training step has killed
the units; LeakyReLU, with its weights rescaled by sqrt(2 / (1 + a^2)); a normalisation before the activation.

## References
Maas et al. 2013 (rectifier nonlinearities); Lu et al. 2020 (dying ReLU and initialization).
"""

from __future__ import annotations

from ..activations import activations, dead_share
from ..evidence import Evidence
from ..findings import Finding
from .rule import Rule, finding

__all__ = ["RULE"]

_RECTIFIERS = ("Relu", "Clip", "Max", "ThresholdedRelu")
"""Ops that give zero for many inputs by their nature; a gate's product with a first state of zeros is no dead unit."""


def check(evidence: Evidence) -> list[Finding]:
    """One finding for all activations with dead units, at the worst."""
    threshold = evidence.threshold("GF110.share")
    rectifiers = [a for a in activations(evidence.prediction.state) if a.node.op_type in _RECTIFIERS]
    shares = [(a.node, dead_share(a.curve)) for a in rectifiers]
    found = [(node, share) for node, share in shares if share >= threshold]
    if not found:
        return []
    node, share = max(found, key=lambda pair: pair[1])
    numbers = {"share": share, "nodes": [node.name or "" for node, _ in found]}
    message = f"{share:.0%} of the units of {node.op_type} {node.name} give zero for nearly every example"
    if len(found) > 1:
        message += f"; {len(found)} activations have as many"
    return [finding("GF110", "warning", node, message, numbers, phase="forward")]


RULE = Rule("GF110", check, __doc__)
