"""The relative variance of a squared norm, against draws."""

from collections.abc import Callable

import numpy as np
import pytest

from gradfuse.analysis.moments import Moments, norm_spread
from gradfuse.analysis.moments.curves import as_latent
from gradfuse.analysis.moments.quadrature import NODES, Array
from gradfuse.analysis.moments.state import Curve

FEATURES, DRAWS = 24, 40_000
FUNCTIONS = {"relu": lambda x: np.maximum(x, 0.0), "tanh": np.tanh, "silu": lambda x: x / (1.0 + np.exp(-x))}


def features(seed: int = 0) -> tuple[Moments, Array]:
    """Correlated normal features with means, and draws of them `[DRAWS, FEATURES]`."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((FEATURES, 10)) / 4.0
    covariance = root @ root.T + 0.5 * np.eye(FEATURES)
    mean = 0.3 * rng.standard_normal(FEATURES)
    drawn = mean + rng.standard_normal((DRAWS, FEATURES)) @ np.linalg.cholesky(covariance).T
    return Moments(mean, np.diag(covariance).copy(), covariance), drawn


def spread(drawn: Array) -> float:
    squares = np.sum(drawn**2, 1)
    return float(np.var(squares) / np.mean(squares) ** 2)


def normalised(drawn: Array) -> Array:
    """Every draw with the mean norm: what a normalisation does."""
    squares = np.sum(drawn**2, 1, keepdims=True)
    return np.asarray(drawn * np.sqrt(np.mean(squares) / squares))


def test_of_normal_features() -> None:
    x, drawn = features()
    assert norm_spread.of_normal(x) == pytest.approx(spread(drawn), rel=0.05)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_a_function_of_normalised_features(name: str) -> None:
    x, drawn = features()
    function: Callable[[Array], Array] = FUNCTIONS[name]
    x = as_latent("x", Moments(x.mean, x.variance, x.covariance, norm_spread=0.0))
    values = function(x.mean + np.sqrt(x.variance) * NODES[:, None])
    predicted = norm_spread.of_function(values, x)
    exact, normal = spread(function(normalised(drawn))), spread(function(drawn))
    assert predicted == pytest.approx(exact, rel=0.3)
    assert abs(predicted - exact) < abs(normal - exact)


def test_of_a_function_whose_input_is_not_known_to_be_normalised_it_is_not_known() -> None:
    x, _ = features()
    x = as_latent("x", x)
    assert isinstance(x.curve, Curve)
    assert norm_spread.of_function(np.tanh(x.curve.values), x) is None


@pytest.mark.parametrize("outputs", [8, 64])
def test_of_products_with_weights_of_no_direction(outputs: int) -> None:
    x, drawn = features()
    known = Moments(x.mean, x.variance, x.covariance, norm_spread=0.0)
    rng, fixed = np.random.default_rng(5), normalised(drawn[:4000])
    found = [spread(fixed @ rng.standard_normal((FEATURES, outputs))) for _ in range(40)]
    assert norm_spread.of_product(known, outputs) == pytest.approx(np.mean(found), rel=0.1)
    assert norm_spread.of_product(x, outputs) is None


def test_of_a_sum_of_a_normalised_and_a_normal_part() -> None:
    x, drawn = features()
    z, other = features(seed=1)
    known = Moments(x.mean, x.variance, x.covariance, norm_spread=0.0)
    assert x.covariance is not None
    assert z.covariance is not None
    total = Moments(x.mean + z.mean, x.variance + z.variance, x.covariance + z.covariance)
    predicted = norm_spread.of_sum([known, z], total)
    assert predicted == pytest.approx(spread(normalised(drawn) + other), rel=0.15)
    assert norm_spread.of_sum([x, z], total) is None


def test_sums_of_nothing_have_no_norm() -> None:
    """As of branches whose last scale starts at 0."""
    nothing = Moments(np.zeros((3, 4)), np.zeros((3, 4)), norm_spread=0.1)
    assert norm_spread.of_sum([nothing, nothing], nothing) is None
