"""Covariance between channels through the taps of a convolution, by spectra.

With W(f) the spectrum of the taps and K(f) that of a covariance, both matrices between channels,

    forward  K_y = W K W^H        backward  K_dx = W^H K_dy W, and the hessian H likewise
    E dW = n H W K, read at the taps

the last by Stein's lemma, as of a dense layer (`linear`). All on the torus of near lags for what they have in excess of the far
ones. What is constant over lags passes through the sum of the taps:

    sum over lags of a convolution of A, B, ... = the product of their sums
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autocovariance import Autocovariance
from ..channel_covariance import ChannelCovariance
from ..quadrature import Array
from .taps import on_torus, summed

__all__ = ["at_taps", "channels_through_taps", "ungrouped"]


def channels_through_taps(
    covariance: ChannelCovariance, weight: Array, dilations: Sequence[int], groups: int, back: bool = False
) -> ChannelCovariance:
    """After a convolution of stride 1, `[O, C / groups, *kernel]`, or the way `back`, on the positions that it starts from."""
    weight, near = ungrouped(weight, groups), _excess(covariance)
    lengths, sums = near.shape[2:], summed(weight)
    taps = _spectrum(on_torus(weight, dilations, lengths))
    if back:
        taps, sums = np.conj(np.swapaxes(taps, -1, -2)), sums.T
    excess = _of_spectrum(taps @ _spectrum(near) @ np.conj(np.swapaxes(taps, -1, -2)), lengths)
    far = sums @ covariance.pairs.far.reshape(taps.shape[-1], -1) @ sums.T
    rows, far = excess.reshape(-1, *lengths), far.reshape(-1, *[1] * len(lengths))
    return ChannelCovariance(Autocovariance(rows + far, far, covariance.pairs.lengths))


def at_taps(
    hessian: ChannelCovariance, weight: Array, covariance: ChannelCovariance, dilations: Sequence[int]
) -> Array:
    """E[dy_o(p) x_c(p + k)] as far as dy moves with y, and y with x, `[O, C, *kernel]`.

    Args:
        hessian: E[d dy_o(p) / d y_c(p + lag)], on the positions of the input.
        weight: The kernel, of one group.
        covariance: Of the input.
        dilations: Of the kernel.
    """
    factors = (
        _excess(hessian),
        on_torus(weight, dilations, covariance.pairs.near.shape[1:]),
        _excess(covariance),
    )
    lengths, sums = factors[1].shape[2:], [part.reshape(*part.shape[:2], -1).sum(2) for part in factors]
    h, w, k = (_spectrum(part) for part in factors)
    near = _of_spectrum(h @ w @ k, lengths)
    whole = hessian.total() @ sums[1] @ covariance.total() - sums[0] @ sums[1] @ sums[2]
    near += (whole / covariance.pairs.count).reshape(*near.shape[:2], *[1] * len(lengths))
    taps = zip(weight.shape[2:], dilations, lengths, strict=True)
    places: Any = np.ix_(*(np.arange(count) * step % n for count, step, n in taps))
    return np.asarray(near[(slice(None), slice(None), *places)])


def ungrouped(weight: Array, groups: int) -> Array:
    """With zeros between groups."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def _matrices(rows: Array) -> Array:
    """`[C, C, *lags]`."""
    count = math.isqrt(len(rows))
    return rows.reshape(count, count, *rows.shape[1:])


def _excess(covariance: ChannelCovariance) -> Array:
    return _matrices(covariance.pairs.near - covariance.pairs.far)


def _spectrum(matrices: Array) -> Array:
    """`[*frequencies, rows, columns]`."""
    spectrum = np.fft.rfftn(matrices, axes=tuple(range(2, matrices.ndim)))
    return np.moveaxis(spectrum, (0, 1), (-2, -1))


def _of_spectrum(spectrum: Array, lengths: tuple[int, ...]) -> Array:
    matrices = np.moveaxis(spectrum, (-2, -1), (0, 1))
    return np.fft.irfftn(matrices, s=lengths, axes=tuple(range(2, matrices.ndim)))
