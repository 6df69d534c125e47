"""Relative variance of the squared norm of one token's features, by which a layer normalisation divides.

Of n normal features of covariance C and mean mu it is

    (2 tr C^2 + 4 mu' C mu) / (tr C + mu' mu)^2

After a normalisation it is 0, whatever C says, and from there it is carried on (`Moments.norm_spread`):

- y = f(x): where |x|^2 grows by a factor 1 + t, |y|^2 does by 1 + e t with e = E[f f' x] / E f^2. So f^2 = c x^2 + psi,
  c = e E f^2 / E x^2, and the sum of psi varies by itself: e^2 spread + sum_ij Cov(psi_i, psi_j) / (E |y|^2)^2.
- y = W x with weights of no direction: for two inputs of cosine r, Cov(|y|^2, |y'|^2) = 2 r^2 / m of m outputs, so that the
  spread grows by 2 / m (1 - E r^2), E r^2 = tr R^2 / (tr R)^2, R = C + mu mu'.
- x + y: that of the normal sum, less what each summand's normal description has too much, by the square of its share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .autocovariance import Autocovariance
from .quadrature import NODES, TERMS, Array, expectation, hermite_coefficients
from .state import Moments
from .tokens import as_rows, diagonal

__all__ = ["of_function", "of_normal", "of_product", "of_sum"]


def of_normal(x: Moments) -> float:
    """Of normal features."""
    covariance, mu = _token(x)
    moved = mu * covariance if covariance.ndim == 1 else mu @ covariance
    varied = 2.0 * np.sum(covariance**2) + 4.0 * np.sum(mu * moved) / len(mu)
    return _ratio(float(varied), float(diagonal(covariance).sum() + np.sum(mu**2) / len(mu)))


def of_function(values: Array, x: Moments) -> float | None:
    """Of f(x), given at the nodes; None where that of x is not known."""
    if x.norm_spread is None or x.curve is None or values.dtype.kind != "f":
        return None
    latent = x.mean + np.sqrt(x.variance) * NODES.reshape(-1, *[1] * x.mean.ndim)
    square, whole = values**2, float(np.sum(expectation(_full(values**2, x))))
    slope = np.gradient(square, NODES, axis=0) / np.maximum(np.sqrt(x.variance), 1e-30)
    moved = 0.5 * float(np.sum(expectation(slope * latent)))
    energy = float(np.sum(x.second))
    if not (np.isfinite(whole) and whole > 0 and energy > 0):
        return None
    axes = x.tokens.axes if x.tokens is not None else ()
    psi = hermite_coefficients(square - moved / energy * latent**2)
    psi = np.broadcast_to(psi, (len(psi), *x.shape))
    rows = np.stack([as_rows(part, axes).mean(0) if axes else part.reshape(-1) for part in psi])
    count = x.mean.size // rows.shape[1]
    rho = x.tokens.within if x.tokens is not None else x.curve.rho
    return (moved / whole) ** 2 * x.norm_spread + _ratio(_variance(rows, rho), whole / count)


def _variance(coefficients: Array, rho: Array | Autocovariance | None) -> float:
    """Of a sum of functions of normal features, `[orders, F]` coefficients."""
    if not isinstance(rho, np.ndarray) or rho.ndim == 1:
        return float(np.sum(coefficients[1:] ** 2))
    power, total = rho, 0.0
    for order in range(1, TERMS + 1):
        total += float(coefficients[order] @ power @ coefficients[order])
        power = power * rho
    return max(total, 0.0)


def of_product(x: Moments, outputs: int) -> float | None:
    """Of x W."""
    if x.norm_spread is None:
        return None
    covariance, mu = _token(x)
    moved = mu * covariance if covariance.ndim == 1 else mu @ covariance
    squares = (
        np.sum(covariance**2) + 2.0 * np.sum(mu * moved) / len(mu) + np.sum((mu @ mu.T) ** 2) / len(mu) ** 2
    )
    trace = float(diagonal(covariance).sum() + np.sum(mu**2) / len(mu))
    return x.norm_spread + 2.0 / outputs * (1.0 - _ratio(float(squares), trace))


def of_sum(parts: Sequence[Moments], total: Moments) -> float | None:
    """Of the sum of `parts`; None where that of none is known."""
    known = [part for part in parts if part.norm_spread is not None and part.shape == total.shape]
    if not known:
        return None
    whole = float(np.sum(total.second))
    excess = [
        (float(np.sum(part.second)) / whole) ** 2 * (of_normal(part) - (part.norm_spread or 0.0))
        for part in known
    ]
    return max(of_normal(total) - sum(excess), 0.0) if whole > 0 else None


def _token(x: Moments) -> tuple[Array, Array]:
    """Covariance of one token's features, in either form, and the means of all tokens `[T, F]`."""
    if x.tokens is not None:
        rows = as_rows(np.sqrt(x.variance), x.tokens.axes)
        return x.tokens.covariances(rows)[0], as_rows(x.mean, x.tokens.axes)
    matrix = x.covariance if x.mean.ndim == 1 and x.covariance is not None else x.variance.reshape(-1)
    return matrix, x.mean.reshape(1, -1)


def _full(values: Array, x: Moments) -> Array:
    return np.broadcast_to(values, (len(values), *x.shape))


def _ratio(varied: float, whole: float) -> float:
    return float(varied / whole**2) if whole > 0 else 0.0
