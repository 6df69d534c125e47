"""The variance of a convolution's sum over positions: some taps leave out the positions that lie beyond the border.

With A_k the positions that tap k uses, and the covariance K of two positions told by their lag, on the torus,

    Var sum_k w_k sum_{p in A_k} x(p) = sum_kl w_k w_l sum_lag K(lag) |{p in A_k, p + lag in A_l}|

which is that of sum_p u(p) x(p) with u(p) = sum of the w_k whose A_k has p, so with spectra sum_f |U(f)|^2 K(f) / n. Where
the deviation d(p) of positions is known, u d and the spectrum of the correlation take their place.

Without a border the sum would pass through the sum of the taps. Where trained taps nearly sum to nothing, most of it comes from
the border.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from ..autocovariance import Autocovariance
from ..blocks import blocks_of
from ..channel_covariance import ChannelCovariance
from ..quadrature import Array
from ..state import GradientMoments, Moments

__all__ = ["of_channels", "of_pairs"]

_TINY = float(np.finfo(float).tiny)

_MAX_COUNTS = 1_000_000
"""Pairs of taps at all lags from which the spectra of images are quicker: 11 by 11 taps have them."""


def of_channels(
    x: Moments | GradientMoments, cancelled: Array, weight: Array, used: Sequence[Array], groups: int
) -> tuple[Array, Array]:
    """Of uncorrelated channels, each `[C]`: of one example, and over a batch divided by its size.

    Args:
        x: What the taps sum, of O channels.
        cancelled: What of the variance of its sum over all positions a batch cancels, per channel.
        weight: The taps from O channels to C / groups each, `[O, C / groups, *kernel]`.
        used: For each axis, 1 where a tap uses a position, `[taps, positions]`.
        groups: Of the channels.
    """
    taps, lags, counts = weight.reshape(*weight.shape[:2], -1), x.known_lags, _counts_of_taps(used)
    counted = _deviation(x) is None and taps.shape[2] ** 2 * lags.near[0].size <= _MAX_COUNTS
    of_rows = _by_counts(lags, used) if counted else _by_images(x, used)
    share, (one, less) = cancelled / lags.count**2, np.zeros((2, groups, taps.shape[1]))
    for part in blocks_of(len(taps), taps.size):
        some = taps[part].astype(np.float64)
        _add(one, part, of_rows(some, part), len(taps))
        if np.any(share[part]):
            _add(less, part, (some @ counts) ** 2 * share[part, None], len(taps))
    return np.maximum(one, 0.0).reshape(-1), np.maximum(one - less, 0.0).reshape(-1)


def _add(total: Array, part: slice, rows: Array, count: int) -> None:
    """Some of `count` rows to what their groups sum to, `[groups, C / groups]`."""
    groups = np.arange(part.start, part.stop) * len(total) // count
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    total[groups[starts]] += np.add.reduceat(rows, starts)


def _deviation(x: Moments | GradientMoments) -> Array | None:
    """Of each position that has one of its own; of gradients, what is cancelled tells of sums alone."""
    return None if isinstance(x, GradientMoments) or x.varies_evenly else np.sqrt(x.variance)


def _by_counts(lags: Autocovariance, used: Sequence[Array]) -> Callable[[Array, slice], Array]:
    """Of some channels' taps the part that each pair of channels has in the variance."""
    sums = _sums(lags, used)
    if sums.shape[1] == 1:
        return lambda taps, part: np.asarray(taps[..., 0] ** 2 * sums[part, 0])
    return lambda taps, part: np.asarray(np.einsum("ock,ock->oc", taps @ sums[part], taps))


def _by_images(x: Moments | GradientMoments, used: Sequence[Array]) -> Callable[[Array, slice], Array]:
    """The same."""
    lags, deviation = x.known_lags, _deviation(x)
    if isinstance(x, Moments) and deviation is not None:
        lags = x.lag_correlation
    of_x = _spectrum(lags.laid_out()[:, None]).real / lags.count

    def of_rows(taps: Array, part: slice) -> Array:
        images = _images(taps, used)
        images = images if deviation is None else images * deviation[part, None]
        return np.asarray((np.abs(_spectrum(images)) ** 2 * of_x[part]).sum(2))

    return of_rows


def of_pairs(
    x: Moments | GradientMoments, cancelled: Array, weight: Array, used: Sequence[Array]
) -> tuple[Array, Array]:
    """Of correlated channels, each `[C, C]`; what a batch cancels is correlated as the whole is."""
    known, taps = x.known_channels, weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    one = _pairs_by_counts(known, taps, used) if _deviation(x) is None else _pairs_by_images(x, taps, used)
    whole = known.pairs.count * known.total()
    share = np.sqrt(np.clip(cancelled / np.maximum(np.diag(whole), _TINY), 0.0, 1.0))
    sums = taps @ _counts_of_taps(used) * share[:, None] / known.pairs.count
    return one, one - sums.T @ whole @ sums


def _pairs_by_counts(known: ChannelCovariance, taps: Array, used: Sequence[Array]) -> Array:
    square = _square(_sums(known.pairs, used))
    rows = np.swapaxes(taps, 1, 2).reshape(len(square), -1)
    return np.asarray(rows.T @ square @ rows)


def _pairs_by_images(x: Moments | GradientMoments, taps: Array, used: Sequence[Array]) -> Array:
    assert isinstance(x, Moments)
    images, known = _images(taps, used) * np.sqrt(x.variance)[:, None], x.channel_correlation
    spectra, of_x = (np.moveaxis(_spectrum(part), -1, 0) for part in (images, _laid(known)))
    passed = np.conj(np.swapaxes(spectra, 1, 2)) @ np.conj(of_x) @ spectra
    return np.asarray(passed.sum(0).real / known.pairs.count)


def _images(taps: Array, used: Sequence[Array]) -> Array:
    """u for each pair of channels, `[O, C, *positions]`."""
    kernel = [len(each) for each in used]
    images = taps.reshape(*taps.shape[:2], *kernel)
    for each in used:
        images = np.tensordot(images, each, (2, 0))
    return images


def _spectrum(images: Array) -> Array:
    """Of `[rows, columns, *positions]`, with all frequencies in one row."""
    spectrum = np.fft.fftn(images, axes=tuple(range(2, images.ndim)))
    return np.asarray(spectrum.reshape(*images.shape[:2], -1))


def _laid(known: ChannelCovariance) -> Array:
    rows = known.pairs.laid_out()
    return rows.reshape(known.channels, known.channels, *rows.shape[1:])


def _counts_of_taps(used: Sequence[Array]) -> Array:
    """How many positions each tap uses."""
    return np.asarray(functools.reduce(np.kron, [taps.sum(1) for taps in used]))


def _sums(known: Autocovariance, used: Sequence[Array]) -> Array:
    """Covariance of the sums over the positions that each of two taps uses, `[rows, taps, taps]`."""
    excess, far = (known.near - known.far).reshape(len(known.near), -1), known.far.reshape(-1, 1, 1)
    pairs, counts = _counts(used, known.near.shape[1:]), _counts_of_taps(used)
    near = (excess @ pairs.reshape(len(pairs), -1)).reshape(-1, *pairs.shape[1:])
    return np.asarray(near + far * np.outer(counts, counts))


def _square(sums: Array) -> Array:
    """`[C C, taps, taps]` as a matrix between the taps of all channels."""
    count, taps = math.isqrt(len(sums)), sums.shape[1]
    return np.swapaxes(sums.reshape(count, count, taps, taps), 1, 2).reshape(count * taps, -1)


def _counts(used: Sequence[Array], lags: tuple[int, ...]) -> Array:
    """How many pairs of positions, a lag apart, two taps use, `[lags, taps, taps]`."""
    result = np.ones((1, 1, 1))
    for taps, count in zip(used, lags, strict=True):
        steps = np.fft.fftfreq(count, 1.0 / count).round().astype(int)
        moved = np.stack([np.roll(taps, -step, 1) for step in steps])
        pairs = np.einsum("kp,dlp->dkl", taps, moved)
        sizes = [a * b for a, b in zip(result.shape, pairs.shape, strict=True)]
        result = np.einsum("akl,bmn->abkmln", result, pairs).reshape(sizes)
    return result
