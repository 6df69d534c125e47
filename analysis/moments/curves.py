"""Elementwise functions of Gaussian tensors: moments of what they give, and how gradients pass back through them.

The gradient that arrives at the end of a chain of elementwise ops is taken as independent of the chain's slope there (the
gradient independence assumption: Schoenholz 2017; Yang 2020), so its moments are multiplied by those of the slope; what comes
back along a skip leans on the end (`_leaning`). Several ends of one latent (x and sigmoid(x) of x sigmoid(x), a skip beside an
activation) keep slopes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import channel_curves, norm_spread
from .autocovariance import Autocovariance
from .blocks import repeats
from .channel_covariance import ChannelCovariance, lag_products
from .correlation import correlation, cross_covariance, curvature_covariance, lag_pairs, pairs, second_moments
from .picks import Picks
from .quadrature import NODES, Array, expectation
from .skewness import quantiles
from .state import COVARIANCE_LIMIT, Curve, GradientMoments, Moments
from .token_curves import (
    cross_moments,
    curvature_moments,
    function_tokens,
    slope_moments,
    slope_tokens,
    sum_covariance,
)
from .tokens import MATRIX_LIMIT, TokenCorrelation, TokenResponse, TokenTilt, as_rows, from_rows, over_tokens

__all__ = ["Seed", "as_latent", "broadcast_nodes", "curve_moments", "through"]

_MAX_CURVE_SIZE = 4_000_000
"""Numbers in a curve beyond which the positions of a channel share one function."""

_MAX_TOKEN_CURVE_SIZE = 1_000_000
"""The same for the tokens of a sequence."""

_ALIKE = 0.03
"""Share of the variance by which the tokens' means and variances may differ before each has a function of its own."""


@dataclass(frozen=True)
class Seed:
    """A gradient that arrived at the end of a chain.

    Attributes:
        gradient: The gradient there.
        end: The end as a function of the latent, at the nodes.
        slope: The chain's slope from here to the end, at the nodes.
        picks: Where it came back through maxima over windows of the end.
    """

    gradient: GradientMoments
    end: Array
    slope: Array
    picks: Picks | None = None


def as_latent(name: str, moments: Moments) -> Moments:
    """The tensor as the identity of itself."""
    narrow = moments.narrow
    mean, std = narrow.mean, np.sqrt(narrow.variance)
    if moments.tokens is not None:
        mean, std = _of_tokens(moments, moments.tokens.axes)
    elif mean.size * NODES.size > _MAX_CURVE_SIZE and mean.ndim > 1:
        axes = tuple(range(1, mean.ndim))
        mean = moments.mean.mean(axes, keepdims=True)
        std = np.sqrt(moments.variance.mean(axes, keepdims=True))
    skewness, positive = None if moments.tokens is not None else moments.skewness, moments.positive

    def values() -> Array:
        nodes = broadcast_nodes(mean.ndim)
        if positive:
            spread = np.sqrt(np.log1p((std / np.maximum(mean, np.finfo(float).tiny)) ** 2))
            return np.asarray(mean * np.exp(spread * nodes - 0.5 * spread**2))
        return np.asarray(mean + std * (nodes if skewness is None else quantiles(skewness)))

    return replace(moments, curve=Curve(name, values, _correlated(moments)))


def _correlated(moments: Moments) -> Array | Autocovariance | ChannelCovariance | None:
    if moments.tokens is not None:
        return None
    if moments.mean.ndim < 2:
        return correlation(moments)
    if moments.channels is not None:
        return moments.channel_correlation
    # What the lags are a multiple of is kept; their correlation is worked out whenever it is asked for.
    return moments.known_lags if moments.varies_evenly else moments.lag_correlation


def _of_tokens(moments: Moments, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and deviation of each token's elements, or one for all where tokens are alike or too many.

    What the mean differs by from token to token then counts as varying.
    """
    mean, variance = moments.mean, moments.variance
    apart = mean.var(axes, keepdims=True)
    typical = variance.mean(axes, keepdims=True)
    alike = np.mean(apart) < _ALIKE * np.mean(typical) and np.mean(
        np.abs(variance - typical)
    ) < _ALIKE * np.mean(typical)
    if alike or mean.size * NODES.size > _MAX_TOKEN_CURVE_SIZE:
        return over_tokens(mean, variance, axes)
    return mean, np.sqrt(variance)


def broadcast_nodes(rank: int) -> Array:
    """The nodes, shaped to broadcast against `rank` axes of elements."""
    return NODES.reshape(-1, *[1] * rank)


def curve_moments(curve: Curve, latent: Moments, *, alone: bool = False) -> Moments:
    """Moments of a function of `latent`; if `alone`, without those of pairs of elements."""
    with np.errstate(all="ignore"):
        mean = expectation(curve.values)
        variance = expectation((curve.values - mean) ** 2)
        rho, covariance, lags, channels = None if alone else curve.rho, None, None, None
        if isinstance(rho, ChannelCovariance):
            channels = channel_curves.second_moments(curve.values, rho) - lag_products(mean, mean)
            lags = channels.lags
        elif isinstance(rho, Autocovariance):
            lags = second_moments(curve.values, rho) - lag_pairs(mean)
        elif rho is not None and np.all(np.isfinite(variance)):
            covariance = second_moments(curve.values, rho) - pairs(mean)
            np.fill_diagonal(covariance, variance)
    shape = latent.shape
    mean, variance, tokens = np.broadcast_to(mean, shape), np.broadcast_to(variance, shape), None
    if latent.tokens is not None:
        tokens = function_tokens(curve.values, variance, latent.tokens)
    spread = norm_spread.of_function(curve.values, latent)
    return Moments(
        mean, variance, covariance, curve, tokens=tokens, norm_spread=spread, lags=lags, channels=channels
    )


def through(seed: Seed, latent: Moments) -> GradientMoments:
    """The gradient with respect to the latent of what arrived at the end of a chain."""
    if seed.gradient.tokens is not None or latent.tokens is not None:
        return _through_tokens(seed, latent)
    with np.errstate(all="ignore"):
        return _through_positions(seed, latent) if latent.mean.ndim > 1 else _through_dense(seed, latent)


def _through_dense(seed: Seed, latent: Moments) -> GradientMoments:
    """The same for a dense tensor, whose gradient may have a hessian."""
    gradient, slope, rho = seed.gradient, seed.slope, correlation(latent)
    xi = broadcast_nodes(latent.mean.ndim)
    b0, b1, leaning = expectation(slope), expectation(slope * xi), _leaning(seed, gradient.second)
    skew = gradient.second * expectation(slope**2 * leaning * xi)
    mean = gradient.mean * b0
    if gradient.hessian is not None and rho is not None:
        # The gradient moves with the end, and the end with the slope.
        mean = mean + np.sum(gradient.hessian * cross_covariance(slope, seed.end, rho), 1)
    tilt = gradient.mean * b1
    variance = np.maximum(gradient.second * expectation(slope**2 * leaning) - mean**2, 0.0)
    covariance = None
    if rho is not None:
        raw = gradient.known_covariance + pairs(gradient.mean)
        covariance = raw * second_moments(slope * leaning, rho) - pairs(mean)
        np.fill_diagonal(covariance, variance)
    tilted = gradient.second * expectation((slope * xi) ** 2 * leaning) - (gradient.mean * b1) ** 2
    if gradient.constraint is None:
        tilted = np.maximum(tilted - gradient.cancelled * b1**2, 0.0)
    hessian = _hessian(seed, tilt, latent)
    if gradient.hessian is not None and hessian is not None and rho is not None:
        tilt = np.sum(hessian * rho * np.sqrt(latent.variance), 1)
    back = GradientMoments(
        mean, variance, covariance, gradient.cancelled * b0**2, tilt, tilted, hessian, skew
    )
    if gradient.constraint is not None:
        slopes = b0, b1, expectation(slope * xi**2)
        back = replace(back, constraint=gradient.constraint.behind(slopes, expectation(seed.end * xi)))
    # A bias or a factor leaves the standardised value as it is.
    return replace(back, scale_free=gradient.scale_free) if np.ptp(slope, 0).max() == 0.0 else back


def _through_positions(seed: Seed, latent: Moments) -> GradientMoments:
    """The same for a tensor with positions."""
    gradient, slope, xi = seed.gradient.narrow, seed.slope, broadcast_nodes(latent.mean.ndim)
    b1, leaning = expectation(slope * xi), _leaning(seed, _positions_mean(gradient.second))
    mean, tilt = gradient.mean * expectation(slope), gradient.mean * b1
    if gradient.skew is not None:
        end = _standardised(seed.end)
        mean = mean + gradient.tilt * expectation(slope * end)
        tilt = tilt + gradient.tilt * expectation(slope * end * xi)
    channels = hessian = None
    if latent.channels is not None:
        mean, tilt, channels, hessian = _through_channels(seed, latent, leaning)
    skew = _positions_mean(gradient.second * expectation(slope**2 * leaning * xi))
    variance = np.maximum(gradient.second * expectation(slope**2 * leaning) - mean**2, 0.0)
    lags = _products(gradient, slope, leaning, latent) - lag_pairs(mean)
    if channels is not None:
        own = channels.lags.with_lag0(lags.lag0)
        lags, channels = own, channels.with_lags(own)
    tilted = lags.count * (_products(gradient, slope * xi, leaning, latent) - lag_pairs(tilt)).total()
    tilted = np.maximum(tilted - gradient.cancelled * _coherent(gradient, b1), 0.0)
    cancelled = gradient.cancelled * _coherent(gradient, expectation(slope * leaning))
    back = GradientMoments(
        mean,
        variance,
        None,
        cancelled,
        tilt,
        tilted,
        None,
        skew,
        lags=lags,
        channels=channels,
        channel_hessian=hessian,
    )
    if seed.picks is None and gradient.scale_free is None:
        back = replace(back, normalised_total=_normalised_total(seed, leaning, latent))
    return _with_known_sums(back, seed, latent).repeated(latent.shape)


def _with_known_sums(back: GradientMoments, seed: Seed, latent: Moments) -> GradientMoments:
    """With what a normalisation behind leaves of sums over positions, and with what maxima over windows pick."""
    gradient, slope, xi = seed.gradient.narrow, seed.slope, broadcast_nodes(latent.mean.ndim)
    one = back.known_lags.count * back.known_lags.total()
    if gradient.scale_free is not None:
        assert back.tilted_total is not None
        free = gradient.scale_free
        column = free.reshape(-1, *[1] * (back.mean.ndim - 1))
        total, bent = (_without_scale(seed, f, latent) for f in (slope, slope * xi))
        back = replace(
            back,
            cancelled=np.where(free, one - total.variance, back.cancelled),
            tilted_total=np.where(free, bent.variance, back.tilted_total),
            tilt=np.where(column, gradient.mean * bent.mean, back.tilt),
        )
    if seed.picks is None:
        return back
    return replace(back, cancelled=one - seed.picks.total(slope), tilted_total=seed.picks.total(slope * xi))


def _normalised_total(seed: Seed, leaning: Array, latent: Moments) -> Array | None:
    """As `tilted_total`, with the latent less its mean over positions and over its deviation over them in the place of xi."""
    if repeats(latent.mean, tuple(range(1, latent.mean.ndim))) and latent.varies_evenly:
        return None
    gradient, x = seed.gradient.narrow, latent.narrow
    centred = x.mean - _positions_mean(x.mean)
    values = centred + np.sqrt(x.variance) * broadcast_nodes(x.mean.ndim)
    f = _over(seed.slope * values, np.sqrt(_positions_mean(x.variance + centred**2)))
    first = expectation(f)
    products = _products(gradient, f, leaning, latent) - lag_pairs(gradient.mean * first)
    total = products.count * products.total() - gradient.cancelled * _coherent(gradient, first)
    return np.asarray(np.maximum(total, 0.0))


def _coherent(gradient: GradientMoments, weight: Array) -> Array:
    """By what the cancelled part of the sum of a gradient's positions grows when each counts by its weight, per channel.

    A batch whose mean is taken off has nearly none left of what examples have in common at a position, so that of every lag the
    same share is cancelled:

        sum_lag K(lag) <w(p) w(p + lag)> / sum_lag K(lag),      between <w>^2 and <w^2>
    """
    lags = gradient.known_lags
    square, total = _per_channel(weight) ** 2, lags.total()
    return np.clip(_over((lags * lag_pairs(weight)).total(), total), square, _per_channel(weight**2))


@dataclass(frozen=True)
class _Sum:
    """Of gradient x f over positions: its mean per position over the gradient's, and its variance per channel."""

    mean: Array
    variance: Array


def _without_scale(seed: Seed, f: Array, latent: Moments) -> _Sum:
    """Where the sum over positions of gradient x end is 0, of f = E f + b end' + rest, end' the standardised end.

    sum g end' = -E end / std sum g, so that sum g f = (E f - b E end / std) sum g + sum g rest.
    """
    gradient, end = seed.gradient.narrow, _standardised(seed.end)
    mean, spread = expectation(seed.end), expectation(seed.end**2)
    b = expectation(f * end)
    average = expectation(f) - b * _over(mean, np.sqrt(np.maximum(spread - mean**2, 0.0)))
    rest = f - expectation(f) - b * end
    products = _products(gradient, rest, np.ones((1,) * f.ndim), latent)
    varied = np.maximum(products.count * products.total(), 0.0)
    return _Sum(average, varied + _per_channel(average**2) * gradient.total)


def _leaning(seed: Seed, second: Array) -> Array:
    """E[g^2 | x] / E[g^2], to first order in the standardised end.

    A mask further on along the same path lets pass what this one lets pass rather than what it does not.
    """
    skew = seed.gradient.skew
    if skew is None:
        return np.ones((1,) * seed.slope.ndim)
    return 1.0 + _over(skew, second) * _standardised(seed.end)


def _products(gradient: GradientMoments, slope: Array, leaning: Array, latent: Moments) -> Autocovariance:
    """E[g g' f(x) f(x')] of two positions; of one and the same E[g^2 f^2], in which the leaning counts once."""
    rho = latent.lag_correlation
    raw = gradient.known_lags + lag_pairs(gradient.mean)
    products = raw * second_moments(slope * leaning, rho)
    own = gradient.second * expectation(slope**2 * leaning)
    return products.with_lag0(_per_channel(own))


def _standardised(curve: Array) -> Array:
    centred = curve - expectation(curve)
    return _over(centred, np.sqrt(expectation(centred**2)))


def _positions_mean(elements: Array) -> Array:
    return np.asarray(elements.mean(tuple(range(1, elements.ndim)), keepdims=True))


def _through_channels(
    seed: Seed, latent: Moments, leaning: Array
) -> tuple[Array, Array, ChannelCovariance, ChannelCovariance]:
    """Mean, tilt, covariance and hessian where channels are known; as `_through_dense`, lag by lag."""
    gradient, xi = seed.gradient.narrow, broadcast_nodes(latent.mean.ndim)
    rho, deviation = latent.channel_correlation, np.sqrt(_per_channel(latent.variance))
    slope = channel_curves.Slope(seed.slope, seed.end, rho, deviation)
    mean, tilt = gradient.mean * expectation(seed.slope), gradient.mean * expectation(seed.slope * xi)
    column, bent = (-1, *[1] * (mean.ndim - 1)), _per_channel(tilt)
    # Which position of a window is the largest does not depend on what moves the maximum.
    if gradient.channel_hessian is not None and seed.picks is None:
        mean = mean + slope.moved_mean(gradient.channel_hessian).reshape(column)
    hessian = slope.hessian(gradient.channel_hessian, bent)
    leaned = (hessian * rho).total() @ deviation
    slopes = slope.moments if leaning.size == 1 else channel_curves.second_moments(seed.slope * leaning, rho)
    raw = gradient.known_channels + lag_products(gradient.mean, gradient.mean)
    channels = raw * slopes - lag_products(mean, mean)
    return mean, tilt + (leaned - bent).reshape(column), channels, hessian


def _through_tokens(seed: Seed, latent: Moments) -> GradientMoments:
    """The same for a sequence."""
    gradient, slope, xi = seed.gradient, seed.slope, broadcast_nodes(latent.mean.ndim)
    known = gradient.tokens or latent.tokens
    assert known is not None
    own = gradient.tokens or TokenCorrelation.white(known.axes, latent.shape)
    with np.errstate(all="ignore"):
        mean = gradient.mean * expectation(slope)
        if gradient.response is not None and latent.tokens is not None:
            mean = mean + _moved_mean(gradient.response, seed, latent)
        variance = np.maximum(gradient.second * expectation(slope**2) - mean**2, 0.0)
        rho = latent.tokens if latent.tokens is not None and latent.tokens.axes == known.axes else None
        tokens = slope_tokens(slope, rho, own, gradient.mean, gradient.variance, variance)
        tilt = gradient.mean * expectation(slope * xi)
        response = _response(seed, tilt, latent)
        sums = None if rho is None else _tilted_sums(seed, latent, own)
    back = GradientMoments.of(mean, variance, tokens=tokens)
    return replace(back, tilt=tilt, response=response, token_tilt=sums)


def _tilted_sums(seed: Seed, latent: Moments, own: TokenCorrelation) -> TokenTilt:
    """Of sum_t g slope zeta, which is large where all tokens have one g, since E[slope zeta] is not 0."""
    rho, gradient = latent.tokens, seed.gradient
    assert rho is not None
    mean, deviation = _of_tokens(latent, rho.axes)
    whole, spread = over_tokens(latent.mean, latent.variance, rho.axes)
    zeta = _over(mean - whole, spread) + _over(deviation, spread) * broadcast_nodes(mean.ndim)
    bent = seed.slope * zeta
    variance, with_sum = (
        sum_covariance(bent, other, rho, own, gradient.mean, gradient.variance)
        for other in (bent, seed.slope)
    )
    return TokenTilt(rho.axes, np.maximum(variance, 0.0), with_sum)


def _moved_mean(response: TokenResponse, seed: Seed, latent: Moments) -> Array:
    """Cov(dy, slope): the gradient moves with the end of the chain, and the end with the slope."""
    tokens = latent.tokens
    assert tokens is not None
    if tokens.axes != response.axes:
        return np.zeros(latent.shape)
    within, between = cross_moments(seed.slope, seed.end, tokens)
    rows = as_rows(latent.mean, tokens.axes)
    row = np.sum(response.own * within, 1) + (len(rows) - 1) * np.sum(response.between * between, 1)
    return from_rows(np.broadcast_to(row, rows.shape), tokens.axes, latent.shape)


def _response(seed: Seed, tilt: Array, latent: Moments) -> TokenResponse | None:
    """`_hessian` of a sequence."""
    tokens, deviation = latent.tokens, np.sqrt(latent.variance)
    if tokens is None or len(tokens.within) > MATRIX_LIMIT:
        return None
    curvature = as_rows(_over(tilt, deviation), tokens.axes).mean(0)
    response = seed.gradient.response
    if response is None or response.axes != tokens.axes:
        return TokenResponse(tokens.axes, np.diag(curvature), np.zeros((len(curvature), len(curvature))))
    std = as_rows(deviation, tokens.axes).mean(0)
    own, bent = np.diag(response.own), seed.slope * broadcast_nodes(latent.mean.ndim)
    bent = expectation((seed.end - expectation(seed.end)) * bent)
    each = as_rows(bent, tokens.axes).mean(0)
    within, between = slope_moments(seed.slope, tokens)
    moved_own, moved_between = curvature_moments(seed.slope, seed.end, tokens)
    others = response.own - np.diag(own)
    count = len(as_rows(latent.mean, tokens.axes))
    moved = np.sum(others * moved_own, 1) + (count - 1) * np.sum(response.between * moved_between, 1)
    curvature = curvature + _over(moved + own * each, std)
    return TokenResponse(tokens.axes, others * within + np.diag(curvature), response.between * between)


def _hessian(seed: Seed, tilt: Array, latent: Moments) -> Array | None:
    """E[d (g slope) / dx]: slope' H slope, and the function's own curvature E[g slope'] = tilt / sigma (Stein).

    With g = E g + H (end - E end), the curvature has a part that works against slope' H slope:
    E[(g - E g)_i slope_i'] = sum_j H_ij Cov(slope_i', end_j), and both together are H_ii E[(end - E end) slope xi] / sigma of
    one feature.
    """
    gradient, slope = seed.gradient, seed.slope
    if latent.mean.ndim != 1:
        return None
    rho, std = correlation(latent), np.sqrt(latent.variance)
    curvature = _over(tilt, std)
    if gradient.hessian is None or rho is None:
        # Of more features, the tilt says the same of each.
        return np.diag(curvature) if len(curvature) <= COVARIANCE_LIMIT else None
    own, xi = np.diag(gradient.hessian), broadcast_nodes(1)
    others = gradient.hessian - np.diag(own)
    curvature = curvature + _over(np.sum(others * curvature_covariance(slope, seed.end, rho), 1), std)
    centred = seed.end - expectation(seed.end)
    curvature = curvature + own * _over(expectation(centred * slope * xi), std)
    return np.asarray(others * second_moments(slope, rho) + np.diag(curvature))


def _over(numerator: Array, std: Array) -> Array:
    return np.divide(numerator, std, out=np.zeros_like(numerator), where=std > 0)


def _per_channel(elements: Array) -> Array:
    return np.asarray(elements.mean(tuple(range(1, elements.ndim))))
