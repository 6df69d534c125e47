"""The gradient vanishes with depth.

## What it sees
The gradient's RMS at the model's output and at the first layer's: a shrinking of `GF108.shrink` (100) or more is a warning.
Where it takes place over the time steps of a recurrent layer it is a note: every step trains the same weights, and only
what lies far back in a sequence is hard to learn. A loss that gives no gradient at all is a
warning, too: nothing learns.

## Why it is bad
The first layers receive a gradient that is hundreds of times smaller than the last ones': they keep their random weights
while the last layers learn from what they make of the input. Adaptive optimizers hide it, up to the point where the
gradient falls below their epsilon or below what the number format can hold.

## Example
Ten layers of sigmoids: the slope is at most 1/4, so that each layer divides the gradient by 4 or more. PyTorch's default
initialisation of a Linear layer, 0.58 / sqrt(inputs), divides it by 2.4 for each ReLU layer.

## Cure
The initialisation that belongs to the activation; ReLU or GELU in place of a sigmoid; a normalisation; residual branches.
For a model with one output per example: a loss that has a gradient there, as `bce-with-logits` or `mse`; the softmax of
cross-entropy over a single class is 1, whatever the output.

## References
Hochreiter 1991; Bengio et al. 1994; Glorot and Bengio 2010; He et al. 2015.
"""

from __future__ import annotations

import math

from ...graph.gradient_graph import GradientGraph
from ...graph.losses import base_name
from ..attribution import by_cause
from ..evidence import Evidence
from ..findings import Finding
from ..wording import power
from .rule import Rule, finding

__all__ = ["RULE"]

_COMPARING = ("cross-entropy", "multi-margin")


def check(evidence: Evidence) -> list[Finding]:
    """One finding for the whole graph, at the step that takes most."""
    if _one_class(evidence.prediction.state.gradients):
        return [_no_gradient(evidence)]
    gain = evidence.summary.log10_gain
    if evidence.summary.verdict == "explodes" or gain > -math.log10(evidence.threshold("GF108.shrink")):
        return []
    causes = by_cause(evidence.prediction.attribution)
    step = min(evidence.prediction.steps, key=lambda step: step.log10_gain, default=None)
    parts = [
        f"{cause} {power(part)}"
        for cause, part in sorted(causes.items(), key=lambda i: i[1])
        if abs(part) >= 0.05
    ]
    message = (
        f"the gradient's RMS shrinks to {power(gain)} of the last layer's on its way to the first;"
        f" factors: {', '.join(parts)}"
    )
    numbers = {"log10_gain": gain, "causes": causes}
    over_layers = gain - min(evidence.summary.through_time, 0.0)
    through_time = over_layers > -math.log10(evidence.threshold("GF108.shrink"))
    severity = "note" if through_time else "warning"
    remedies = evidence.remedies()
    return [finding("GF108", severity, step.nodes[0] if step else None, message, numbers, remedies)]


def _one_class(gradients: GradientGraph) -> bool:
    """Losses that compare an example's classes have nothing to compare."""
    shape = gradients.source.onnx.graph.outputs[0].shape
    return base_name(gradients.loss) in _COMPARING and shape is not None and len(shape) > 1 and shape[1] == 1


def _no_gradient(evidence: Evidence) -> Finding:
    gradients = evidence.prediction.state.gradients
    message = (
        f"no parameter receives a gradient: the loss {gradients.loss} compares classes, and the model has one output;"
        " bce-with-logits suits two classes, mse a number"
    )
    node = gradients.source.onnx.graph.outputs[0].producer()
    return finding("GF108", "warning", node, message, {"classes": 1, "loss": gradients.loss})


RULE = Rule("GF108", check, __doc__)
