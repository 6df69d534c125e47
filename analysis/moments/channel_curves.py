"""How elementwise functions transform the covariance between channels and the hessian of a tensor with positions.

The formulas are those of dense tensors (`correlation`, `curves`), lag by lag; coefficients are multiplied position by position
and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .channel_covariance import ChannelCovariance, lag_products, mean_products
from .correlation import BY_LAGS
from .quadrature import NODES, Array, derivative_coefficients, expectation, hermite_coefficients

__all__ = ["Slope", "second_moments"]


def second_moments(curve: Array, rho: ChannelCovariance) -> ChannelCovariance:
    """E f_c f_d for latents with correlation `rho`; orders above TERMS as if all of order TERMS + 1."""
    coefficients = hermite_coefficients(curve)
    rest = np.sqrt(np.maximum(expectation(curve**2) - np.sum(coefficients**2, 0), 0.0))
    return rho.series(_products(*[[*coefficients, rest]] * 2))


@dataclass(frozen=True)
class Slope:
    """A chain of elementwise functions of a latent x = mean + deviation xi.

    Attributes:
        values: d end / dx, at the nodes.
        end: The chain's end, at the nodes.
        rho: Correlation of the latent.
        deviation: Of the latent, per channel.
    """

    values: Array
    end: Array
    rho: ChannelCovariance
    deviation: Array

    @cached_property
    def moments(self) -> ChannelCovariance:
        """E slope_c slope_d."""
        return second_moments(self.values, self.rho)

    def moved_mean(self, hessian: ChannelCovariance) -> Array:
        """What a gradient of this hessian at the end, which moves the slope too, adds to the mean, per channel."""
        return self._moved(hessian, hermite_coefficients(self.values))

    def hessian(self, hessian: ChannelCovariance | None, bent: Array) -> ChannelCovariance:
        """E[d (g slope)_c / dx_d].

        Args:
            hessian: E[d g_c / d end_d]; None counts as 0.
            bent: E g E[d slope / d xi], per channel.
        """
        if hessian is None:
            return ChannelCovariance.of_lags(self.rho.lags * 0.0).with_noise(self._by_deviation(bent))
        own = np.diag(hessian.lag0)
        others = hessian.with_noise(-own)
        moved = self._moved(others, derivative_coefficients(hermite_coefficients(self.values)))
        nodes = NODES.reshape(-1, *[1] * (self.values.ndim - 1))
        curved = expectation((self.end - expectation(self.end)) * self.values * nodes)
        curvature = bent + moved + own * curved.reshape(len(own), -1).mean(1)
        return (others * self.moments).with_noise(self._by_deviation(curvature))

    def _moved(self, hessian: ChannelCovariance, coefficients: Array) -> Array:
        """sum over d and lags of H_cd Cov(f_c, end_d), f given by its coefficients."""
        products = _products([*coefficients], [*hermite_coefficients(self.end)])
        covariance = self.rho.series([np.zeros((len(self.deviation),) * 2), *products[1:]])
        return np.asarray((hessian * covariance).total().sum(1))

    def _by_deviation(self, channels: Array) -> Array:
        return np.divide(channels, self.deviation, out=np.zeros_like(channels), where=self.deviation > 0)


def _products(a: Sequence[Array], b: Sequence[Array]) -> list[Array | ChannelCovariance]:
    """Of the coefficients of each order: what lags have in common of those that fade with the lag."""
    return [
        (lag_products if order <= BY_LAGS else mean_products)(*both)
        for order, both in enumerate(zip(a, b, strict=False))
    ]
