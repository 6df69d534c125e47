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
    mean, std, square = x.mean, np.sqrt(x.variance), values**2
    # x d f^2 / dx of x = mean + std xi, the functions perhaps the same for all tokens
    slope = np.gradient(square, NODES, axis=0)
    along = expectation(slope * NODES.reshape(-1, *[1] * mean.ndim))
    moved = 0.5 * float(np.sum(mean / np.maximum(std, 1e-30) * expectation(slope) + along))
    whole, energy = _sum(expectation(square), x), float(np.sum(x.second))
    if not (np.isfinite(whole) and whole > 0 and energy > 0):
        return None
    psi = np.stack([_row(part, x) for part in hermite_coefficients(square)])
    latent = np.stack([_row(part, x) for part in (mean**2, 2.0 * mean * std, x.variance)])
    psi = psi - moved / energy * (_POWERS @ latent)
    rho = x.tokens.within if x.tokens is not None else x.curve.rho
    return (moved / whole) ** 2 * x.norm_spread + _ratio(
        _variance(psi, rho), whole * psi.shape[1] / x.mean.size
    )


_POWERS = hermite_coefficients(np.stack([NODES**power for power in range(3)], 1))
"""Hermite coefficients of 1, xi and xi^2, `[orders, 3]`."""


def _row(elements: Array, x: Moments) -> Array:
    """The mean over tokens of each feature, of an array that may be the same for all tokens."""
    if x.tokens is None:
        return np.broadcast_to(elements, x.shape).reshape(-1)
    return np.asarray(as_rows(elements, x.tokens.axes).mean(0))


def _sum(elements: Array, x: Moments) -> float:
    """Over all elements of x, of an array that may be the same for all tokens."""
    return float(np.sum(elements)) * x.mean.size / elements.size


def _variance(coefficients: Array, rho: object) -> float:
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
    whole = float(np.sum(total.second))
    if not known or not whole > 0:
        return None
    excess = [
        (float(np.sum(part.second)) / whole) ** 2 * (of_normal(part) - (part.norm_spread or 0.0))
        for part in known
    ]
    return max(of_normal(total) - sum(excess), 0.0)


def _token(x: Moments) -> tuple[Array, Array]:
    """Covariance of one token's features, in either form, and the means of all tokens `[T, F]`."""
    if x.tokens is not None:
        rows = as_rows(np.sqrt(x.variance), x.tokens.axes)
        return x.tokens.covariances(rows)[0], as_rows(x.mean, x.tokens.axes)
    matrix = x.covariance if x.mean.ndim == 1 and x.covariance is not None else x.variance.reshape(-1)
    return matrix, x.mean.reshape(1, -1)


def _ratio(varied: float, whole: float) -> float:
    return float(varied / whole**2) if whole > 0 else 0.0
