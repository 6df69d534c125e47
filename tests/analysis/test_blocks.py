"""Products in blocks, against the whole."""

from __future__ import annotations

import numpy as np
import pytest

from gradfuse.analysis.moments import Assumptions, blocks, curves, propagate
from gradfuse.analysis.moments.blocks import gram, mean_square, product
from gradfuse.analysis.moments.state import GradientByRows, ParameterGradient

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
