"""Blends of independent tensors, as a GRU's state, against draws; and a state that does not depend on the example yet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradfuse.analysis import probe
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.state import Moments
from gradfuse.analysis.moments.transfer.blend import Blend

from .conftest import TextGraph

Array = np.ndarray[Any, Any]


def drawn(seed: int, mean: float, scale: float) -> tuple[Array, Moments]:
    """Draws of three correlated numbers, and their moments."""
    rng = np.random.default_rng(seed)
    draws = mean * np.array([1.0, -0.5, 2.0]) + scale * rng.standard_normal(
        (200_000, 3)
    ) @ rng.standard_normal((3, 3))
    covariance = np.cov(draws.T, bias=True)
    return draws, Moments(draws.mean(0), np.diag(covariance), covariance)


def test_a_blend_against_draws() -> None:
    (a, of_a), (b, of_b), (z, of_z) = drawn(1, 1.0, 0.7), drawn(2, -0.6, 1.0), drawn(3, 0.5, 0.2)
    y = b + z * (a - b)
    found = Blend(1, of_a, of_b, of_z).moments()
    assert found.covariance is not None
    np.testing.assert_allclose(found.mean, y.mean(0), atol=0.02)
    np.testing.assert_allclose(found.covariance, np.cov(y.T), atol=0.03 * np.cov(y.T).max())


def test_gradients_of_a_blend(text_graph: TextGraph) -> None:
    """Twice, from a first state that is the same for all examples."""
    body = """
        h = Gemm(s, p, q) u = MatMul(x, a) n = Tanh(u) t = MatMul(x, c) z = Sigmoid(t)
        d = Sub(h, n) e = Mul(d, z) k = Add(e, n) v = MatMul(k, f) o = Tanh(v) r = Sub(k, o) g = Mul(z, r) w = Add(o, g)
        y = MatMul(w, b)
    """
    shapes = {"p": (8, 20), "q": (20,), "a": (16, 20), "c": (16, 20), "f": (20, 20), "b": (20, 10)}
    graph = text_graph(body, given={"s": np.ones((1, 8), np.float32)}, loss="cross-entropy", **shapes)
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    predicted = {value.name: math.sqrt(found.mean_square(32)) for value, found in state.shared.items()}
    for name in shapes:
        assert 0.75 < predicted[name] / measured[name] < 1.35, name
    assert not any(note.is_unknown for note in state.notes)
