"""Means over all positions, and maxima over windows.

A maximum is taken over fixed draws of a window's latents, correlated as the autocovariance says. Backward, each position of a window
is the largest one time in as many; the slope that its activation has there is that of the maximum, not that of any position:

    m -> m / w E[phi'(max)] / E[phi'],      s -> s / w E[phi'(max)^2] / E[phi'^2]           (w: positions of a window)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..correlation import correlation
from ..quadrature import NODES, Array, expectation
from ..site import Contribution, Site
from ..state import GradientMoments, Moments
from .convolution import Geometry, lag0, strided, through_taps

__all__ = ["global_mean_backward", "global_mean_forward", "max_pool_backward", "max_pool_forward"]

_DRAWS = 512
_MAX_RATIO = 4.0
"""Bound of the slope ratios, which are noisy where an activation is nearly always flat."""


def global_mean_forward(site: Site) -> Sequence[Moments]:
    """y = mean over positions: its variance is the mean of the autocovariance over all lags."""
    x = site.x
    positions = tuple(range(1, x.mean.ndim))
    shape = site.x.shape[:1] + (1,) * (len(positions) if _keeps_axes(site) else 0)
    mean, variance = x.mean.mean(positions), np.maximum(x.known_covariance.mean(positions), 0.0)
    return [Moments(mean.reshape(shape), variance.reshape(shape))]


def global_mean_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """dy / n at every position, the same at all."""
    dy, x = gradients[0], site.x
    assert dy is not None
    column, count = (x.shape[0], *[1] * (x.mean.ndim - 1)), x.mean[0].size
    mean, variance = dy.mean.reshape(column) / count, dy.variance.reshape(column) / count**2
    full = np.broadcast_to(variance, x.shape)
    back = GradientMoments.of(np.broadcast_to(mean, x.shape), full, full)
    return [GradientMoments(back.mean, back.variance, full, dy.cancelled, back.tilt)]


def _keeps_axes(site: Site) -> bool:
    return site.node.op_type == "GlobalAveragePool" or bool(site.attribute("keepdims", 1))


def max_pool_forward(site: Site) -> Sequence[Moments]:
    """Moments of the largest of a window's values; positions of a channel share them."""
    x, kernel, geometry = _window(site)
    largest = _draws(x, kernel)[0]
    mean, variance = largest.mean(1), largest.var(1)
    lengths = geometry.windows(np.zeros((1, *x.shape[1:]))).shape[-len(kernel) :]
    column = (-1, *[1] * len(kernel))
    shape = (x.shape[0], *lengths)
    y = Moments(
        np.broadcast_to(mean.reshape(column), shape), np.broadcast_to(variance.reshape(column), shape)
    )
    covariance = _pooled_correlation(x, kernel, geometry, lengths) * variance.reshape(column)
    return [Moments(y.mean, y.variance, covariance)] * len(site.node.outputs)


def max_pool_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formula above."""
    dy = gradients[0]
    assert dy is not None
    x, kernel, geometry = _window(site)
    first, second = _draws(x, kernel)[1:]
    size, column = int(np.prod(kernel)), (-1, *[1] * len(kernel))
    ones = np.ones((x.shape[0], 1, *kernel)) / size
    spread = Geometry(geometry.strides, geometry.dilations, geometry.pads, x.shape[0], kernel)
    mean = spread.transpose(dy.mean, ones, x.shape) * first.reshape(column)
    square = spread.transpose(dy.second, ones, x.shape) * second.reshape(column)
    return [GradientMoments.of(mean, np.maximum(square - mean**2, 0.0))]


def _window(site: Site) -> tuple[Moments, tuple[int, ...], Geometry]:
    kernel = tuple(site.attribute("kernel_shape", ()))
    return site.x, kernel, Geometry.of(site, kernel, 1)


def _draws(x: Moments, kernel: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Draws of the maximum `[C, draws]`, and the ratios E[phi'(max)^j] / E[phi'^j] for j = 1, 2, `[C]`."""
    curve = _channel_curve(x)
    slope = np.gradient(curve, NODES, axis=0)
    xi = _latent_draws(x, kernel)
    values, slopes = _read(curve, xi), _read(slope, xi)
    winner = values.argmax(1)[:, None]
    at_winner = np.take_along_axis(slopes, winner, 1)[:, 0]
    ratios = []
    for power in (1, 2):
        usual = expectation(slope**power)
        largest = (at_winner**power).mean(1)
        ratio = np.divide(largest, usual, out=np.ones_like(usual), where=np.abs(usual) > 0)
        ratios.append(np.clip(ratio, 0.0, _MAX_RATIO))
    return np.take_along_axis(values, winner, 1)[:, 0], ratios[0], ratios[1]


def _channel_curve(x: Moments) -> Array:
    """The function of the latent, `[NODES, C]`, the mean over positions."""
    channels = x.shape[0]
    if x.curve is not None:
        return x.curve.values.reshape(len(NODES), channels, -1).mean(2)
    mean, std = x.mean.reshape(channels, -1).mean(1), np.sqrt(x.variance.reshape(channels, -1).mean(1))
    return mean + std * NODES[:, None]


def _latent_draws(x: Moments, kernel: tuple[int, ...]) -> Array:
    """Fixed antithetic draws of the standardised latents of a window, `[C, positions of the window, draws]`."""
    rho = correlation(x)
    assert rho is not None
    taps = list(itertools.product(*(range(k) for k in kernel)))
    lags = [
        [tuple((a - b) % n for a, b, n in zip(p, q, x.shape[1:], strict=True)) for q in taps] for p in taps
    ]
    matrix = np.stack([np.stack([rho[(slice(None), *lag)] for lag in row], -1) for row in lags], -2)
    values, vectors = np.linalg.eigh(matrix)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    half = np.random.default_rng(0).standard_normal((len(taps), _DRAWS // 2))
    return root @ np.concatenate([half, -half], 1)


def _read(curve: Array, xi: Array) -> Array:
    """Linear interpolation of curves `[NODES, C]` at `[C, positions, draws]`."""
    step = NODES[1] - NODES[0]
    place = np.clip((xi - NODES[0]) / step, 0.0, len(NODES) - 1.001)
    low = place.astype(int)
    channel = np.arange(xi.shape[0])[:, None, None]
    part = place - low
    return curve[low, channel] * (1.0 - part) + curve[low + 1, channel] * part


def _pooled_correlation(
    x: Moments, kernel: tuple[int, ...], geometry: Geometry, lengths: tuple[int, ...]
) -> Array:
    """Correlation of two windows' maxima, taken as that of their means."""
    rho = correlation(x)
    assert rho is not None
    ones = np.ones((x.shape[0], 1, *kernel))
    grouped = Geometry(geometry.strides, geometry.dilations, geometry.pads, x.shape[0], kernel)
    summed = strided(through_taps(rho, ones, grouped), geometry.strides, lengths)
    return summed / lag0(summed).reshape(-1, *[1] * len(kernel))
