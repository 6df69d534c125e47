"""What stands in where no rule carries moments: values and gradients keep their mean square.

forward     every output element has mean 0 and the mean E x^2 of all inputs that depend on the example, or else of all
backward    every input element has mean 0 and the output gradients' summed E dy^2, spread over the input's elements
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..site import Contribution, Site, arrays_of
from ..state import GradientMoments, Moments, ParameterGradient

__all__ = ["APPROXIMATION", "backward", "forward"]

APPROXIMATION = "its values and gradients are taken to keep their mean square"


def forward(site: Site, shapes: Sequence[tuple[int, ...]]) -> list[Moments]:
    """Outputs of these shapes."""
    squares = [np.mean(site.moments(index).second) for index in site.varying]
    squares = squares or [
        np.mean(np.square(x, dtype=float)) for x in arrays_of(site.operands) if x is not None
    ]
    second = np.mean(squares) if squares else 0.0
    return [Moments(np.zeros(shape), np.full(shape, second)) for shape in shapes]


def backward(
    site: Site, gradients: Sequence[GradientMoments | ParameterGradient | None]
) -> Sequence[Contribution]:
    """Each input receives all of the energy that arrives."""
    energy = sum(float(np.sum(dy.second)) for dy in gradients if dy is not None)
    received: list[Contribution] = []
    for operand in site.operands:
        if isinstance(operand, Moments):
            variance = np.full(operand.shape, energy / max(operand.mean.size, 1))
            received.append(GradientMoments.of(np.zeros(operand.shape), variance))
        elif operand is not None and operand.dtype.kind == "f":
            variance = np.full(operand.shape, energy / max(operand.size, 1))
            received.append(ParameterGradient(np.zeros(operand.shape), variance))
        else:
            received.append(None)
    return received
