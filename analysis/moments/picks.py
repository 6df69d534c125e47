"""Sums over positions of what maxima pass back: each window passes its gradient to one of its positions.

With h the slope there, or the slope times the standardised latent, which varies over windows,

    Var(sum g h) / batch = n sum_lag E[g g'] Cov(h, h') + (E h)^2 Var(sum g) / batch

Where a batch normalisation has made the sum of g vanish, only what h varies by is left: of ReLU, the windows without a positive
value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .autocovariance import Autocovariance
from .correlation import pairs
from .quadrature import Array
from .state import GradientMoments

__all__ = ["Picks"]


@dataclass(frozen=True, eq=False)
class Picks:
    """The largest of each window.

    Attributes:
        gradient: At the maxima.
        weights: Of each node among the latents of the largest, `[NODES, C, *positions]`; their sum over nodes, in the mean over
            positions, is 1.
        root: The slope by which the chance to be the largest counts in the chain before the maximum.
        together: Correlation of two windows.
    """

    gradient: GradientMoments
    weights: Array
    root: Array
    together: Autocovariance

    def total(self, slope: Array) -> Array:
        """Per channel, the variance above, given h with the root in it."""
        h = np.divide(slope, self.root, out=np.zeros(slope.shape), where=self.root > 0)
        positions = tuple(range(1, h.ndim - 1))
        mean, square = (np.sum(self.weights * h**power, 0).mean(positions) for power in (1, 2))
        products = self.gradient.known_lags + pairs(self.gradient.mean)
        varied = products.count * (products * self.together).total() * np.maximum(square - mean**2, 0.0)
        return np.asarray(np.maximum(varied, 0.0) + mean**2 * self.gradient.total)
