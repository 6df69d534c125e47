"""Maxima over windows.

A maximum is taken over fixed draws of a window's latents, correlated as the autocovariance says. Backward, a position
passes a window's gradient where its value v is the largest of the window's w positions, and those of two windows that overlap
where it is the largest of all u positions of both: with probability F(v)^(u - 1), F the distribution of the channel's values.
So with phi the activation before the pool, and P = F^(w - 1)

    E[dx] = m E[phi' P]            E[dx^2] = sum_lag E[g g'] E[phi'^2 F^(u - 1)]

over the lags of two windows that hold a position, which the engine gets as a chain of slope sqrt(A), A the sum of the powers by
what E[g g'] gives each, and a mean made smaller to match. What a window passes goes to one position, so that sums over
positions are sums over windows (`picks`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import skewness
from ..autocovariance import Autocovariance
from ..blocks import blocks_of
from ..channel_covariance import ChannelCovariance
from ..correlation import pairs
from ..curves import Seed
from ..picks import Picks
from ..quadrature import NODES, WEIGHTS, Array, expectation
from ..site import Contribution, Site
from ..state import GradientMoments, Moments
from .channel_taps import channels_through_taps
from .convolution import Geometry
from .taps import spread, strided, through_taps

__all__ = ["backward", "by_channel", "forward", "rank", "read", "values_of"]

_DRAWS = 512
_MAX_NUMBERS = 4_000_000


def forward(site: Site) -> Sequence[Moments]:
    """Moments of the largest of a window's values."""
    x, kernel, geometry = _window(site)
    largest, lengths = _largest(x, kernel, geometry), geometry.lengths(x.shape[1:])
    mean, variance = largest.mean(0), largest.var(0)
    lags = _pooled_lags(x, kernel, geometry, lengths)
    average = variance.mean(tuple(range(1, variance.ndim)))
    lags, channels = lags.scaled_to(average), None
    if x.channels is not None:
        rho = x.channels.correlation()
        between = channels_through_taps(rho, _ones(x, kernel), geometry.dilations, x.shape[0])
        pooled = ChannelCovariance(strided(between.pairs, geometry.strides, lengths))
        channels = pooled.scaled_to(average).with_lags(lags)
    skew = skewness.of_values(largest, np.full(len(largest), 1.0 / len(largest)))
    y = Moments(mean, variance, lags=lags, skewness=skew, channels=channels).repeated((x.shape[0], *lengths))
    return [y] * len(site.node.outputs)


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formulas above."""
    dy = gradients[0]
    assert dy is not None
    x, kernel, geometry = _window(site)
    values, size = values_of(x), int(np.prod(kernel))
    below = by_channel(rank, values)
    share, root = below ** (size - 1), np.sqrt(_passed(below, dy, geometry))
    slope = np.gradient(values, NODES, axis=0)
    wanted, given = expectation(slope * share), expectation(slope * root)
    scale = np.divide(wanted, given, out=np.zeros_like(given), where=given != 0)
    ones = np.ones((x.shape[0], 1, *kernel))
    grouped = replace(geometry, groups=x.shape[0])
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
    back = GradientMoments.of(mean, variance, lags=lags)
    if x.channels is not None:
        back = _with_channels(back, x, dy, geometry, np.sqrt(scale2))
    back = back.repeated(x.shape)
    together = site.y.known_lags.correlation()
    return [Seed(back, values, root, Picks(dy, _picked(values, x, kernel), root, together))]


def _with_channels(
    back: GradientMoments, x: Moments, dy: GradientMoments, geometry: Geometry, scale: Array
) -> GradientMoments:
    """With what channels have in common; of two channels any positions of a window may pass, of one the same alone."""
    channels = _channels_over_windows(dy.known_channels, x, geometry).scaled(scale).with_lags(back.known_lags)
    hessian = dy.channel_hessian
    if hessian is not None:
        alone = _over_windows(hessian.lags.with_lag0(np.zeros(len(scale))), x, geometry)
        hessian = _channels_over_windows(hessian, x, geometry).with_lags(alone.with_lag0(hessian.lags.lag0))
        hessian = hessian.scaled(scale)
    return replace(back, channels=channels, channel_hessian=hessian)


def _channels_over_windows(channels: ChannelCovariance, x: Moments, geometry: Geometry) -> ChannelCovariance:
    apart = ChannelCovariance(spread(channels.pairs, geometry.strides, x.shape[1:]))
    return channels_through_taps(apart, _ones(x, geometry.kernel), geometry.dilations, x.shape[0])


def _over_windows(lags: Autocovariance, x: Moments, geometry: Geometry) -> Autocovariance:
    apart = spread(lags, geometry.strides, x.shape[1:])
    return through_taps(apart, _ones(x, geometry.kernel), geometry.dilations, x.shape[0])


def _ones(x: Moments, kernel: tuple[int, ...]) -> Array:
    return np.ones((x.shape[0], 1, *kernel))


def _window(site: Site) -> tuple[Moments, tuple[int, ...], Geometry]:
    kernel: tuple[int, ...] = tuple(site.attribute("kernel_shape", ()))
    return site.x, kernel, Geometry.of(site, kernel, 1)


def values_of(x: Moments) -> Array:
    """The input as a function of its latent, or of itself, `[NODES, C, *positions]`."""
    if x.curve is not None:
        return x.curve.values
    x = x.narrow
    return np.asarray(x.mean + np.sqrt(x.variance) * NODES.reshape(-1, *[1] * x.mean.ndim))


def _passed(below: Array, dy: GradientMoments, geometry: Geometry) -> Array:
    """A of the formulas above over what one window gives a position, of the shape of `below`."""
    products = dy.known_lags + pairs(dy.mean)
    size, alone = int(np.prod(geometry.kernel)), np.maximum(products.lag0, np.finfo(float).tiny)
    result = np.zeros_like(below)
    for lag, common in _overlaps(geometry):
        where: Any = (slice(None), *lag)
        weight = products.near[where] / alone * (common / size)
        result += weight.reshape(-1, *[1] * (below.ndim - 2)) * below ** (2 * size - common - 1)
    return np.maximum(result, 0.0)


def _overlaps(geometry: Geometry) -> Iterator[tuple[tuple[int, ...], int]]:
    """Lags of two windows that have positions in common, with their number."""
    axes = [
        [(lag, k - abs(lag) * s) for lag in range(-((k - 1) // s), (k - 1) // s + 1)]
        for k, s in zip(geometry.kernel, geometry.strides, strict=True)
    ]
    for each in itertools.product(*axes):
        yield tuple(lag for lag, _ in each), int(np.prod([common for _, common in each]))


def by_channel(function: Callable[..., Array], values: Array, *parameters: Array) -> Array:
    """A function of `[C, values]`, their weights and parameters; a channel's values are those at all nodes and positions."""
    channels, positions = values.shape[1], int(np.prod(values.shape[2:]))
    own = np.moveaxis(values, 1, 0).reshape(channels, -1)
    weights = np.repeat(WEIGHTS / positions, positions)
    result = np.empty(own.shape)
    for block in blocks_of(channels, own.size):
        result[block] = function(own[block], weights, *(parameter[block] for parameter in parameters))
    return np.moveaxis(result.reshape(channels, *values.shape[:1], *values.shape[2:]), 0, 1)


def rank(rows: Array, weights: Array) -> Array:
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


def _picked(values: Array, x: Moments, kernel: tuple[int, ...]) -> Array:
    """The weight of each value among the largest of windows, whose sum over nodes and mean over positions is 1."""
    positions = int(np.prod(values.shape[2:]))
    return by_channel(_steps_of_power, values, _independent(_window_correlation(x, kernel))) * positions


def _steps_of_power(rows: Array, weights: Array, exponent: Array) -> Array:
    """By how much each number of its row raises the power of their distribution."""
    order = np.argsort(rows, 1, kind="stable")
    upto = np.minimum(np.cumsum(weights[order], 1), 1.0)
    steps = np.diff(upto ** exponent[:, None], axis=1, prepend=0.0)
    result = np.empty(rows.shape)
    np.put_along_axis(result, order, steps, 1)
    return result


def _independent(correlation: Array) -> Array:
    """How many independent Gaussians all lie below their mean as often as those of a window, `[C]`.

    Those of a window are taken as alike: with r their mean correlation, each is sqrt(r) z + sqrt(1 - r) e.
    """
    size = correlation.shape[-1]
    if size == 1:
        return np.ones(len(correlation))
    others = (correlation.sum((1, 2)) - size) / (size * (size - 1))
    r = np.clip(others, 0.0, 0.99)
    below = np.interp(-np.sqrt(r / (1.0 - r))[:, None] * NODES, NODES, np.cumsum(WEIGHTS) - 0.5 * WEIGHTS)
    return np.asarray(-np.log2(below**size @ WEIGHTS))


def _largest(x: Moments, kernel: tuple[int, ...], geometry: Geometry) -> Array:
    """Draws of each window's largest value, `[draws, C, *positions]`."""
    values = values_of(x)
    shared = values.shape[2:] != x.shape[1:]
    taps = [values] * int(np.prod(kernel)) if shared else _taps(values, kernel, geometry)
    draws = int(max(64, min(_DRAWS, _MAX_NUMBERS // taps[0][0].size)))
    xi = np.moveaxis(_latent_draws(x, kernel, draws), 0, -1)  # [places, draws, C]
    xi = xi.reshape(*xi.shape, *[1] * len(kernel))
    return np.asarray(np.max([read(tap, xi[index]) for index, tap in enumerate(taps)], axis=0))


def _taps(values: Array, kernel: tuple[int, ...], geometry: Geometry) -> list[Array]:
    """The curves at each place of a window, `[NODES, C, *windows]`; padding is never the largest."""
    nodes, channels = values.shape[:2]
    flat = values.reshape(nodes * channels, *values.shape[2:])
    padded = np.pad(flat, ((0, 0), *geometry.pads), constant_values=-np.inf)
    windows = replace(geometry, pads=((0, 0),) * len(kernel)).windows(padded)
    by_place = windows.reshape(len(flat), -1, *windows.shape[-len(kernel) :])
    shape = (nodes, channels, *windows.shape[-len(kernel) :])
    return [by_place[:, place].reshape(shape) for place in range(by_place.shape[1])]


def _window_correlation(x: Moments, kernel: tuple[int, ...]) -> Array:
    """Of the standardised latents of a window, `[C, places, places]`."""
    rho = x.known_lags.correlation() if x.curve is None else x.curve.rho
    rho = rho.lags if isinstance(rho, ChannelCovariance) else rho
    assert isinstance(rho, Autocovariance)
    lengths = rho.near.shape[1:]
    taps = list(itertools.product(*(range(k) for k in kernel)))
    lags = [[tuple((a - b) % n for a, b, n in zip(p, q, lengths, strict=True)) for q in taps] for p in taps]
    by_lag = np.moveaxis(rho.near, 0, -1)
    return np.stack([np.stack([by_lag[lag] for lag in row], -1) for row in lags], -2)


def _latent_draws(x: Moments, kernel: tuple[int, ...], draws: int) -> Array:
    """Fixed antithetic draws of the standardised latents of a window, `[C, places of the window, draws]`."""
    values, vectors = np.linalg.eigh(_window_correlation(x, kernel))
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    half = np.random.default_rng(0).standard_normal((root.shape[-1], draws // 2))
    return np.asarray(root @ np.concatenate([half, -half], 1))


def read(curve: Array, xi: Array) -> Array:
    """Linear interpolation of curves `[NODES, *elements]` at draws that broadcast against them, `[draws, *elements]`."""
    step = NODES[1] - NODES[0]
    place = np.clip((xi - NODES[0]) / step, 0.0, len(NODES) - 1.001)
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
