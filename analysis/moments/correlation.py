"""How elementwise functions transform covariances, by Mehler's formula.

For f = sum a_k h_k and g = sum b_k h_k of standard Gaussians with correlation r, E f(x) g(y) = sum a_k b_k r^k (Mehler 1866).

Covariances are between pairs of channels for dense tensors, and between lags of one channel otherwise. Where positions have
functions of their own, as at a border, <a_k(p) b_k(p + lag)> over the positions takes the place of a_k b_k.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from .autocovariance import Autocovariance
from .blocks import repeats
from .quadrature import (
    TERMS,
    Array,
    cross_series,
    derivative_coefficients,
    expectation,
    hermite_coefficients,
)
from .state import Moments

__all__ = [
    "BY_LAGS",
    "correlation",
    "cross_covariance",
    "curvature_covariance",
    "lag_pairs",
    "pairs",
    "second_moments",
]

Covariance = TypeVar("Covariance", Array, Autocovariance)


BY_LAGS = 1
"""Order up to which the products of the coefficients of two positions are told apart by their lag: powers of the correlation
fade with it, and those of a position with itself then count for all."""


def pairs(vector: Array) -> Array:
    """v_c v_d of pairs of channels; mean over positions of v^2, for every lag, of tensors with positions."""
    if vector.ndim == 1:
        return np.outer(vector, vector)
    axes = tuple(range(1, vector.ndim))
    return np.asarray(np.mean(vector**2, axes, keepdims=True))


def lag_pairs(vector: Array) -> Array | Autocovariance:
    """The same of v(p) v(p + lag), where it differs from lag to lag."""
    alike = vector.ndim == 1 or repeats(vector, tuple(range(1, vector.ndim)))
    return pairs(vector) if alike else Autocovariance.of_products(vector)


def correlation(moments: Moments) -> Array | None:
    """The covariance of a dense tensor divided by the standard deviations; None for uncorrelated elements."""
    covariance = moments.covariance
    if covariance is None:
        return None
    std = np.sqrt(np.diag(covariance))
    scale = np.outer(std, std)
    return np.clip(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0), -1.0, 1.0)


def second_moments(curve: Array, rho: Covariance) -> Covariance:
    """E f(x) f(y) for latents with correlation `rho`; orders above TERMS as if all of order TERMS + 1."""
    coefficients = hermite_coefficients(curve)
    remainder = np.maximum(expectation(curve**2) - np.sum(coefficients**2, 0), 0.0)
    total = rho * pairs(np.sqrt(remainder)) + pairs(coefficients[TERMS])
    for order in reversed(range(TERMS)):
        total = total * rho + (lag_pairs if order <= BY_LAGS else pairs)(coefficients[order])
    return total


def cross_covariance(f: Array, g: Array, rho: Array) -> Array:
    """Cov(f_c(x_c), g_d(x_d)) of dense tensors, `[C, C]`."""
    return cross_series(hermite_coefficients(f), hermite_coefficients(g), rho)


def curvature_covariance(f: Array, g: Array, rho: Array) -> Array:
    """Cov(f'_c(x_c), g_d(x_d)), f' the derivative by the standardised latent."""
    return cross_series(derivative_coefficients(hermite_coefficients(f)), hermite_coefficients(g), rho)
