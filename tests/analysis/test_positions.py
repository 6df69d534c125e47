"""Autocovariances with few lags against whole ones, and positions taken as alike against each by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import probe
from gradfuse.analysis.moments import Assumptions, autocovariance, propagate
from gradfuse.analysis.moments.autocovariance import Autocovariance
from gradfuse.analysis.moments.blocks import each
from gradfuse.analysis.moments.quadrature import Array
from gradfuse.analysis.moments.state import GradientMoments, Moments
from gradfuse.analysis.moments.transfer import convolution, taps
from gradfuse.analysis.moments.transfer.convolution import Geometry, adjoint, gathered
from gradfuse.analysis.moments.transfer.taps import spread, strided, through_taps

from .analysis_networks import gradient_graph, measured_rms
from .conftest import TextGraph


def _whole(near: Array, far: float, lengths: tuple[int, ...]) -> Autocovariance:
    return Autocovariance(near, np.full((len(near), *[1] * len(lengths)), far), lengths)


@pytest.mark.parametrize(
    ("kernel", "lengths", "dilations"),
    [
        ((3, 3), (8, 7), (1, 1)),
        ((3, 3), (2, 5), (1, 2)),
        ((5,), (3,), (2,)),
        ((2, 1, 3), (4, 5, 3), (1, 1, 2)),
    ],
)
def test_the_lags_of_a_kernel_say_what_its_spectrum_says(
    kernel: tuple[int, ...],
    lengths: tuple[int, ...],
    dilations: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3, *kernel))
    covariance = _whole(rng.standard_normal((6, *lengths)), 0.3, lengths)
    found = []
    for limit in (1000, 0):
        monkeypatch.setattr(taps, "_MANY_LAGS", limit)
        found.append(through_taps(covariance, weight, dilations, 2).near)
    assert found[0].shape == (6, *lengths)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_scaled_channels_hold_no_lags_of_their_own() -> None:
    rng = np.random.default_rng(0)
    near, factor = rng.uniform(0.1, 1.0, (3, 4, 5)), np.array([2.0, 0.0, 0.5]).reshape(-1, 1, 1)
    near[:, 0, 0] = 2.0
    covariance = _whole(near, 0.3, (9, 9))
    scaled, product = covariance.scaled(factor), covariance * factor
    for found, taken in ((scaled, product), (scaled.correlation(), product.correlation())):
        np.testing.assert_allclose(found.near, taken.near, rtol=1e-12)
        np.testing.assert_allclose(found.far, taken.far, rtol=1e-12)
    np.testing.assert_allclose(scaled.total(), product.total(), rtol=1e-12)
    twice = scaled.scaled(factor) + product
    np.testing.assert_allclose(twice.near, (product * factor + product).near, rtol=1e-12)


def test_what_is_far_goes_through_taps_as_any_lag_does() -> None:
    rng = np.random.default_rng(0)
    weight, near = rng.standard_normal((4, 3, 3)), rng.standard_normal((3, 9))
    found = [through_taps(_whole(near, far, (9,)), weight, (1,), 1).near for far in (0.0, 1.7)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)


def _local(lengths: tuple[int, ...], far: float) -> Autocovariance:
    """Of two channels whose positions share more where they are less than 3 apart."""
    rng = np.random.default_rng(1)
    near = np.full((2, *autocovariance.torus(lengths)), far)
    for lag in np.ndindex(5, 5):
        near[(slice(None), *(n - 2 for n in lag))] += rng.standard_normal(2)
    return _whole(near, far, lengths)


def _lags(covariance: Autocovariance, reach: int) -> Array:
    return np.stack(
        [covariance.near[:, a, b] for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
    )


def test_few_lags_say_what_the_whole_torus_says(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    found = []
    for reach in (64, 16):
        monkeypatch.setattr(autocovariance, "REACH", reach)
        k = _local((40, 48), 0.4)
        wide = through_taps(k, weight, (1, 1), 1)
        narrow = strided(wide, (2, 2), (20, 24))
        back = through_taps(spread(narrow, (2, 2), (40, 48)), np.swapaxes(weight, 0, 1), (1, 1), 1)
        products = wide.products(wide)
        found.append(
            [_lags(wide, 4), wide.total(), products, _lags(narrow, 2), narrow.total(), _lags(back, 5)]
        )
    for whole, few in zip(*found, strict=True):
        np.testing.assert_allclose(few, whole, rtol=1e-9, atol=1e-9)


GEOMETRIES = [
    Geometry((1, 1), (1, 1), ((1, 1), (1, 1)), 1, (3, 3)),
    Geometry((2, 1), (1, 2), ((0, 2), (3, 0)), 2, (3, 2)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_tap_counts_by_the_share_of_positions_inside(geometry: Geometry) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 4 // geometry.groups, *geometry.kernel))
    shape, outputs = (4, 9, 8), (6, *geometry.lengths((9, 8)))
    x, y = (np.broadcast_to(rng.standard_normal((s[0], 1, 1)), s) for s in (shape, outputs))
    pairs = [
        (geometry.convolve(x, weight), geometry.convolve(np.array(x), weight)),
        (geometry.transpose(y, weight, shape), geometry.transpose(np.array(y), weight, shape)),
    ]
    for alike, each_one in pairs:
        assert alike.shape == each_one.shape
        np.testing.assert_allclose(alike[:, 0, 0], each_one.mean((1, 2)), rtol=1e-12)
    one_by_one = geometry.correlate(np.array(y), np.array(x))
    np.testing.assert_allclose(geometry.correlate(y, x), one_by_one, rtol=1e-12)


def test_without_a_border_positions_are_alike(text_graph: TextGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position of the first layer's output sees whole windows, and the others have 1 x 1 taps."""
    given = {"m": np.zeros(6, np.float32), "n": np.ones(6, np.float32)}
    graph = text_graph(
        "a = Conv (x, w) b = BatchNormalization (a, g, s, m, n) c = Relu (b) d = Conv (c, v)"
        " e = Relu (d) f = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e) h = Conv (f, u)"
        " k = GlobalAveragePool (h) y = Flatten (k)",
        "float[batch,3,18,18]",
        "float[batch,4]",
        given=given,
        w=(6, 3, 3, 3),
        g=(6,),
        s=(6,),
        v=(5, 6, 1, 1),
        u=(4, 5, 1, 1),
    )
    found = []
    for limit in (1e30, 0):
        monkeypatch.setattr(convolution, "ALIKE", limit)
        state = propagate(graph, Assumptions(budget=0.0))
        found.append({value.name: gradient.mean_square(32) for value, gradient in state.shared.items()})
    assert {"w", "v", "u"} <= found[0].keys()
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_function_of_what_repeats_is_worked_out_once() -> None:
    sizes = []

    def double(a: Array) -> Array:
        sizes.append(a.size)
        return 2.0 * a

    result = each(double, np.broadcast_to(np.ones((3, 1, 1)), (3, 5, 7)))
    assert (sizes, result.shape, result.max()) == ([3], (3, 5, 7), 2.0)


@pytest.mark.parametrize("is_gathered", [False, True])
def test_a_sum_over_positions_misses_what_lies_beyond_the_border(is_gathered: bool) -> None:
    """Of dy, whose sum over a batch and its positions a normalisation has made 0: then that is all of the sum."""
    geometry = Geometry((2, 1), (1, 1), ((1, 1), (0, 1)), 1, (3, 2))
    rng, wide = np.random.default_rng(0), (7, 5)
    weight, narrow = rng.standard_normal((3, 2, 3, 2)), geometry.lengths((7, 5))
    channels, lengths = (2, wide) if is_gathered else (3, narrow)
    count = math.prod(lengths)
    variance, common = np.array([1.0, 2.0, 0.5])[:channels], np.array([0.2, 0.0, 0.7])[:channels]
    lags = Autocovariance.white(variance - common, lengths) + Autocovariance.constant(common, lengths)
    none, spread_out = np.zeros((channels, *lengths)), variance.reshape(-1, 1, 1) + np.zeros(lengths)
    dy = GradientMoments(none, spread_out, None, count * lags.total(), none, lags=lags)
    each_one = np.eye(channels * count).reshape(-1, channels, *lengths)
    if is_gathered:
        found, taken = gathered(dy, weight, geometry), [geometry.convolve(one, weight) for one in each_one]
    else:
        found = adjoint((2, *wide), dy, weight, geometry)
        taken = [geometry.transpose(one, weight, (2, *wide)) for one in each_one]
    sums = np.stack([one.sum((1, 2)) for one in taken]).reshape(channels, count, -1)
    left = np.eye(count) - 1.0 / count
    expected = np.einsum("o,opi,pq,oqi->i", variance - common, sums, left, sums)
    np.testing.assert_allclose(found.total, expected, rtol=1e-6)


def test_an_axis_of_one_position_changes_nothing(text_graph: TextGraph) -> None:
    """PyTorch's AdaptiveAvgPool1d is exported with one."""
    found = []
    for unsqueezed in ("Identity (c)", "Unsqueeze (c, axes)"):
        graph = text_graph(
            f"a = Conv (x, w) b = Relu (a) c = Conv (b, v) u = {unsqueezed} d = Relu (u) e = GlobalAveragePool (d)"
            " y = Flatten (e)",
            "float[batch,3,12]",
            "float[batch,4]",
            given={"axes": np.array([2])},
            w=(6, 3, 3),
            v=(4, 6, 3),
        )
        state = propagate(graph, Assumptions(budget=0.0))
        found.append({value.name: gradient.mean_square(32) for value, gradient in state.shared.items()})
    assert found[0].keys() == {"w", "v"}
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_a_scale_that_a_normalisation_takes_out_again() -> None:
    """Of ReLU and a depthwise convolution between two batch normalisations the scale does not matter, of SiLU hardly."""
    torch.manual_seed(0)
    networks = {}
    for activation in (nn.ReLU, nn.SiLU):
        networks[activation] = nn.Sequential(
            nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), activation(),
            nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.BatchNorm2d(12), activation(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
        )  # fmt: skip
    for activation, module in networks.items():
        state = propagate(gradient_graph(module, (3, 10, 10)), Assumptions())
        predicted = {v.name: math.sqrt(found.mean_square(32)) for v, found in state.shared.items()}
        measured = measured_rms(module, (3, 10, 10), batches=24, batch_size=32)
        for name in ("0.weight", "1.bias", "3.weight", "4.weight", "4.bias"):
            assert 0.65 < predicted[name] / measured[name] < 1.4, name
        if activation is nn.ReLU:
            assert max(predicted["1.weight"], measured["1.weight"]) < 0.02 * measured["1.bias"]
        else:
            assert 0.7 < predicted["1.weight"] / measured["1.weight"] < 1.4


@pytest.mark.parametrize("groups", [1, 3])
def test_normalisation_of_groups_of_channels(groups: int) -> None:
    """Channels of very different scale, whose positions are correlated, are normalised together."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GroupNorm(groups, 12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.GroupNorm(groups, 12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    with torch.no_grad():
        module[0].weight *= torch.linspace(0.5, 2.0, 12).reshape(-1, 1, 1, 1)
        module[1].weight.uniform_(0.5, 1.5)
    state = propagate(gradient_graph(module, (3, 10, 10)), Assumptions())
    values = module[:2](torch.randn(4096, 3, 10, 10)).detach().numpy()
    node = next(node for node in state.nodes if node.op_type == "Relu")
    value = node.inputs[0]
    assert value is not None
    y = state.values[value]
    assert isinstance(y, Moments)
    np.testing.assert_allclose(y.mean.mean((1, 2)), values.mean((0, 2, 3)), atol=0.05)
    np.testing.assert_allclose(y.variance.mean((1, 2)), values.var(0).mean((1, 2)), rtol=0.12)
    predicted = {v.name: math.sqrt(found.mean_square(32)) for v, found in state.shared.items()}
    for name, measured in measured_rms(module, (3, 10, 10), batches=24, batch_size=32).items():
        assert 0.65 < predicted[name] / measured < 1.4, name
    assert state.notes == []


def test_every_reader_of_normalised_groups_sends_its_gradient_back(text_graph: TextGraph) -> None:
    body = """
        a = Conv(x, w) b = Relu(a) c = Conv(b, v) r = Reshape(c, rows) i = InstanceNormalization(r, scale, shift)
        d = Reshape(i, image) e = Relu(d) f = Reshape(i, image) g = Tanh(f) h = Add(e, g)
        p = GlobalAveragePool(h) q = Flatten(p) y = MatMul(q, u)
    """
    given = {"rows": np.array([0, 2, -1]), "image": np.array([0, 12, 5, 5])}
    given |= {"scale": np.ones(2, np.float32), "shift": np.zeros(2, np.float32)}
    shapes = {"w": (12, 3, 3, 3), "v": (12, 12, 3, 3), "u": (12, 10)}
    graph = text_graph(body, x="float[batch,3,9,9]", loss="cross-entropy", given=given, **shapes)
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    for value, found in state.shared.items():
        if value.name in shapes:
            assert 0.7 < math.sqrt(found.mean_square(32)) / measured[value.name] < 1.4, value.name
    assert "its positions are taken as uncorrelated" in [note.text for note in state.notes]


@pytest.mark.parametrize("lengths", [(7,), (12,), (3, 9)])
def test_products_of_positions(lengths: tuple[int, ...]) -> None:
    elements = np.random.default_rng(3).standard_normal((2, *lengths))
    found, axes = Autocovariance.of_products(elements), tuple(range(1, 1 + len(lengths)))
    for lag in (0, 1, -2):
        moved = np.roll(elements, -lag, -1)
        place = (slice(None), *[0] * (len(lengths) - 1), lag)
        np.testing.assert_allclose(found.near[place], (elements * moved).mean(axes), atol=1e-12)
    np.testing.assert_allclose(found.total(), found.count * elements.mean(axes) ** 2, atol=1e-12)


class Gated(nn.Module):
    """A squeeze-and-excitation gate between two batch normalisations (Hu 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.squeeze, self.excite = nn.Linear(16, 6), nn.Linear(6, 16)
        self.second = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head(self.second(x * gate[:, :, None, None]).mean((2, 3)))


def test_a_gate_between_two_batch_normalisations() -> None:
    """Over a batch, the part of the gate's gradient that all positions share vanishes; of one example it does not."""
    torch.manual_seed(4)
    module = Gated()
    state = propagate(gradient_graph(module, (3, 10, 10)), Assumptions())
    predicted = {v.name: math.sqrt(found.mean_square(32)) for v, found in state.shared.items()}
    for name, measured in measured_rms(module, (3, 10, 10), batches=24, batch_size=32).items():
        assert 0.65 < predicted[name] / measured < 1.5, name


def test_a_gradient_that_is_alike_through_a_normalisation_of_positions_that_are_not(
    text_graph: TextGraph,
) -> None:
    body = """
        a = MatMul(x, w) i = InstanceNormalization(a, scale, shift) m = ReduceMean<keepdims = 0>(i, last)
        y = MatMul(m, u)
    """
    given = {"scale": np.ones(4, np.float32), "shift": np.ones(4, np.float32), "last": np.array([-1])}
    shapes = {"w": (6, 5), "u": (4, 10)}
    graph = text_graph(body, x="float[batch,4,6]", given=given, **shapes)
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    found = {value.name: math.sqrt(summary.mean_square(32)) for value, summary in state.shared.items()}
    # The mean over all that is normalised does not depend on what came before.
    assert found["u"] == pytest.approx(measured["u"], rel=0.1)
    assert found["w"] < 0.2 * found["u"]
