"""BatchNorm makes a plain deep network explode.

## What it sees
At least two BatchNormalization nodes and no residual sum on the path of the largest gradients, and a growth of `GF104.growth`
(10) or more from the last layer to the first. An error where the report says `explodes`, else a warning.

## Why it is bad
BatchNorm holds the activations, whatever the weights. It does not hold the gradient: in the backward pass it divides by the
standard deviation of what came in, which a ReLU behind it has made smaller than the weights assume. With ReLU the
gradient grows by sqrt(pi / (pi - 1)) = 1.21 for each layer, 45-fold over 20 and 8,000-fold over 48, at any weight scale:
no initialisation helps.

## Example
Fifty layers of convolution, BatchNorm and ReLU one behind the other, without skips.

## Cure
Residual connections (a skip around every two or three layers, as in a ResNet), for which BatchNorm was made; or LayerNorm
(GroupNorm with one group behind convolutions), under which a ReLU network keeps its gradient. A learning rate warm-up
and clipping carry a network over the first steps, and do not mend the propagation.

## References
Yang et al. 2019 (a mean field theory of batch normalization); De and Smith 2020 (batch normalization biases residual blocks).
"""

from __future__ import annotations

import math

from ..evidence import Evidence
from ..findings import Finding
from ..wording import factor
from .rule import Rule, finding, grave

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the last BatchNormalization."""
    steps, gain = evidence.prediction.steps, evidence.summary.log10_gain
    nodes = [step.nodes[0] for step in steps if step.nodes[0].op_type == "BatchNormalization"]
    plain = not any(step.cause == "residual" for step in steps)
    if len(nodes) < 2 or not plain or gain < math.log10(evidence.threshold("GF104.growth")):
        return []
    numbers = {"log10_gain": gain, "batch_norms": len(nodes), "log10_gain_of_each": gain / len(nodes)}
    message = (
        f"{len(nodes)} layers with BatchNorm and no skip between them: the gradient grows {factor(gain)}, "
        f"{10 ** (gain / len(nodes)):.2f}-fold for each, at any weight scale"
    )
    remedies = evidence.remedies("normalisation")
    return [finding("GF104", grave(evidence), nodes[0], message, numbers, remedies)]


RULE = Rule("GF104", check, __doc__)
