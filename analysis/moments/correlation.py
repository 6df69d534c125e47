"""How elementwise functions transform covariances, by Mehler's formula.

For f = sum a_k h_k and g = sum b_k h_k of standard Gaussians with correlation r, E f(x) g(y) = sum a_k b_k r^k (Mehler 1866).

Each function takes both meanings of a covariance (`state`): pairs of channels for dense tensors, lags of one channel otherwise.
"""

from __future__ import annotations

import numpy as np

from .quadrature import (
    TERMS,
    Array,
    cross_series,
    derivative_coefficients,
    expectation,
    hermite_coefficients,
)
from .state import Moments

__all__ = ["correlation", "cross_covariance", "curvature_covariance", "pairs", "second_moments"]


def pairs(vector: Array) -> Array:
    """v_c v_d of pairs of channels; mean over positions of v^2, for every lag, of tensors with positions."""
    if vector.ndim == 1:
        return np.outer(vector, vector)
    axes = tuple(range(1, vector.ndim))
    return np.asarray(np.mean(vector**2, axes, keepdims=True))


def correlation(moments: Moments) -> Array | None:
    """The covariance divided by the standard deviations; None for uncorrelated elements of dense tensors."""
    if moments.covariance is None and moments.mean.ndim < 2:
        return None
    covariance = moments.known_covariance
    if covariance.ndim == 1 or moments.mean.ndim == 1:
        std = np.sqrt(np.diag(covariance))
        scale = np.outer(std, std)
    else:
        scale = covariance[(slice(None), *[slice(0, 1)] * (covariance.ndim - 1))]
    return np.clip(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0), -1.0, 1.0)


def second_moments(curve: Array, rho: Array) -> Array:
    """E f(x) f(y) for latents with correlation `rho`; orders above TERMS as if all of order TERMS + 1."""
    coefficients = hermite_coefficients(curve)
    remainder = np.maximum(expectation(curve**2) - np.sum(coefficients**2, 0), 0.0)
    power = np.ones_like(rho)
    total = pairs(coefficients[0]) * power
    for order in range(1, TERMS + 1):
        power = power * rho
        total = total + pairs(coefficients[order]) * power
    return np.asarray(total + pairs(np.sqrt(remainder)) * power * rho)


def cross_covariance(f: Array, g: Array, rho: Array) -> Array:
    """Cov(f_c(x_c), g_d(x_d)) of dense tensors, `[C, C]`."""
    return cross_series(hermite_coefficients(f), hermite_coefficients(g), rho)


def curvature_covariance(f: Array, g: Array, rho: Array) -> Array:
    """Cov(f'_c(x_c), g_d(x_d)), f' the derivative by the standardised latent."""
    return cross_series(derivative_coefficients(hermite_coefficients(f)), hermite_coefficients(g), rho)
