"""float16 cannot hold the values or the gradients.

## What it sees
Values whose mean plus four standard deviations exceed 65504, and gradients too large or too small for float16, whose
smallest number is 6e-8 and whose full precision begins at 6.1e-5. A loss scale is sought, the largest power of two that
leaves the largest gradient a 16-fold margin. With `--precision float16` an overflow is an error and small gradients are a
warning, which gives the scale; without it, what float16 could not hold at all is a note.

## Why it is bad
An activation beyond 65504 becomes infinite, and the loss NaN. A gradient below 6e-8 becomes 0: the layer stops learning,
without a message.

## Example
A mean over 1000 positions divides each position's gradient by 1000: 1e-7 where the loss's gradient is 1e-4, and half of
it is lost.

## Cure
Scale the loss, and divide the gradients by the same number before the update (`torch.amp.GradScaler(init_scale=...)`,
`keras.optimizers.LossScaleOptimizer(initial_scale=...)`); keep losses, norms and softmaxes in float32; use bfloat16, which has
float32's range. Where values overflow, a normalisation or smaller weights.

## References
Micikevicius et al. 2018 (mixed precision training); IEEE 754-2019.
"""

from __future__ import annotations

import math

import numpy as np

from ..evidence import Evidence
from ..findings import Finding
from ..moments import Moments
from ..profile import ProfileEntry, without_noise
from ..wording import number
from .rule import Rule, finding

__all__ = ["RULE"]

_LARGEST, _NORMAL, _SMALLEST = 65504.0, 2.0**-14, 2.0**-24
_MARGIN = 16.0


def check(evidence: Evidence) -> list[Finding]:
    """One finding about values, and one about gradients."""
    return [*_values(evidence), *_gradients(evidence)]


RULE = Rule("GF401", check, __doc__)


def _asked(evidence: Evidence) -> bool:
    return evidence.setup.precision == "float16"


def _values(evidence: Evidence) -> list[Finding]:
    for value, moments in evidence.prediction.state.values.items():
        if isinstance(moments, Moments) and value.producer() is not None:
            one = moments.narrow
            peak = float(np.max(np.abs(one.mean) + 4.0 * np.sqrt(one.variance)))
            if not peak <= _LARGEST:
                message = f"values of {value.name} reach {number(peak)}; float16 ends at 65,504"
                severity = "error" if _asked(evidence) else "note"
                return [
                    finding("GF401", severity, value.producer(), message, {"peak": peak}, phase="forward")
                ]
    return []


def _gradients(evidence: Evidence) -> list[Finding]:
    entries = [e for e in without_noise(evidence.prediction.profile) if 0 < e.gradient < math.inf]
    largest = max(entries, key=lambda entry: entry.gradient, default=None)
    if largest is None:
        return []
    smallest = min(entries, key=lambda entry: entry.gradient)
    scale = 2.0 ** math.floor(math.log2(_LARGEST / (_MARGIN * largest.gradient)))
    fits = smallest.gradient * scale >= _SMALLEST * _MARGIN
    if fits and not (_asked(evidence) and smallest.gradient < _NORMAL) and scale >= 1:
        return []
    numbers = {
        "largest": largest.gradient,
        "smallest": smallest.gradient,
        "loss_scale": scale,
        "fits_with_loss_scale": fits,
    }
    severity = "warning" if _asked(evidence) else "note"
    return [finding("GF401", severity, None, _message(largest, smallest, scale, fits), numbers)]


def _message(largest: ProfileEntry, smallest: ProfileEntry, scale: float, fits: bool) -> str:
    text = (
        f"in float16, gradients from {number(smallest.gradient)} ({smallest.tensor}) to {number(largest.gradient)}"
        f" ({largest.tensor}) need a loss scale of {number(scale)}"
    )
    return text if fits else f"{text}, and even then the smallest are lost"
