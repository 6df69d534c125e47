"""Gaussian expectations of curves: functions of one standard Gaussian, given by their values at fixed nodes.

A uniform grid is used instead of Gauss-Hermite nodes because activations have kinks, near which the high-order rule is
no better and its outermost nodes overflow. Curves are arrays `[NODES, *elements]`.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "NODES",
    "TERMS",
    "WEIGHTS",
    "Array",
    "cross_series",
    "derivative_coefficients",
    "expectation",
    "hermite_coefficients",
]

Array: TypeAlias = "np.ndarray[Any, Any]"

NODES: Array = np.linspace(-7.0, 7.0, 140)
"""Points of the standard Gaussian at which curves are known; 0, where most kinks are, lies between two of them.

What lies beyond is cut off: E[h_k^2; |xi| > 7] is 5e-8 at k = 3, and 9e-4 at k = TERMS; beyond 6 it would be 1.5e-5 and 4e-2.
"""

TERMS = 8
"""Highest order of the Hermite expansions."""

WEIGHTS: Array = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()
"""Their weights."""


def _hermite() -> Array:
    """Orthonormal Hermite polynomials of order 0 to TERMS at the nodes: h_k = He_k / sqrt(k!)."""
    rows = [np.ones_like(NODES), NODES]
    for order in range(1, TERMS):
        rows.append(NODES * rows[order] - order * rows[order - 1])
    return np.stack([row / math.sqrt(math.factorial(order)) for order, row in enumerate(rows)])


_PROJECTION: Array = _hermite() * WEIGHTS


def expectation(curve: Array) -> Array:
    """E f(xi), xi ~ N(0, 1)."""
    return np.tensordot(WEIGHTS, curve, 1)


def hermite_coefficients(curve: Array) -> Array:
    """a_k = E f(xi) h_k(xi) for k = 0 .. TERMS, as `[TERMS + 1, *elements]`: f = sum_k a_k h_k (O'Donnell 2014, ch. 11)."""
    return np.tensordot(_PROJECTION, curve, 1)


def derivative_coefficients(coefficients: Array) -> Array:
    """Those of f', up to order TERMS - 1: h_k' = sqrt(k) h_{k - 1}."""
    orders = np.sqrt(np.arange(1.0, len(coefficients)))
    return np.asarray(orders.reshape(-1, *[1] * (coefficients.ndim - 1)) * coefficients[1:])


def cross_series(a: Array, b: Array, rho: Array) -> Array:
    """Cov(f_c(x), g_d(y)), `[C, C]`: sum_k a_k b_k rho^k without k = 0, from coefficients `[orders, C]` (Mehler)."""
    power, total = rho, np.zeros_like(rho)
    for order in range(1, min(len(a), len(b))):
        total = total + np.outer(a[order], b[order]) * power
        power = power * rho
    return total
