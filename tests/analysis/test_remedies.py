"""Remedies: the lines are right code, and what is promised of a change is what a report on the changed network predicts."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradfuse.analysis import Remedy, RiskReport, analyse
from gradfuse.analysis.moments import Assumptions, propagate, propagation_seconds
from gradfuse.analysis.remedies import OFFERS, learning_rate_remedy
from gradfuse.graph import GradientGraph, TrainableModel
from gradfuse.graph.remedies import insert_batch_norm

TextGraph = Callable[..., GradientGraph]
WIDTH = 24
PLAIN = "z{i} = MatMul(h{p}, w{i}) h{i} = Relu(z{i})"


def network(
    build: TextGraph, layer: str, depth: int, gain: float, **given: np.ndarray[Any, Any]
) -> GradientGraph:
    body = "".join(layer.format(i=i, p=i - 1) + " " for i in range(1, depth + 1))
    shapes = {f"w{i}": (WIDTH, WIDTH) for i in range(1, depth + 1)} if "w{i}" in layer else {}
    text = f"h0 = MatMul(x, w0) {body} y = MatMul(h{depth}, v)"
    graph = build(text, loss="cross-entropy", gain=gain, given=given, w0=(16, WIDTH), v=(WIDTH, 10), **shapes)
    return GradientGraph.of(TrainableModel(graph.source.onnx, (*graph.source.parameters, *given)))


def of_kind(report: RiskReport, kind: str, line: str = "") -> Remedy:
    offered = [r for finding in report.findings for r in finding.remedies]
    return next(r for r in offered if r.kind == kind and line in r.pytorch)


@pytest.fixture(scope="module")
def plain(text_graph: TextGraph) -> GradientGraph:
    return network(text_graph, PLAIN, 10, 3.0)


@pytest.fixture(scope="module")
def remedies(text_graph: TextGraph, plain: GradientGraph) -> dict[str, Remedy]:
    """One of each kind; two of `init`."""
    report = analyse(plain)
    square = network(text_graph, "z{i} = MatMul(h{p}, w{i}) h{i} = Mul(z{i}, z{i})", 3, 1.5)
    residual = network(
        text_graph, "r{i} = Relu(h{p}) a{i} = MatMul(r{i}, w{i}) h{i} = Add(h{p}, a{i})", 14, 1.5
    )
    matrix = np.random.default_rng(0).normal(0, 2.0 * WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    step = "u{i} = MatMul(h{p}, r) p{i} = MatMul(x, w0) s{i} = Add(u{i}, p{i}) h{i} = Relu(s{i})"
    recurrent = network(text_graph, step, 12, 1.0, r=matrix)
    return {
        "init": of_kind(report, "init"),
        "normalisation": of_kind(report, "normalisation"),
        "batch-norm": of_kind(report, "normalisation", "BatchNorm"),
        "fuse": of_kind(report, "fuse"),
        "activation": of_kind(analyse(square), "activation"),
        "residual": of_kind(analyse(residual), "residual"),
        "recurrent-init": of_kind(analyse(recurrent), "init"),
        "learning-rate": learning_rate_remedy(0.001, report.summary),
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


def test_a_normalisation_before_every_activation_leaves_logits_alone(text_graph: TextGraph) -> None:
    """Keras adds a layer's bias in a node of its own, which is no activation."""

    def biased(layer: str) -> GradientGraph:
        body = "".join(layer.format(i=i, p=i - 1) for i in range(1, 11))
        given = {
            "b": np.full(16, 0.1, np.float32),
            "c": np.full(10, 0.1, np.float32),
            "ones": np.ones(16, np.float32),
        }
        text = f"h0 = Identity(x) {body} m = MatMul(h10, v) y = Add(m, c)"
        shapes = {f"w{i}": (16, 16) for i in range(1, 11)}
        return text_graph(text, loss="cross-entropy", gain=3.0, given=given, v=(16, 10), **shapes)

    layer = "m{i} = MatMul(h{p}, w{i}) n{i} = LayerNormalization(m{i}, ones) a{i} = Add(m{i}, b) h{i} = Relu(a{i}) "
    remedy = of_kind(analyse(biased(layer)), "normalisation", "LayerNorm")
    after = analyse(biased(layer.replace("Add(m", "Add(n")), Assumptions(budget=0.0)).summary
    assert remedy.predicted_log10_gain == pytest.approx(after.log10_gain, abs=0.1)
    assert remedy.predicted_global_norm == pytest.approx(after.global_norm, rel=0.1)


@pytest.mark.parametrize("start", ["h0 = Identity(x)", "h0 = MatMul(x, p)"], ids=["input", "projection"])
def test_the_branches_that_are_scaled_are_not_the_skips(text_graph: TextGraph, start: str) -> None:
    """The first skip may be the input, or a projection of it, beside which the trunk takes the branch."""

    def blocks(summand: str, **given: np.ndarray[Any, Any]) -> GradientGraph:
        layer = "a{i} = MatMul({skip}, u{i}) r{i} = Relu(a{i}) b{i} = MatMul(r{i}, w{i}) c{i} = Mul(b{i}, f) "
        body = "".join(
            layer.format(i=i, skip=f"h{i - 1}" if i > 1 else "x") + f"h{i} = Add(h{i - 1}, {summand}{i}) "
            for i in range(1, 13)
        )
        shapes = {f"{name}{i}": (16, 16) for i in range(1, 13) for name in "uw"}
        given["f"] = given.get("f", np.ones((), np.float32))
        text = f"{start} {body} y = MatMul(h12, v)"
        return text_graph(text, loss="cross-entropy", gain=1.5, given=given, p=(16, 16), v=(16, 10), **shapes)

    remedy = of_kind(analyse(blocks("b")), "residual")
    factor = float(remedy.pytorch.split()[4])
    # By one law of the inputs, as remedies of networks that explode are recomputed.
    after = analyse(blocks("c", f=np.array(factor, np.float32)), Assumptions(budget=0.0)).summary
    assert remedy.predicted_log10_gain == pytest.approx(after.log10_gain, abs=0.1)
    assert remedy.predicted_global_norm == pytest.approx(after.global_norm, rel=0.1)


def test_the_promised_gain_is_what_a_report_on_the_changed_network_predicts(
    text_graph: TextGraph, remedies: dict[str, Remedy]
) -> None:
    remedy = remedies["init"]
    gain = float(remedy.pytorch.split("std=")[1].split()[0])
    # The weights are drawn at their nominal scale here, and are brought to it exactly by the remedy.
    after = analyse(network(text_graph, PLAIN, 10, gain))
    assert after.summary.log10_gain == pytest.approx(remedy.predicted_log10_gain, abs=0.5)
    assert after.failures("warning") == []


def test_batch_norm_promises_what_its_insertion_gives(
    plain: GradientGraph, remedies: dict[str, Remedy]
) -> None:
    assert remedies["batch-norm"].gradfuse == 'gradfuse.remedy(model, insert="batch-norm")'
    # No budget for several laws of the inputs: what a remedy promises is by one, as the network before it is.
    after = analyse(GradientGraph.of(insert_batch_norm(plain.source)), Assumptions(budget=0.3)).summary
    assert after.log10_gain == pytest.approx(remedies["batch-norm"].predicted_log10_gain, abs=1e-6)
    # Yang et al. 2019: sqrt(pi / (pi - 1)) for each layer with ReLU; the last weights lie outside.
    assert 0.5 < after.log10_gain / (10 * math.log10(math.pi / (math.pi - 1)) / 2) < 1.5


def test_an_activation_behind_a_recurrent_node_is_swapped(text_graph: TextGraph) -> None:
    body = "s, e = RNN<hidden_size=24>(x, w, r) h0 = Squeeze(e, axis)"
    layers = [f"z{i} = MatMul(h{i - 1}, w{i}) h{i} = Mul(z{i}, z{i})" for i in range(1, 4)]
    graph = text_graph(
        f"{body} {' '.join(layers)} y = MatMul(h3, v)",
        x="float[6,batch,16]", loss="cross-entropy", gain=3.0, given={"axis": np.array([0])},
        w=(1, 24, 16), r=(1, 24, 24), v=(24, 10), **{f"w{i}": (24, 24) for i in range(1, 4)},
    )  # fmt: skip
    report = analyse(graph)
    assert report.summary.verdict == "explodes"
    remedy = of_kind(report, "activation")
    assert remedy.cures
    assert remedy.predicted_log10_gain < report.summary.log10_gain - 1.0


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


def test_the_budget_decides_which_remedies_are_recomputed(plain: GradientGraph) -> None:
    state = propagate(plain, Assumptions())
    one = propagation_seconds(state.values, state.full_covariance, state.all_steps)
    reports = [analyse(plain, Assumptions(budget=budget)) for budget in (0.0, 1.5 * one, 10.0)]
    recomputed = [
        {r.kind for finding in report.findings for r in finding.remedies} - {"fuse", "learning-rate"}
        for report in reports
    ]
    assert recomputed[:2] == [set(), {"init"}]
    assert recomputed[2] > {"init"}
    assert reports[0].not_recomputed.endswith("not recomputed within the budget of 0 s: --budget 10")
    assert "3 remedies (init, normalisation, batch-norm) not recomputed" in reports[0].render()
    assert reports[1].not_recomputed.startswith("2 remedies (normalisation, batch-norm) not recomputed")
    assert reports[2].not_recomputed == ""
