"""Channels that are picked out whole and put side by side again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradfuse.analysis import probe
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.autocovariance import Autocovariance
from gradfuse.analysis.moments.channel_covariance import ChannelCovariance
from gradfuse.analysis.moments.state import GradientMoments, Moments
from gradfuse.analysis.moments.transfer.whole_channels import (
    joined_moments,
    picked_channels,
    picked_gradient,
    picked_moments,
    put_back,
)

from .conftest import TextGraph

SHAPE = (5, 3, 4)


def correlated(seed: int, channels: int) -> Autocovariance:
    rng = np.random.default_rng(seed)
    return Autocovariance(
        rng.standard_normal((channels, *SHAPE[1:])), rng.standard_normal((channels, 1, 1)), SHAPE[1:]
    )


@pytest.mark.parametrize("channels", [[1, 2], [4, 0, 3]])
def test_what_is_put_back_is_what_was_picked(channels: list[int]) -> None:
    index = np.arange(60).reshape(SHAPE)[channels]
    picked = picked_channels(index, SHAPE)
    assert picked is not None
    assert picked.tolist() == channels
    known = ChannelCovariance(correlated(1, 4 if len(channels) == 2 else 9))
    shape = (len(channels), *SHAPE[1:])
    dy = GradientMoments.of(np.full(shape, 2.0), np.full(shape, 3.0), channels=known)
    back = put_back(dy, picked, SHAPE)
    again = picked_gradient(back, picked)
    assert again.channels is not None
    np.testing.assert_array_equal(again.channels.pairs.near, known.pairs.near)
    np.testing.assert_array_equal(back.mean.sum((1, 2)), [24.0 * (c in channels) for c in range(5)])
    np.testing.assert_allclose(back.total.sum(), dy.total.sum())


@pytest.mark.parametrize(
    "index", [np.arange(60).reshape(SHAPE)[[1, 1]], np.arange(60).reshape(SHAPE)[:, ::-1]]
)
def test_what_is_no_pick_of_whole_channels(index: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
    assert picked_channels(index, SHAPE) is None


def test_parts_that_are_joined_are_those_that_are_picked() -> None:
    parts = []
    for seed, channels in ((1, 2), (2, 3)):
        known = ChannelCovariance(correlated(seed, channels**2))
        ones = np.ones((channels, *SHAPE[1:]))
        parts.append(Moments(seed * ones, ones, lags=known.lags, channels=known))
    both = [np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "variance")]
    joined = joined_moments(parts, Moments(both[0], both[1]))
    for part, channels in zip(parts, ([0, 1], [2, 3, 4]), strict=True):
        again = picked_moments(joined, np.array(channels), part)
        assert again.channels is not None
        assert part.channels is not None
        np.testing.assert_array_equal(again.channels.pairs.near, part.channels.pairs.near)
    across = picked_moments(joined, np.array([0, 4]), parts[0])
    assert across.channels is not None
    assert across.channels.pairs.near[1].max() == 0.0


def test_a_gate_of_half_of_the_channels(text_graph: TextGraph) -> None:
    """The positions of each half stay correlated: without that, a bias before the gate was predicted at a third."""
    body = """
        c = Conv(x, w, b) s, g = Split<axis = 1, num_outputs = 2>(c) q = Sigmoid(g) p = Mul(s, q)
        d = Conv(p, v, e) t, h = Split<axis = 1, num_outputs = 2>(d) r = Sigmoid(h) o = Mul(t, r)
        m = ReduceMean<keepdims = 0>(o, axes) y = MatMul(m, u)
    """
    given = {"axes": np.array([2, 3]), "b": np.zeros(24, np.float32), "e": np.zeros(24, np.float32)}
    graph = text_graph(
        body, "float[batch,3,10,10]", loss="cross-entropy", given=given, trained=("b", "e"),
        w=(24, 3, 3, 3), v=(24, 12, 3, 3), u=(12, 10),
    )  # fmt: skip
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    predicted = {value.name: math.sqrt(found.mean_square(32)) for value, found in state.shared.items()}
    for name in ("w", "b", "v", "e", "u"):
        assert 0.75 < predicted[name] / measured[name] < 1.35, name
