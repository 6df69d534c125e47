"""Products in blocks, against the whole."""

from __future__ import annotations

import numpy as np
import pytest

from gradfuse.analysis.moments import Assumptions, blocks, curves, propagate, state
from gradfuse.analysis.moments.blocks import aligned, gram, mean_square, product, times
from gradfuse.analysis.moments.state import GradientByRows, ParameterGradient
from gradfuse.analysis.moments.transfer.taps import summed

from .conftest import TextGraph


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("square", [False, True])
def test_a_product_in_blocks(monkeypatch: pytest.MonkeyPatch, transposed: bool, square: bool) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 40)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((17, 13)).astype(np.float32)
    weight = weight.T if transposed else weight
    x, row = rng.standard_normal((5, len(weight))), rng.standard_normal((1, len(weight)))
    whole = weight.astype(np.float64) ** (2 if square else 1)
    np.testing.assert_allclose(product(x, weight, square), x @ whole, rtol=1e-12)
    repeated = product(np.broadcast_to(row, x.shape), weight, square)
    np.testing.assert_allclose(repeated, np.repeat(row @ whole, 5, 0), rtol=1e-12)
    np.testing.assert_allclose(mean_square(weight), np.mean(weight.astype(np.float64) ** 2), rtol=1e-12)


def test_rows_that_are_alike() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1, 3)), rng.standard_normal((1, 4))
    repeated = [np.broadcast_to(part, (6, part.shape[1])) for part in (a, b)]
    np.testing.assert_allclose(gram(*repeated), 6 * a.T @ b)


def test_a_gradient_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 10)
    rng = np.random.default_rng(0)
    whole = ParameterGradient(rng.standard_normal((7, 4)), rng.uniform(0.0, 1.0, (7, 4)))
    by_rows = GradientByRows((7, 4), lambda part: ParameterGradient(whole.mean[part], whole.variance[part]))
    summary = by_rows.summary()
    assert summary.mean_square(3) == pytest.approx(np.mean(whole.variance / 3 + whole.mean**2))
    assert summary.largest == np.max(whole.second)
    np.testing.assert_array_equal(by_rows.transposed.scaled(2.0).whole().mean, 2 * whole.mean.T)


_NORM = {"g": np.ones(24, np.float32), "b": np.full(24, 0.3, np.float32)}

SHARED = {
    "dense": (
        "h = MatMul (x, w) a = Tanh (h) y = MatMul (a, v)",
        {"w": (16, 20), "v": (20, 10)},
        {},
    ),
    "sequence": (
        "h = MatMul (x, w) n = LayerNormalization (h, g, b) u = MatMul (n, up) a = Tanh (u) d = MatMul (a, down)"
        " s = Add (h, d) m = ReduceMean <keepdims = 0> (s, one) y = MatMul (m, v)",
        {"w": (16, 24), "up": (24, 32), "down": (32, 24), "v": (24, 10)},
        {"x": "float[batch,3,16]", "given": {**_NORM, "one": np.array([1])}, "trained": ["g", "b"]},
    ),
    "convolution": (
        "h = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) a = Relu (h) i = Conv <pads = [1, 1, 1, 1]> (a, k)"
        " b = Tanh (i) m = GlobalAveragePool (b) f = Flatten (m) y = Gemm (f, v)",
        {"w": (20, 3, 3, 3), "k": (24, 20, 3, 3), "v": (24, 10)},
        {"x": "float[batch,3,34,34]"},
    ),
}
"""Bodies, shapes of weights, and what else their graphs are made of."""


@pytest.mark.parametrize("body", SHARED)
def test_sums_over_a_weights_gradient_are_those_of_its_elements(
    text_graph: TextGraph, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    nodes, shapes, others = SHARED[body]
    graph, found = text_graph(nodes, **others, **shapes), []
    for limit in (state._LARGEST_SQUARE, 0.0):
        monkeypatch.setattr(state, "_LARGEST_SQUARE", limit)
        shared = propagate(graph, Assumptions(mean=0.5, budget=0.0)).shared
        found.append({value.name: (g.means, g.variances, g.largest) for value, g in shared.items()})
    by_sums, by_rows = found
    for name in shapes:
        assert by_sums[name][:2] == pytest.approx(by_rows[name][:2], rel=1e-5)
    # Sums bound the largest, so that the two ways cannot have been one.
    assert any(by_sums[name][2] > by_rows[name][2] for name in shapes)


def test_a_float32_matrix_takes_columns_of_any_scale() -> None:
    rng = np.random.default_rng(0)
    matrix, columns = rng.standard_normal((7, 5)).astype(np.float32), rng.standard_normal((5, 3))
    for scale in (1e-200, 1.0, 1e200):
        np.testing.assert_allclose(times(matrix, scale * columns), scale * (matrix @ columns), rtol=1e-5)
    assert np.all(times(matrix, np.zeros((5, 1))) == 0)
    assert np.all(np.isnan(times(matrix, np.full((5, 1), np.nan))))


@pytest.mark.parametrize("kernel", [(), (1,), (3, 2)])
def test_sums_over_taps(monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, ...]) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 20)
    rng, taps = np.random.default_rng(0), tuple(range(2, 2 + len(kernel)))
    weight, shares = rng.standard_normal((5, 4, *kernel)), rng.uniform(0.1, 1.0, kernel)
    for square in (False, True):
        power = weight ** (2 if square else 1)
        np.testing.assert_allclose(summed(weight, square=square), power.sum(taps), rtol=1e-12)
        by_share = summed(weight, shares.reshape(-1), square)
        np.testing.assert_allclose(by_share, (power * shares).sum(taps), rtol=1e-12)


def test_a_weight_at_an_address_that_does_not_fit_its_type() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    beside = np.frombuffer(b"a" + weight.tobytes(), np.float32, offset=1).reshape(3, 4).T
    assert not beside.flags.aligned
    moved = aligned(beside)
    assert moved.flags.aligned
    assert moved.strides == beside.strides
    np.testing.assert_array_equal(moved, weight.T)
    assert aligned(weight) is weight


def test_too_many_features_for_a_matrix_say_the_same_by_their_tilt(
    text_graph: TextGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = text_graph("h = MatMul (x, w) a = Tanh (h) y = MatMul (a, v)", w=(16, 20), v=(20, 10))
    found = []
    for limit in (2048, 10):
        monkeypatch.setattr(curves, "COVARIANCE_LIMIT", limit)
        shared = propagate(graph, Assumptions(mean=0.5, budget=0.0)).shared
        found.append({value.name: gradient.mean_square(32) for value, gradient in shared.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0].keys() == {"w", "v"}
