"""Means over all positions, and maxima over windows.

A maximum is taken over fixed draws of a window's latents, correlated as the autocovariance says. Backward, a position
passes the gradient where its value is its window's largest, which a value v is with probability P = F(v)^(w - 1), F
the distribution of the channel's values and w the positions of a window. So with phi the activation before the pool

    E[dx] = m E[phi' P]            E[dx^2] = s E[phi'^2 P]

which the engine gets as a chain of slope sqrt(P), and a mean made smaller to match. Two positions of a window never
both pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..autocovariance import Autocovariance
from ..blocks import blocks_of
from ..curves import Seed
from ..errors import UnknownTransferError
from ..quadrature import NODES, WEIGHTS, Array, expectation
from ..site import Contribution, Site, batch_axis
from ..state import GradientMoments, Moments
from ..steps import numbered
from ..tokens import MATRIX_LIMIT, TokenCorrelation
from .convolution import Geometry, average_pool_backward, average_pool_forward
from .sequence import dense, dense_backward, mean_of_tokens, mean_of_tokens_backward, sequence
from .taps import spread, strided, through_taps

__all__ = [
    "average_backward",
    "average_forward",
    "global_mean_backward",
    "global_mean_forward",
    "max_pool_backward",
    "max_pool_forward",
    "mean_backward",
    "mean_forward",
]

_DRAWS = 512
_MAX_NUMBERS = 4_000_000


def global_mean_forward(site: Site) -> Sequence[Moments]:
    """y = mean over positions: its variance is the mean of the autocovariance over all lags."""
    x = site.x
    positions = tuple(range(1, x.mean.ndim))
    shape = site.x.shape[:1] + (1,) * (len(positions) if _keeps_axes(site) else 0)
    lags = x.known_lags
    mean, variance = x.narrow.mean.mean(positions), np.maximum(lags.total() / lags.count, 0.0)
    return [Moments(mean.reshape(shape), variance.reshape(shape), positive=_is_positive(x))]


def global_mean_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """dy / n at every position, the same at all."""
    dy, x = gradients[0], site.x
    assert dy is not None
    column, count = (x.shape[0], *[1] * (x.mean.ndim - 1)), x.mean[0].size
    mean, variance = dy.mean.reshape(column) / count, dy.variance.reshape(column) / count**2
    lags = Autocovariance.constant(variance, x.shape[1:])
    back = GradientMoments.of(mean, variance, lags=lags).repeated(x.shape)
    return [replace(back, cancelled=dy.cancelled)]


def _keeps_axes(site: Site) -> bool:
    pools = site.node.op_type in ("GlobalAveragePool", "AveragePool")
    return pools or bool(site.attribute("keepdims", 1))


def average_forward(site: Site) -> Sequence[Moments]:
    """Means over windows; over those that reach from end to end as means over axes."""
    return average_pool_forward(site) if _window_axes(site) is None else mean_forward(site)


def average_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """Each position receives its share."""
    pools = _window_axes(site) is None
    return average_pool_backward(site, gradients) if pools else mean_backward(site, gradients)


def _window_axes(site: Site) -> tuple[int, ...] | None:
    """The axes that a window covers from end to end; None where it covers but a part of one."""
    lengths = site.x.shape[1:]
    kernel: tuple[int, ...] = tuple(site.attribute("kernel_shape", ()))
    strides: tuple[int, ...] = tuple(site.attribute("strides", (1,) * len(kernel)))
    if any(site.attribute("pads", ())) or any(k not in (1, n) for k, n in zip(kernel, lengths, strict=True)):
        return None
    if any(k == 1 and n > 1 and stride > 1 for k, n, stride in zip(kernel, lengths, strides, strict=True)):
        return None
    return tuple(axis for axis, k in enumerate(kernel, start=1) if k > 1)


def mean_forward(site: Site) -> Sequence[Moments]:
    """Over all positions as above; over other axes the mean of independent elements, or of features with their covariance."""
    x, axes = site.x, _averaged_axes(site)
    if x.mean.ndim > 1 and x.tokens is None and axes == tuple(range(1, x.mean.ndim)):
        return global_mean_forward(site)
    keep, count = _keeps_axes(site), np.prod([x.shape[axis] for axis in axes])
    if _over_steps(x, axes):
        return [_mean_over_steps(x, keep)]
    if x.mean.ndim > 1 and (tokens := _pooled_sequence(x, axes)) is not None:
        return [_mean_of_tokens(x, tokens, keep)]
    if _pools_features(x, axes):
        y = dense(x, _averaging(x), site.full_covariance or x.shape[-1] <= MATRIX_LIMIT)
        kept = y.shape if keep else y.shape[:-1]
        each, spread = y.mean.reshape(kept), y.variance.reshape(kept)
        return [replace(y, mean=each, variance=spread, positive=_is_positive(x))]
    mean = x.mean.mean(axes, keepdims=keep)
    if x.mean.ndim > 1:
        site.notes.append("the elements it averages are taken as independent")
        return [Moments(mean, x.variance.sum(axes, keepdims=keep) / count**2, positive=_is_positive(x))]
    variance = max(float(x.known_covariance.sum()), 0.0) / count**2
    return [Moments(mean, np.full(mean.shape, variance), positive=_is_positive(x))]


def _pooled_sequence(x: Moments, axes: tuple[int, ...]) -> TokenCorrelation | None:
    """The sequence whose tokens these axes are; inputs whose elements are independent are one where features come last."""
    if x.tokens is not None:
        return x.tokens if x.tokens.axes == axes else None
    independent = x.covariance is None and x.lags is None and axes == tuple(range(x.mean.ndim - 1))
    return TokenCorrelation.white(axes, x.shape) if independent else None


def _pools_features(x: Moments, axes: tuple[int, ...]) -> bool:
    return x.tokens is not None and axes == (x.mean.ndim - 1,) and len(x.tokens.axes) == x.mean.ndim - 1


def _averaging(x: Moments) -> Array:
    """The mean over features as a weight."""
    return np.full((x.shape[-1], 1), 1.0 / x.shape[-1])


def _mean_of_tokens(x: Moments, tokens: TokenCorrelation, keep: bool) -> Moments:
    mean, variance, covariance = mean_of_tokens(x, tokens)
    others = [length for axis, length in enumerate(x.shape) if axis not in tokens.axes]
    kept = [1 if axis in tokens.axes else length for axis, length in enumerate(x.shape)]
    shape = tuple(kept if keep else others)
    return Moments(
        mean.reshape(shape),
        variance.reshape(shape),
        covariance if len(shape) == 1 else None,
        positive=_is_positive(x),
    )


def _is_positive(x: Moments) -> bool:
    return x.curve is not None and bool(np.all(x.curve.values >= 0))


def mean_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """dy / n at every element that was averaged."""
    dy, x, axes = gradients[0], site.x, _averaged_axes(site)
    assert dy is not None
    if _over_steps(x, axes):
        return [_spread_over_steps(x, dy)]
    if x.mean.ndim > 1 and (tokens := _pooled_sequence(x, axes)) is not None:
        return [mean_of_tokens_backward(dy, tokens, x.shape)]
    if _pools_features(x, axes):
        one = (*x.shape[:-1], 1)
        apart = replace(dy, mean=dy.mean.reshape(one), variance=dy.variance.reshape(one))
        return [dense_backward(apart, _averaging(x), sequence(x), x.shape[-1] <= MATRIX_LIMIT)]
    if x.mean.ndim > 1 and x.tokens is None and axes == tuple(range(1, x.mean.ndim)):
        return global_mean_backward(site, gradients)
    count = np.prod([x.shape[axis] for axis in axes])
    shape = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    mean = np.broadcast_to(dy.mean.reshape(shape) / count, x.shape)
    variance = np.broadcast_to(dy.variance.reshape(shape) / count**2, x.shape)
    if mean.ndim > 1:
        return [GradientMoments.of(mean, variance)]
    # Every feature receives the same.
    same = np.ones((mean.size, mean.size))
    hessian = None if dy.hessian is None else same * dy.hessian / count**2
    return [GradientMoments.of(mean, variance, same * variance, hessian)]


def _over_steps(x: Moments, axes: tuple[int, ...]) -> bool:
    """Whether states of a sequence are averaged over all of its steps, and what remains are the features."""
    return x.steps is not None and x.mean.ndim == 2 and axes == (0,) and x.steps.is_in_order()


def _mean_over_steps(x: Moments, keep: bool) -> Moments:
    assert x.steps is not None
    mean, covariance = x.mean.mean(0, keepdims=keep), x.steps.mean_over_steps()
    return Moments(mean, np.diag(covariance).reshape(mean.shape), None if keep else covariance)


def _spread_over_steps(x: Moments, dy: GradientMoments) -> GradientMoments:
    """Every step receives the same, a share of dy."""
    count = len(x.mean)
    covariance = np.diag(dy.variance.reshape(-1)) if dy.mean.ndim > 1 else dy.known_covariance / count**2
    assert x.steps is not None
    within, across = x.steps.constant(covariance)
    # What a step receives moves with the mean, so with each step by the same share.
    hessian = None if dy.hessian is None else np.broadcast_to(dy.hessian / count**2, within.shape)
    mean, variance = (
        np.broadcast_to(part / count**power, x.shape) for part, power in ((dy.mean, 1), (dy.variance, 2))
    )
    return GradientMoments.of(mean, variance, steps=numbered(within, across, x.shape, hessian))


def _averaged_axes(site: Site) -> tuple[int, ...]:
    """The axes of one example that a node averages."""
    if site.node.op_type == "AveragePool":
        return _window_axes(site) or ()
    value, rank = site.node.inputs[0], site.x.mean.ndim + 1
    assert value is not None
    listed = site.array(1) if site.is_static(1) else site.attribute("axes", range(rank))
    axes, batch = {int(axis) % rank for axis in listed}, batch_axis(value)
    if batch in axes:
        raise UnknownTransferError("it averages over the batch")
    return tuple(sorted(axis - (axis > batch) for axis in axes))


def max_pool_forward(site: Site) -> Sequence[Moments]:
    """Moments of the largest of a window's values."""
    x, kernel, geometry = _window(site)
    if any(size > stride for size, stride in zip(kernel, geometry.strides, strict=True)):
        site.notes.append(
            "its windows overlap: whether a position is the largest of one is taken not to depend on the next, and the"
            " gradient of a normalisation's shift before it may be larger"
        )
    largest, lengths = _largest(x, kernel, geometry), geometry.lengths(x.shape[1:])
    mean, variance = largest.mean(0), largest.var(0)
    lags = _pooled_lags(x, kernel, geometry, lengths)
    lags = lags.scaled_to(variance.mean(tuple(range(1, variance.ndim))))
    y = Moments(mean, variance, lags=lags).repeated((x.shape[0], *lengths))
    return [y] * len(site.node.outputs)


def max_pool_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formulas above."""
    dy = gradients[0]
    assert dy is not None
    x, kernel, geometry = _window(site)
    values, size = _values(x), int(np.prod(kernel))
    share = _probability_of_largest(values, size)
    slope, root = np.gradient(values, NODES, axis=0), np.sqrt(share)
    wanted, given = expectation(slope * share), expectation(slope * root)
    scale = np.divide(wanted, given, out=np.zeros_like(given), where=given != 0)
    ones = np.ones((x.shape[0], 1, *kernel))
    grouped = _depthwise(geometry, x)
    arrived = dy.mean, dy.second
    if scale[0].size > 1:  # positions differ
        arrived = np.array(dy.mean), np.array(dy.second)
    first, second = (grouped.transpose(part, ones, x.shape) for part in arrived)
    passed = GradientMoments.of(first, second).narrow
    mean, second = passed.mean * scale, passed.variance
    positions = tuple(range(1, x.mean.ndim))
    scale2 = np.mean(scale**2, positions)
    variance = np.maximum(second - mean**2, 0.0)
    lags = _spread_over_windows(x, dy, kernel, geometry) * scale2.reshape(-1, *[1] * len(kernel))
    lags = lags.with_lag0(variance.mean(positions))
    back = GradientMoments.of(mean, variance, lags=lags).repeated(x.shape)
    return [Seed(replace(back, cancelled=dy.cancelled * size**2 * scale2), values, root)]


def _window(site: Site) -> tuple[Moments, tuple[int, ...], Geometry]:
    kernel: tuple[int, ...] = tuple(site.attribute("kernel_shape", ()))
    return site.x, kernel, Geometry.of(site, kernel, 1)


def _depthwise(geometry: Geometry, x: Moments) -> Geometry:
    return replace(geometry, groups=x.shape[0])


def _values(x: Moments) -> Array:
    """The input as a function of its latent, or of itself, `[NODES, C, *positions]`."""
    if x.curve is not None:
        return x.curve.values
    x = x.narrow
    return np.asarray(x.mean + np.sqrt(x.variance) * NODES.reshape(-1, *[1] * x.mean.ndim))


def _probability_of_largest(values: Array, size: int) -> Array:
    """P of each value, of the shape of `values`."""
    channels, positions = values.shape[1], int(np.prod(values.shape[2:]))
    own = np.moveaxis(values, 1, 0).reshape(channels, -1)
    weights = np.repeat(WEIGHTS / positions, positions)
    result = np.empty(own.shape)
    for block in blocks_of(channels, own.size):
        result[block] = _rank(own[block], weights)
    result = np.clip(result, 0.0, 1.0) ** (size - 1)
    return np.moveaxis(result.reshape(channels, *values.shape[:1], *values.shape[2:]), 0, 1)


def _rank(rows: Array, weights: Array) -> Array:
    """The weight of what is below each number of its row. Of equal ones the middle: an atom is beaten by half of itself."""
    order = np.argsort(rows, 1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    places = np.arange(rows.shape[1] + 1)
    edge = np.ones((len(rows), len(places)), bool)
    edge[:, 1:-1] = ordered[:, 1:] != ordered[:, :-1]
    left = np.maximum.accumulate(np.where(edge, places, 0), 1)[:, :-1]
    right = np.minimum.accumulate(np.where(edge, places, len(places))[:, ::-1], 1)[:, -2::-1]
    below = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(weights[order], 1)], 1)
    result = np.empty(rows.shape)
    middle = 0.5 * (np.take_along_axis(below, left, 1) + np.take_along_axis(below, right, 1))
    np.put_along_axis(result, order, middle, 1)
    return result


def _largest(x: Moments, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    """Draws of each window's largest value, `[draws, C, *positions]`."""
    values = _values(x)
    shared = values.shape[2:] != x.shape[1:]
    taps = [values] * int(np.prod(kernel)) if shared else _taps(values, kernel, geometry)
    draws = int(max(64, min(_DRAWS, _MAX_NUMBERS // taps[0][0].size)))
    xi = _latent_draws(x, kernel, draws)
    return np.asarray(np.max([_read(tap, xi[:, index]) for index, tap in enumerate(taps)], axis=0))


def _taps(values: Array, kernel: tuple[int, ...], geometry: Geometry) -> list[Array]:
    """The curves at each place of a window, `[NODES, C, *windows]`; padding is never the largest."""
    nodes, channels = values.shape[:2]
    flat = values.reshape(nodes * channels, *values.shape[2:])
    padded = np.pad(flat, ((0, 0), *geometry.pads), constant_values=-np.inf)
    windows = replace(geometry, pads=((0, 0),) * len(kernel)).windows(padded)
    by_place = windows.reshape(len(flat), -1, *windows.shape[-len(kernel) :])
    shape = (nodes, channels, *windows.shape[-len(kernel) :])
    return [by_place[:, place].reshape(shape) for place in range(by_place.shape[1])]


def _latent_draws(x: Moments, kernel: tuple[int, ...], draws: int) -> Array:
    """Fixed antithetic draws of the standardised latents of a window, `[C, places of the window, draws]`."""
    rho = x.known_lags.correlation() if x.curve is None else x.curve.rho
    assert isinstance(rho, Autocovariance)
    lengths = rho.near.shape[1:]
    taps = list(itertools.product(*(range(k) for k in kernel)))
    lags = [[tuple((a - b) % n for a, b, n in zip(p, q, lengths, strict=True)) for q in taps] for p in taps]
    by_lag = np.moveaxis(rho.near, 0, -1)
    matrix = np.stack([np.stack([by_lag[lag] for lag in row], -1) for row in lags], -2)
    values, vectors = np.linalg.eigh(matrix)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    half = np.random.default_rng(0).standard_normal((len(taps), draws // 2))
    return np.asarray(root @ np.concatenate([half, -half], 1))


def _read(curve: Array, xi: Array) -> Array:
    """Linear interpolation of curves `[NODES, C, *windows]` at draws `[C, draws]`: `[draws, C, *windows]`."""
    step = NODES[1] - NODES[0]
    place = np.clip((xi.T - NODES[0]) / step, 0.0, len(NODES) - 1.001)
    place = place.reshape(*place.shape, *[1] * (curve.ndim - 2))
    low = place.astype(int)
    part = place - low
    below, above = np.take_along_axis(curve, low, 0), np.take_along_axis(curve, low + 1, 0)
    return np.where(
        np.isneginf(below), -np.inf, below + part * (np.where(np.isneginf(above), 0.0, above) - below)
    )


def _pooled_lags(
    x: Moments, kernel: tuple[int, ...], geometry: Geometry, lengths: tuple[int, ...]
) -> Autocovariance:
    """Correlation of two windows' maxima, taken as that of their means; its scale means nothing."""
    rho, ones = x.known_lags.correlation(), np.ones((x.shape[0], 1, *kernel))
    return strided(through_taps(rho, ones, geometry.dilations, x.shape[0]), geometry.strides, lengths)


def _spread_over_windows(
    x: Moments, dy: GradientMoments, kernel: tuple[int, ...], geometry: Geometry
) -> Autocovariance:
    """Autocovariance of what the positions of different windows receive; within a window the mean product is 0."""
    mean, ones = dy.narrow.mean, np.ones((x.shape[0], 1, *kernel))
    between = dy.known_lags.with_lag0(-np.mean(mean**2, tuple(range(1, mean.ndim))))
    apart = spread(between, geometry.strides, x.shape[1:])
    return through_taps(apart, ones, geometry.dilations, x.shape[0])
