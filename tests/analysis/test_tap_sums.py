"""The variance of a convolution's sum over positions, of which its taps leave some out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis.moments import Assumptions, Moments, propagate
from gradfuse.analysis.moments.autocovariance import Autocovariance
from gradfuse.analysis.moments.channel_covariance import ChannelCovariance, lag_products
from gradfuse.analysis.moments.correlation import lag_pairs
from gradfuse.analysis.moments.curves import as_latent, curve_moments
from gradfuse.analysis.moments.state import Curve
from gradfuse.analysis.moments.transfer import convolution, tap_sums
from gradfuse.analysis.moments.transfer.convolution import Geometry, convolved

from .analysis_networks import gradient_graph, measured_rms

LENGTHS = (5, 4)
COUNT = math.prod(LENGTHS)

Array = np.ndarray[Any, Any]


def _field(rng: np.random.Generator, channels: int) -> tuple[ChannelCovariance, Array]:
    """A stationary field on the torus, and the covariance of all of its elements, `[C, positions, C, positions]`."""
    taps = rng.standard_normal((channels, channels + 1, *LENGTHS)) * np.exp(-np.arange(4))
    index = np.arange(COUNT).reshape(LENGTHS)
    shifts = [np.roll(index, (-i, -j), (0, 1)).reshape(-1) for i in range(5) for j in range(4)]
    mixing = np.zeros((channels, COUNT, channels + 1, COUNT))
    for tap, shift in enumerate(shifts):
        mixing[:, np.arange(COUNT), :, shift] += taps.reshape(channels, channels + 1, COUNT)[..., tap]
    covariance = np.einsum("cpiq,driq->cpdr", mixing, mixing, optimize=True)
    by_lags = covariance[:, 0].reshape(channels, channels, *LENGTHS)
    return ChannelCovariance(Autocovariance.of_lags(by_lags.reshape(-1, *LENGTHS))), covariance


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("by_images", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_sum_of_a_convolution_over_positions(
    correlated: bool, uneven: bool, by_images: bool, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_images:
        monkeypatch.setattr(tap_sums, "_MAX_COUNTS", 0)
    if not uneven:  # positions stay alike
        monkeypatch.setattr(convolution, "ALIKE", 0)
    rng, channels = np.random.default_rng(0), 4
    geometry = Geometry((2, 1), (1, 2), ((1, 1), (0, 2)), groups, (3, 2))
    weight = rng.standard_normal((6, channels // groups, 3, 2))
    weight -= weight.mean((2, 3), keepdims=True)  # without a border the sum would vanish
    known, covariance = _field(rng, channels)
    deviation = (
        np.exp(0.5 * rng.standard_normal((channels, *LENGTHS))) if uneven else np.ones((channels, 1, 1))
    )
    variance = np.broadcast_to(known.lags.lag0.reshape(-1, 1, 1), (channels, *LENGTHS)) * deviation**2
    if uneven:
        flat = deviation.reshape(channels, -1)
        covariance = covariance * flat[:, :, None, None] * flat
        scale = ChannelCovariance.of_products(deviation, deviation)
        known = ChannelCovariance(known.pairs * scale.pairs)
    else:
        variance = np.broadcast_to(known.lags.lag0.reshape(-1, 1, 1), variance.shape)
    mean = np.zeros(variance.shape)
    x = Moments(mean, variance, lags=known.lags, channels=known if correlated else None)
    if not correlated:
        covariance = covariance * np.eye(channels)[:, None, :, None]
    units = np.eye(channels * COUNT).reshape(-1, channels, *LENGTHS)
    sums = np.stack([geometry.convolve(unit, weight).sum((1, 2)) for unit in units])
    expected = sums.T @ covariance.reshape(channels * COUNT, -1) @ sums
    y = convolved(x, weight, geometry, correlated)
    total = y.known_lags.count * y.known_lags.total()
    np.testing.assert_allclose(total, np.diag(expected), rtol=1e-9)
    if correlated:
        np.testing.assert_allclose(
            y.known_channels.total() * y.known_lags.count, expected, rtol=1e-9, atol=1e-9
        )


def test_products_by_lags() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, *LENGTHS))
    for found, (c, d) in ((lag_products(a, b), (1, 2)), (lag_products(a, a), (2, 0))):
        assert isinstance(found, ChannelCovariance)
        other = b if found is not None and (c, d) == (1, 2) else a
        near = found.pairs.near.reshape(3, 3, *LENGTHS)
        for lag in ((0, 0), (1, 3), (4, 2)):
            moved = np.roll(other[d], (-lag[0], -lag[1]), (0, 1))
            np.testing.assert_allclose(near[(c, d, *lag)], np.mean(a[c] * moved))
    own = lag_pairs(a)
    assert isinstance(own, Autocovariance)
    np.testing.assert_allclose(own.near[1, 2, 1], np.mean(a[1] * np.roll(a[1], (-2, -1), (0, 1))))
    alike = np.broadcast_to(a[:, :1, :1], a.shape)
    np.testing.assert_allclose(lag_pairs(alike), a[:, :1, :1] ** 2)


def test_a_function_of_uneven_positions_against_draws() -> None:
    """Positions of very different mean and deviation: what they have in common differs from lag to lag."""
    rng, channels = np.random.default_rng(0), 2
    known, covariance = _field(rng, channels)
    deviation, mean = (rng.uniform(*ends, (channels, *LENGTHS)) for ends in ((0.3, 1.5), (-2.0, 2.0)))
    std = np.sqrt(known.lags.lag0)
    rho = known.correlation()
    scale = ChannelCovariance.of_products(deviation, deviation)
    channel = ChannelCovariance(rho.pairs * scale.pairs)
    x = as_latent("x", Moments(mean, deviation**2, lags=channel.lags, channels=channel))
    assert x.curve is not None
    y = curve_moments(Curve("x", np.maximum(x.curve.values, 0.0), x.curve.correlated), x)
    root = np.linalg.cholesky(covariance.reshape(channels * COUNT, -1) + 1e-9 * np.eye(channels * COUNT))
    draws = (rng.standard_normal((100_000, channels * COUNT)) @ root.T).reshape(-1, channels, *LENGTHS)
    values = np.maximum(mean + deviation * draws / std.reshape(-1, 1, 1), 0.0)
    sums = np.cov(values.sum((2, 3)).T)
    np.testing.assert_allclose(y.known_channels.total() * COUNT, sums, rtol=0.03, atol=0.05)
    apart = curve_moments(Curve("x", np.maximum(x.curve.values, 0.0), x.lag_correlation), x)
    np.testing.assert_allclose(apart.known_lags.total() * COUNT, np.diag(sums), rtol=0.03)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        with torch.no_grad():  # so that zeros beyond the border show in the mean
            self.branch[0].weight += self.branch[0].weight.std() * torch.randn(width, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + x)


def test_normalised_channels_whose_mean_differs_at_the_border() -> None:
    """What a batch cancels is there no more, be the positions of a channel ever so different."""
    torch.manual_seed(1)
    width = 12
    module = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        _Residual(width), _Residual(width), _Residual(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip
    state = propagate(gradient_graph(module, (3, 8, 8)), Assumptions())
    predicted = {v.name: math.sqrt(found.mean_square(32)) for v, found in state.shared.items()}
    for name, measured in measured_rms(module, (3, 8, 8), batches=32).items():
        assert 0.6 < predicted[name] / measured < 1.5, name


def test_the_scale_of_positions_that_differ_before_a_mean() -> None:
    """Its gradient sums that of each position times the normalised value, whose mean there is most of it."""
    torch.manual_seed(0)
    width = 8
    module = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip
    with torch.no_grad():
        for index in (3, 6):
            module[index].weight += 2.0 * module[index].weight.std() * torch.randn(width, 1, 1, 1)
    state = propagate(gradient_graph(module, (3, 8, 8)), Assumptions())
    predicted = {v.name: math.sqrt(found.mean_square(32)) for v, found in state.shared.items()}
    measured = measured_rms(module, (3, 8, 8), batches=48)
    for name in ("4.weight", "7.weight"):
        assert 0.75 < predicted[name] / measured[name] < 1.6, name
