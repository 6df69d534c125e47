"""Remedies: the lines are right code, and what is promised of a change is what a report on the changed network predicts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradfuse.analysis import Remedy, analyse
from gradfuse.analysis.remedies import OFFERS, learning_rate_remedy
from gradfuse.graph import GradientGraph, TrainableModel

TextGraph = Callable[..., GradientGraph]
WIDTH = 24


def network(
    build: TextGraph, layer: str, depth: int, gain: float, **given: np.ndarray[Any, Any]
) -> GradientGraph:
    body = "".join(layer.format(i=i, p=i - 1) + " " for i in range(1, depth + 1))
    shapes = {f"w{i}": (WIDTH, WIDTH) for i in range(1, depth + 1)} if "w{i}" in layer else {}
    text = f"h0 = MatMul(x, w0) {body} y = MatMul(h{depth}, v)"
    graph = build(text, loss="cross-entropy", gain=gain, given=given, w0=(16, WIDTH), v=(WIDTH, 10), **shapes)
    return GradientGraph.of(TrainableModel(graph.source.onnx, (*graph.source.parameters, *given)))


def of_kind(graph: GradientGraph, kind: str) -> Remedy:
    return next(r for finding in analyse(graph).findings for r in finding.remedies if r.kind == kind)


@pytest.fixture(scope="module")
def remedies(text_graph: TextGraph) -> dict[str, Remedy]:
    """One of each kind; two of `init`."""
    plain = network(text_graph, "z{i} = MatMul(h{p}, w{i}) h{i} = Relu(z{i})", 10, 3.0)
    square = network(text_graph, "z{i} = MatMul(h{p}, w{i}) h{i} = Mul(z{i}, z{i})", 3, 1.5)
    residual = network(
        text_graph, "r{i} = Relu(h{p}) a{i} = MatMul(r{i}, w{i}) h{i} = Add(h{p}, a{i})", 14, 1.5
    )
    matrix = np.random.default_rng(0).normal(0, 2.0 * WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    step = "u{i} = MatMul(h{p}, r) p{i} = MatMul(x, w0) s{i} = Add(u{i}, p{i}) h{i} = Relu(s{i})"
    recurrent = network(text_graph, step, 12, 1.0, r=matrix)
    return {
        "init": of_kind(plain, "init"),
        "normalisation": of_kind(plain, "normalisation"),
        "fuse": of_kind(plain, "fuse"),
        "activation": of_kind(square, "activation"),
        "residual": of_kind(residual, "residual"),
        "recurrent-init": of_kind(recurrent, "init"),
        "learning-rate": learning_rate_remedy(0.001, analyse(plain).summary),
    }


def test_every_kind_is_offered_where_it_helps(remedies: dict[str, Remedy]) -> None:
    assert set(OFFERS) < set(remedies)
    assert "orthogonal" in remedies["recurrent-init"].text
    assert all(remedies[kind].cures for kind in OFFERS)
    assert not remedies["fuse"].cures


def test_the_lines_for_pytorch_run(remedies: dict[str, Remedy]) -> None:
    names = {
        "w": torch.empty(8, 4), "model": torch.nn.Linear(4, 8), "features": 4, "channels": 4, "x": torch.ones(2, 4),
        "branch": torch.nn.Identity(), "rnn": torch.nn.RNN(4, 4), "torch": torch,
    }  # fmt: skip
    for kind, remedy in remedies.items():
        exec(remedy.pytorch, names)
        assert remedy.pytorch, kind
    assert torch.allclose(
        names["x"], torch.full((2, 4), 1.0 + float(remedies["residual"].pytorch.split()[4]))
    )


def test_the_lines_for_keras_run(remedies: dict[str, Remedy]) -> None:
    keras = pytest.importorskip("keras")
    names = {"keras": keras, "n": 4, "x": keras.ops.ones((2, 4)), "branch": keras.layers.Identity()}
    for remedy in remedies.values():
        exec(remedy.keras, names)


def test_the_promised_gain_is_what_a_report_on_the_changed_network_predicts(text_graph: TextGraph) -> None:
    layer = "z{i} = MatMul(h{p}, w{i}) h{i} = Relu(z{i})"
    remedy = of_kind(network(text_graph, layer, 10, 3.0), "init")
    gain = float(remedy.pytorch.split("std=")[1].split()[0])
    # The weights are drawn at their nominal scale here, and are brought to it exactly by the remedy.
    after = analyse(network(text_graph, layer, 10, gain)).summary
    assert after.log10_gain == pytest.approx(remedy.predicted_log10_gain, abs=0.5)
    assert analyse(network(text_graph, layer, 10, gain)).failures("warning") == []


def test_what_does_not_help_is_not_offered(text_graph: TextGraph) -> None:
    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    layer = "z{i} = MatMul(h{p}, w{i}) n{i} = BatchNormalization(z{i}, ones, zeros, zeros, ones) h{i} = Relu(n{i})"
    body = "".join(layer.format(i=i, p=i - 1) + " " for i in range(1, 31))
    shapes = {f"w{i}": (WIDTH, WIDTH) for i in range(1, 31)}
    graph = text_graph(
        f"h0 = MatMul(x, w0) {body} y = MatMul(h30, v)",
        loss="cross-entropy", gain=1.4, given={"ones": ones, "zeros": zeros}, w0=(16, WIDTH), v=(WIDTH, 10), **shapes,
    )  # fmt: skip
    kinds = {remedy.kind for finding in analyse(graph).findings for remedy in finding.remedies}
    assert "normalisation" in kinds
    assert not kinds & {"activation", "residual"}
