"""What rare examples add where activations grow fast: composed powers have heavy tails that moments layer by layer do not see.

Let e_j = log(|h_j|^2 / E|h_j|^2) of one example behind fast activation j, given the size of its input, and D_j the degree of
what follows: the product of the later activations' powers. Values that follow then are of degree D_j in h_j and their slopes
of degree D_j - 1, so that an example's squared gradient is that of the prediction times

    exp(sum_j d_j e_j)       d_j = D_j - 1, or D_j for a weight's gradient, which has the values of the layer before it

Its mean is that over as many draws as the first steps have examples, no more: the expectation over all there could be lies in
examples that no training meets. Products of layers are heavy-tailed in this way at any finite width (Hanin 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .activations import fast_steps
from .moments import Moments, Propagation
from .moments.quadrature import NODES, WEIGHTS, Array
from .trunk import NORMALISATION, Step

__all__ = ["RareExamples", "rare_examples"]

_STEPS = 16
"""The first steps of a training, whose examples are those that may be rare."""

_TRIALS = 8
"""Trainings that are drawn; what their first steps show is averaged in decades."""

_ELEMENTS = 1024
"""Elements of a tensor that are drawn; the sum of as many varies little."""


@dataclass(frozen=True)
class RareExamples:
    """Decades that rare examples add to the RMS over the examples of the first steps.

    Attributes:
        growth: To that of the gradient at the first layer.
        norm: To that of a weight's gradient.
    """

    growth: float = 0.0
    norm: float = 0.0


def rare_examples(state: Propagation, steps: Sequence[Step], thresholds: Mapping[str, float]) -> RareExamples:
    """What they add along the trunk; nothing where no activation's degree is above GF102.exponent."""
    found = {step: _degree(state, step) for step, _ in fast_steps(state, steps, thresholds)}
    degrees = {step: degree for step, degree in found.items() if degree > thresholds["GF102.exponent"]}
    if not degrees:
        return RareExamples()
    rng, degree = np.random.default_rng(0), 1.0
    growth, norm = np.zeros((2, _TRIALS * _STEPS * state.assumptions.batch_size))
    fast = [step for step in steps if step in degrees or _normalises(step)]
    for step, later in zip([*fast, None], [None, *fast], strict=True):
        if later is not None:
            degree = degree * degrees[later] if later in degrees else 1.0
        value = fast[-1].before if step is None else step.after
        sizes = _log_sizes(state.values[value], len(growth), rng)
        growth += (degree - 1.0) * sizes
        norm += degree * sizes
    return RareExamples(max(_decades(growth), 0.0), max(_decades(norm), 0.0))


def _normalises(step: Step) -> bool:
    """What is normalised comes at its usual size, whatever came before."""
    return any(node.op_type in NORMALISATION for node in step.nodes)


def _degree(state: Propagation, step: Step) -> float:
    """p of an activation, by the energy of all its elements; that of a rectifier is 1 wherever its bend lies."""
    z, f = (_curve(state.values[value]) for value in (step.before, step.after))
    if z is None or f is None or z.shape != f.shape:  # what is gated by few numbers is no function of them
        return 1.0
    deviation = np.maximum(z[-1] - z[0], np.finfo(float).tiny) / (NODES[-1] - NODES[0])
    slope = np.gradient(f, NODES, axis=0) / deviation
    degree = float(np.sum(WEIGHTS @ (z * f * slope)) / np.sum(WEIGHTS @ f**2))
    return degree if math.isfinite(degree) else 1.0


def _curve(moments: object) -> Array | None:
    """Values at the quadrature nodes, `[NODES, elements]`."""
    if not isinstance(moments, Moments) or moments.curve is None:
        return None
    return moments.curve.values.reshape(NODES.size, -1)[:, :_ELEMENTS].astype(np.float64)


def _log_sizes(moments: object, count: int, rng: np.random.Generator) -> Array:
    """log(|h|^2 / E|h|^2) of draws of independent elements, functions of a Gaussian; 0 where they are not known as such."""
    curve = _curve(moments)
    if curve is None:
        return np.zeros(count)
    squares = curve**2
    mean = float(np.sum(WEIGHTS @ squares))
    if not 0 < mean < math.inf:
        return np.zeros(count)
    drawn = rng.choice(NODES.size, (count, squares.shape[1]), p=WEIGHTS)
    return np.asarray(np.log(squares[drawn, np.arange(squares.shape[1])].sum(1) / mean))


def _decades(logs: Array) -> float:
    """Half the log of the mean of exp over one training's draws, on average over the trainings."""
    trials = logs.reshape(_TRIALS, -1)
    means = np.logaddexp.reduce(trials, 1) - math.log(trials.shape[1])
    return float(np.mean(means)) / 2 / math.log(10.0)
