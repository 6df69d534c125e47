"""The gradient grows through time.

## What it sees
The part of the growth that the attribution puts down to recurrence, over all steps of the sequence: `GF106.growth` (10) or
more. An error where the report says `explodes`, else a warning. The largest singular value of the recurrent matrix is no
criterion: it lies above 1 in networks that keep their gradient (1.69 at a spectral radius of 0.9), and a tanh saturates.

## Why it is bad
The same matrix multiplies the gradient at every time step. A factor of 1.1 for each is 1.1^100 = 14,000 over 100 steps; the
same network on sequences of 10 steps looks healthy.

## Example
A tanh RNN whose recurrent matrix has a spectral radius of 1.5, on 50 steps.

## Cure
An orthogonal recurrent matrix with a gain that brings the factor to 1 (the finding says which); a GRU or LSTM, whose gates
carry the state additively; truncated back-propagation. Clipping is the customary net for the steps that explode anyway.

## References
Bengio et al. 1994; Pascanu et al. 2013; Saxe et al. 2014 (orthogonal initialisation); Vorontsov et al. 2017.
"""

from __future__ import annotations

import math

from ...graph.recurrence import RECURRENT
from ..attribution import by_cause
from ..evidence import Evidence
from ..findings import Finding
from ..trunk import Step
from ..wording import factor
from .rule import Rule, finding, grave

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the recurrence's last step."""
    steps = [step for step in evidence.prediction.steps if step.cause == "recurrence"]
    gain = by_cause(evidence.prediction.attribution)["recurrence"]
    if not steps or gain < math.log10(evidence.threshold("GF106.growth")):
        return []
    times = max(_count(steps), 1)
    numbers = {"log10_gain_of_recurrence": gain, "time_steps": times, "log10_gain_of_each": gain / times}
    message = (
        f"the recurrence of layer {steps[0].layer} raises the gradient {factor(gain)} over {times} time steps,"
        f" {10 ** (gain / times):.2f}-fold each"
    )
    remedies = evidence.remedies("recurrent-init")
    return [finding("GF106", grave(evidence), steps[0].nodes[0], message, numbers, remedies)]


RULE = Rule("GF106", check, __doc__)


def _count(steps: list[Step]) -> int:
    """Time steps: of a recurrent node, or how often the trunk passes one of the ops that come most often."""
    node = steps[0].nodes[0]
    if node.op_type in RECURRENT and node.inputs[0] is not None and node.inputs[0].shape is not None:
        length = node.inputs[0].shape[0]
        return length if isinstance(length, int) else 1
    ops = [
        step.nodes[0].op_type for step in steps if step.nodes[0].op_type in ("MatMul", "Gemm", "Mul", "Add")
    ]
    return max((ops.count(op) for op in set(ops)), default=0)
