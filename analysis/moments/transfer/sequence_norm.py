"""LayerNorm of every token of a sequence; the formulas stand in `sequence`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..quadrature import Array
from ..site import Contribution, Site
from ..state import GradientMoments, Moments, ParameterGradient
from ..tokens import TokenCorrelation, TokenResponse, as_rows, from_rows, over_tokens
from .inverse_std import inverse_std
from .sequence import of_product, sequence, summed

__all__ = ["backward", "forward"]


def forward(site: Site, axes: tuple[int, ...]) -> Moments:
    """Features on `axes` to mean 0 and variance 1, then gamma and beta."""
    xhat, _ = _standardised(site, axes)
    gamma = site.array(1).astype(np.float64)
    beta = site.array(2) if site.is_static(2) else 0.0
    assert xhat.tokens is not None
    variance = xhat.variance * gamma**2
    tokens = _rescaled(xhat.tokens, np.broadcast_to(np.sign(gamma), xhat.shape))
    return Moments(xhat.mean * gamma + beta, variance, tokens=tokens, norm_spread=0.0)


def backward(site: Site, dy: GradientMoments, axes: tuple[int, ...]) -> Sequence[Contribution]:
    """What the input, gamma and beta receive."""
    xhat, std = _standardised(site, axes)
    assert xhat.tokens is not None
    token_axes, gamma = xhat.tokens.axes, site.array(1).astype(np.float64)
    tilt = _tilt(site.y, dy, xhat, gamma)
    tilted = as_rows(tilt, token_axes).sum(0)
    dgamma, dbeta = (
        _for_parameter(gradient, xhat.shape, token_axes, gamma.shape)
        for gradient in (_of_scale(xhat, dy, gamma, tilted), summed(dy, token_axes))
    )
    tilt = gamma * (dy.mean * xhat.mean + tilt)
    mean, variance = _projected(dy, xhat, gamma, tilt, axes)
    tokens = _rescaled(sequence(dy, token_axes), np.broadcast_to(np.sign(gamma), xhat.shape))
    tokens, variance = _centred(tokens, dy.variance * gamma**2, variance, axes)
    mean = mean - mean.mean(axes, keepdims=True)
    inverse = inverse_std(std, site.x, xhat, axes)
    back = GradientMoments.of(mean * inverse.mean, inverse.variance(mean, variance), tokens=tokens)
    response = _response(dy, gamma, tilt, 1.0 / np.sqrt(inverse.square), axes)
    return replace(back, response=response), dgamma, dbeta if site.is_static(2) else None


def _of_scale(xhat: Moments, dy: GradientMoments, gamma: Array, tilted: Array) -> ParameterGradient:
    """sum_t dy_ti xhat_ti of every feature; `tilted` is the sum of the covariances of the two.

    With xhat = mu + s zeta its variance is mu^2 Var(sum dy) + s^2 Var(sum dy zeta) + 2 mu s Cov(sum dy, sum dy zeta), where
    those are known; zeta is standardised after gamma, and so has its sign.
    """
    assert xhat.tokens is not None
    axes, known = xhat.tokens.axes, dy.token_tilt
    found = of_product(xhat, dy, axes, tilted)
    if known is None or known.axes != axes:
        return found
    mean, deviation = (as_rows(a, axes)[0] for a in over_tokens(xhat.mean, xhat.variance, axes))
    scale = deviation * as_rows(np.broadcast_to(np.sign(gamma), xhat.shape), axes)[0]
    variance = mean**2 * summed(dy, axes).variance
    variance = variance + scale**2 * known.variance + 2.0 * mean * scale * known.with_sum
    return ParameterGradient(found.mean, np.maximum(variance, 0.0))


def _tilt(y: Moments, dy: GradientMoments, xhat: Moments, gamma: Array) -> Array:
    """Cov(dy, xhat) of every element, which the following activation and the loss's curvature bring about."""
    if dy.response is None or y.tokens is None or y.tokens.axes != dy.response.axes:
        return dy.tilt * np.sqrt(xhat.variance)
    axes = y.tokens.axes
    rows = as_rows(np.sqrt(y.variance), axes)
    moment = np.diag(dy.response.moment(y.tokens, rows)) / len(rows)
    each = from_rows(np.broadcast_to(moment, rows.shape), axes, y.shape)
    return np.divide(each, gamma, out=np.zeros(y.shape), where=np.broadcast_to(gamma, y.shape) != 0)


def _response(
    dy: GradientMoments, gamma: Array, tilt: Array, std: Array, axes: tuple[int, ...]
) -> TokenResponse | None:
    if dy.response is None:
        return None
    token_axes = dy.response.axes
    groups = _groups(tilt.shape, token_axes, axes)
    row = as_rows(np.broadcast_to(gamma / std, tilt.shape), token_axes).mean(0)
    along = as_rows(np.broadcast_to(tilt.mean(axes, keepdims=True) / std**2, tilt.shape), token_axes).mean(0)
    scale = np.outer(row, row)
    own = _off_mean(dy.response.own * scale - np.diag(along), groups)
    return TokenResponse(token_axes, own, _off_mean(dy.response.between * scale, groups))


def _standardised(site: Site, axes: tuple[int, ...]) -> tuple[Moments, Array]:
    """xhat, and the root of the input's mean square over the features once it is centred."""
    x = site.x
    others = tuple(axis for axis in range(x.mean.ndim) if axis not in axes)
    tokens = sequence(x, others if x.tokens is None or set(axes) & set(x.tokens.axes) else x.tokens.axes)
    centred = x.mean - x.mean.mean(axes, keepdims=True)
    tokens, variance = _centred(tokens, x.variance, x.variance, axes)
    square = (variance + centred**2).mean(axes, keepdims=True) + site.attribute("epsilon", 1e-5)
    std = np.sqrt(square)
    return Moments(centred / std, variance / square, tokens=tokens), std


def _projected(
    dy: GradientMoments, xhat: Moments, gamma: Array, tilt: Array, axes: tuple[int, ...]
) -> tuple[Array, Array]:
    """Mean and variance of dxhat without its part along xhat."""
    count = int(np.prod([xhat.shape[axis] for axis in axes]))
    along = tilt.mean(axes, keepdims=True)
    second = gamma**2 * dy.second - 2.0 * along * tilt + along**2 * xhat.second
    mean = gamma * dy.mean - along * xhat.mean
    return mean, np.maximum(second - mean**2, 0.0) * (1.0 - 1.0 / count)


def _centred(
    tokens: TokenCorrelation, before: Array, variance: Array, axes: tuple[int, ...]
) -> tuple[TokenCorrelation, Array]:
    """Correlation and variance once the mean over the features is taken off a sequence.

    Args:
        tokens: Correlation of the sequence.
        before: The variance that goes with it.
        variance: The variance to take the mean off, which may be smaller.
        axes: The features' axes.
    """
    count = int(np.prod([variance.shape[axis] for axis in axes]))
    within, between = tokens.covariances(as_rows(np.sqrt(before), tokens.axes))
    if within.ndim == 1:
        centred = variance * (1.0 - 2.0 / count) + variance.mean(axes, keepdims=True) / count
        return tokens, centred
    groups = _groups(variance.shape, tokens.axes, axes)
    within, between = _off_mean(within, groups), _off_mean(between, groups)
    kept = np.divide(
        np.diag(within),
        as_rows(before, tokens.axes).mean(0),
        out=np.ones(len(within)),
        where=np.diag(within) > 0,
    )
    shape = [1 if axis in tokens.axes else length for axis, length in enumerate(variance.shape)]
    centred = variance * np.maximum(kept, 0.0).reshape(shape)
    deviation = as_rows(np.sqrt(centred), tokens.axes)
    return TokenCorrelation.of_covariances(tokens.axes, within, between, deviation), centred


def _groups(shape: tuple[int, ...], token_axes: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """For each flattened feature, which of the sets that are normalised together it belongs to."""
    lengths = [1 if axis in token_axes or axis in axes else length for axis, length in enumerate(shape)]
    labels = np.arange(int(np.prod(lengths))).reshape(lengths)
    full = [1 if axis in token_axes else length for axis, length in enumerate(shape)]
    return np.broadcast_to(labels, full).reshape(-1)


def _off_mean(matrix: Array, groups: Array) -> Array:
    """P M P, P taking the mean of its group off each feature."""
    member = (groups[:, None] == np.arange(groups.max() + 1)) / np.sqrt(np.bincount(groups))
    rows = matrix - member @ (member.T @ matrix)
    return np.asarray(rows - (rows @ member) @ member.T)


def _rescaled(tokens: TokenCorrelation, sign: Array) -> TokenCorrelation:
    """Correlation after a multiplication of each feature; only its sign matters."""
    row = as_rows(sign, tokens.axes)[0]
    if tokens.within.ndim == 1 or np.all(row >= 0):
        return tokens
    flip = np.outer(row, row)
    return replace(tokens, within=tokens.within * flip, between=tokens.between * flip)


def _for_parameter(
    gradient: ParameterGradient, shape: tuple[int, ...], token_axes: tuple[int, ...], wanted: tuple[int, ...]
) -> ParameterGradient:
    """Summed over the features that share one element of gamma or beta."""
    features = tuple(length for axis, length in enumerate(shape) if axis not in token_axes)
    extra = tuple(range(len(features) - len(wanted)))
    return ParameterGradient(
        gradient.mean.reshape(features).sum(extra).reshape(wanted),
        gradient.variance.reshape(features).sum(extra).reshape(wanted),
    )
