"""Elementwise functions of the tokens of a sequence: Mehler's formula (see `correlation`) within tokens and between them.

The tokens' functions differ by mean and scale: products of Hermite coefficients are averaged over tokens, or pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .quadrature import Array, derivative_coefficients, expectation, hermite_coefficients
from .tokens import TokenCorrelation, as_rows, diagonal

__all__ = [
    "cross_moments",
    "curvature_moments",
    "function_tokens",
    "slope_moments",
    "slope_tokens",
    "sum_covariance",
]


def function_tokens(curve: Array, variance: Array, latent: TokenCorrelation) -> TokenCorrelation:
    """Correlation of f(x).

    Args:
        curve: f at the nodes, `[NODES, *elements]`.
        variance: Variance of f(x), `elements`.
        latent: Correlation of x.
    """
    coefficients = _coefficients(curve - expectation(curve), latent.axes)
    products = _products(coefficients, coefficients, latent.within.ndim == 2)
    within, between = map(_series, products, (latent.within, latent.between))
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
    coefficients, means, full = _coefficients(slope, axes), as_rows(mean, axes)[None], own.ndim == 2
    covariances = []
    for covariance, (square,), products, matrix in zip(
        (own, common),
        _products(means, means, full),
        _products(coefficients, coefficients, full),
        matrices,
        strict=True,
    ):
        second = _series(products, matrix)
        covariances.append(covariance * second + square * (second - products[0]))
    within, between = covariances
    return TokenCorrelation.of_covariances(axes, within, between, as_rows(np.sqrt(after), axes))


def sum_covariance(
    f: Array, g: Array, latent: TokenCorrelation, gradient: TokenCorrelation, mean: Array, variance: Array
) -> Array:
    """Cov(sum_t dy_ti f(x_ti), sum_t dy_ti g(x_ti)) of every feature, `[F]`, dy independent of x.

    Of one token E dy^2 E f g; of two E[dy dy'] sum_k a_k b_k rho^k, with the Hermite coefficients of f and g.

    Args:
        f: f at the nodes, `[NODES, *elements]`.
        g: g at the nodes.
        latent: Correlation of x.
        gradient: Correlation of dy.
        mean: Mean of dy.
        variance: Variance of dy.
    """
    axes = latent.axes
    rows, means = as_rows(variance, axes), as_rows(mean, axes)[None]
    count = len(rows)
    own, common = (diagonal(c) for c in gradient.covariances(np.sqrt(rows)))
    (square,), (product,) = _products(means, means, full=False)
    a, b = (_rows(hermite_coefficients(curve), axes) for curve in (f, g))
    same, others = _products(a, b, full=False)
    whole = np.mean(as_rows(expectation(f * g), axes), 0)
    found = (own + square) * whole - square * same[0]
    between = (common + product) * _series(others, latent.shared) - product * others[0]
    return np.asarray(count * (found + (count - 1) * between))


def slope_moments(slope: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    """E f'(x_i) f'(x_j) of two features, of one token and of two, `[F, F]`."""
    coefficients = _coefficients(slope, latent.axes)
    within, between = map(_series, _products(coefficients, coefficients, full=True), _matrices(latent))
    return within, between


def cross_moments(f: Array, g: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    """Cov(f(x_i), g(x_j)) of two features, of one token and of two, `[F, F]`."""
    a, b = (_rows(hermite_coefficients(curve), latent.axes) for curve in (f, g))
    return _cross_moments(a, b, latent)


def curvature_moments(f: Array, g: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    """Cov(f'(x_i), g(x_j)) in the same way, f' the derivative by the standardised latent (see `curvature_covariance`)."""
    a, b = (hermite_coefficients(curve) for curve in (f, g))
    a = derivative_coefficients(a)
    return _cross_moments(_rows(a, latent.axes), _rows(b[: len(a)], latent.axes), latent)


def _cross_moments(a: Array, b: Array, latent: TokenCorrelation) -> tuple[Array, Array]:
    products = ([0.0, *each[1:]] for each in _products(a, b, full=True))
    within, between = map(_series, products, _matrices(latent))
    return within, between


def _coefficients(curve: Array, axes: tuple[int, ...]) -> Array:
    """Hermite coefficients `[orders, T, F]`; orders above TERMS as if all of order TERMS + 1."""
    coefficients = hermite_coefficients(curve)
    rest = np.sqrt(np.maximum(expectation(curve**2) - np.sum(coefficients**2, 0), 0.0))
    return _rows(np.concatenate([coefficients, rest[None]]), axes)


def _rows(stacked: Array, axes: tuple[int, ...]) -> Array:
    """`[K, *elements]` as `[K, T, F]`; the tokens may share one function (T = 1)."""
    return np.stack([as_rows(part, axes) for part in stacked])


def _products(a: Array, b: Array, full: bool) -> tuple[Array, Array]:
    """a_i b_j of every order, averaged over tokens and over pairs of tokens, `[orders, F, F]`, or `[orders, F]` of i = j."""
    count = a.shape[1]
    if full:
        own, whole = np.swapaxes(a, 1, 2) @ b, a.sum(1)[:, :, None] * b.sum(1)[:, None]
    else:
        own, whole = np.sum(a * b, 1), a.sum(1) * b.sum(1)
    return own / count, own if count == 1 else (whole - own) / (count * (count - 1))


def _matrices(latent: TokenCorrelation) -> tuple[Array, Array]:
    within, between = (np.diag(rho) if rho.ndim == 1 else rho for rho in (latent.within, latent.between))
    return within, between


def _like(rho: Array, covariance: Array) -> Array:
    """A correlation as a matrix where the covariance is one."""
    return np.diag(rho) if rho.ndim == 1 and covariance.ndim == 2 else rho


def _series(products: Sequence[Array | float] | Array, rho: Array) -> Array:
    """sum_k (a_k b_k) rho^k (Mehler)."""
    total = np.zeros(rho.shape)
    for product in reversed(products):
        total = total * rho + product
    return total
