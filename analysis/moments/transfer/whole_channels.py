"""Channels that are picked out whole, as by a Split, and put side by side, as by a Concat: what is known of each goes along.

Of parts that are joined, channels of different ones are taken as uncorrelated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..autocovariance import Autocovariance
from ..channel_covariance import ChannelCovariance
from ..quadrature import Array
from ..state import COVARIANCE_LIMIT, GradientMoments, Moments

__all__ = ["joined_moments", "picked_channels", "picked_gradient", "picked_moments", "put_back"]


def picked_channels(index: Array, shape: tuple[int, ...]) -> Array | None:
    """Which channels of a tensor of this shape an op keeps, each once at most, given the place of each element of its result.

    None where it does not keep whole channels.
    """
    count = int(np.prod(shape[1:]))
    if index.ndim != len(shape) or index.shape[1:] != shape[1:] or index.size == 0:
        return None
    rows = index.reshape(len(index), -1)
    channels = rows[:, 0] // count
    whole = np.array_equal(rows, channels[:, None] * count + np.arange(count))
    return channels if whole and len(np.unique(channels)) == len(channels) else None


def picked_moments(x: Moments, channels: Array, y: Moments) -> Moments:
    """`y`, whose mean and variance are those of these channels of x, with all else that is known of them."""
    return replace(
        y,
        covariance=None if x.covariance is None else x.covariance[np.ix_(channels, channels)],
        lags=None if x.lags is None else x.lags.channels(channels),
        channels=_picked(x.channels, channels),
    )


def picked_gradient(dy: GradientMoments, channels: Array) -> GradientMoments:
    """Of some channels."""
    pair = np.ix_(channels, channels)
    return replace(
        GradientMoments.of(dy.mean[channels], dy.variance[channels]),
        covariance=None if dy.covariance is None else dy.covariance[pair],
        cancelled=dy.cancelled[channels],
        tilt=dy.tilt[channels],
        tilted_total=None if dy.tilted_total is None else dy.tilted_total[channels],
        hessian=None if dy.hessian is None else dy.hessian[pair],
        skew=None if dy.skew is None else dy.skew[channels],
        lags=None if dy.lags is None else dy.lags.channels(channels),
        channels=_picked(dy.channels, channels),
        channel_hessian=_picked(dy.channel_hessian, channels),
    )


def put_back(dy: GradientMoments, channels: Array, shape: tuple[int, ...]) -> GradientMoments:
    """The way back: the other channels receive nothing."""

    def placed(array: Array) -> Array:
        whole = np.zeros((shape[0], *array.shape[1:]))
        whole[channels] = array
        return whole

    def square(matrix: Array | None) -> Array | None:
        if matrix is None:
            return None
        whole = np.zeros((shape[0], shape[0]))
        whole[np.ix_(channels, channels)] = matrix
        return whole

    return replace(
        GradientMoments.of(placed(dy.mean), placed(dy.variance)),
        covariance=square(dy.covariance),
        cancelled=placed(dy.cancelled),
        tilt=placed(dy.tilt),
        tilted_total=None if dy.tilted_total is None else placed(dy.tilted_total),
        hessian=square(dy.hessian),
        skew=None if dy.skew is None else placed(dy.skew),
        lags=None if dy.lags is None else _of_both(dy.lags, placed),
        channels=_put_back(dy.channels, channels, shape[0]),
        channel_hessian=_put_back(dy.channel_hessian, channels, shape[0]),
    )


def joined_moments(parts: Sequence[Moments], joined: Moments) -> Moments:
    """`joined`, whose mean and variance are those of the parts side by side, with what is known of each part's channels."""
    if joined.mean.ndim == 1:
        known = any(part.covariance is not None for part in parts) and joined.mean.size <= COVARIANCE_LIMIT
        return replace(
            joined, covariance=_on_diagonal([p.known_covariance for p in parts]) if known else None
        )
    lags = None
    if any(part.lags is not None for part in parts):
        near, far = (np.concatenate([getattr(p.known_lags, name) for p in parts]) for name in ("near", "far"))
        lags = Autocovariance(near, far, parts[0].known_lags.lengths)
    if lags is None or all(part.channels is None for part in parts):
        return replace(joined, lags=lags)
    starts = np.cumsum([0, *(len(part.mean) for part in parts)])
    blocks = [
        _put_back(part.known_channels, np.arange(start, start + len(part.mean)), len(joined.mean))
        for part, start in zip(parts, starts, strict=False)
    ]
    present = [block for block in blocks if block is not None]
    return replace(joined, lags=lags, channels=sum(present[1:], present[0]))


def _picked(known: ChannelCovariance | None, channels: Array) -> ChannelCovariance | None:
    if known is None:
        return None
    pairs = (channels[:, None] * known.channels + channels).reshape(-1)
    return ChannelCovariance(known.pairs.channels(pairs))


def _put_back(known: ChannelCovariance | None, channels: Array, count: int) -> ChannelCovariance | None:
    if known is None:
        return None
    pairs = (channels[:, None] * count + channels).reshape(-1)

    def placed(rows: Array) -> Array:
        whole = np.zeros((count * count, *rows.shape[1:]))
        whole[pairs] = rows
        return whole

    return ChannelCovariance(_of_both(known.pairs, placed))


def _of_both(lags: Autocovariance, change: Callable[[Array], Array]) -> Autocovariance:
    return Autocovariance(change(lags.near), change(lags.far), lags.lengths)


def _on_diagonal(blocks: Sequence[Array]) -> Array:
    ends = np.cumsum([len(block) for block in blocks])
    whole = np.zeros((ends[-1], ends[-1]))
    for block, end in zip(blocks, ends, strict=True):
        part = slice(end - len(block), end)
        whole[part, part] = block
    return whole
