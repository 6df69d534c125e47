"""Normalisation layers, whose statistics are taken as they are on average, and dropout.

With y = gamma xhat + beta and dxhat = gamma dy:

    dx = 1 / std (dxhat - <dxhat> - xhat <dxhat xhat>)          (Ioffe 2015; Ba 2016)

In BatchNormalization <.> runs over the batch and its positions: the sum of dx over them is 0 (`cancelled`), and the
coherent part of <dy xhat> is the tilt that the following activation brings about. In LayerNormalization <.> runs over
one example's features: centring is exact, and the projection along xhat takes the share 1 / features. There std differs from
example to example (`inverse_std`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ....graph.gradients.normalization import BATCH_STATISTICS
from ..autocovariance import Autocovariance
from ..blocks import each, repeats
from ..channel_covariance import ChannelCovariance
from ..constraint import Constraint, over_all_laws
from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Site
from ..state import GradientMoments, Moments, ParameterGradient
from ..steps import Steps
from ..tokens import of_sum
from . import sequence_norm
from .inverse_std import inverse_std

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "dropout_backward",
    "dropout_forward",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "mean_over_positions",
    "rescaled",
    "sum_with_standardised",
]


def batch_norm_forward(site: Site) -> Sequence[Moments]:
    """Each channel to mean beta and standard deviation gamma, over the batch and its positions."""
    x, (mean, std) = site.x.narrow, _batch_statistics(site)
    slope = _column(site.array(1), x) / std
    centred = (x.mean - mean) * slope + _column(site.array(2), x)
    y = Moments(
        centred,
        x.variance * slope**2,
        _scaled(x.covariance, slope),
        lags=None if x.lags is None else x.lags.scaled(slope**2),
        channels=_channels_scaled(x.channels, slope),
    )
    return [y.repeated(site.x.shape)]


def batch_norm_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formula above, and sums over the batch and its positions for gamma and beta."""
    assert gradients[0] is not None
    dy, x = gradients[0].narrow, site.x.narrow
    statistics = _batch_statistics(site)
    slope = _column(site.array(1), x) / statistics[1]
    tilt, tilted_total = _tilt(x, dy, statistics), _sum_with_standardised(x, dy, statistics)
    count = site.x.mean[0].size
    if dy.scale_free is not None:  # sum dy xhat = -beta / gamma sum dy
        ratio = site.array(2) * _inverse(site.array(1))
        tilted_total = np.where(dy.scale_free, ratio**2 * dy.total, tilted_total)
    dgamma = ParameterGradient(count * mean_over_positions(tilt).reshape(-1), tilted_total)
    dbeta = ParameterGradient(count * mean_over_positions(dy.mean).reshape(-1), dy.total)
    if site.batch.constraints:
        dgamma, dbeta = _of_law(site, dy, tilt, tilted_total, statistics)
    if BATCH_STATISTICS not in site.node.metadata_props:
        back = rescaled(dy, slope)
    else:
        back = _projected(site, (x, dy), statistics, slope, tilted_total)
    return back.repeated(site.x.shape), dgamma, dbeta


def _of_law(
    site: Site, dy: GradientMoments, tilt: Array, tilted_total: Array, statistics: tuple[Array, Array]
) -> tuple[ParameterGradient, ParameterGradient]:
    """Gradients of gamma and beta under one of several laws, less what another normalisation behind takes from them."""
    constraints, own = site.batch.constraints, dy.constraint
    assert own is not None
    standardised = [_standardised(x, statistics) for x in site.batch.inputs]
    constant = np.ones(len(dy.mean)), np.zeros(len(dy.mean))
    of_gamma = site.batch.once("of gamma", lambda: over_all_laws(constraints, standardised))
    of_beta = site.batch.once("of beta", lambda: over_all_laws(constraints, [constant] * len(constraints)))
    from_gamma, from_beta = (
        own.taken(*_standardised(site.x, statistics), of_gamma),
        own.taken(*constant, of_beta),
    )
    return (
        ParameterGradient(tilt - from_gamma[0], np.maximum(tilted_total - from_gamma[1], 0.0)),
        ParameterGradient(dy.mean - from_beta[0], np.maximum(dy.variance - from_beta[1], 0.0)),
    )


def _standardised(x: Moments, statistics: tuple[Array, Array]) -> tuple[Array, Array]:
    """Mean and standard deviation of xhat."""
    return (x.mean - statistics[0]) / statistics[1], np.sqrt(x.variance) / statistics[1]


def _projected(
    site: Site,
    tensors: tuple[Moments, GradientMoments],
    statistics: tuple[Array, Array],
    slope: Array,
    tilted_total: Array,
) -> GradientMoments:
    (x, dy), count = tensors, site.x.mean[0].size
    xhat = _standardised(x, statistics)
    centre, along = _batch_means(site, tensors, statistics)
    batch = site.batch_size * count**2
    lost = 2.0 * along * mean_over_positions(dy.tilt * xhat[1])
    lost += (_column(tilted_total / batch, x) - along**2) * mean_over_positions(xhat[1] ** 2)
    centring = _column(dy.total / batch, x)
    mean = dy.mean - centre - along * xhat[0]
    variance = np.maximum(dy.variance - centring - lost, 1e-3 * dy.variance)
    covariance = lags = channels = by_lags = None
    if x.mean.ndim > 1:
        lags = dy.known_lags - centring - x.known_lags.correlation() * lost
        lags = lags.scaled_to(mean_over_positions(variance).reshape(-1))
        if dy.channels is not None and x.channels is not None:
            coherent = x.channels.correlation().scaled(along.reshape(-1))
            channels = (dy.channels - coherent).with_lags(lags)
            if dy.channel_hessian is not None:
                by_lags = dy.channel_hessian.with_noise(-along.reshape(-1) * _inverse(site.array(1)))
    elif dy.covariance is not None:
        shrink = np.sqrt(np.divide(variance, dy.variance, out=np.zeros_like(variance), where=dy.variance > 0))
        covariance = dy.covariance * np.outer(shrink, shrink)
    hessian = None if dy.hessian is None else dy.hessian - np.diag(along * _inverse(site.array(1)))
    centred = GradientMoments.of(
        mean, variance, covariance, hessian, lags=lags, channels=channels, channel_hessian=by_lags
    )
    back = rescaled(centred, slope * _small_batch(site.batch_size * count))
    # Over a batch and its positions the gradient now sums to 0.
    cancelled = back.variance if back.lags is None else count * back.lags.total()
    back = replace(back, cancelled=cancelled, scale_free=np.ones(len(x.mean), bool))
    if not site.batch.inputs or x.mean.ndim > 1:
        return back
    square = xhat[0] ** 2 + xhat[1] ** 2
    pull = slope * (_tilt(x, dy, statistics) - centre * xhat[0] - along * square)
    return replace(back, constraint=_own_constraint(x, back, xhat, pull))


def _own_constraint(x: Moments, dx: GradientMoments, xhat: tuple[Array, Array], pull: Array) -> Constraint:
    """On the gradient of what is normalised, under one of several laws, with E[dx xhat] = pull."""
    one, none, deviation = np.ones(len(pull)), np.zeros(len(pull)), np.sqrt(x.variance)
    columns = (dx.mean, pull, dx.variance, xhat[0], xhat[0] ** 2 + xhat[1] ** 2, deviation * xhat[1])
    mean, pull, variance, level, square, tied = (column[:, None] for column in columns)
    return Constraint((mean, pull), variance, level, square, tied, (one, none, one), deviation)


def _batch_means(
    site: Site, tensors: tuple[Moments, GradientMoments], statistics: tuple[Array, Array]
) -> tuple[Array, Array]:
    """<dy> and <dy xhat> over a batch and its positions."""
    laws = list(zip(site.batch.inputs, site.batch.gradients, strict=True)) or [tensors]
    centre = np.mean([mean_over_positions(dy.mean) for _, dy in laws], 0)
    along = np.mean([mean_over_positions(_tilt(x, dy, statistics)) for x, dy in laws], 0)
    return centre, along


def _tilt(x: Moments, dy: GradientMoments, statistics: tuple[Array, Array]) -> Array:
    """E[dy xhat] of each element."""
    tilt = dy.mean * (x.mean - statistics[0]) + dy.tilt * np.sqrt(x.variance)
    return np.asarray(tilt / statistics[1])


def instance_norm_forward(site: Site) -> Sequence[Moments]:
    """Each channel of an example to mean beta and standard deviation gamma, over its positions."""
    centred, std = _instance_statistics(site)
    if site.x.lags is None:
        site.notes.append("the elements it normalises together are taken as uncorrelated")
    slope = _column(site.array(1), centred) / std
    mean = centred.mean * slope + _column(site.array(2), centred)
    y = Moments(mean, centred.variance * slope**2, lags=_lags_scaled(centred.lags, slope))
    return [y.repeated(site.x.shape)]


def instance_norm_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """As of a batch of one example."""
    assert gradients[0] is not None
    dy, (centred, std) = gradients[0].narrow, _instance_statistics(site)
    slope = _column(site.array(1), centred) / std
    xhat = centred.mean / std, np.sqrt(centred.variance) / std
    tilt = dy.mean * xhat[0] + dy.tilt * xhat[1]
    tilted_total, count = sum_with_standardised(dy, centred), site.x.mean[0].size
    dgamma = ParameterGradient(count * mean_over_positions(tilt).reshape(-1), tilted_total)
    dbeta = ParameterGradient(count * mean_over_positions(dy.mean).reshape(-1), dy.total)
    back = _projected(
        replace(site, batch_size=1), (centred, dy), (np.zeros_like(std), std), slope, tilted_total
    )
    return back.repeated(site.x.shape), dgamma, dbeta


def _instance_statistics(site: Site) -> tuple[Moments, Array]:
    """The input less its mean over the positions, and the root of its mean square there."""
    x = site.x.narrow
    if x.mean.ndim < 2:
        raise UnknownTransferError("its input has no positions")
    lags = x.known_lags
    common = _column(lags.total() / lags.count, x)
    mean, variance = x.mean - mean_over_positions(x.mean), np.maximum(x.variance - common, 0.0)
    square = mean_over_positions(variance + mean**2) + site.attribute("epsilon", 1e-5)
    return Moments(mean, variance, lags=lags - common), np.sqrt(square)


def _small_batch(samples: int) -> float:
    """True over estimated standard deviation: the biased variance of n samples is (n - 1) / n of the true one on average."""
    return float(np.sqrt(samples / max(samples - 1.0, 1.0)))


def _inverse(gamma: Array) -> Array:
    """1 / gamma; 0 where gamma is 0, since nothing passes there."""
    return np.divide(1.0, gamma, out=np.zeros(gamma.shape), where=gamma != 0)


def _sum_with_standardised(x: Moments, dy: GradientMoments, statistics: tuple[Array, Array]) -> Array:
    """Variance over examples of the sum over positions of dy xhat, where the batch's mean need not be that of x."""
    total = sum_with_standardised(dy, x)
    if x.mean.ndim > 1:
        return total
    mean, std = _standardised(x, statistics)
    skew = 0.0 if dy.skew is None else dy.skew - dy.mean * dy.tilt
    return np.asarray(np.maximum(mean**2 * dy.variance + std**2 * total + 2.0 * mean * std * skew, 0.0))


def sum_with_standardised(dy: GradientMoments, x: Moments) -> Array:
    """Variance over examples of the sum over positions of dy xhat; without an activation dy does not depend on xhat."""
    if dy.normalised_total is not None:
        return dy.normalised_total
    if dy.tilted_total is not None:
        return dy.tilted_total if x.mean.ndim == 1 else _of_uneven_positions(dy, dy.tilted_total, x)
    if x.mean.ndim == 1:
        return dy.second
    raw = dy.known_lags + mean_over_positions(dy.mean**2)
    return np.asarray(np.maximum(raw.count * (raw * x.known_lags.correlation()).total(), 0.0))


def _of_uneven_positions(dy: GradientMoments, tilted_total: Array, x: Moments) -> Array:
    """Of xhat = m(p) + d(p) xi, of which `tilted_total` tells xi: d^2 of it, and the sum of dy m.

    Of that a batch keeps what each position has for itself, and of the rest the share that it keeps of the sum of dy.
    """
    if repeats(x.mean, tuple(range(1, x.mean.ndim))):
        return tilted_total
    m, lags = x.mean - mean_over_positions(x.mean), dy.known_lags
    square, total = mean_over_positions(x.variance + m**2), lags.total()
    kept = np.divide(dy.total, lags.count * total, out=np.zeros_like(total), where=total > 0)
    products = Autocovariance.of_products(m / np.sqrt(square))
    own = (lags.lag0 - total / lags.count) * products.lag0
    rest = (lags * products).total() - own
    along = lags.count * (own + np.clip(kept, 0.0, 1.0) * rest)
    share = mean_over_positions(x.variance / square).reshape(-1)
    return np.asarray(share * tilted_total + np.maximum(along, 0.0))


def _batch_statistics(site: Site) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel, shaped to broadcast against the elements."""
    laws, epsilon = [x.narrow for x in site.batch.inputs] or [site.x.narrow], site.attribute("epsilon", 1e-5)
    x = laws[0]
    if BATCH_STATISTICS not in site.node.metadata_props:
        return _column(site.array(3), x), np.sqrt(_column(site.array(4), x) + epsilon)
    mean = np.mean([mean_over_positions(law.mean) for law in laws], 0)
    squares = [mean_over_positions(law.variance + (law.mean - mean) ** 2) for law in laws]
    return mean, np.sqrt(np.mean(squares, 0) + epsilon)


def mean_over_positions(elements: Array) -> Array:
    """Over positions, which stay as axes of length 1."""
    if elements.ndim < 2:
        return elements
    return np.asarray(elements.mean(tuple(range(1, elements.ndim)), keepdims=True))


def _column(vector: Array, x: Moments) -> Array:
    return vector.astype(np.float64).reshape(-1, *[1] * (x.mean.ndim - 1))


def _scaled(covariance: Array | None, slope: Array) -> Array | None:
    return None if covariance is None else np.asarray(covariance * np.outer(slope, slope))


def _lags_scaled(lags: Autocovariance | None, slope: Array) -> Autocovariance | None:
    return None if lags is None else lags * slope**2


def _channels_scaled(channels: ChannelCovariance | None, slope: Array) -> ChannelCovariance | None:
    return None if channels is None else channels.scaled(slope.reshape(-1))


def rescaled(dy: GradientMoments, slope: Array) -> GradientMoments:
    """Each channel times a number, `[C, 1, ...]`."""
    back = GradientMoments.of(
        dy.mean * slope,
        dy.variance * slope**2,
        _scaled(dy.covariance, slope),
        _scaled(dy.hessian, slope),
        lags=_lags_scaled(dy.lags, slope),
        channels=_channels_scaled(dy.channels, slope),
        channel_hessian=_channels_scaled(dy.channel_hessian, slope),
    )
    return replace(back, cancelled=dy.cancelled * slope.reshape(-1) ** 2)


def layer_norm_forward(site: Site) -> Sequence[Moments]:
    """Each example's features to mean 0 and variance 1, then gamma and beta."""
    if site.x.mean.ndim > len(_feature_axes(site)):
        y = sequence_norm.forward(site, _feature_axes(site))
        return [y, *[Moments(site.x.mean, site.x.variance)] * (len(site.node.outputs) - 1)]
    x, (centred, std) = site.x, _feature_statistics(site)
    gamma = site.array(1).astype(np.float64)
    beta = site.array(2) if site.is_static(2) else 0.0
    covariance = (
        None if centred.covariance is None else centred.covariance * np.outer(gamma, gamma) / std.item() ** 2
    )
    variance = centred.variance / std**2 * gamma**2
    y = Moments(centred.mean / std * gamma + beta, variance, covariance, norm_spread=0.0)
    return [y, Moments(x.mean, x.variance), Moments(x.mean, x.variance)][: len(site.node.outputs)]


def layer_norm_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formula above, and sums over the batch and the other axes for gamma and beta."""
    dy = gradients[0]
    assert dy is not None
    if dy.mean.ndim > len(_feature_axes(site)):
        return sequence_norm.backward(site, dy, _feature_axes(site))
    centred, std = _feature_statistics(site)
    gamma, axes = site.array(1).astype(np.float64), _feature_axes(site)
    xhat_mean, xhat_std = centred.mean / std, np.sqrt(centred.variance) / std
    tilt = dy.mean * xhat_mean + dy.tilt * xhat_std
    others = tuple(i for i in range(dy.mean.ndim) if i not in axes)
    if dy.mean.ndim == 1 and dy.tilted_total is not None:
        spread = _sum_with_standardised(centred, dy, (np.zeros_like(std), std))
    else:
        spread = np.maximum(dy.second * (xhat_mean**2 + xhat_std**2) - tilt**2, 0.0)
    dgamma = ParameterGradient(tilt.sum(others), spread.sum(others))
    dbeta = ParameterGradient(dy.mean.sum(others), dy.total if dy.mean.ndim == 1 else dy.variance.sum(others))
    along = (gamma * tilt).mean(axes, keepdims=True)
    second = gamma**2 * dy.second - 2 * along * gamma * tilt + along**2 * (xhat_mean**2 + xhat_std**2)
    mean = gamma * dy.mean - along * xhat_mean
    count = int(np.prod([dy.mean.shape[axis] for axis in axes]))
    variance = np.maximum(second - mean**2, 0.0) * (1.0 - 1.0 / count)
    covariance, variance = _centred_covariance(
        _scaled(dy.covariance, gamma) if dy.mean.ndim == 1 else None, variance, axes
    )
    inverse = inverse_std(std, site.x, centred, axes)
    hessian = None
    if dy.hessian is not None:
        hessian = _centre(dy.hessian * np.outer(gamma, gamma) - along * np.eye(count))
        hessian = hessian * inverse.square.item()
    mean = mean - mean.mean(axes, keepdims=True)
    back = GradientMoments.of(
        mean * inverse.mean,
        inverse.variance(mean, variance),
        None if covariance is None else inverse.covariance(mean, covariance),
        hessian,
    )
    return back, dgamma, dbeta if site.is_static(2) else None


def _feature_axes(site: Site) -> tuple[int, ...]:
    rank = site.x.mean.ndim
    axis: int = site.attribute("axis", -1)
    shape = site.node.inputs[0].shape if site.node.inputs[0] is not None else None
    count = -axis if axis < 0 else (rank + 1 if shape is None else len(shape)) - axis
    return tuple(range(rank - count, rank))


def _feature_statistics(site: Site) -> tuple[Moments, Array]:
    """The centred input, and the root of its mean square over the features."""
    x, axes = site.x, _feature_axes(site)
    mean = x.mean - x.mean.mean(axes, keepdims=True)
    covariance, variance = _centred_covariance(x.covariance if x.mean.ndim == 1 else None, x.variance, axes)
    square = (variance + mean**2).mean(axes, keepdims=True) + site.attribute("epsilon", 1e-5)
    return Moments(mean, variance, covariance), np.sqrt(square)


def _centred_covariance(
    covariance: Array | None, variance: Array, axes: tuple[int, ...]
) -> tuple[Array | None, Array]:
    """Covariance and variance once the mean over the features is taken off."""
    if covariance is None or variance.ndim > 1:
        count = int(np.prod([variance.shape[axis] for axis in axes]))
        return None, variance * (1.0 - 2.0 / count) + variance.mean(axes, keepdims=True) / count
    trace = np.trace(covariance)
    scale = variance.sum() / trace if trace > 0 else 1.0
    centred = _centre(covariance) * scale
    return centred, np.maximum(np.diag(centred), 0.0)


def _centre(matrix: Array) -> Array:
    rows = matrix - matrix.mean(0, keepdims=True)
    return np.asarray(rows - rows.mean(1, keepdims=True))


def dropout_forward(site: Site) -> Sequence[Moments]:
    """y = mask x / (1 - ratio) while training: the mean stays, the mean square grows by 1 / (1 - ratio)."""
    x, kept = site.x, _kept(site)
    added = each(lambda second: second * (1.0 / kept - 1.0), x.second)
    variance = each(np.add, x.variance, added)
    tokens = of_sum([(x.tokens, x.variance), (None, added)], variance)
    y = Moments(
        x.mean,
        variance,
        _with_noise(x.covariance, added),
        tokens=tokens,
        steps=_steps_with_noise(x.steps, added),
        norm_spread=x.norm_spread,
        lags=_lags_with_noise(x.lags, added),
    )
    return [y] * len(site.node.outputs)


def dropout_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The same mask on the gradient."""
    dy, kept = gradients[0], _kept(site)
    assert dy is not None
    added = each(lambda second: second * (1.0 / kept - 1.0), dy.second)
    variance = each(np.add, dy.variance, added)
    return [
        GradientMoments(
            dy.mean,
            variance,
            _with_noise(dy.covariance, added),
            dy.cancelled,
            np.broadcast_to(0.0, dy.mean.shape),
            hessian=dy.hessian,
            tokens=of_sum([(dy.tokens, dy.variance), (None, added)], variance),
            response=dy.response,
            steps=_steps_with_noise(dy.steps, added),
            lags=_lags_with_noise(dy.lags, added),
        )
    ]


def _with_noise(covariance: Array | None, added: Array) -> Array | None:
    """Independent noise of this variance on every element."""
    return None if covariance is None else np.asarray(covariance + np.diag(added))


def _lags_with_noise(lags: Autocovariance | None, added: Array) -> Autocovariance | None:
    return None if lags is None else lags.with_lag0(lags.lag0 + added.mean(tuple(range(1, added.ndim))))


def _steps_with_noise(steps: Steps | None, added: Array) -> Steps | None:
    return None if steps is None else steps.with_noise(added)


def _kept(site: Site) -> float:
    if not site.is_static(2) or not site.array(2).item():
        return 1.0
    return 1.0 - (float(site.array(1).item()) if site.is_static(1) else 0.5)
