"""Autocovariances through the taps of a convolution.

With A(t) = sum_k W(k) W(k + t) for each pair of channels

    K_y(lag) = sum_i (A_i * K_i)(lag)

on the torus of near lags for what they have in excess of the far ones, which pass through the sum of the taps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autocovariance import Autocovariance, torus
from ..blocks import blocks_of, times
from ..quadrature import Array

__all__ = ["on_torus", "per_group", "spread", "strided", "summed", "through_taps", "turned"]

_MANY_LAGS = 20
"""Lags of a kernel from which the spectrum is quicker: 3 by 3 taps have 13, 5 by 5 have 41."""


def through_taps(
    covariance: Autocovariance, weight: Array, dilations: Sequence[int], groups: int, back: bool = False
) -> Autocovariance:
    """After a convolution of stride 1, `[O, C / groups, *kernel]`, or the way `back`, on the positions that it starts from."""
    squares = np.square(summed(weight))
    squares = turned(squares, groups) if back else squares
    if weight[0, 0].size == 1:
        return _through_one(covariance, squares, groups)
    excess, rank = covariance.near - covariance.far, weight.ndim - 2
    parts = zip(np.split(weight, groups), np.split(excess, groups), strict=True)
    near = np.concatenate([_through_taps(k, w, dilations, back) for w, k in parts])
    far = per_group(squares, covariance.far.reshape(-1), groups).reshape(-1, *[1] * rank)
    near += far
    return Autocovariance(near, far, covariance.lengths)


def _through_one(covariance: Autocovariance, squares: Array, groups: int) -> Autocovariance:
    """Every lag as every other."""
    near = covariance.near.reshape(len(covariance.near), -1)
    rows = np.concatenate([near, covariance.far.reshape(-1, 1)], 1)
    passed = per_group(squares, rows, groups)
    shape = (-1, *covariance.near.shape[1:])
    far = passed[:, -1].reshape(-1, *[1] * len(covariance.lengths))
    return Autocovariance(passed[:, :-1].reshape(shape), far, covariance.lengths)


def per_group(matrix: Array, vector: Array, groups: int) -> Array:
    """`[O, C / groups]` times `[C]` or `[C, n]`, where each group of outputs reads its own inputs."""
    if groups == 1:
        return times(matrix, vector)
    parts = zip(np.split(matrix, groups), np.split(vector, groups), strict=True)
    return np.concatenate([times(each, part) for each, part in parts])


def turned(pairs: Array, groups: int) -> Array:
    """`[O, C / groups]` of a convolution as `[C, O / groups]` of its adjoint, axes of taps left where they are."""
    if groups == 1:
        return np.swapaxes(pairs, 0, 1)
    return np.concatenate([np.swapaxes(part, 0, 1) for part in np.split(pairs, groups)])


def summed(weight: Array, shares: Array | float = 1.0, square: bool = False) -> Array:
    """Sum over the taps, or over their squares, each by its share, `[O, C / groups]`.

    By a product, which is quicker than sums of few numbers. One tap that counts in full is the weight itself.
    """
    flat = weight.reshape(weight.shape[0] * weight.shape[1], -1)
    shares = np.broadcast_to(shares, flat.shape[1:]).astype(weight.dtype)
    if np.array_equal(shares, [1.0]):
        result = np.square(flat) if square else flat
    elif square:
        result = np.empty(len(flat), weight.dtype)
        for part in blocks_of(len(flat), flat.size):
            result[part] = np.square(flat[part]) @ shares
    else:
        result = flat @ shares
    return np.asarray(result.reshape(weight.shape[:2]))


def _through_taps(covariance: Array, weight: Array, dilations: Sequence[int], back: bool) -> Array:
    """Of one group: by the lags of a kernel of few taps, else by the spectrum, which depthwise kernels are quicker by too."""
    lags = _half_lags(weight.shape[2:])
    if len(lags) > 1 and (weight.shape[1] == 1 or len(lags) > _MANY_LAGS):
        return _by_spectrum(covariance, turned(weight, 1) if back else weight, dilations)
    taps = np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-2, -1)))
    result = np.zeros((weight.shape[1 if back else 0], covariance[0].size))
    for lag in lags:
        moved = _both_ways(covariance, lag, dilations).reshape(len(covariance), -1)
        pairs = _autocorrelation(taps, lag)
        result += times(pairs.T if back else pairs, moved)
    return result.reshape(-1, *covariance.shape[1:])


def _half_lags(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Differences of two taps, one of each and its opposite."""
    lags = itertools.product(*(range(1 - taps, taps) for taps in kernel))
    return [lag for lag in lags if lag >= (0,) * len(kernel)]


def _autocorrelation(taps: Array, lag: Sequence[int]) -> Array:
    """A(lag), `[O, C / groups]`, of `[*kernel, O, C / groups]`; that of the opposite lag is the same."""
    before = tuple(slice(max(-n, 0), size - max(n, 0)) for n, size in zip(lag, taps.shape, strict=False))
    after = tuple(slice(max(n, 0), size - max(-n, 0)) for n, size in zip(lag, taps.shape, strict=False))
    labels = list(range(taps.ndim))
    return np.asarray(np.einsum(taps[before], labels, taps[after], labels, labels[len(lag) :]))


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
        laid = on_torus(weight[outputs], dilations, lengths)
        response = np.abs(np.fft.rfftn(laid, axes=axes)) ** 2
        parts.append(np.fft.irfftn(np.einsum("oi...,i...->o...", response, spectrum), s=lengths, axes=axes))
    return np.concatenate(parts)


def on_torus(weight: Array, dilations: Sequence[int], lengths: Sequence[int]) -> Array:
    """The kernel's taps laid on a torus, which may be shorter than the kernel."""
    laid = np.zeros((*weight.shape[:2], *lengths))
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        where: Any = tuple((t * d) % n for t, d, n in zip(tap, dilations, lengths, strict=True))
        source: Any = (slice(None), slice(None), *tap)
        laid[(slice(None), slice(None), *where)] += weight[source]
    return laid


def _signed_lags(length: int) -> Array:
    """The lags of a torus in its own order: 0, 1, ..., -2, -1."""
    return np.fft.fftfreq(length, 1.0 / length).round().astype(int)


def strided(covariance: Autocovariance, strides: Sequence[int], lengths: tuple[int, ...]) -> Autocovariance:
    """Every stride-th lag, of these numbers of positions; those beyond the near ones are far."""
    if covariance.lengths == lengths and max(strides) == 1:
        return covariance
    near = covariance.near
    for axis, (stride, before, after) in enumerate(
        zip(strides, covariance.lengths, torus(lengths), strict=True), start=1
    ):
        lags, held = _signed_lags(after) * stride, near.shape[axis]
        near = np.take(near, lags % held, axis)
        if held < before:
            np.moveaxis(near, axis, -1)[..., 2 * np.abs(lags) > held] = covariance.far
    return Autocovariance(near, covariance.far, lengths)


def spread(covariance: Autocovariance, strides: Sequence[int], lengths: tuple[int, ...]) -> Autocovariance:
    """Lags put stride apart among these numbers of positions; the zeros between take their share of the mean over positions.

    Of two far positions one in prod(strides) is not one of the zeros.
    """
    if covariance.lengths == lengths and max(strides) == 1:
        return covariance
    excess, comb = covariance.near - covariance.far, covariance.far
    share = covariance.count / np.prod(lengths)
    for axis, (stride, length) in enumerate(zip(strides, torus(lengths), strict=True), start=1):
        index = (_signed_lags(excess.shape[axis]) * stride) % length
        excess = _laid(excess, index, length, axis)
        comb = _laid(comb, _multiples(length, stride), length, axis)
    return Autocovariance((excess + comb) * share, covariance.far * share / np.prod(strides), lengths)


def _multiples(length: int, stride: int) -> Array:
    lags = _signed_lags(length)
    return np.asarray(lags[lags % stride == 0])


def _laid(array: Array, index: Array, length: int, axis: int) -> Array:
    """Added up at these places of a longer axis."""
    shape = list(array.shape)
    shape[axis] = length
    wide = np.zeros(shape)
    np.add.at(np.moveaxis(wide, axis, 0), index, np.moveaxis(array, axis, 0))
    return wide
