"""Elementwise functions of the tokens of a sequence: Mehler's formula (see `correlation`) within tokens and between them.

Hermite coefficients are averaged over the tokens, whose functions differ by mean and scale only.
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
from .tokens import TokenCorrelation, as_rows

__all__ = ["cross_moments", "curvature_moments", "function_tokens", "slope_moments", "slope_tokens"]


def function_tokens(curve: Array, variance: Array, latent: TokenCorrelation) -> TokenCorrelation:
    """Correlation of f(x).

    Args:
        curve: f at the nodes, `[NODES, *elements]`.
        variance: Variance of f(x), `elements`.
        latent: Correlation of x.
    """
    coefficients = _rows(hermite_coefficients(curve), latent.axes).mean(1)
    energy = _rows(expectation((curve - expectation(curve)) ** 2)[None], latent.axes)[0].mean(0)
    rest = np.sqrt(np.maximum(energy - np.sum(coefficients[1:] ** 2, 0), 0.0))
    within, between = (
        _series(coefficients, rest, rho) - _outer(coefficients[0], rho)
        for rho in (latent.within, latent.between)
    )
    deviation = as_rows(np.sqrt(variance), latent.axes)
    return TokenCorrelation.of_covariances(latent.axes, within, between, deviation)


def slope_tokens(
    slope: Array,
    latent: TokenCorrelation | None,
    gradient: TokenCorrelation,
    mean: Array,
    before: Array,
    after: Array,
) -> TokenCorrelation:
    """Correlation of dx = f'(x) dy.

    Args:
        slope: f' at the nodes, `[NODES, *elements]`.
        latent: Correlation of x; None where its elements are uncorrelated.
        gradient: Correlation of dy.
        mean: Mean of dy.
        before: Variance of dy.
        after: Variance of dx.
    """
    axes = gradient.axes
    rho = TokenCorrelation.white(axes, before.shape) if latent is None else latent
    own, common = gradient.covariances(as_rows(np.sqrt(before), axes))
    matrices = [_like(rho.within, own), _like(rho.between, common)]
    if own.ndim < matrices[0].ndim:
        own, common = np.diag(own), np.diag(common)
    coefficients = _rows(hermite_coefficients(slope), axes).mean(1)
    energy = _rows(expectation(slope**2)[None], axes)[0].mean(0)
    rest = np.sqrt(np.maximum(energy - np.sum(coefficients**2, 0), 0.0))
    rows = as_rows(mean, axes)
    flat = own.ndim == 1
    squares = np.mean(rows**2, 0) if flat else rows.T @ rows / len(rows)
    pairs = rows.mean(0) ** 2 if flat else np.outer(rows.mean(0), rows.mean(0))
    covariances = []
    for covariance, product, matrix in zip((own, common), (squares, pairs), matrices, strict=True):
        second = _series(coefficients, rest, matrix)
        covariances.append(covariance * second + product * (second - _outer(coefficients[0], matrix)))
    within, between = covariances
    return TokenCorrelation.of_covariances(axes, within, between, as_rows(np.sqrt(after), axes))


def slope_moments(slope: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    """E f'(x_i) f'(x_j) of two features, of one token and of two, `[F, F]`."""
    coefficients = _rows(hermite_coefficients(slope), latent.axes).mean(1)
    energy = _rows(expectation(slope**2)[None], latent.axes)[0].mean(0)
    rest = np.sqrt(np.maximum(energy - np.sum(coefficients**2, 0), 0.0))
    within, between = (np.diag(m) if m.ndim == 1 else m for m in (latent.within, latent.between))
    return _series(coefficients, rest, within), _series(coefficients, rest, between)


def cross_moments(f: Array, g: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    """Cov(f(x_i), g(x_j)) of two features, of one token and of two, `[F, F]`."""
    a, b = (_rows(hermite_coefficients(curve), latent.axes).mean(1) for curve in (f, g))
    return _cross_series(a, b, latent)


def curvature_moments(f: Array, g: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    """Cov(f'(x_i), g(x_j)) in the same way, f' the derivative by the standardised latent (see `curvature_covariance`)."""
    a, b = (_rows(hermite_coefficients(curve), latent.axes).mean(1) for curve in (f, g))
    return _cross_series(derivative_coefficients(a), b, latent)


def _cross_series(a: Array, b: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    within, between = (np.diag(rho) if rho.ndim == 1 else rho for rho in (latent.within, latent.between))
    return cross_series(a, b, within), cross_series(a, b, between)


def _rows(stacked: Array, axes: tuple[int, ...]) -> Array:
    """`[K, *elements]` as `[K, T, F]`; the tokens may share one function (T = 1)."""
    return np.stack([as_rows(part, axes) for part in stacked])


def _outer(vector: Array, like: Array) -> Array:
    return vector**2 if like.ndim == 1 else np.outer(vector, vector)


def _like(rho: Array, covariance: Array) -> Array:
    """A correlation as a matrix where the covariance is one."""
    return np.diag(rho) if rho.ndim == 1 and covariance.ndim == 2 else rho


def _series(coefficients: Array, rest: Array, rho: Array) -> Array:
    """sum_k a_k a_k' rho^k; orders above TERMS as if all of order TERMS + 1."""
    power = np.ones(rho.shape)
    total = _outer(coefficients[0], rho) * power
    for order in range(1, TERMS + 1):
        power = power * rho
        total = total + _outer(coefficients[order], rho) * power
    return np.asarray(total + _outer(rest, rho) * power * rho)
