"""Means over all positions, over windows and over axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..autocovariance import Autocovariance
from ..channel_covariance import ChannelCovariance
from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Site, batch_axis
from ..state import GradientMoments, Moments
from ..steps import numbered
from ..tokens import MATRIX_LIMIT, TokenCorrelation
from .convolution import average_pool_backward, average_pool_forward
from .sequence import dense, dense_backward, mean_of_tokens, mean_of_tokens_backward, sequence

__all__ = [
    "average_backward",
    "average_forward",
    "global_mean_backward",
    "global_mean_forward",
    "mean_backward",
    "mean_forward",
    "reduced_axes",
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
    y = Moments(mean.reshape(shape), variance.reshape(shape), positive=_is_positive(x))
    if x.channels is None:
        return [y]
    matrix = x.channels.total() / lags.count
    np.fill_diagonal(matrix, variance)
    if len(shape) == 1:
        return [replace(y, covariance=matrix)]
    return [replace(y, channels=ChannelCovariance.constant(matrix, shape[1:]))]


def global_mean_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """dy / n at every position, the same at all."""
    dy, x = gradients[0], site.x
    assert dy is not None
    column, count = (x.shape[0], *[1] * (x.mean.ndim - 1)), x.mean[0].size
    mean, variance = dy.mean.reshape(column) / count, dy.variance.reshape(column) / count**2
    lags = Autocovariance.constant(variance, x.shape[1:])
    back = GradientMoments.of(mean, variance, lags=lags).repeated(x.shape)
    if x.channels is not None:
        matrix, hessian = _between_channels(dy)
        back = replace(
            back,
            channels=ChannelCovariance.constant(matrix / count**2, x.shape[1:]),
            channel_hessian=None
            if hessian is None
            else ChannelCovariance.constant(hessian / count**2, x.shape[1:]),
        )
    return [replace(back, cancelled=dy.cancelled)]


def _between_channels(dy: GradientMoments) -> tuple[Array, Array | None]:
    """Covariance and hessian of the gradient of one position, `[C, C]`."""
    if dy.mean.ndim == 1:
        return dy.known_covariance, dy.hessian
    return dy.known_channels.lag0, None if dy.channel_hessian is None else dy.channel_hessian.lag0


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
    x, axes = site.x, reduced_axes(site)
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
    """A tensor of features, or, where the axes are kept, a sequence of one token."""
    mean, variance, covariance = mean_of_tokens(x, tokens)
    others = [length for axis, length in enumerate(x.shape) if axis not in tokens.axes]
    kept = [1 if axis in tokens.axes else length for axis, length in enumerate(x.shape)]
    shape = tuple(kept if keep else others)
    one = None
    if keep and covariance is not None:
        one = TokenCorrelation.of_covariances(tokens.axes, covariance, covariance, np.sqrt(variance)[None])
    return Moments(
        mean.reshape(shape),
        variance.reshape(shape),
        covariance if len(shape) == 1 else None,
        positive=_is_positive(x),
        tokens=one,
    )


def _is_positive(x: Moments) -> bool:
    return x.curve is not None and bool(np.all(x.curve.values >= 0))


def mean_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """dy / n at every element that was averaged."""
    dy, x, axes = gradients[0], site.x, reduced_axes(site)
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


def reduced_axes(site: Site) -> tuple[int, ...]:
    """The axes of one example that a node reduces."""
    if site.node.op_type == "AveragePool":
        return _window_axes(site) or ()
    value, rank = site.node.inputs[0], site.x.mean.ndim + 1
    assert value is not None
    listed = site.array(1) if site.is_static(1) else site.attribute("axes", range(rank))
    axes, batch = {int(axis) % rank for axis in listed}, batch_axis(value)
    if batch in axes:
        raise UnknownTransferError("it reduces over the batch")
    return tuple(sorted(axis - (axis > batch) for axis in axes))
