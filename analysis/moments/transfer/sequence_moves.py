"""Sequences through ops that only move elements: where each output element comes from says what became of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..autocovariance import Autocovariance
from ..channel_covariance import ChannelCovariance
from ..quadrature import Array
from ..state import GradientMoments, Moments
from ..tokens import MATRIX_LIMIT, TokenCorrelation, TokenResponse, as_rows, diagonal
from ..turned import turned_to

__all__ = ["Moved", "moved_back", "moved_forward", "tokens_back"]

FLAT_LIMIT = 4096
"""Elements beyond which a sequence laid out in one row loses its covariance, a matrix of their square."""


@dataclass(frozen=True)
class Moved:
    """What an op that moves elements makes of a sequence.

    Attributes:
        axes: Axes of tokens among the output's.
        tokens: For each output token, the input's.
        features: For each output feature, the input's.
    """

    axes: tuple[int, ...]
    tokens: Array
    features: Array

    @classmethod
    def of(cls, index: Array, x: Moments, tokens: TokenCorrelation) -> Moved | None:
        """From the place of each output element in the input's row; None where tokens and features do not stay apart."""
        rows = as_rows(np.arange(x.mean.size).reshape(x.shape), tokens.axes)
        token, feature = np.empty(x.mean.size, int), np.empty(x.mean.size, int)
        token[rows] = np.arange(rows.shape[0])[:, None]
        feature[rows] = np.arange(rows.shape[1])
        if index.size == 0 or np.any(index < 0):
            return None
        token, feature = token[index], feature[index]
        axes = tuple(axis for axis in range(index.ndim) if _varies(token, axis))
        if any(_varies(feature, axis) for axis in axes):
            return None
        by_token, by_feature = as_rows(token, axes), as_rows(feature, axes)
        if np.any(by_token != by_token[:, :1]):
            return None
        return cls(axes, by_token[:, 0], by_feature[0])


def _varies(labels: Array, axis: int) -> bool:
    return bool(np.any(labels != labels.take([0], axis)))


def moved_forward(index: Array, x: Moments, y: Moments) -> Moments:
    """`y`, whose mean and variance have been moved, with the correlation that `x` had."""
    assert x.tokens is not None
    moved = Moved.of(index, x, x.tokens)
    if moved is None or (not moved.axes and y.mean.ndim > 1):
        return replace(y, covariance=_flattened(index, x, x.tokens))
    within, between = (_taken(m, moved.features) for m in (x.tokens.within, x.tokens.between))
    if moved.axes:
        return replace(y, tokens=TokenCorrelation(moved.axes, within, between))
    deviation = np.sqrt(y.variance)
    return replace(y, covariance=_full(within) * np.outer(deviation, deviation))


def moved_back(index: Array, x: Moments, dy: GradientMoments, dx: GradientMoments) -> GradientMoments:
    """`dx`, whose mean and variance have been moved back, with the correlation that `dy` had."""
    assert x.tokens is not None
    moved = Moved.of(index, x, x.tokens)
    if moved is None or len(set(moved.features.tolist())) < len(moved.features):
        return _folded(index, x, dy, dx)
    response = _moved_response(moved, x, dy)
    if moved.axes:
        tokens = turned_to(dy, moved.axes)
        if tokens is None:
            return dx
        within, between = tokens.within, tokens.between
    else:
        within = _correlation_of(dy)
        between = np.zeros(within.shape)
    features = len(x.tokens.within)
    return replace(
        dx,
        tokens=TokenCorrelation(
            x.tokens.axes,
            _placed(within, moved.features, features, 1.0),
            _placed(between, moved.features, features, 0.0),
        ),
        response=response,
    )


def tokens_back(index: Array, x: Moments, dy: GradientMoments, dx: GradientMoments) -> GradientMoments:
    """`dx` of a tensor that became a sequence, every element once, with the correlation that `dy` has; by lags of positions."""
    assert dy.tokens is not None
    if not np.array_equal(np.sort(index, None), np.arange(x.mean.size)):
        return dx
    moved = Moved.of(np.argsort(index, None).reshape(x.shape), Moments(dy.mean, dy.variance), dy.tokens)
    if moved is None or not moved.axes:
        return dx
    within, between = (_taken(m, moved.features) for m in (dy.tokens.within, dy.tokens.between))
    tokens = TokenCorrelation(moved.axes, within, between)
    if x.lags is None or moved.axes != tuple(range(1, x.mean.ndim)):
        return replace(dx, tokens=tokens)
    own, common = tokens.covariances(as_rows(np.sqrt(dx.variance), moved.axes))
    if x.channels is None or own.ndim == 1:
        lags = Autocovariance.constant(diagonal(common), x.shape[1:]).with_lag0(diagonal(own))
        return replace(dx, lags=lags)
    pairs = Autocovariance.constant(common.reshape(-1), x.shape[1:]).with_lag0(own.reshape(-1))
    return replace(dx, lags=ChannelCovariance(pairs).lags, channels=ChannelCovariance(pairs))


def _moved_response(moved: Moved, x: Moments, dy: GradientMoments) -> TokenResponse | None:
    assert x.tokens is not None
    axes, features = x.tokens.axes, len(x.tokens.within)
    if features > MATRIX_LIMIT:
        return None
    count = len(as_rows(x.mean, axes))
    if not moved.axes and dy.hessian is not None:
        own = _placed(dy.hessian / count, moved.features, features, 0.0)
        return TokenResponse(axes, own, np.zeros(own.shape))
    if dy.response is None or dy.response.axes != moved.axes:
        return None
    kept = len(moved.tokens)
    own = _placed(dy.response.own, moved.features, features, 0.0) * (kept / count)
    between = _placed(dy.response.between, moved.features, features, 0.0)
    return TokenResponse(axes, own, between * (kept * (kept - 1) / max(count * (count - 1), 1)))


def _taken(matrix: Array, features: Array) -> Array:
    return matrix[features] if matrix.ndim == 1 else matrix[np.ix_(features, features)]


def _placed(matrix: Array, features: Array, count: int, otherwise: float) -> Array:
    """A matrix over some of the features as one over all."""
    if matrix.ndim == 1:
        placed = np.full(count, otherwise)
        placed[features] = matrix
        return placed
    placed = np.eye(count) * otherwise
    placed[np.ix_(features, features)] = matrix
    return placed


def _full(matrix: Array) -> Array:
    return np.diag(matrix) if matrix.ndim == 1 else matrix


def _correlation_of(dy: GradientMoments) -> Array:
    if dy.covariance is None or dy.mean.ndim > 1:
        return np.ones(dy.mean.size)
    std = np.sqrt(np.diag(dy.covariance))
    scale = np.outer(std, std)
    return np.divide(dy.covariance, scale, out=np.zeros(scale.shape), where=scale > 0)


def _flattened(index: Array, x: Moments, tokens: TokenCorrelation) -> Array | None:
    """Covariance of a sequence's elements in one row."""
    if index.ndim > 1 or index.size > FLAT_LIMIT or index.size != x.mean.size or np.any(index < 0):
        return None
    count = len(as_rows(x.mean, tokens.axes))
    deviation = as_rows(np.sqrt(x.variance), tokens.axes).reshape(-1)
    within, between = _full(tokens.within), _full(tokens.between)
    eye = np.eye(count)
    matrix = np.kron(eye, within) + np.kron(1.0 - eye, between)
    matrix *= np.outer(deviation, deviation)
    place = as_rows(np.arange(x.mean.size).reshape(x.shape), tokens.axes).reshape(-1)
    order = np.empty(place.size, int)
    order[place] = np.arange(place.size)
    return np.asarray(matrix[np.ix_(order[index], order[index])])


def _folded(index: Array, x: Moments, dy: GradientMoments, dx: GradientMoments) -> GradientMoments:
    """With the correlation of a row's elements, averaged over tokens and over pairs of tokens."""
    assert x.tokens is not None
    if dy.covariance is None or index.ndim > 1 or index.size != x.mean.size or np.any(index < 0):
        return dx
    axes = x.tokens.axes
    place = np.empty(index.size, int)
    place[index] = np.arange(index.size)
    order = place[as_rows(np.arange(x.mean.size).reshape(x.shape), axes)]
    features = order.shape[1]
    own, between = _blocks(dy.covariance, order)
    deviation = np.sqrt(as_rows(dx.variance, axes))
    tokens = TokenCorrelation.of_covariances(axes, own, between, deviation)
    response = None
    if dy.hessian is not None and features <= MATRIX_LIMIT:
        response = TokenResponse(axes, *_blocks(dy.hessian, order))
    return replace(dx, tokens=tokens, response=response)


def _blocks(matrix: Array, order: Array) -> tuple[Array, Array]:
    """A matrix over the elements of a row as its mean over tokens, and over pairs of tokens; `order` is `[T, F]`."""
    count, features = order.shape
    flat = order.reshape(-1)
    blocks = matrix[np.ix_(flat, flat)].reshape(count, features, count, features)
    own = np.einsum("tftg->fg", blocks)
    return own / count, (blocks.sum((0, 2)) - own) / max(count * (count - 1), 1)
