"""Layers that treat every token of a sequence alike: products with a weight, LayerNorm, means over tokens.

The state is a sequence's (`tokens`). A weight that every token uses receives a sum over tokens, whose variance over
examples is, with s and v the variances of dy and x, r_s and r_v the correlation between tokens, D = sqrt(.):

    Var(sum_t dy_ti x_tj) = (1 - r_s r_v) sum s v + r_s r_v (sum sqrt(s v))^2
                            + (1 - r_s) sum s mu^2 + r_s (sum sqrt(s) mu)^2 + (1 - r_v) sum m^2 v + r_v (sum m sqrt(v))^2

LayerNorm, with xhat and dxhat = gamma dy: dx = 1 / std (dxhat - <dxhat> - xhat <dxhat xhat>) (Ba 2016), the mean <.> over a
token's features; std is taken as it is on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .. import norm_spread
from ..blocks import blocks_of, gram, product
from ..quadrature import Array
from ..state import GradientByRows, GradientMoments, Moments, ParameterGradient
from ..tokens import (
    MATRIX_LIMIT,
    TokenCorrelation,
    TokenResponse,
    as_rows,
    congruence,
    diagonal,
    from_rows,
    sum_variance,
)
from ..turned import turned_to

__all__ = [
    "dense",
    "dense_backward",
    "mean_of_tokens",
    "mean_of_tokens_backward",
    "of_product",
    "sequence",
    "summed",
    "weight_gradient",
]


def sequence(moments: Moments | GradientMoments, axes: tuple[int, ...] | None = None) -> TokenCorrelation:
    """The tensor as a sequence whose tokens are on `axes`, by default on all but the last."""
    axes = tuple(range(moments.mean.ndim - 1)) if axes is None else axes
    return turned_to(moments, axes) or TokenCorrelation.white(axes, moments.mean.shape)


def dense(x: Moments, weight: Array, full: bool) -> Moments:
    """y = x W over the last axis; covariances between features only where `full`."""
    tokens = sequence(x)
    variance, after = _carried(x.variance, tokens, weight, full)
    spread_of_norm = norm_spread.of_product(x, weight.shape[1])
    return Moments(product(x.mean, weight), variance, tokens=after, norm_spread=spread_of_norm)


def dense_backward(
    dy: GradientMoments, weight: Array, tokens: TokenCorrelation, full: bool
) -> GradientMoments:
    """dx = dy W'."""
    variance, after = _carried(dy.variance, sequence(dy, tokens.axes), weight.T, full)
    small = full and dy.response is not None and max(weight.shape) <= MATRIX_LIMIT
    response = dy.response.through(weight) if small and dy.response is not None else None
    back = GradientMoments.of(product(dy.mean, weight.T), variance, tokens=after)
    return replace(back, response=response)


def _carried(
    variance: Array, tokens: TokenCorrelation, weight: Array, full: bool
) -> tuple[Array, TokenCorrelation]:
    rows = as_rows(variance, tokens.axes)
    within, between = (congruence(c, weight, full) for c in tokens.covariances(np.sqrt(rows)))
    each = product(variance, weight, square=True)
    independent = as_rows(each, tokens.axes).mean(0)
    ratio = np.divide(diagonal(within), independent, out=np.ones(independent.shape), where=independent > 0)
    each = each * np.maximum(ratio, 0.0)
    deviation = np.sqrt(as_rows(each, tokens.axes))
    return each, TokenCorrelation.of_covariances(tokens.axes, within, between, deviation)


def weight_gradient(x: Moments, dy: GradientMoments, weight: Array) -> GradientByRows:
    """The gradient of W in y = x W, by the formula above; dy depends on x through y where the tilt says so (Stein)."""
    tokens = sequence(x)
    r_v, r_s = tokens.shared, sequence(dy, tokens.axes).shared
    mu, v, m, s = (as_rows(a, tokens.axes) for a in (x.mean, x.variance, dy.mean, dy.variance))
    stein = _stein(x, dy, weight, tokens)

    def rows(part: slice) -> ParameterGradient:
        mean = gram(mu[:, part], m)
        mean = mean if stein is None else mean + stein(part)
        return ParameterGradient(mean, product_variance(mu[:, part], v[:, part], m, s, r_v[part], r_s))

    def sums() -> tuple[float, float]:
        means, variances = product_sums(mu, v, m, s, r_v, r_s)
        if stein is None:
            return means, variances
        for part in blocks_of(len(weight), weight.size):
            leaning = stein(part)
            means += float(np.sum(leaning * (2.0 * gram(mu[:, part], m) + leaning)))
        return means, variances

    few_tokens = len(mu) * sum(weight.shape) < 2 * weight.size
    return GradientByRows(weight.shape, rows, sums if few_tokens else None)


def _stein(
    x: Moments, dy: GradientMoments, weight: Array, tokens: TokenCorrelation
) -> Callable[[slice], Array] | None:
    """Rows of the part of the weight's mean gradient that is there because dy depends on x; None where there is none."""
    v = as_rows(x.variance, tokens.axes)
    if dy.response is not None:
        if max(weight.shape) > MATRIX_LIMIT:
            return None
        within, between = (np.diag(c) if c.ndim == 1 else c for c in tokens.covariances(np.sqrt(v)))
        count, response = len(v), dy.response
        mean = count * (within @ weight @ response.own.T)
        mean = mean + count * (count - 1) * (between @ weight @ response.between.T)
        return lambda part: mean[part]
    if not np.any(dy.tilt):
        return None
    deviation = np.sqrt(as_rows(product(x.variance, weight, square=True), tokens.axes))
    tilt = as_rows(dy.tilt, tokens.axes)
    slope = np.divide(tilt, deviation, out=np.zeros(deviation.shape), where=deviation > 0)
    return lambda part: weight[part] * gram(v[:, part], slope)


def product_variance(mu: Array, v: Array, m: Array, s: Array, r_v: Array, r_s: Array) -> Array:
    """The formula above for every pair of features, `[F_x, F_dy]`, from rows."""
    both = np.outer(r_v, r_s)
    variance = (1.0 - both) * gram(v, s) + both * gram(np.sqrt(v), np.sqrt(s)) ** 2
    variance += (1.0 - r_s) * gram(mu**2, s) + r_s * gram(mu, np.sqrt(s)) ** 2
    variance += (1.0 - r_v)[:, None] * gram(v, m**2) + r_v[:, None] * gram(np.sqrt(v), m) ** 2
    return np.asarray(np.maximum(variance, 0.0))


def product_sums(mu: Array, v: Array, m: Array, s: Array, r_v: Array, r_s: Array) -> tuple[float, float]:
    """Sums over all pairs of features of the mean's square and of the formula above, from rows.

    No pair is looked at: summed over pairs, (sum_t a_ti b_tj)^2 is the sum over t and u of (a a')_tu (b b')_tu.
    """
    common_x, common_dy = (gram_of_rows(np.sqrt(a), r) for a, r in ((v, r_v), (s, r_s)))
    square_x, square_dy = gram_of_rows(mu), gram_of_rows(m)
    variances = np.sum(v.sum(1) * s.sum(1)) - np.sum((v @ r_v) * (s @ r_s)) + np.sum(common_x * common_dy)
    variances += np.sum(np.diag(square_x) * (s @ (1.0 - r_s))) + np.sum(square_x * common_dy)
    variances += np.sum((v @ (1.0 - r_v)) * np.diag(square_dy)) + np.sum(common_x * square_dy)
    return float(np.sum(square_x * square_dy)), float(np.maximum(variances, 0.0))


def gram_of_rows(rows: Array, weights: Array | float = 1.0) -> Array:
    """a a' of rows `[T, F]` whose features have weights, `[T, T]`."""
    return np.asarray((rows * weights) @ rows.T)


def of_product(x: Moments, dy: GradientMoments, axes: tuple[int, ...], tilted: Array) -> ParameterGradient:
    """sum_t dy_ti x_ti of every feature, as the scale of a normalisation receives it.

    `tilted` is the sum over t of the covariance of the two factors, `[F]`.
    """
    r_v, r_s = sequence(x, axes).shared, sequence(dy, axes).shared
    mu, v, m, s = (as_rows(a, axes) for a in (x.mean, x.variance, dy.mean, dy.variance))
    both = r_v * r_s
    variance = (1.0 - both) * (v * s).sum(0) + both * np.sqrt(v * s).sum(0) ** 2
    variance += (1.0 - r_s) * (mu**2 * s).sum(0) + r_s * (mu * np.sqrt(s)).sum(0) ** 2
    variance += (1.0 - r_v) * (v * m**2).sum(0) + r_v * (np.sqrt(v) * m).sum(0) ** 2
    return ParameterGradient((mu * m).sum(0) + tilted, np.maximum(variance, 0.0))


def summed(dy: GradientMoments, axes: tuple[int, ...] | None = None) -> ParameterGradient:
    """sum_t dy_ti of every feature, as a bias receives it."""
    axes = tuple(range(dy.mean.ndim - 1)) if axes is None else axes
    rows = as_rows(dy.variance, axes)
    return ParameterGradient(as_rows(dy.mean, axes).sum(0), sum_variance(rows, sequence(dy, axes).shared))


def mean_of_tokens(x: Moments, tokens: TokenCorrelation) -> tuple[Array, Array, Array | None]:
    """Mean, variance and covariance of the mean over all tokens."""
    rows = as_rows(x.variance, tokens.axes)
    count = len(rows)
    mean = as_rows(x.mean, tokens.axes).mean(0)
    within, _ = tokens.covariances(np.sqrt(rows))
    if within.ndim == 1:
        return mean, sum_variance(rows, tokens.shared) / count**2, None
    own, common = TokenCorrelation(tokens.axes, tokens.between, tokens.between).covariances(np.sqrt(rows))
    covariance = (within - own) / count + common
    return mean, np.maximum(np.diag(covariance), 0.0), covariance


def mean_of_tokens_backward(
    dy: GradientMoments, tokens: TokenCorrelation, shape: tuple[int, ...]
) -> GradientMoments:
    """dy / T at every token, the same at all."""
    count = int(np.prod([shape[axis] for axis in tokens.axes]))
    mean, variance = (
        from_rows(np.broadcast_to(a.reshape(1, -1), (count, a.size)), tokens.axes, shape)
        for a in (dy.mean / count, dy.variance / count**2)
    )
    matrix, hessian = _of_one(dy)
    response = None
    if hessian is not None and dy.mean.size <= MATRIX_LIMIT:
        response = TokenResponse(tokens.axes, hessian / count**2, hessian / count**2)
    back = GradientMoments.of(mean, variance, tokens=TokenCorrelation(tokens.axes, matrix, matrix))
    return replace(back, response=response)


def _of_one(dy: GradientMoments) -> tuple[Array, Array | None]:
    """Correlation and hessian of the features of a gradient, which may be that of a sequence of one token."""
    if dy.tokens is not None:
        return dy.tokens.within, None if dy.response is None else dy.response.own
    if dy.covariance is None or dy.mean.size > len(dy.covariance):
        return np.ones(dy.mean.size), dy.hessian
    std = np.sqrt(np.diag(dy.covariance))
    scale = np.outer(std, std)
    return np.divide(dy.covariance, scale, out=np.zeros(scale.shape), where=scale > 0), dy.hessian
