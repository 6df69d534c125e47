"""Convolutions, and average pooling as one.

Mean and variance are carried for each position by convolving with W and W o W; the variance is then corrected for the
correlation of neighbouring positions, which the autocovariance carries: with A(t) = sum_k W(k) W(k + t) for each pair
of channels,

    K_y(lag) = sum_i (A_i * K_i)(lag)

on the torus, read at every stride-th lag. Backward the same with W transposed and the lags spread out. The weight's
gradient sums dy(p) x(p + k) over positions:

    E = corr(m, mu) + W o corr(tilt / sigma, v)
    Var = [corr(s, E x^2) - corr(m^2, mu^2)] raw / white / batch
    raw = sum_lag K_dy K_x + m^2 sum_lag K_x + total / n mu^2 + K_dy(0) Var_p(mu),     white: raw if both were uncorrelated

m, s, mu, v, n: mean and second moment of dy, mean and variance of x, positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..blocks import blocks_of
from ..quadrature import Array
from ..site import Contribution, Site
from ..state import GradientByRows, GradientMoments, Moments, ParameterGradient

__all__ = [
    "Geometry",
    "at_lag0",
    "average_pool_backward",
    "average_pool_forward",
    "backward",
    "forward",
    "spread",
    "strided",
    "through_taps",
]


_MANY_LAGS = 20
"""Lags of a kernel from which the spectrum is quicker: 3 by 3 taps have 13, 5 by 5 have 41."""


@dataclass(frozen=True)
class Geometry:
    """Stride, dilation and padding of each spatial axis, and groups."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int
    kernel: tuple[int, ...]

    @classmethod
    def of(cls, site: Site, kernel: tuple[int, ...], groups: int) -> Geometry:
        """From a node's attributes."""
        rank = len(kernel)
        pads = tuple(site.attribute("pads", (0,) * (2 * rank)))
        return cls(
            tuple(site.attribute("strides", (1,) * rank)),
            tuple(site.attribute("dilations", (1,) * rank)),
            tuple(zip(pads[:rank], pads[rank:], strict=True)),
            groups,
            kernel,
        )

    def windows(self, x: Array) -> Array:
        """Padded input read at every tap: `[C, *kernel, *output positions]`, without copying."""
        padded = np.pad(x, ((0, 0), *self.pads))
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        rank = len(self.kernel)
        view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(1, rank + 1)))
        steps = (slice(None), *(slice(None, None, s) for s in self.strides))
        taps = tuple(slice(None, None, d) for d in self.dilations)
        index: Any = (*steps, *taps)
        return np.moveaxis(view[index], range(-rank, 0), range(1, rank + 1))

    def convolve(self, x: Array, weight: Array) -> Array:
        """x `[C, *S]`, weight `[O, C / groups, *kernel]`."""
        rank, columns = len(self.kernel), self.windows(x)
        parts = [
            np.tensordot(w, c, rank + 1)
            for w, c in zip(np.split(weight, self.groups), np.split(columns, self.groups), strict=True)
        ]
        return np.concatenate(parts)

    def transpose(self, y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
        """The adjoint of `convolve`, for an input of this shape."""
        groups = zip(np.split(weight, self.groups), np.split(y, self.groups), strict=True)
        columns = np.concatenate([np.tensordot(w, g, (0, 0)) for w, g in groups])
        lengths = [n + before + after for n, (before, after) in zip(shape[1:], self.pads, strict=True)]
        padded = np.zeros((shape[0], *lengths))
        for tap in itertools.product(*(range(k) for k in self.kernel)):
            where: Any = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, s, n in zip(tap, self.dilations, self.strides, y.shape[1:], strict=True)
            )
            place: Any = (slice(None), *tap)
            padded[(slice(None), *where)] += columns[place]
        inner: Any = tuple(
            slice(before, before + n) for n, (before, _) in zip(shape[1:], self.pads, strict=True)
        )
        return padded[(slice(None), *inner)]

    def correlate(self, y: Array, x: Array) -> Array:
        """sum over positions of y(p) x(p + k), `[O, C / groups, *kernel]`."""
        rank, columns = len(self.kernel), self.windows(x)
        positions = tuple(range(1, rank + 1)), tuple(range(rank + 1, 2 * rank + 1))
        parts = [
            np.tensordot(g, c, positions)
            for g, c in zip(np.split(y, self.groups), np.split(columns, self.groups), strict=True)
        ]
        return np.concatenate(parts)


def forward(site: Site) -> Sequence[Moments]:
    """y = W * x + b."""
    weight, geometry = _weight(site)
    y = _forward(site.x, weight, geometry)
    if site.is_static(2):
        y = Moments(y.mean + site.array(2).reshape(-1, *[1] * (y.mean.ndim - 1)), y.variance, y.covariance)
    return [y]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The adjoint, and the sums over positions above."""
    dy = gradients[0]
    assert dy is not None
    weight, geometry = _weight(site)
    positions = tuple(range(1, dy.mean.ndim))
    dbias = ParameterGradient(dy.mean.sum(positions), dy.total) if site.is_static(2) else None
    return _backward(site.x, dy, weight, geometry), _weight_gradient(site, dy, weight, geometry), dbias


def average_pool_forward(site: Site) -> Sequence[Moments]:
    """A convolution of each channel with equal weights; at a padded border the mean counts the padding."""
    return [_forward(site.x, *_pool_weight(site))]


def average_pool_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The adjoint."""
    dy = gradients[0]
    assert dy is not None
    return [_backward(site.x, dy, *_pool_weight(site))]


def _weight(site: Site) -> tuple[Array, Geometry]:
    weight = site.array(1).astype(np.float64)
    return weight, Geometry.of(site, weight.shape[2:], site.attribute("group", 1))


def _pool_weight(site: Site) -> tuple[Array, Geometry]:
    kernel: tuple[int, ...] = tuple(site.attribute("kernel_shape", ()))
    channels = site.x.shape[0]
    return np.full((channels, 1, *kernel), 1.0 / np.prod(kernel)), Geometry.of(site, kernel, channels)


def _forward(x: Moments, weight: Array, geometry: Geometry) -> Moments:
    mean, variance = geometry.convolve(x.mean, weight), geometry.convolve(x.variance, weight**2)
    covariance = through_taps(x.known_covariance, weight, geometry)
    white_lag0 = _white_lag0(x.known_covariance, weight, geometry)
    variance = variance * _ratio(at_lag0(covariance), white_lag0, variance)
    covariance = strided(covariance, geometry.strides, variance.shape[1:])
    return Moments(mean, variance, _normalised(covariance, variance))


def _backward(x: Moments, dy: GradientMoments, weight: Array, geometry: Geometry) -> GradientMoments:
    mean = geometry.transpose(dy.mean, weight, x.shape)
    variance = geometry.transpose(dy.variance, weight**2, x.shape)
    apart = spread(dy.known_covariance, geometry.strides, x.shape[1:])
    turned = _transposed(weight, geometry.groups)
    covariance = through_taps(apart, turned, geometry)
    ratio = _ratio(at_lag0(covariance), _white_lag0(apart, turned, geometry), variance)
    variance = variance * ratio
    normalised = _normalised(covariance, variance)
    # Lag 0 lost what lies beyond the border; what was cancelled must lose as much.
    kept = np.divide(
        at_lag0(normalised), at_lag0(covariance), out=np.ones(len(covariance)), where=at_lag0(covariance) > 0
    )
    cancelled = _summed_taps(dy.cancelled, weight, geometry.groups) * kept
    return GradientMoments(mean, variance, normalised, cancelled, np.zeros(mean.shape))


def _summed_taps(cancelled: Array, weight: Array, groups: int) -> Array:
    """Variance of the sum over positions, carried back: a constant passes through the sum of the taps."""
    sums = weight.sum(tuple(range(2, weight.ndim))) ** 2
    parts = zip(np.split(cancelled, groups), np.split(sums, groups), strict=True)
    return np.concatenate([part @ taps for part, taps in parts])


def _weight_gradient(
    site: Site, dy: GradientMoments, weight: Array, geometry: Geometry
) -> ParameterGradient | GradientByRows:
    x, y = site.x, site.y
    std = np.sqrt(y.variance)
    tilt = np.divide(dy.tilt, std, out=np.zeros_like(std), where=std > 0)
    ratio = _correlated_positions(x, dy, geometry)
    leaning = _leaning(x, y, dy, weight)
    ones = [1] * len(geometry.kernel)

    def rows(part: slice) -> ParameterGradient:
        mean = geometry.correlate(dy.mean[part], x.mean)
        if np.any(tilt):
            mean = mean + weight[part] * geometry.correlate(tilt[part], x.variance)
        variance = geometry.correlate(dy.second[part], x.second)
        variance = variance - geometry.correlate(dy.mean[part] ** 2, x.mean**2)
        variance = np.maximum(variance, 0.0) * ratio[part].reshape(*ratio[part].shape, *ones)
        squares = np.square(weight[part], dtype=np.float64)
        return ParameterGradient(
            mean, variance + squares * leaning[part].reshape(*leaning[part].shape, *ones)
        )

    # Outputs of several groups read different inputs, so that their rows do not go together.
    return GradientByRows(weight.shape, rows) if geometry.groups == 1 else rows(slice(None))


def _leaning(x: Moments, y: Moments, dy: GradientMoments, weight: Array) -> Array:
    """What the formula leaves out where an activation makes dy lean on y, and so on x; over W^2, `[O, C / groups]`.

    With xi the standardised y and c_k = Cov(x(p + k), xi(p)) = W(k) E v / sqrt(E Var y), the sum of dy(p) x(p + k) has the part
    c_k sum_p dy xi, whose variance is known (`tilted_total`); as if independent of y, dy gave it n sum_lag E[dy dy'] rho_y.
    """
    outputs, own = weight.shape[:2]
    if dy.tilted_total is None:
        return np.zeros((outputs, own))
    positions = tuple(range(1, x.mean.ndim))
    rho = _normalised(y.known_covariance, np.ones(y.mean.shape))
    raw = dy.known_covariance + np.mean(dy.mean**2, positions, keepdims=True)
    counted = dy.mean[0].size * np.sum(raw * rho, positions) - np.sum(dy.tilt, positions) ** 2
    more = np.maximum(dy.tilted_total - np.maximum(counted, 0.0), 0.0)
    variance = np.maximum(y.variance.mean(positions), np.finfo(float).tiny)
    inputs = x.variance.mean(positions)
    groups = len(inputs) // own
    fed = np.repeat(inputs.reshape(groups, own), outputs // groups, 0)
    return np.asarray(fed**2 * (more / variance).reshape(-1, 1))


def _correlated_positions(x: Moments, dy: GradientMoments, geometry: Geometry) -> Array:
    """raw / white for each pair of channels, `[O, C / groups]`."""
    positions = tuple(range(1, x.mean.ndim))
    count = dy.mean[0].size
    k_x = strided(x.known_covariance, geometry.strides, dy.mean.shape[1:])
    k_dy, m2 = dy.known_covariance, np.mean(dy.mean**2, positions)
    mu = x.mean.mean(positions)
    var_mu = x.mean.var(positions)
    parts = []
    outputs, inputs = (np.split(np.arange(n), geometry.groups) for n in (len(k_dy), len(k_x)))
    for o, i in zip(outputs, inputs, strict=True):
        lags = k_dy[o].reshape(len(o), -1) @ k_x[i].reshape(len(i), -1).T
        raw = lags + np.outer(m2[o], k_x[i].sum(positions)) + np.outer(dy.total[o] / count, mu[i] ** 2)
        raw = raw + np.outer(at_lag0(k_dy[o]), var_mu[i])
        white = np.outer(at_lag0(k_dy[o]), at_lag0(k_x[i]) + mu[i] ** 2 + var_mu[i]) + np.outer(
            m2[o], at_lag0(k_x[i])
        )
        parts.append(np.divide(raw, white, out=np.ones_like(raw), where=white > 0))
    return np.asarray(np.maximum(np.concatenate(parts), 0.0))


def _transposed(weight: Array, groups: int) -> Array:
    """Weights of the adjoint convolution: `[C, O / groups, *kernel]`, taps reversed."""
    rank = weight.ndim - 2
    flipped = np.flip(weight, tuple(range(2, rank + 2)))
    return np.concatenate([np.swapaxes(part, 0, 1) for part in np.split(flipped, groups)])


def through_taps(covariance: Array, weight: Array, geometry: Geometry) -> Array:
    """Autocovariance after a convolution of stride 1, on the torus of the input's positions."""
    groups = zip(np.split(weight, geometry.groups), np.split(covariance, geometry.groups), strict=True)
    return np.concatenate([_through_taps(k, w, geometry.dilations) for w, k in groups])


def _through_taps(covariance: Array, weight: Array, dilations: Sequence[int]) -> Array:
    """Of one group: by the lags of a kernel of few taps, else by the spectrum, which depthwise kernels are quicker by too."""
    lags = _half_lags(weight.shape[2:])
    if len(lags) > 1 and (weight.shape[1] == 1 or len(lags) > _MANY_LAGS):
        return _by_spectrum(covariance, weight, dilations)
    taps = np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-2, -1)))
    result = np.zeros((len(weight), *covariance.shape[1:]))
    for lag in lags:
        result += np.tensordot(_autocorrelation(taps, lag), _both_ways(covariance, lag, dilations), 1)
    return result


def _half_lags(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Differences of two taps, one of each and its opposite."""
    lags = itertools.product(*(range(1 - taps, taps) for taps in kernel))
    return [lag for lag in lags if lag >= (0,) * len(kernel)]


def _autocorrelation(taps: Array, lag: Sequence[int]) -> Array:
    """A(lag), `[O, C / groups]`, of `[*kernel, O, C / groups]`; that of the opposite lag is the same."""
    before = tuple(slice(max(-n, 0), size - max(n, 0)) for n, size in zip(lag, taps.shape, strict=False))
    after = tuple(slice(max(n, 0), size - max(-n, 0)) for n, size in zip(lag, taps.shape, strict=False))
    return np.asarray((taps[before] * taps[after]).sum(tuple(range(len(lag)))))


def _both_ways(covariance: Array, lag: Sequence[int], dilations: Sequence[int]) -> Array:
    """K(. - lag) + K(. + lag) on the torus."""
    if not any(lag):
        return covariance
    shift = [n * step for n, step in zip(lag, dilations, strict=True)]
    axes = tuple(range(1, covariance.ndim))
    moved = np.roll(covariance, shift, axes)
    moved += np.roll(covariance, [-n for n in shift], axes)
    return moved


def _by_spectrum(covariance: Array, weight: Array, dilations: Sequence[int]) -> Array:
    """A block of outputs at a time."""
    lengths = covariance.shape[1:]
    axes = tuple(range(-len(lengths), 0))
    spectrum = np.fft.rfftn(covariance, axes=axes)
    size = len(weight) * covariance.size
    parts = []
    for outputs in blocks_of(len(weight), size):
        laid = _on_torus(weight[outputs], dilations, lengths)
        response = np.abs(np.fft.rfftn(laid, axes=axes)) ** 2
        parts.append(np.fft.irfftn(np.einsum("oi...,i...->o...", response, spectrum), s=lengths, axes=axes))
    return np.concatenate(parts)


def _on_torus(weight: Array, dilations: Sequence[int], lengths: Sequence[int]) -> Array:
    """The kernel's taps laid on a torus, which may be shorter than the kernel."""
    laid = np.zeros((*weight.shape[:2], *lengths))
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        where: Any = tuple((t * d) % n for t, d, n in zip(tap, dilations, lengths, strict=True))
        source: Any = (slice(None), slice(None), *tap)
        laid[(slice(None), slice(None), *where)] += weight[source]
    return laid


def _white_lag0(covariance: Array, weight: Array, geometry: Geometry) -> Array:
    """The variance that the taps would give if positions were uncorrelated."""
    energy = (weight**2).sum(tuple(range(2, weight.ndim)))
    white = at_lag0(covariance)
    groups = zip(np.split(energy, geometry.groups), np.split(white, geometry.groups), strict=True)
    return np.concatenate([e @ k for e, k in groups])


def at_lag0(covariance: Array) -> Array:
    """The variance of each channel."""
    return covariance.reshape(len(covariance), -1)[:, 0]


def _ratio(numerator: Array, denominator: Array, like: Array) -> Array:
    ratio = np.divide(numerator, denominator, out=np.ones_like(numerator), where=denominator > 0)
    return np.maximum(ratio, 0.0).reshape(-1, *[1] * (like.ndim - 1))


def _normalised(covariance: Array, variance: Array) -> Array:
    """Scaled so that lag 0 is the mean variance over the positions."""
    mean = variance.mean(tuple(range(1, variance.ndim)))
    return covariance * _ratio(mean, at_lag0(covariance), covariance)


def _signed_lags(length: int) -> Array:
    """The lags of a torus in its own order: 0, 1, ..., -2, -1."""
    return np.fft.fftfreq(length, 1.0 / length).round().astype(int)


def strided(covariance: Array, strides: Sequence[int], lengths: Sequence[int]) -> Array:
    """Every stride-th lag, on the smaller torus."""
    for axis, (stride, length) in enumerate(zip(strides, lengths, strict=True), start=1):
        index = (_signed_lags(length) * stride) % covariance.shape[axis]
        covariance = np.take(covariance, index, axis)
    return covariance


def spread(covariance: Array, strides: Sequence[int], lengths: Sequence[int]) -> Array:
    """Lags put stride apart on the larger torus; the zeros between take their share of the mean over positions."""
    for axis, (stride, length) in enumerate(zip(strides, lengths, strict=True), start=1):
        shape = list(covariance.shape)
        share, shape[axis] = shape[axis] / length, length
        wide = np.zeros(shape)
        index = (_signed_lags(covariance.shape[axis]) * stride) % length
        np.add.at(np.moveaxis(wide, axis, 0), index, np.moveaxis(covariance, axis, 0) * share)
        covariance = wide
    return covariance
