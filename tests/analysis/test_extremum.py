"""The largest or smallest along axes: over positions, over tokens, over pieces; and draws of the fields behind it."""

from __future__ import annotations

import numpy as np
import pytest

from gradfuse.analysis import analyse, probe
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.autocovariance import Autocovariance
from gradfuse.analysis.moments.channel_covariance import ChannelCovariance
from gradfuse.analysis.moments.fields import fields

from .conftest import TextGraph

IMAGE = "c = Conv<pads = [1, 1, 1, 1]>(x, w) h = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(h, v)"
IMAGES = {"x": "float[batch,3,7,7]", "w": (12, 3, 3, 3), "v": (14, 12, 3, 3), "u": (14, 10)}
SEQUENCE = "a = MatMul(x, w) b = Tanh(a) c = MatMul(b, v) h = Relu(c)"
SEQUENCES = {"x": "float[batch,12,6]", "w": (6, 16), "v": (16, 18), "u": (18, 10)}
ONE = np.array([1])


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (f"{IMAGE} r = Relu(d) m = ReduceMax<keepdims = 0>(r, axes) y = MatMul(m, u)", IMAGES),
        (f"{IMAGE} m = ReduceMin<keepdims = 0>(d, axes) y = MatMul(m, u)", IMAGES),
        (
            f"{IMAGE} r = Relu(d) t = Transpose<perm = [0, 2, 3, 1]>(r) m = ReduceMax<keepdims = 0>(t, last)"
            " y = MatMul(m, u)",
            IMAGES,
        ),
        (
            f"{IMAGE} r = Relu(d) t = Transpose<perm = [0, 2, 3, 1]>(r) k = ReduceMax(t, last) m = Flatten(k)"
            " y = MatMul(m, u)",
            IMAGES,
        ),
        (f"{IMAGE} g = GlobalMaxPool(d) m = Flatten(g) y = MatMul(m, u)", IMAGES),
        (f"{SEQUENCE} m = ReduceMax<keepdims = 0>(h, one) y = MatMul(m, u)", SEQUENCES),
        (
            f"{SEQUENCE} i = ArgMax<axis = 1>(h) e = GatherElements<axis = 1>(h, i) m = Squeeze(e, one)"
            " y = MatMul(m, u)",
            SEQUENCES,
        ),
    ],
    ids=["positions", "smallest", "channels last", "axes kept", "GlobalMaxPool", "tokens", "taken"],
)
def test_every_gradient_behind_the_largest(
    text_graph: TextGraph, body: str, options: dict[str, object]
) -> None:
    constants = {"axes": np.array([2, 3]), "last": np.array([1, 2]), "one": ONE}
    given = {name: value for name, value in constants.items() if name in body}
    graph = text_graph(body, loss="cross-entropy", given=given, **options)
    measurement = probe(graph, Assumptions())
    report = analyse(graph, measurement=measurement)
    parameters = [entry for entry in report.profile if entry.kind == "parameter"]
    assert len(parameters) == 3
    for entry in parameters:
        assert abs(entry.disagreement) < np.log10(1.25), entry.tensor
    assert not any(note.is_unknown for note in propagate(graph, Assumptions()).notes)


@pytest.mark.parametrize("lengths", [(12,), (5, 4)])
def test_fields_are_correlated_as_asked_for(lengths: tuple[int, ...]) -> None:
    """A moving sum over two positions, mixed over channels."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((10_000, 2, *lengths))
    mixed = np.einsum("cd,nd...->nc...", [[1.0, 0.0], [0.6, 0.8]], noise + np.roll(noise, 1, -1)) / np.sqrt(2)
    near = np.zeros((4, *(min(n, 8) for n in lengths)))
    first = (0,) * (len(lengths) - 1)
    for row, rho in enumerate((1.0, 0.6, 0.6, 1.0)):
        near[(row, *first, 0)], near[(row, *first, 1)], near[(row, *first, -1)] = rho, rho / 2, rho / 2
    rho = ChannelCovariance(Autocovariance(near, np.zeros((4, *[1] * len(lengths))), lengths))
    drawn = fields(rho, rng, 10_000)
    for own, other in ((drawn, mixed), (fields(rho.lags, rng, 10_000)[:, 1:], mixed[:, 1:])):
        for lag in (0, 1, 2):
            for channels in ([0, -1], [-1, -1]):
                a, b = (
                    np.mean(x[:, channels[0]] * np.roll(x, lag, -1)[:, channels[1]]) for x in (own, other)
                )
                assert abs(a - b) < 0.03


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (
            f"{SEQUENCE} n = LayerNormalization(h, s) m = ReduceMax<keepdims = 0>(n, two) y = MatMul(m, u)",
            {"u": (12, 10)},
        ),
        (
            f"{SEQUENCE} k = ReduceMax(h, two) g = Sigmoid(k) m = Mul(h, g) y = MatMul(m, u)",
            {"y": "float[batch,12,10]"},
        ),
        (
            f"{IMAGE} r = Relu(d) k = ReduceMax<keepdims = 0>(r, two) m = ReduceMean<keepdims = 0>(k, two)"
            " y = MatMul(m, u)",
            IMAGES,
        ),
        (
            f"{SEQUENCE.rsplit(' h =', 1)[0]} k = ReduceMax(c, two) h = Relu(c) m = Add(h, k) y = MatMul(m, u)",
            {"y": "float[batch,12,10]"},
        ),
    ],
    ids=["of a sequence", "as a gate", "of an image's rows", "of what is then rectified"],
)
def test_the_largest_of_other_elements(text_graph: TextGraph, body: str, options: dict[str, object]) -> None:
    given = {"two": np.array([2]), "s": np.ones(18, np.float32)}
    given = {name: value for name, value in given.items() if f"{name})" in body}
    known = options if options is IMAGES else {**SEQUENCES, **options}
    graph = text_graph(body, given=given, **known)
    report = analyse(graph, measurement=probe(graph, Assumptions()))
    parameters = [entry for entry in report.profile if entry.kind == "parameter"]
    assert len(parameters) == 3
    for entry in parameters:
        assert abs(entry.disagreement) < np.log10(2.5), entry.tensor
