"""Dense layers that read all positions of all channels: what they need of a covariance, which would be too large as a matrix.

Forward, with K_cd(q - p) the covariance of channels (`channel_covariance`)

    Cov(x, x W)_cp = sum_dq K_cd(q - p) W_dq

Backward, the gradient W g of the positions of a gradient g of few elements of covariance S, averaged over p,

    K_cd(lag) = 1 / n sum_p sum_kl W_cpk S_kl W_d,p+lag,l

Both are products of spectra on a torus twice as long, on which nothing comes in again at the other side. A lag of up to half
a torus of near lags is one of them; others count as the largest where an axis is carried whole, else as far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .autocovariance import Autocovariance, torus
from .blocks import blocks_of
from .channel_covariance import ChannelCovariance
from .quadrature import Array

__all__ = ["Flattened", "Projected"]


_MAX_PRODUCTS = 300_000_000
"""Of a weight's elements and the channels and features that each meets; every product is one of complex numbers, at several
frequencies."""


@dataclass(frozen=True, eq=False)
class Flattened:
    """The covariance of a tensor `[C, *positions]` whose elements lie in one row."""

    covariance: ChannelCovariance

    def serves(self, weight: Array) -> bool:
        """Whether a product with a weight `[C * positions, m]` is a matter of a second at most."""
        return bool(weight.size * (self.covariance.channels + weight.shape[1]) <= _MAX_PRODUCTS)

    def __matmul__(self, weight: Array) -> Array:
        """Cov(x, x W) for a weight `[C * positions, m]`."""
        pairs, channels = self.covariance.pairs, self.covariance.channels
        images = _spectra(weight, channels, pairs.lengths)
        written = _written_out(pairs)
        parts = []
        for part in blocks_of(channels, written.size):
            rows = written.reshape(channels, channels, *written.shape[1:])[part]
            spectrum = np.conj(_spectrum(rows, pairs.lengths)) @ images
            parts.append(_cut(spectrum, pairs.lengths))
        return np.concatenate(parts).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Projected:
    """A gradient W g of many elements by one g of few.

    Attributes:
        weight: W, `[n, m]`.
        covariance: Of g, `[m, m]`.
        hessian: Of g; None counts as 0.
    """

    weight: Array
    covariance: Array
    hessian: Array | None

    def by_lags(self, matrix: Array, shape: tuple[int, ...]) -> ChannelCovariance:
        """The covariance between channels, or the hessian, of positions `[C, *positions]`; `matrix` is that of g."""
        channels, lengths = shape[0], shape[1:]
        spectrum = _spectra(self.weight, channels, lengths)
        passed = matrix @ np.swapaxes(spectrum, -1, -2)
        near, far = [], []
        for part in blocks_of(channels, channels * spectrum[..., 0].size):
            product = np.conj(spectrum[..., part, :]) @ passed
            whole = np.fft.irfftn(
                np.moveaxis(product, (-2, -1), (0, 1)), s=_twice(lengths), axes=_axes(lengths)
            )
            folded = _folded(whole / math.prod(lengths), lengths)
            near.append(folded[0])
            far.append(folded[1])
        rows = (
            np.concatenate(near).reshape(-1, *torus(lengths)),
            np.concatenate(far).reshape(-1, *[1] * len(lengths)),
        )
        return ChannelCovariance(Autocovariance(*rows, lengths))


def _axes(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(2, len(lengths) + 2))


def _twice(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(2 * n for n in lengths)


def _spectrum(images: Array, lengths: tuple[int, ...]) -> Array:
    """Of `[rows, columns, *positions]` with zeros up to twice the lengths, `[*frequencies, rows, columns]`."""
    spectrum = np.fft.rfftn(images, s=_twice(lengths), axes=_axes(lengths))
    return np.moveaxis(spectrum, (0, 1), (-2, -1))


def _spectra(weight: Array, channels: int, lengths: tuple[int, ...]) -> Array:
    """Of the images of a weight, `[*frequencies, C, m]`."""
    images = np.moveaxis(weight.reshape(channels, *lengths, weight.shape[1]), -1, 1)
    return _spectrum(images, lengths)


def _cut(spectrum: Array, lengths: tuple[int, ...]) -> Array:
    """Back to images, features last, `[C, *positions, m]`."""
    images = np.fft.irfftn(np.moveaxis(spectrum, (-2, -1), (0, 1)), s=_twice(lengths), axes=_axes(lengths))
    inside = images[(slice(None), slice(None), *(slice(0, n) for n in lengths))]
    return np.moveaxis(inside, 1, -1)


def _places(length: int) -> Array:
    """Where each lag 0, 1, ..., -2, -1 of a torus twice as long is among the near ones."""
    lags, near = np.fft.fftfreq(2 * length, 0.5 / length).round().astype(int), torus((length,))[0]
    return np.asarray(np.clip(lags, -(near // 2), near // 2) % near)


def _is_far(length: int) -> Array:
    """Which of them are far."""
    lags, near = np.fft.fftfreq(2 * length, 0.5 / length).round().astype(int), torus((length,))[0]
    return np.asarray((near < length) & (np.abs(lags) > near // 2))


def _written_out(pairs: Autocovariance) -> Array:
    """Every lag of the longer torus, `[pairs, *lags]`."""
    result = pairs.near
    for axis, length in enumerate(pairs.lengths, start=1):
        result = np.take(result, _places(length), axis)
        far = _is_far(length).reshape(-1, *[1] * (len(pairs.lengths) - axis))
        result = np.where(far, pairs.far, result)
    return result


def _folded(whole: Array, lengths: tuple[int, ...]) -> tuple[Array, Array]:
    """Near lags of `[C, C, *lags]`, and the mean of those that are far."""
    total, count = whole.sum(_axes(lengths), keepdims=True), math.prod(lengths)
    for axis, length in zip(_axes(lengths), lengths, strict=True):
        kept = np.moveaxis(whole, axis, 0)
        near = np.zeros((torus((length,))[0], *kept.shape[1:]))
        inside = ~_is_far(length)
        np.add.at(near, _places(length)[inside], kept[inside])
        whole = np.moveaxis(near, 0, axis)
    more = count - math.prod(whole.shape[2:])
    return whole, (total - whole.sum(_axes(lengths), keepdims=True)) / max(more, 1)
