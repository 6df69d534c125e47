"""bfloat16 is too coarse.

## What it sees
bfloat16 has float32's range and 8 bits of precision. With `--precision bfloat16`: weights of which one step, learning rate
times predicted gradient, is less than 1/512 of their size, where they are more than half of all weights (a warning). In
any case: tensors in front of a normalisation whose mean exceeds 256 standard deviations in more than half of the channels
(a note, with `--precision bfloat16` a warning).

## Why it is bad
A weight plus an update below half its last bit is the same weight: training stands still while the loss looks normal.
Where the mean is 256 times the deviation, rounding to 8 bits leaves nothing of what varies, and the normalisation divides
noise by noise.

## Example
SGD with a learning rate of 0.01 on a layer whose weights are 0.05 and whose gradients are 1e-4: each step is 1/50,000 of the
weight.

## Cure
Keep a float32 copy of the weights for the update (mixed precision: `torch.autocast` and Keras's `mixed_bfloat16` do), or
round stochastically; compute normalisations in float32.

## References
Kalamkar et al. 2019 (a study of BFLOAT16); Zamirai et al. 2020 (revisiting BFloat16 training).
"""

from __future__ import annotations

import numpy as np

from ..evidence import Evidence
from ..findings import Finding
from ..moments import Moments
from ..trunk import NORMALISATION
from .rule import Rule, finding

__all__ = ["RULE"]

_HALF_OF_THE_LAST_BIT, _BITS = 2.0**-9, 2.0**8


def check(evidence: Evidence) -> list[Finding]:
    """One finding about updates, and one about cancellation."""
    asked = evidence.setup.precision == "bfloat16"
    return [*(_updates(evidence) if asked else []), *_cancellation(evidence, "warning" if asked else "note")]


RULE = Rule("GF402", check, __doc__)


def _updates(evidence: Evidence) -> list[Finding]:
    weights = [
        e for e in evidence.prediction.profile if e.kind == "parameter" and e.value_rms > 0 and e.size > 1
    ]
    lost = [e for e in weights if evidence.setup.lr * e.gradient < _HALF_OF_THE_LAST_BIT * e.value_rms]
    if len(lost) <= len(weights) / 2:
        return []
    least = min(lost, key=lambda entry: entry.gradient / entry.value_rms)
    share = evidence.setup.lr * least.gradient / least.value_rms
    message = (
        f"in bfloat16 the updates of {len(lost)} of {len(weights)} parameters are rounded away, those of {least.tensor} at"
        f" {share:.1g} of its size: keep a float32 copy of the weights"
    )
    return [
        finding("GF402", "warning", None, message, {"lost": len(lost), "of": len(weights), "smallest": share})
    ]


def _cancellation(evidence: Evidence, severity: str) -> list[Finding]:
    state = evidence.prediction.state
    for node in state.nodes:
        moments = (
            state.values.get(node.inputs[0]) if node.op_type in NORMALISATION and node.inputs[0] else None
        )
        if isinstance(moments, Moments):
            one = moments.narrow
            ratio = float(np.median(np.abs(one.mean) / np.sqrt(np.maximum(one.variance, 1e-300))))
            if ratio > _BITS:
                message = f"the mean of what {node.name} normalises is {ratio:.2g} deviations: bfloat16 loses what varies"
                return [
                    finding("GF402", severity, node, message, {"mean_over_deviation": ratio}, phase="forward")
                ]
    return []
