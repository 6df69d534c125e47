"""What is predicted of a graph, from moments to the verdict: made once for a report, and anew for every change it considers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..graph.gradient_graph import GradientGraph
from .attribution import Attribution, attribute
from .moments import Assumptions, Propagation, mixed, propagate
from .probe import Measurement
from .profile import ProfileEntry, make_profile
from .rare_examples import rare_examples
from .trunk import Step, trunk
from .verdict import Summary, predicted_summary

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """Everything that was predicted.

    Attributes:
        state: Moments of every tensor.
        steps: The trunk of the backward flow, in backward order.
        profile: RMS of every value and gradient, with what a probe measured of it.
        attribution: Each layer's gain by cause.
        summary: The verdict on the prediction.
        thresholds: What it was judged by.
    """

    state: Propagation
    steps: Sequence[Step]
    profile: Sequence[ProfileEntry]
    attribution: Sequence[Attribution]
    summary: Summary
    thresholds: Mapping[str, float]


@np.errstate(all="ignore")
def predict(
    gradients: GradientGraph,
    assumptions: Assumptions,
    thresholds: Mapping[str, float],
    measurement: Measurement | None = None,
    *,
    one_law: bool = False,
) -> Prediction:
    """Propagate moments, and judge them; by one law of the inputs alone if so asked."""
    state = propagate(gradients, assumptions)
    state = state if one_law else mixed(state)
    steps, profile = trunk(state), make_profile(state, measurement)
    attribution = attribute(steps)
    rare = rare_examples(state, steps, thresholds)
    summary = predicted_summary(state, profile, attribution, thresholds, rare)
    return Prediction(state, steps, profile, attribution, summary, thresholds)
