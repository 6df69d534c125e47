"""Skewness of sums that are not Gaussian: a residual stream that an activation has cut off on one side stays skewed.

Third central moments of independent summands add up. A sum is then taken as of Pearson's type III, which is Gaussian at
skewness g = 0, and whose quantiles are nearly cubes of Gaussian ones (Wilson and Hilferty 1931; Kirby 1972):

    (x - mean) / std = 2 / g ((1 + g xi / 6 - g^2 / 36)^3 - 1)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .quadrature import NODES, WEIGHTS, Array, expectation
from .state import Moments

__all__ = ["of_sum", "of_values", "quantiles"]

_LARGEST = 2.0
"""Skewness up to which the cubes are true, that of an exponential distribution."""


def of_sum(operands: Sequence[Moments], signs: Sequence[float], total: Moments) -> Array | None:
    """Of each channel of a sum of independent operands, `[C, 1, ...]`; None where no operand is known to be skewed."""
    known = [
        (sign, _of_operand(operand), operand)
        for sign, operand in zip(signs, operands, strict=True)
        if operand.mean.ndim == total.mean.ndim
    ]
    thirds = [
        sign * skewness * _variance(operand) ** 1.5
        for sign, skewness, operand in known
        if skewness is not None
    ]
    return _over_cube(np.asarray(sum(thirds)), _variance(total)) if thirds else None


def of_values(values: Array, weights: Array) -> Array:
    """Of values `[n, C, *positions]` that have these weights at each element, over the positions too, `[C, 1, ...]`."""
    positions = tuple(range(1, values.ndim - 1))
    centred = values - np.tensordot(weights, values, 1)
    square = centred * centred
    variance, third = (
        np.tensordot(weights, power, 1).mean(positions, keepdims=True) for power in (square, square * centred)
    )
    return _over_cube(third, variance)


def quantiles(skewness: Array) -> Array:
    """Of mean 0 and variance 1 at the nodes, `[NODES, C, 1, ...]`."""
    g = np.clip(skewness, -_LARGEST, _LARGEST)
    g = np.where(np.abs(g) < 1e-6, 1e-6, g)
    xi = NODES.reshape(-1, *[1] * g.ndim)
    cubes = 2.0 / g * (np.maximum(1.0 + g * xi / 6.0 - g**2 / 36.0, 0.0) ** 3 - 1.0)
    cubes -= expectation(cubes)
    return np.asarray(cubes / np.sqrt(expectation(cubes**2)))


def _of_operand(operand: Moments) -> Array | None:
    if operand.curve is None:
        return operand.skewness
    return of_values(operand.curve.values, WEIGHTS)


def _variance(moments: Moments) -> Array:
    variance = moments.narrow.variance
    return np.asarray(variance.mean(tuple(range(1, variance.ndim)), keepdims=True))


def _over_cube(third: Array, variance: Array) -> Array:
    scale = variance**1.5
    return np.divide(third, scale, out=np.zeros(scale.shape), where=scale > 0)
