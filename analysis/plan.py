"""The fuse plan: the fewest fuses with which every training step stays finite and bounded, and the reason for each.

A fuse bounds the update; it does not mend the propagation.

- The report says `at-risk`, or a recurrent matrix could raise the gradient beyond GF101.growth over its steps although it
  does not at the present weights: one `global-norm` fuse at the predicted norm, or at 1, the customary threshold (Pascanu
  2013), where that is less. It leaves a training alone whose gradients stay as they are.
- The report says `explodes`: one `global-norm` fuse at 1, with which the weights of a network whose values explode too come
  down slowly enough to stay of use. Where the output is of a usual size none the less, as normalisation and bounded
  activations make it, the fuse is at the norm of all parameters together, if that is less than the predicted one: clipped
  there, a step moves the parameters by the learning rate times their own norm (the ratio of You 2017, LARS, over all
  layers), and 1 would hardly move them. `python -m benchmarks fuses --part auto` shows what becomes of such networks.
- The square of the predicted norm would overflow float32: `norm` fuses at 1 on the gradients of activations, from the output
  back, wherever the flow has grown a million-fold since the last of them. Each keeps the direction of what flows through it,
  and bites only where the flow is in fact that large.
- The forward values overflow: no loss is finite, nothing can be clipped, and no fuse is planned.
- Anything else needs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.fuses import ALL_PARAMETERS, Fuse
from .moments import Moments
from .prediction import Prediction
from .profile import gradient_rms, rms
from .recurrence import recurrences
from .verdict import Summary
from .wording import number

__all__ = ["FusePlan", "plan_fuses"]

_CUSTOMARY = 1.0
"""The threshold on the gradient of an activation, and the least on that of all parameters."""

_LARGEST_NORM = 1e12
"""Predicted global norm beyond which the backward flow is fused: its square, and that of a much larger batch, stay finite."""

_LARGEST_FLOW = 1e6
"""Norm to which the flow may grow from one fuse to the next: half the decades, so that the values have the others."""


_USUAL_OUTPUT = 10.0
"""RMS of the output up to which the values have not exploded with the gradient."""


@dataclass(frozen=True)
class FusePlan:
    """What to clip, and why.

    Attributes:
        fuses: In the order of the backward pass, the one on all parameters last; empty where none is needed, or none helps.
        reason: Why these, or why none, in a sentence.
    """

    fuses: Sequence[Fuse]
    reason: str


def plan_fuses(prediction: Prediction, summary: Summary) -> FusePlan:
    """The fuses that a model needs; none for a healthy one."""
    if summary.overflow_phase == "forward":
        return FusePlan(
            [],
            f"none would help: the value of {summary.overflow} exceeds float32 in the forward pass, before there is a"
            " gradient to clip",
        )
    if not (reason := _danger(prediction, summary)):
        return FusePlan([], "none: the predicted gradients need no clipping")
    fuses = [] if summary.global_norm <= _LARGEST_NORM else list(_flow_fuses(prediction))
    last = Fuse("global-norm", ALL_PARAMETERS, _threshold(prediction, summary), reason)
    return FusePlan([*fuses, last], reason)


def _danger(prediction: Prediction, summary: Summary) -> str:
    """Why gradients explode or may explode; empty where nothing says so."""
    norm = f"the norm of all gradients is {number(summary.global_norm)}"
    if summary.verdict == "explodes":
        return f"{norm}, their growth {10 ** min(summary.log10_gain, 300):.3g}-fold"
    for recurrence in recurrences(prediction.state.gradients):
        if recurrence.growth >= prediction.thresholds["GF101.growth"]:
            return (
                f"{recurrence.parameter} has a spectral radius of {recurrence.radius:.2f}, which over {recurrence.steps} steps"
                f" can raise the gradient {number(recurrence.growth)}-fold"
            )
    return f"{norm}, and its interval reaches the threshold" if summary.verdict == "at-risk" else ""


def _threshold(prediction: Prediction, summary: Summary) -> float:
    """The predicted norm; where the gradient explodes, a bound on it from the weights. To two digits."""
    threshold = summary.global_norm
    if summary.verdict == "explodes" and not threshold < (bound := _bound(prediction)):
        threshold = bound
    return max(float(f"{threshold:.1e}"), _CUSTOMARY)


def _bound(prediction: Prediction) -> float:
    """The norm of all parameters together; the customary threshold where the output is large."""
    output = prediction.state.values[prediction.state.output]
    if not isinstance(output, Moments) or not rms(float(np.mean(output.second))) <= _USUAL_OUTPUT:
        return _CUSTOMARY
    parameters = [entry for entry in prediction.profile if entry.kind == "parameter"]
    return math.hypot(*(entry.value_rms * math.sqrt(entry.size) for entry in parameters))


def _flow_fuses(prediction: Prediction) -> Iterator[Fuse]:
    """A fuse wherever the flow along the trunk has outgrown the last one, or is beyond any prediction."""
    passed = 1.0
    values = (prediction.state.output, *(step.before for step in prediction.steps if step.cause == "weight"))
    for value in values:
        flow = _flow(prediction, value)
        if not math.isfinite(flow) or flow > _LARGEST_FLOW * passed:
            reason = f"the gradient that flows back through it has a norm of {number(flow)}"
            yield Fuse("norm", value.name or "", _CUSTOMARY, reason)
            passed = flow


def _flow(prediction: Prediction, value: ir.Value) -> float:
    """Predicted Euclidean norm of an activation's gradient over a batch."""
    state = prediction.state
    return gradient_rms(state, value) * math.sqrt(state.arrived[value].size * state.assumptions.batch_size)
