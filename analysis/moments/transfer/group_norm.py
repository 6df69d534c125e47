"""Group normalisation, which exporters write as an instance normalisation between two reshapes (Wu and He 2018).

The channels of a group and their positions come to lie in one row, where nothing would be known of them. So what was known is
laid aside by the first reshape, goes through the normalisation, and is found again by the second; gradients the other way.
With P = I - J, J the mean over a group's channels, M the covariance of channels' means over positions, D a group's elements,

    K_cd + (P M P' - M)_cd          at every lag, of the values once their mean is off, and of gradients likewise
    dx = 1 / std (dxhat - <dxhat> - xhat <dxhat xhat>),   <.> over D; std as it is on average
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..quadrature import Array
from ..site import Contribution, Site, only_reader
from ..state import GradientMoments, Moments, ParameterGradient
from . import normalization
from .normalization import mean_over_positions, rescaled, sum_with_standardised

__all__ = ["backward", "forward", "found_again", "gradient_laid_aside", "lay_aside", "lay_gradient_aside"]

_LOST = "its positions are taken as uncorrelated"


@dataclass
class _Aside:
    """A tensor `[C, *positions]` whose elements lie in other rows, and its gradient once that is known."""

    x: Moments
    gradient: GradientMoments | None = None


def lay_aside(site: Site, y: Moments) -> None:
    """Of a reshape to groups: the input that it has taken apart, for the normalisation that reads it."""
    reader = only_reader(site.node.outputs[0])
    if reader is None or reader.op_type != "InstanceNormalization" or site.x.lags is None:
        return
    groups, channels = y.shape[0], len(site.x.mean)
    if groups < channels and channels % groups == 0:
        site.memory[site.node] = _Aside(site.x)


def found_again(site: Site, shape: tuple[int, ...]) -> Moments | None:
    """Of a reshape of this output: what was laid aside before it, if it is laid out in the same way again."""
    aside = _before(site)
    if aside is None or aside.x.shape == shape:
        return None if aside is None else aside.x
    site.notes.append(_LOST)
    return None


def lay_gradient_aside(site: Site, dy: GradientMoments) -> None:
    """Of that reshape, on the way back."""
    aside = _before(site)
    if aside is not None and aside.x.shape == dy.mean.shape:
        aside.gradient = dy


def gradient_laid_aside(site: Site) -> GradientMoments | None:
    """Of the reshape to groups: the gradient of what it has taken apart."""
    aside = site.memory.get(site.node)
    return aside.gradient if isinstance(aside, _Aside) else None


def _before(site: Site) -> _Aside | None:
    value = site.node.inputs[0]
    producer = None if value is None or only_reader(value) is None else value.producer()
    aside = None if producer is None else site.memory.get(producer)
    return aside if isinstance(aside, _Aside) else None


def forward(site: Site) -> Sequence[Moments]:
    """Each group of an example to mean beta and standard deviation gamma; a channel is a group unless it was laid aside."""
    aside = _before(site)
    if aside is None:
        return normalization.instance_norm_forward(site)
    centred, std = _statistics(site, aside.x)
    slope = _by_channel(site, 1, centred) / std
    y = Moments(
        centred.mean * slope + _by_channel(site, 2, centred),
        centred.variance * slope**2,
        lags=centred.known_lags * slope**2,
        channels=None if centred.channels is None else centred.channels.scaled(slope.reshape(-1)),
    )
    site.memory[site.node] = _Aside(y)
    reader = only_reader(site.node.outputs[0])
    if reader is None or reader.op_type != "Reshape":
        site.notes.append(_LOST)
    return [Moments(y.mean.reshape(site.x.shape), y.variance.reshape(site.x.shape))]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formula above."""
    before, after = _before(site), site.memory.get(site.node)
    if before is None or not isinstance(after, _Aside) or after.gradient is None:
        return normalization.instance_norm_backward(site, gradients)
    dy, x = after.gradient, before.x
    centred, std = _statistics(site, x)
    scale, groups = _by_channel(site, 1, centred), site.x.shape[0]
    xhat = centred.mean / std, np.sqrt(centred.variance) / std
    tilt = dy.mean * xhat[0] + dy.tilt * xhat[1]
    tilted = sum_with_standardised(dy, centred)
    dx = _projected(rescaled(dy, scale), scale * tilt, scale.reshape(-1) ** 2 * tilted, centred, xhat, groups)
    before.gradient = rescaled(dx, 1.0 / std)
    whole, positions = before.gradient, tuple(range(1, x.mean.ndim))
    dgamma, dbeta = (
        ParameterGradient(mean.sum(positions).reshape(groups, -1).sum(1), spread.reshape(groups, -1).sum(1))
        for mean, spread in ((tilt, tilted), (dy.mean, dy.total))
    )
    flat = GradientMoments.of(whole.mean.reshape(site.x.shape), whole.variance.reshape(site.x.shape))
    return flat, dgamma, dbeta


def _statistics(site: Site, x: Moments) -> tuple[Moments, Array]:
    """The input less the mean of its group, and the root of its mean square there."""
    groups, lags = site.x.shape[0], x.known_lags
    between = np.diag(lags.total()) if x.channels is None else x.channels.total()
    shift = _off_group(between / lags.count, groups)
    mean = x.mean - _over_groups(mean_over_positions(x.mean), groups)
    own = lags + np.diag(shift).reshape(lags.far.shape)
    variance = np.maximum(x.variance + np.diag(shift).reshape(lags.far.shape), 0.0)
    channels = None if x.channels is None else (x.channels + shift).with_lags(own)
    square = _over_groups(mean_over_positions(variance + mean**2), groups)
    std = np.sqrt(square + site.attribute("epsilon", 1e-5))
    return Moments(mean, variance, lags=own, channels=channels), std


def _projected(
    dy: GradientMoments, tilt: Array, tilted: Array, x: Moments, xhat: tuple[Array, Array], groups: int
) -> GradientMoments:
    """dxhat less its mean over the group and its part along xhat."""
    lags, count = dy.known_lags, dy.mean.size // groups
    along, column = _over_groups(mean_over_positions(tilt), groups), lags.far.shape
    lost = along**2 + _over_groups(tilted.reshape(column), groups) * len(dy.mean) / groups / count**2
    lost = lost * mean_over_positions(xhat[1] ** 2)
    between = np.diag(dy.total) if dy.channels is None else dy.channels.total() * lags.count
    shift = _off_group(between / lags.count**2, groups)
    own = np.diag(shift).reshape(column)
    mean = dy.mean - _over_groups(mean_over_positions(dy.mean), groups) - along * xhat[0]
    variance = np.maximum(dy.variance + own - lost, 1e-3 * dy.variance)
    kept = lags + own - x.known_lags.correlation() * lost
    kept = kept.scaled_to(variance.mean(tuple(range(1, variance.ndim))))
    channels = None if dy.channels is None else (dy.channels + shift).with_lags(kept)
    hessian = dy.channel_hessian
    if hessian is not None:
        hessian = hessian.with_noise(-along.reshape(-1))
    back = GradientMoments.of(mean, variance, lags=kept, channels=channels, channel_hessian=hessian)
    total = np.maximum(dy.total + np.diag(_off_group(np.diag(dy.total), groups)), 0.0)
    return replace(back, cancelled=kept.count * kept.total() - total)


def _off_group(matrix: Array, groups: int) -> Array:
    """P M P' - M."""
    size = len(matrix) // groups
    centring = np.eye(len(matrix)) - np.kron(np.eye(groups), np.full((size, size), 1.0 / size))
    return np.asarray(centring @ matrix @ centring.T - matrix)


def _over_groups(channels: Array, groups: int) -> Array:
    """Mean over the channels of each group, `[C, 1, ...]`."""
    by_group = channels.reshape(groups, -1)
    return np.repeat(by_group.mean(1), by_group.shape[1]).reshape(channels.shape)


def _by_channel(site: Site, index: int, x: Moments) -> Array:
    """The group's number for each of its channels, `[C, 1, ...]`."""
    numbers = site.array(index).astype(np.float64)
    return np.repeat(numbers, len(x.mean) // len(numbers)).reshape(-1, *[1] * (x.mean.ndim - 1))
