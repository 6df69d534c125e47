"""Sequences: the mathematics of tokens against draws, and predictions against measured gradients."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import analyse, probe
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.drawn_op import _contract
from gradfuse.analysis.moments.draws import fitted_value, sample
from gradfuse.analysis.moments.quadrature import NODES
from gradfuse.analysis.moments.state import GradientMoments, Moments
from gradfuse.analysis.moments.token_curves import (
    cross_moments,
    function_tokens,
    slope_moments,
    sum_covariance,
)
from gradfuse.analysis.moments.tokens import TokenCorrelation
from gradfuse.analysis.moments.transfer.sequence import dense, mean_of_tokens, weight_gradient
from gradfuse.analysis.moments.turned import turned_to

from .analysis_networks import gradient_graph, measured_rms
from .conftest import TextGraph

Array = np.ndarray[Any, Any]

LENGTH, FEATURES = 5, 3


def correlated_sequence(seed: int) -> tuple[Array, Array, TokenCorrelation]:
    """Mean, variance and correlation of a sequence whose tokens share half of what varies."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((FEATURES, FEATURES))
    within = root @ root.T
    within /= np.sqrt(np.outer(np.diag(within), np.diag(within)))
    mean = rng.standard_normal((LENGTH, FEATURES))
    variance = np.outer(rng.uniform(0.5, 2.0, LENGTH), rng.uniform(0.5, 2.0, FEATURES))
    return mean, variance, TokenCorrelation((0,), within, 0.5 * within)


def test_functions_of_tokens_with_means_and_scales_of_their_own_against_draws() -> None:
    mean, variance, tokens = correlated_sequence(6)
    draws = sample(Moments(*_with_tokens(6)), "x", 100_000)
    curve = np.maximum(mean + np.sqrt(variance) * NODES[:, None, None], 0.0)
    slope, f, g = (curve > 0).astype(np.float64), np.maximum(draws, 0.0), (draws > 0).astype(np.float64)
    found = function_tokens(curve, f.var(0), tokens).covariances(f.std(0))
    exact = _over_tokens(f - f.mean(0), f - f.mean(0))
    np.testing.assert_allclose(found, exact, atol=0.02 * np.abs(exact).max())
    np.testing.assert_allclose(slope_moments(slope, tokens), _over_tokens(g, g), atol=0.02)
    expected = _over_tokens(g - g.mean(0), f - f.mean(0))
    np.testing.assert_allclose(cross_moments(slope, curve, tokens), expected, atol=0.01)


def _over_tokens(f: Array, g: Array) -> Array:
    """E f_i g_j averaged over tokens, and over pairs of tokens, of draws `[N, T, F]`: `[2, F, F]`."""
    own = np.einsum("ntf,ntg->fg", f, g) / len(f)
    pairs = f.sum(1).T @ g.sum(1) / len(f) - own
    return np.stack([own / LENGTH, pairs / (LENGTH * (LENGTH - 1))])


def test_a_weight_that_all_tokens_use_against_draws() -> None:
    x, dy = Moments(*_with_tokens(1)), GradientMoments.of(*_parts(2))
    predicted = weight_gradient(x, dy, np.ones((FEATURES, FEATURES))).whole()
    one, other = sample(x, "x", 200_000), sample(Moments(*_with_tokens(2)), "dy", 200_000)
    products = np.einsum("ntf,ntg->nfg", one, other[::-1])
    np.testing.assert_allclose(predicted.mean, products.mean(0), atol=0.1)
    np.testing.assert_allclose(predicted.variance, products.var(0), rtol=0.05)


def _with_tokens(seed: int) -> tuple[Any, ...]:
    mean, variance, tokens = correlated_sequence(seed)
    return mean, variance, None, None, False, tokens


def _parts(seed: int) -> tuple[Any, ...]:
    mean, variance, tokens = correlated_sequence(seed)
    return mean, variance, None, None, tokens


def test_a_dense_layer_and_a_mean_over_tokens_against_draws() -> None:
    x = Moments(*_with_tokens(3))
    weight = np.random.default_rng(4).standard_normal((FEATURES, 2))
    draws = sample(x, "x", 200_000) @ weight
    y = dense(x, weight, full=True)
    assert y.tokens is not None
    np.testing.assert_allclose(y.variance, draws.var(0), rtol=0.05)
    _, variance, covariance = mean_of_tokens(y, y.tokens)
    pooled = draws.mean(1)
    np.testing.assert_allclose(variance, pooled.var(0), rtol=0.05)
    np.testing.assert_allclose(covariance, np.cov(pooled.T), rtol=0.05, atol=0.02)


def test_draws_have_the_moments_that_they_are_fitted_to() -> None:
    x = Moments(*_with_tokens(5))
    fitted = fitted_value(sample(x, "x", 100_000), (0,))
    assert fitted.tokens is not None
    assert x.tokens is not None
    np.testing.assert_allclose(fitted.variance, x.variance, rtol=0.05)
    np.testing.assert_allclose(fitted.tokens.within, x.tokens.within, atol=0.03)
    np.testing.assert_allclose(fitted.tokens.between, x.tokens.between, atol=0.05)


@pytest.mark.parametrize(
    ("inputs", "output"),
    [(("Zaxy", "Zayw"), "Zaxw"), (("Zxy", "yw"), "Zxw"), (("xy", "Zyw"), "Zxw"), (("Zxw", "Zxy"), "Zyw")],
)
def test_products_of_draws_against_einstein_summation(inputs: tuple[str, str], output: str) -> None:
    lengths = dict(zip("Zaxyw", (6, 2, 3, 4, 5), strict=True))
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal([lengths[label] for label in labels]) for labels in inputs]
    expected = np.einsum(f"{inputs[0]},{inputs[1]}->{output}", *arrays)
    np.testing.assert_allclose(_contract(inputs, arrays, output), expected)


class Encoder(nn.Module):
    """Two transformer encoder layers."""

    def __init__(self, norm_first: bool, pool: str, mask: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=norm_first)
            for _ in range(2)
        )
        self.last, self.pool, self.mask = nn.Linear(16, 10), pool, mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.mask else None
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        pooled = x.mean(1) if self.pool == "mean" else x[:, 0 if self.pool == "first" else -1]
        return self.last(pooled)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("norm_first", "pool", "mask"), [(True, "mean", False), (True, "last", True), (False, "first", False)]
)
def test_parameters_of_a_transformer(norm_first: bool, pool: str, mask: bool) -> None:
    torch.manual_seed(20)
    module = Encoder(norm_first, pool, mask)
    report = analyse(gradient_graph(module, (8, 16)))
    notes = [finding.message for finding in report.findings if finding.code == "GF901"]
    assert [note for note in notes if "rule" in note] == []
    predicted = {entry.tensor: entry.grad_rms for entry in report.profile}
    for name, rms in measured_rms(module, (8, 16), 24).items():
        assert abs(math.log(predicted[name] / rms)) < math.log(1.6), name


def test_a_graph_convolution(text_graph: TextGraph) -> None:
    """A matrix on the left, the same for all examples, mixes tokens before an activation."""
    rng = np.random.default_rng(2)
    neighbours = (rng.random((12, 12)) < 0.3) + np.eye(12)
    mixing = (neighbours / neighbours.sum(1, keepdims=True)).astype(np.float32)
    layers = "a = MatMul(x, w) b = MatMul(g, a) h = Relu(b) c = MatMul(h, v) d = MatMul(g, c) r = Relu(d)"
    graph = text_graph(
        f"{layers} m = ReduceMean<keepdims = 0>(r, one) y = MatMul(m, u)",
        "float[batch,12,6]", loss="cross-entropy", given={"g": mixing, "one": np.array([1])},
        w=(6, 20), v=(20, 20), u=(20, 10),
    )  # fmt: skip
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    predicted = {value.name: math.sqrt(found.mean_square(32)) for value, found in state.shared.items()}
    for name in ("w", "v", "u"):
        assert 0.75 < predicted[name] / measured[name] < 1.35, name
    assert not any(note.is_unknown for note in state.notes)


@pytest.mark.parametrize("keep", [0, 1])
def test_normalised_tokens_whose_mean_is_read(text_graph: TextGraph, keep: int) -> None:
    """All tokens receive one gradient, of few directions, which weights favour; axes may be kept until a Reshape."""
    rng = np.random.default_rng(5)
    read = np.linalg.qr(rng.standard_normal((32, 10)))[0]
    favoured = (
        rng.standard_normal((32, 32)) / 8.0 + 2.0 * np.linalg.qr(rng.standard_normal((32, 10)))[0] @ read.T
    )
    graph = text_graph(
        f"""
        a = MatMul(x, w) n = LayerNormalization<axis = -1>(a, g, b) h = Relu(n)
        d = MatMul(h, v) m = LayerNormalization<axis = -1>(d, k, c) r = Relu(m)
        p = ReduceMean<keepdims = {keep}>(r, one) s = Reshape(p, row) y = MatMul(s, u)
        """,
        "float[batch,16,32]", loss="cross-entropy", w=(32, 32), trained=("v", "u", "g", "b", "k", "c"),
        given={
            "one": np.array([1]), "row": np.array([0, 32]),
            "v": favoured.astype(np.float32), "u": read.astype(np.float32),
            **dict.fromkeys("gk", np.ones(32, np.float32)), **dict.fromkeys("bc", np.zeros(32, np.float32)),
        },
    )  # fmt: skip
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    predicted = {value.name: math.sqrt(found.mean_square(32)) for value, found in state.shared.items()}
    for name in ("w", "g", "b", "v", "k", "c", "u"):
        assert 0.8 < predicted[name] / measured[name] < 1.25, name


def test_sums_of_a_gradient_that_moves_with_its_tokens_against_draws() -> None:
    mean, variance, tokens = correlated_sequence(7)
    draws, dy = (
        sample(Moments(*_with_tokens(7)), "x", 200_000),
        sample(Moments(*_with_tokens(8)), "dy", 200_000),
    )
    slope = (mean + np.sqrt(variance) * NODES[:, None, None] > 0).astype(np.float64)
    bent = slope * NODES[:, None, None]
    products = dy[::-1] * (draws > 0)
    sums = [(products * (draws - mean) / np.sqrt(variance)).sum(1), products.sum(1)]
    gradient = GradientMoments.of(*_parts(8))
    assert gradient.tokens is not None
    for other, expected in zip((bent, slope), sums, strict=True):
        found = sum_covariance(bent, other, tokens, gradient.tokens, gradient.mean, gradient.variance)
        exact = np.mean((sums[0] - sums[0].mean(0)) * (expected - expected.mean(0)), 0)
        np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())


def test_features_as_tokens_against_draws() -> None:
    """Elements that share a part with their row, one with their column, and one with all."""
    rng = np.random.default_rng(3)
    parts = (rng.standard_normal((10_000, *shape)) for shape in ((1, 1), (5, 1), (1, 4), (5, 4)))
    draws = sum(scale * part for scale, part in zip((0.4, 0.7, 0.5, 1.0), parts, strict=True)).astype(
        np.float32
    )
    found, expected = turned_to(fitted_value(draws, (0,)), (1,)), fitted_value(draws, (1,)).tokens
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found.within, expected.within, atol=0.04)
    np.testing.assert_allclose(found.between, expected.between, atol=0.04)


def test_a_mixture_of_tokens(text_graph: TextGraph) -> None:
    """An MLP over patches beside one over their features: what each feature receives is correlated over the patches."""
    body = """
        p = Conv<strides = [4, 4]>(x, k, b) f = Reshape(p, patches) t = Transpose<perm = [0, 2, 1]>(f)
        n = LayerNormalization<axis = -1>(t, g, c) m = Transpose<perm = [0, 2, 1]>(n) q = MatMul(m, w) a = Add(q, d)
        h = Relu(a) v = MatMul(h, u) o = Transpose<perm = [0, 2, 1]>(v) s = Add(t, o)
        e = LayerNormalization<axis = -1>(s, g, c) r = ReduceMean<keepdims = 0>(e, one) y = MatMul(r, z)
    """
    given = {
        "patches": np.array([0, 14, 16]), "one": np.array([1]), "g": np.ones(14, np.float32), "c": np.zeros(14, np.float32),
        "b": np.zeros(14, np.float32), "d": np.zeros(24, np.float32),
    }  # fmt: skip
    graph = text_graph(
        body, "float[batch,3,16,16]", loss="cross-entropy", given=given, trained=("b", "c", "d"),
        k=(14, 3, 4, 4), w=(16, 24), u=(24, 16), z=(14, 10),
    )  # fmt: skip
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    predicted = {value.name: math.sqrt(found.mean_square(32)) for value, found in state.shared.items()}
    for name in ("k", "b", "c", "w", "d", "u", "z"):
        assert 0.7 < predicted[name] / measured[name] < 1.4, name


def test_what_tokens_that_are_alike_take_grows_no_faster_than_their_values(text_graph: TextGraph) -> None:
    """A function at the nodes of all of them would be 140 times as large."""
    layers = "m = MatMul(x, w) n = LayerNormalization(m, scale) h = Softplus(n)"
    body = f"{layers} p = ReduceMean<keepdims = 0>(h, one) y = MatMul(p, u)"
    given = {"scale": np.ones(32, np.float32), "one": np.array([1])}
    tokens, kept = 2048, 40
    graph = text_graph(
        body, x=f"float[batch,{tokens},16]", given=given, trained=("scale",), w=(16, 32), u=(32, 10)
    )
    tracemalloc.start()
    propagate(graph, Assumptions(budget=0.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < kept * 8 * tokens * 32
