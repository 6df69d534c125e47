"""Weights are drawn too large.

## What it sees
The standard deviation of every weight along the path of the largest gradients, times the square root of its number of
inputs: sqrt(2) by He's rule for ReLU, 1 for tanh, 0.58 for PyTorch's default. Where the report says `explodes` and the
attribution puts most of the growth down to weights, that is an error, and the finding says which scale would bring the
gain to 1. One layer beyond `GF103.scale` (3) that no normalisation follows is a warning by itself.

## Why it is bad
A layer multiplies the activations on their way forward, and the gradient on its way back, by its weights' scale. A factor
of 1.5 for each of 20 layers is 3,300 in all.

## Example
Twenty ReLU layers with weights of standard deviation 2.1 / sqrt(inputs) instead of 1.41 / sqrt(inputs).

## Cure
The initialisation that belongs to the activation: He's for ReLU and its kin, Glorot's for tanh, LeCun's for SELU. Where the
weights are trained ones, weight decay, or a normalisation behind the layer, which makes its weights' scale irrelevant.

## References
Glorot and Bengio 2010; He et al. 2015; Klambauer et al. 2017 (SELU).
"""

from __future__ import annotations

from statistics import median

from ..attribution import by_cause
from ..evidence import Evidence
from ..findings import Finding
from ..trunk import NORMALISATION
from ..weights import LayerWeight, trunk_weights
from ..wording import power
from .rule import Rule, finding

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the largest weight."""
    weights = trunk_weights(evidence.prediction, "weight")
    if not weights:
        return []
    largest = max(weights, key=lambda weight: weight.scale)
    causes = by_cause(evidence.prediction.attribution)
    explodes = evidence.summary.verdict == "explodes" and causes["weight"] == max(causes.values()) > 0
    alone = [w for w in weights if w.scale > evidence.threshold("GF103.scale") and not _is_normalised(w)]
    if not explodes and not alone:
        return []
    scales = [weight.scale for weight in weights]
    numbers = {
        "log10_gain_of_weights": causes["weight"],
        "median_scale": median(scales),
        "largest_scale": largest.scale,
        "layers": [weight.layer for weight in reversed(alone or weights)],
    }
    message = (
        f"the weights of {len(weights)} layers have standard deviation {median(scales):.2f} / sqrt(inputs), those of"
        f" {largest.layer} {largest.scale:.2f}; together they multiply the gradient by {power(causes['weight'])}"
    )
    severity = "error" if explodes else "warning"
    return [finding("GF103", severity, largest.node, message, numbers, evidence.remedies())]


RULE = Rule("GF103", check, __doc__)


def _is_normalised(weight: LayerWeight) -> bool:
    """Whether a normalisation takes the layer's output, at once or behind a bias or a reshape."""
    queue, passed = [weight.node], 0
    while queue and passed < 8:
        node, passed = queue.pop(), passed + 1
        users = [user for value in node.outputs for user, _ in value.uses()]
        if any(user.op_type in NORMALISATION for user in users):
            return True
        queue.extend(user for user in users if user.op_type in ("Add", "Reshape", "Transpose"))
    return False
