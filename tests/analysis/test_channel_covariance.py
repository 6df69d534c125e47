"""The covariance between channels against covariances written out as matrices, dense layers, and measured gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import analyse
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.autocovariance import Autocovariance
from gradfuse.analysis.moments.channel_covariance import ChannelCovariance
from gradfuse.analysis.moments.flattened import Flattened, Projected
from gradfuse.analysis.moments.quadrature import Array
from gradfuse.analysis.moments.transfer.channel_taps import at_taps, channels_through_taps

from .analysis_networks import gradient_graph, measured_rms

LENGTHS = (5, 4)


def _circulant(taps: Array, lengths: tuple[int, ...] = LENGTHS) -> Array:
    """A convolution `[O, C, *kernel]` on a torus as a matrix between all elements."""
    outputs, inputs = taps.shape[:2]
    matrix = np.zeros((outputs, *lengths, inputs, *lengths))
    for p in np.ndindex(*lengths):
        for k in np.ndindex(*taps.shape[2:]):
            q = tuple((a + b) % n for a, b, n in zip(p, k, lengths, strict=True))
            matrix[(slice(None), *p, slice(None), *q)] += taps[(slice(None), slice(None), *k)]
    return matrix.reshape(outputs * int(np.prod(lengths)), -1)


def _by_lags(matrix: Array, channels: int) -> ChannelCovariance:
    """Of a covariance between all elements that is the same at every position of a torus."""
    whole = matrix.reshape(channels, *LENGTHS, channels, *LENGTHS)[:, 0, 0]
    rows = whole.reshape(channels**2, *LENGTHS)
    return ChannelCovariance(Autocovariance(rows, np.zeros((channels**2, 1, 1)), LENGTHS))


def _near(covariance: ChannelCovariance) -> Array:
    return covariance.pairs.near


def test_channels_pass_taps_as_a_matrix_between_all_elements_says() -> None:
    rng = np.random.default_rng(0)
    first, weight, turn = (rng.standard_normal(s) for s in ((3, 2, 2, 3), (4, 3, 3, 2), (4, 4, 1, 2)))
    source, taps, hessian = _circulant(first), _circulant(weight), _circulant(turn)
    before = source @ source.T
    found = channels_through_taps(_by_lags(before, 3), weight, (1, 1), 1)
    np.testing.assert_allclose(_near(found), _near(_by_lags(taps @ before @ taps.T, 4)), atol=1e-10)
    # dy = H y, so that E dy x' = H W Cov(x).
    products = (hessian @ taps @ before).reshape(4, *LENGTHS, 3, *LENGTHS)[:, 0, 0, :, :3, :2]
    by_taps = at_taps(_by_lags(hessian, 4), weight, _by_lags(before, 3), (1, 1))
    np.testing.assert_allclose(by_taps, products, atol=1e-10)


def test_groups_are_apart() -> None:
    rng = np.random.default_rng(1)
    source, weight = _circulant(rng.standard_normal((4, 2, 2, 2))), rng.standard_normal((6, 2, 3, 3))
    whole = np.zeros((6, 4, 3, 3))
    whole[:3, :2], whole[3:, 2:] = weight[:3], weight[3:]
    before = _by_lags(source @ source.T, 4)
    found, expected = (
        channels_through_taps(before, weight, (1, 2), 2),
        channels_through_taps(before, whole, (1, 2), 1),
    )
    np.testing.assert_allclose(_near(found), _near(expected), atol=1e-10)


def test_what_is_far_between_channels_goes_through_the_sum_of_the_taps() -> None:
    rng = np.random.default_rng(2)
    weight, matrix = rng.standard_normal((3, 2, 3)), np.array([[2.0, 0.5], [0.5, 1.0]])
    found = channels_through_taps(ChannelCovariance.constant(matrix, (20,)), weight, (1,), 1)
    sums = weight.sum(2)
    np.testing.assert_allclose(found.lag0, sums @ matrix @ sums.T, atol=1e-10)
    np.testing.assert_allclose(found.total(), 20 * sums @ matrix @ sums.T, atol=1e-9)
    hessian = ChannelCovariance.constant(np.eye(3), (20,))
    by_taps = at_taps(hessian, weight, ChannelCovariance.constant(matrix, (20,)), (1,))
    np.testing.assert_allclose(by_taps, np.repeat((20 * sums @ matrix)[:, :, None], 3, 2), atol=1e-9)


@pytest.mark.parametrize("lengths", [(5, 4), (11,)])
def test_a_row_of_positions_is_read_as_a_matrix_would_be(lengths: tuple[int, ...]) -> None:
    """Of a covariance of neighbours, which no border and no other side changes."""
    rng = np.random.default_rng(3)
    channels, count, mixed = 2, int(np.prod(lengths)), rng.standard_normal((2, 2))
    lags = np.stack([k.reshape(-1) for k in np.indices(lengths)], 1)
    apart = np.abs(lags[:, None] - lags[None]).sum(2)
    matrix = np.kron(mixed @ mixed.T, (apart == 0) + 0.3 * (apart == 1))
    near = np.zeros((4, *(min(n, 8) for n in lengths)))
    near[(slice(None), *[0] * len(lengths))] = (mixed @ mixed.T).reshape(-1)
    for axis in range(len(lengths)):
        for lag in (1, -1):
            near[(slice(None), *(lag if a == axis else 0 for a in range(len(lengths))))] = 0.3 * (
                mixed @ mixed.T
            ).reshape(-1)
    covariance = ChannelCovariance(Autocovariance(near, np.zeros((4, *[1] * len(lengths))), lengths))
    weight = rng.standard_normal((channels * count, 3))
    np.testing.assert_allclose(Flattened(covariance) @ weight, matrix @ weight, atol=1e-10)
    # Backward, products with a covariance of neighbours see the same.
    own = rng.standard_normal((3, 3))
    gradient = Projected(weight, own @ own.T, None)
    found = gradient.by_lags(gradient.covariance, (channels, *lengths))
    whole = (weight @ own @ own.T @ weight.T).reshape(channels, count, channels, count)
    np.testing.assert_allclose(found.lag0, np.einsum("cpdp->cd", whole) / count, atol=1e-10)
    np.testing.assert_allclose(found.total(), whole.sum((1, 3)) / count, atol=1e-10)
    summed = (found.pairs.near * near).reshape(4, -1).sum(1)
    expected = np.einsum("cpdq,cpdq->cd", whole, matrix.reshape(whole.shape)) / count
    np.testing.assert_allclose(summed, expected.reshape(-1), atol=1e-9)


def _stack(layers: int, convolutional: bool) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(12, 12), nn.GELU()]
    parts.append(nn.Linear(12, 10))
    if not convolutional:
        return nn.Sequential(*parts)
    for index, part in enumerate(parts[:-1]):
        if isinstance(part, nn.Linear):
            parts[index] = nn.Conv2d(12, 12, 1)
            parts[index].weight.data[...] = part.weight.data[..., None, None]
            parts[index].bias = part.bias
    return nn.Sequential(*parts[:-1], nn.Flatten(), parts[-1])


def test_images_of_one_pixel_are_dense() -> None:
    dense, convolutional = (
        {e.tensor.replace("4.", "5.") if shape == (12,) and e.tensor.startswith("4.") else e.tensor: e.grad_rms
         for e in analyse(gradient_graph(_stack(2, len(shape) > 1), shape)).profile if e.kind == "parameter"}
        for shape in ((12,), (12, 1, 1))
    )  # fmt: skip
    for name, rms in dense.items():
        # A convolution's weight is also given what leans on its output (`_leaning`).
        assert convolutional[name] == pytest.approx(
            rms, rel=1e-6 if "bias" in name or name[0] == "5" else 0.03
        )


def _trained_like(norm: bool, side: int) -> nn.Sequential:
    """Kernels write in a direction that the next ones read, as those do that training has moved."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    direction = torch.randn(3)
    for before in (3, 8, 8):
        convolution, written = nn.Conv2d(before, 8, 3, padding=1), torch.randn(8)
        with torch.no_grad():
            convolution.weight += 0.15 * torch.einsum("o,i,hw->oihw", written, direction, torch.randn(3, 3))
        layers += [convolution, *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
        direction = written
    layers += [] if side == 8 else [nn.MaxPool2d(2)]
    head = nn.Linear(8 * side**2, 10)
    with torch.no_grad():
        head.weight += 0.05 * torch.einsum(
            "o,i,p->oip", torch.randn(10), direction, torch.randn(side**2)
        ).flatten(1)
    return nn.Sequential(*layers, nn.Flatten(), head)


@pytest.mark.parametrize(
    ("norm", "side", "carried", "left_out"),
    [(False, 8, 1.25, 1.8), (True, 8, 1.5, 2.5), (False, 4, 1.5, 3.0)],
)
def test_kernels_that_share_a_direction_need_the_covariance_between_channels(
    norm: bool, side: int, carried: float, left_out: float
) -> None:
    module = _trained_like(norm, side)
    measured, graph = measured_rms(module, (3, 8, 8)), gradient_graph(module, (3, 8, 8))
    worst = []
    for budget in (10.0, 0.0):
        report = analyse(graph, Assumptions(budget=budget))
        predicted = {entry.tensor: entry.grad_rms for entry in report.profile}
        # A bias before batch normalisation has no gradient.
        ratios = [np.log(predicted[name] / rms) for name, rms in measured.items() if rms > 1e-6]
        worst.append(float(np.exp(np.max(np.abs(ratios)))))
    assert worst[0] < carried
    assert worst[1] > left_out


def test_convolutions_carry_the_covariance_within_the_budget() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    graph = gradient_graph(module, (3, 8, 8))
    for budget, carried in ((10.0, True), (0.0, False)):
        state = propagate(graph, Assumptions(budget=budget))
        assert list(state.full_covariance.values()) == [carried, carried]
