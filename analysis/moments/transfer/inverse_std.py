"""1 / std of one token's features, which differs from example to example.

std^2 has a relative variance (`norm_spread`). Matched by a gamma distribution of shape k, its inverse (Satterthwaite 1946),

    E[1 / std] = sqrt(k) Gamma(k - 1/2) / Gamma(k) / sqrt(E std^2)          E[1 / std^2] = k / (k - 1) / E std^2
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import norm_spread
from ..quadrature import Array
from ..state import Moments

__all__ = ["InverseStd", "inverse_std"]

_LARGEST = 0.5
"""Largest relative variance: beyond 1 the gamma distribution has no mean inverse, and near it features are few."""


@dataclass(frozen=True)
class InverseStd:
    """What it multiplies is taken as independent of it.

    Attributes:
        mean: E[1 / std].
        square: E[1 / std^2].
    """

    mean: Array
    square: Array

    def variance(self, mean: Array, variance: Array) -> Array:
        """Of a product with a gradient of this mean and variance."""
        return np.asarray(variance * self.square + mean**2 * (self.square - self.mean**2))

    def covariance(self, mean: Array, covariance: Array) -> Array:
        """Of a product with a gradient of this mean and covariance between features."""
        spread = (self.square - self.mean**2).item()
        return np.asarray(covariance * self.square.item() + np.outer(mean, mean) * spread)


def inverse_std(std: Array, x: Moments, centred: Moments, axes: tuple[int, ...]) -> InverseStd:
    """Of the features on `axes`.

    Args:
        std: The root of E std^2.
        x: The input.
        centred: The input less its mean over the features, to any scale.
        axes: The features' axes.
    """
    spread = norm_spread.of_normal(centred) if x.norm_spread is None else x.norm_spread
    tokens = () if centred.tokens is None else centred.tokens.axes
    others = [length for axis, length in enumerate(x.shape) if axis not in (*axes, *tokens)]
    shape = 1.0 / np.clip(spread * np.prod(others), 1e-12, _LARGEST)
    # sqrt(k) Gamma(k - 1/2) / Gamma(k) to the third order in 1 / k.
    first = 1.0 + 3.0 / (8.0 * shape) + 25.0 / (128.0 * shape**2) + 105.0 / (1024.0 * shape**3)
    return InverseStd(first / std, shape / (shape - 1.0) / std**2)
