"""Convolutions, and average pooling as one.

Mean and variance are carried for each position by convolving with W and W o W; the variance is then corrected for the
correlation of neighbouring positions, which goes through the taps as an autocovariance (`taps`). Backward the same with W
transposed and the lags spread out. What all lags have in common follows from the sum over positions, in which borders count
(`tap_sums`). The weight's gradient sums dy(p) x(p + k) over positions:

    E = corr(m, mu) + W o corr(tilt / sigma, v)
    Var = [corr(s, E x^2) - corr(m^2, mu^2)] raw / white / batch
    raw = sum_lag K_dy K_x + m^2 sum_lag K_x + total / n mu^2 + K_dy(0) Var_p(mu),     white: raw if both were uncorrelated

m, s, mu, v, n: mean and second moment of dy, mean and variance of x, positions.

Of large layers all positions are taken as alike. A tap then counts by the share of positions at which it lies inside the image:
padding takes from the average what it takes at the border.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..autocovariance import Autocovariance
from ..blocks import aligned, each, one_of, product
from ..channel_covariance import ChannelCovariance
from ..quadrature import Array
from ..site import Contribution, Site
from ..state import GradientByRows, GradientMoments, Moments, ParameterGradient, are_alike
from .channel_taps import at_taps, channels_through_taps, ungrouped
from .tap_sums import of_channels, of_pairs
from .taps import per_group, spread, strided, summed, through_taps, turned

__all__ = [
    "Geometry",
    "adjoint",
    "average_pool_backward",
    "average_pool_forward",
    "backward",
    "convolved",
    "forward",
    "gathered",
    "weight_gradient",
]

ALIKE = 5_000
"""Numbers of an output from which its positions are taken as alike: 12 x 12 positions of 34 channels."""

Either = TypeVar("Either", Moments, GradientMoments)


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

    def shares(self, lengths: tuple[int, ...], outputs: tuple[int, ...]) -> Array:
        """Share of the outputs for which a tap reads inside the image, `[*kernel]`."""
        parts = [taps.mean(1) for taps in self.inside(lengths, outputs)]
        return np.asarray(functools.reduce(np.multiply.outer, parts))

    def inside(self, lengths: tuple[int, ...], outputs: tuple[int, ...]) -> list[Array]:
        """For each axis, 1 where a tap of an output reads inside the image and 0 where it does not, `[taps, outputs]`."""
        reads = zip(self._reads(outputs), lengths, strict=True)
        return [((read >= 0) & (read < n)).astype(np.float64) for read, n in reads]

    def reached(self, lengths: tuple[int, ...], outputs: tuple[int, ...]) -> list[Array]:
        """For each axis, 1 where a tap of some output reads a position, `[taps, positions]`."""
        reads = zip(self._reads(outputs), lengths, strict=True)
        return [(read[:, :, None] == np.arange(n)).any(1).astype(np.float64) for read, n in reads]

    def _reads(self, outputs: tuple[int, ...]) -> list[Array]:
        """For each axis, the position that a tap of an output reads, `[taps, outputs]`."""
        axes = zip(self.kernel, self.dilations, self.pads, self.strides, outputs, strict=True)
        return [
            np.arange(taps)[:, None] * dilation - pads[0] + np.arange(m) * stride
            for taps, dilation, pads, stride, m in axes
        ]

    def lengths(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Output positions of each axis."""
        axes = zip(inputs, self.pads, self.dilations, self.kernel, self.strides, strict=True)
        return tuple((n + sum(pads) - d * (k - 1) - 1) // s + 1 for n, pads, d, k, s in axes)

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

    def convolve(self, x: Array, weight: Array, square: bool = False) -> Array:
        """x `[C, *S]`, weight `[O, C / groups, *kernel]`, or its squares."""
        if are_alike(x):
            outputs = self.lengths(x.shape[1:])
            matrix = summed(weight, self.shares(x.shape[1:], outputs).reshape(-1), square)
            return _everywhere(per_group(matrix, _one(x), self.groups), outputs)
        weight = np.square(weight) if square else weight
        rank, columns = len(self.kernel), self.windows(x)
        parts = [
            np.tensordot(w, c, rank + 1)
            for w, c in zip(np.split(weight, self.groups), np.split(columns, self.groups), strict=True)
        ]
        return np.concatenate(parts)

    def transpose(self, y: Array, weight: Array, shape: tuple[int, ...], square: bool = False) -> Array:
        """The adjoint of `convolve`, for an input of this shape."""
        if are_alike(y):
            shares = self.shares(shape[1:], y.shape[1:]) * (np.prod(y.shape[1:]) / np.prod(shape[1:]))
            matrix = turned(summed(weight, shares.reshape(-1), square), self.groups)
            return _everywhere(per_group(matrix, _one(y), self.groups), shape[1:])
        weight = np.square(weight) if square else weight
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
        if are_alike(x) and are_alike(y):
            counts = self.shares(x.shape[1:], y.shape[1:]) * np.prod(y.shape[1:])
            pairs = zip(np.split(_one(y), self.groups), np.split(_one(x), self.groups), strict=True)
            products = np.concatenate([np.outer(g, c) for g, c in pairs])
            return np.asarray(np.multiply.outer(products, counts))
        rank, columns = len(self.kernel), self.windows(x)
        positions = tuple(range(1, rank + 1)), tuple(range(rank + 1, 2 * rank + 1))
        parts = [
            np.tensordot(g, c, positions)
            for g, c in zip(np.split(y, self.groups), np.split(columns, self.groups), strict=True)
        ]
        return np.concatenate(parts)


def _one(x: Array) -> Array:
    return one_of(x, tuple(range(1, x.ndim))).reshape(-1)


def _everywhere(channels: Array, lengths: tuple[int, ...]) -> Array:
    return np.broadcast_to(channels.reshape(-1, *[1] * len(lengths)), (len(channels), *lengths))


def forward(site: Site) -> Sequence[Moments]:
    """y = W * x + b."""
    weight, geometry = _weight(site)
    y = convolved(site.x, weight, geometry, site.full_covariance)
    if site.is_static(2):
        bias = site.array(2).reshape(-1, *[1] * (y.mean.ndim - 1))
        y = replace(y, mean=each(lambda mean: mean + bias, y.mean))
    return [y]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The adjoint, and the sums over positions above."""
    assert gradients[0] is not None
    weight, geometry = _weight(site)
    x, dy = _settled(site.x, site.y.shape), _settled(gradients[0], site.y.shape)
    dbias = ParameterGradient(_summed(dy.mean), dy.total) if site.is_static(2) else None
    dx = adjoint(x.shape, dy, weight, geometry, site.full_covariance)
    return dx, weight_gradient(x, site.y, dy, weight, geometry), dbias


def average_pool_forward(site: Site) -> Sequence[Moments]:
    """A convolution of each channel with equal weights; at a padded border the mean counts the padding."""
    return [convolved(site.x, *_pool_weight(site), site.x.channels is not None)]


def average_pool_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The adjoint."""
    assert gradients[0] is not None
    weight, geometry = _pool_weight(site)
    dy = _settled(gradients[0], site.y.shape)
    return [adjoint(site.x.shape, dy, weight, geometry, dy.channels is not None)]


def _weight(site: Site) -> tuple[Array, Geometry]:
    weight = aligned(site.array(1))
    weight = weight if weight.dtype == np.float64 else weight.astype(np.float32, copy=False)
    return weight, Geometry.of(site, weight.shape[2:], site.attribute("group", 1))


def _pool_weight(site: Site) -> tuple[Array, Geometry]:
    kernel: tuple[int, ...] = tuple(site.attribute("kernel_shape", ()))
    channels = site.x.shape[0]
    return np.full((channels, 1, *kernel), 1.0 / np.prod(kernel)), Geometry.of(site, kernel, channels)


def _settled(x: Either, output: tuple[int, ...]) -> Either:
    """With positions that are alike for a large layer, and written out for a small one.

    What the mean differs by from position to position then varies.
    """
    alike, positions = are_alike(x.mean, x.variance), tuple(range(1, x.mean.ndim))
    if np.prod(output) < ALIKE:
        return replace(x, mean=np.array(x.mean), variance=np.array(x.variance)) if alike else x
    if alike:
        return x
    mean = x.mean.mean(positions, keepdims=True)
    variance = (x.variance + (x.mean - mean) ** 2).mean(positions, keepdims=True)
    lags = x.known_lags.scaled_to(variance.reshape(-1))
    channels = None if x.channels is None else x.channels.scaled_to(variance.reshape(-1))
    one = replace(x, mean=mean, variance=variance, lags=lags, channels=channels)
    if isinstance(one, GradientMoments):
        one = replace(one, tilt=one.tilt.mean(positions, keepdims=True))
    return one.repeated(x.mean.shape)


def _summed(x: Array) -> Array:
    """Sum over positions."""
    return np.asarray(_mean(x) * x[0].size)


def _mean(x: Array) -> Array:
    """Mean over positions."""
    positions = tuple(range(1, x.ndim))
    return np.asarray(one_of(x, positions).mean(positions))


def convolved(x: Moments, weight: Array, geometry: Geometry, full: bool = False) -> Moments:
    """Moments of W * x, with the covariance between channels where it is asked for."""
    x = _settled(x, (len(weight), *geometry.lengths(x.shape[1:])))
    y = Moments(geometry.convolve(x.mean, weight), geometry.convolve(x.variance, weight, square=True))
    lags, channels = _through(x, weight, geometry, full)
    variance = y.variance
    if channels is not None or math.prod(geometry.kernel) > 1:  # one tap reads no two positions
        variance = _corrected(variance, lags, x.known_lags, summed(weight, square=True), geometry)
    lags, average = strided(lags, geometry.strides, variance.shape[1:]), _mean(variance)
    used = geometry.reached(x.shape[1:], variance.shape[1:])
    taps, nothing = turned(weight, geometry.groups), np.zeros(len(x.mean))
    if channels is None:
        total, _ = of_channels(x, nothing, taps, used, geometry.groups)
        return Moments(y.mean, variance, lags=lags.scaled_to(average).summing_to(total / lags.count))
    kept = ChannelCovariance(strided(channels.pairs, geometry.strides, variance.shape[1:])).scaled_to(average)
    whole, _ = of_pairs(x, nothing, np.swapaxes(ungrouped(weight, geometry.groups), 0, 1), used)
    channels = kept.summing_to(whole / lags.count)
    return Moments(y.mean, variance, lags=channels.lags, channels=channels)


def adjoint(
    shape: tuple[int, ...], dy: GradientMoments, weight: Array, geometry: Geometry, full: bool = False
) -> GradientMoments:
    """Moments of what a convolution's input of this shape receives, or of what a transposed convolution gives."""
    mean, variance = (
        geometry.transpose(moment, weight, shape, square)
        for moment, square in ((dy.mean, False), (dy.variance, True))
    )
    apart = _spread(dy, geometry, shape[1:], full)
    lags, channels = _through(apart, weight, geometry, full, back=True)
    if channels is not None or math.prod(geometry.kernel) > 1:
        squares = turned(summed(weight, square=True), geometry.groups)
        variance = _corrected(variance, lags, apart.known_lags, squares, geometry)
    back = GradientMoments.of(mean, variance, lags=lags.scaled_to(_mean(variance)))
    if dy.scale_free is not None and geometry.groups == shape[0]:  # then the sum of dx x is that of dy y
        back = replace(back, scale_free=np.all(dy.scale_free.reshape(shape[0], -1), 1))
    inside = geometry.inside(shape[1:], dy.mean.shape[1:])
    if channels is None:
        return _with_total(back, dy, weight, geometry.groups, inside)
    return _with_channels(back, apart, channels, weight, geometry, dy, inside)


def _with_total(
    back: GradientMoments, dy: GradientMoments, weight: Array, groups: int, inside: Sequence[Array]
) -> GradientMoments:
    """With the sum over positions of one example, and over a batch."""
    one, total = of_channels(dy, dy.cancelled, weight, inside, groups)
    lags = back.known_lags
    return replace(back, lags=lags.summing_to(one / lags.count), cancelled=one - total)


def _with_channels(
    back: GradientMoments,
    apart: GradientMoments,
    channels: ChannelCovariance,
    weight: Array,
    geometry: Geometry,
    dy: GradientMoments,
    inside: Sequence[Array],
) -> GradientMoments:
    """The same of correlated channels, and their hessian."""
    one, total = of_pairs(dy, dy.cancelled, ungrouped(weight, geometry.groups), inside)
    known, hessian = channels.scaled_to(back.known_lags.lag0), apart.channel_hessian
    if hessian is not None:
        hessian = channels_through_taps(hessian, weight, geometry.dilations, geometry.groups, back=True)
        hessian = hessian.scaled(np.sqrt(_ratio(known.lags.lag0, channels.lags.lag0)))
    known = known.summing_to(one / known.pairs.count)
    cancelled = np.diag(one) - np.maximum(np.diag(total), 0.0)
    return replace(back, lags=known.lags, channels=known, channel_hessian=hessian, cancelled=cancelled)


def gathered(dy: GradientMoments, weight: Array, geometry: Geometry) -> GradientMoments:
    """What a transposed convolution's input receives, the convolution of dy, and the sum of it over positions as above."""
    dx = convolved(Moments(dy.mean, dy.variance, lags=dy.known_lags), weight, geometry)
    used = geometry.reached(dy.mean.shape[1:], dx.shape[1:])
    _, total = of_channels(dy, dy.cancelled, turned(weight, geometry.groups), used, geometry.groups)
    lags = dx.known_lags
    cancelled = lags.count * lags.total() - total
    return replace(GradientMoments.of(dx.mean, dx.variance, lags=lags), cancelled=cancelled)


def _through(
    x: Moments | GradientMoments, weight: Array, geometry: Geometry, full: bool, back: bool = False
) -> tuple[Autocovariance, ChannelCovariance | None]:
    """Lags behind the taps, of each channel and of each pair."""
    if not full:
        return through_taps(x.known_lags, weight, geometry.dilations, geometry.groups, back), None
    channels = channels_through_taps(x.known_channels, weight, geometry.dilations, geometry.groups, back)
    return channels.lags, channels


def _spread(dy: GradientMoments, geometry: Geometry, lengths: tuple[int, ...], full: bool) -> GradientMoments:
    """Its lags on the positions of the input."""
    if not full:
        return replace(dy, lags=spread(dy.known_lags, geometry.strides, lengths))
    channels, hessian = (
        None if k is None else ChannelCovariance(spread(k.pairs, geometry.strides, lengths))
        for k in (dy.known_channels, dy.channel_hessian)
    )
    assert channels is not None
    return replace(dy, lags=channels.lags, channels=channels, channel_hessian=hessian)


def _corrected(
    variance: Array, lags: Autocovariance, before: Autocovariance, squares: Array, geometry: Geometry
) -> Array:
    """By what the correlation of positions, and that of channels where `lags` tells of it, makes of each channel."""
    white = per_group(squares, before.lag0, geometry.groups)
    ratio = np.divide(lags.lag0, white, out=np.ones_like(white), where=white > 0)
    ratio = np.maximum(ratio, 0.0).reshape(-1, *[1] * (variance.ndim - 1))
    return each(lambda v: v * ratio, variance)


def weight_gradient(
    x: Moments, y: Moments, dy: GradientMoments, weight: Array, geometry: Geometry
) -> ParameterGradient | GradientByRows:
    """Of the sums over positions of dy(p) x(p + k)."""
    tilt = each(_over_deviation, dy.tilt, y.variance)
    is_tilted = bool(np.any(one_of(tilt, tuple(range(1, tilt.ndim)))))
    ratio = functools.cache(lambda: _correlated_positions(x, dy, geometry))
    moved = _moved(x, dy, weight, geometry)
    leaning = _leaning(x, y, dy, weight)
    x_second, x_squares = x.second, each(np.square, x.mean)
    dy_second, dy_squares = dy.second, each(np.square, dy.mean)

    def rows(part: slice) -> ParameterGradient:
        mean = geometry.correlate(dy.mean[part], x.mean)
        if moved is not None:
            mean += moved[part]
        elif is_tilted:
            mean += weight[part] * geometry.correlate(tilt[part], x.variance)
        variance = geometry.correlate(dy_second[part], x_second)
        variance -= geometry.correlate(dy_squares[part], x_squares)
        variance = np.maximum(variance, 0.0, out=variance)
        variance *= _beside_taps(ratio()[part], geometry)
        if leaning is not None:
            variance += np.square(weight[part], dtype=np.float64) * _beside_taps(leaning[part], geometry)
        return ParameterGradient(mean, variance)

    def sums() -> tuple[float, float]:
        counts = geometry.shares(x.shape[1:], dy.mean.shape[1:]).reshape(-1) * np.prod(dy.mean.shape[1:])
        m, mu, t, v = (_one(each) for each in (dy.mean, x.mean, tilt, x.variance))
        means = np.sum(m**2) * np.sum(mu**2) * np.sum(counts**2)
        variances = np.sum(counts) * _sum_of_raw(x, dy, geometry)
        if is_tilted:
            means += 2.0 * product(m * t, summed(weight, counts**2)) @ (mu * v)
            means += product(t**2, summed(weight, counts**2, square=True)) @ v**2
        if leaning is not None:
            variances += np.sum(leaning * summed(weight, square=True))
        return float(means), float(variances)

    # Outputs of several groups read different inputs, so that their rows do not go together.
    if geometry.groups > 1:
        return rows(slice(None))
    return GradientByRows(weight.shape, rows, sums if moved is None and _is_even(x, dy) else None)


def _is_even(x: Moments, dy: GradientMoments) -> bool:
    """Whether all positions are alike, and lag 0 is the variance: the variance is then `raw` itself at every tap inside."""
    if not are_alike(x.mean, x.variance, dy.mean, dy.variance, dy.tilt):
        return False
    return all(np.allclose(each.known_lags.lag0, _one(each.variance), 1e-9, 0.0) for each in (x, dy))


def _sum_of_raw(x: Moments, dy: GradientMoments, geometry: Geometry) -> float:
    """Over all pairs of channels, which is `raw` of the sums over channels."""
    k_x, k_dy = strided(x.known_lags, geometry.strides, dy.mean.shape[1:]).summed(), dy.known_lags.summed()
    raw = k_dy.products(k_x).item() + np.sum(_one(dy.mean) ** 2) * k_x.total().item()
    return max(float(raw + np.sum(dy.total) / k_dy.count * np.sum(_one(x.mean) ** 2)), 0.0)


def _moved(x: Moments, dy: GradientMoments, weight: Array, geometry: Geometry) -> Array | None:
    """The part of the mean by what dy moves with, where that is known between channels."""
    if dy.channel_hessian is None or x.channels is None or geometry.groups > 1:
        return None
    lengths = x.shape[1:]
    hessian = ChannelCovariance(spread(dy.channel_hessian.pairs, geometry.strides, lengths))
    shares = geometry.shares(lengths, dy.mean.shape[1:]) * math.prod(lengths)
    return np.asarray(at_taps(hessian, weight, x.channels, geometry.dilations) * shares)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.ones(len(numerator)), where=denominator > 0)


def _over_deviation(tilt: Array, variance: Array) -> Array:
    return np.divide(tilt, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)


def _beside_taps(pairs: Array, geometry: Geometry) -> Array:
    return pairs.reshape(*pairs.shape, *[1] * len(geometry.kernel))


def _leaning(x: Moments, y: Moments, dy: GradientMoments, weight: Array) -> Array | None:
    """What the formula leaves out where an activation makes dy lean on y, and so on x; over W^2, `[O, C / groups]`.

    With xi the standardised y and c_k = Cov(x(p + k), xi(p)) = W(k) E v / sqrt(E Var y), the sum of dy(p) x(p + k) has the part
    c_k sum_p dy xi, whose variance is known (`tilted_total`); as if independent of y, dy gave it n sum_lag E[dy dy'] rho_y.
    """
    outputs, own = weight.shape[:2]
    if dy.tilted_total is None:
        return None
    raw = dy.known_lags + _squares(dy.mean)
    counted = raw.count * (raw * y.known_lags.scaled_to(np.ones(outputs))).total() - _summed(dy.tilt) ** 2
    more = np.maximum(dy.tilted_total - np.maximum(counted, 0.0), 0.0)
    variance = np.maximum(_mean(y.variance), np.finfo(float).tiny)
    inputs = _mean(x.variance)
    groups = len(inputs) // own
    fed = np.repeat(inputs.reshape(groups, own), outputs // groups, 0)
    return np.asarray(fed**2 * (more / variance).reshape(-1, 1))


def _squares(mean: Array) -> Array:
    """Mean square over positions, `[C, 1, ...]`."""
    positions = tuple(range(1, mean.ndim))
    return np.asarray(np.mean(one_of(mean, positions) ** 2, positions, keepdims=True))


def _correlated_positions(x: Moments, dy: GradientMoments, geometry: Geometry) -> Array:
    """raw / white for each pair of channels, `[O, C / groups]`."""
    k_x, k_dy = strided(x.known_lags, geometry.strides, dy.mean.shape[1:]), dy.known_lags
    m2, total = _squares(dy.mean).reshape(-1), dy.total / k_dy.count
    mu2 = _mean(x.mean) ** 2
    var_mu = np.maximum(_squares(x.mean).reshape(-1) - mu2, 0.0)
    parts = []
    outputs, inputs = (np.split(np.arange(n), geometry.groups) for n in (len(m2), len(mu2)))
    for o, i in zip(outputs, inputs, strict=True):
        own, fed = k_dy.channels(o), k_x.channels(i)
        raw = own.products(fed)
        raw += np.stack([m2[o], total[o], own.lag0], 1) @ np.stack([fed.total(), mu2[i], var_mu[i]])
        white = np.stack([own.lag0, m2[o]], 1) @ np.stack([fed.lag0 + mu2[i] + var_mu[i], fed.lag0])
        parts.append(np.divide(np.maximum(raw, 0.0), white, out=np.ones_like(raw), where=white > 0))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
