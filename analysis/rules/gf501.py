"""The steps are too large for the weights.

## What it sees
For every weight matrix and kernel, the distance that the first steps carry it, relative to its size: learning rate, divided
by 1 - momentum, times the RMS of its gradient, divided by the RMS of its values. `GF501.step` (1) or more is a warning. The
learning rate is that of `--lr` (0.01), the momentum that of `--momentum` (0.9).

## Why it is bad
Gradients hold for a small neighbourhood. Steps as large as the weights leave it at once: the loss jumps, ReLUs die, and an
adaptive optimizer remembers the jump. Healthy trainings move a weight by about a thousandth per step.

## Example
A learning rate of 1 for a layer with weights of 0.05 and gradients of 0.02: with momentum 0.9 that is 4 times the weight.

## Cure
A smaller learning rate (the finding says which), or a warm-up to it; clipping, which bounds the step. Where the gradient
itself explodes, see GF101: a smaller learning rate does not touch it.

## References
Glorot and Bengio 2010; You et al. 2017 (LARS: layer-wise ratios of gradient and weight); Goodfellow et al. 2016, ch. 8.
"""

from __future__ import annotations

import math

from ..evidence import Evidence
from ..findings import Finding
from ..profile import ProfileEntry
from ..remedies import learning_rate_remedy
from ..wording import number
from .rule import Rule, finding

__all__ = ["RULE"]

_CUSTOMARY = 1e-2
"""Share of the weight that the suggested rate moves, momentum included: a thousandth per step with momentum 0.9."""


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the weight with the largest step."""
    entries = [entry for entry in evidence.prediction.profile if _is_weight(entry, evidence)]
    worst = max(entries, key=lambda entry: entry.gradient / entry.value_rms, default=None)
    if worst is None or not math.isfinite(worst.gradient):
        return []
    setup = evidence.setup
    step = setup.lr / (1 - setup.momentum) * worst.gradient / worst.value_rms
    if step < evidence.threshold("GF501.step"):
        return []
    message = (
        f"with learning rate {setup.lr:g} and momentum {setup.momentum:g} the first steps carry {worst.tensor}"
        f" {number(step)} times its size (gradient {number(worst.gradient)}, weight {number(worst.value_rms)})"
    )
    remedy = learning_rate_remedy(setup.lr * _CUSTOMARY / step, evidence.summary)
    numbers = {"step": step, "tensor": worst.tensor, "gradient": worst.gradient, "weight": worst.value_rms}
    return [finding("GF501", "warning", None, message, numbers, [remedy, *evidence.clipping])]


RULE = Rule("GF501", check, __doc__)


def _is_weight(entry: ProfileEntry, evidence: Evidence) -> bool:
    initializers = evidence.prediction.state.gradients.onnx.graph.initializers
    return (
        entry.kind == "parameter" and entry.value_rms > 0 and len(initializers[entry.tensor].shape or ()) > 1
    )
