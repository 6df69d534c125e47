"""The probe: what it measures is what the graph computes, and it decides the verdict."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from gradfuse.analysis import Measurement, analyse, assume, probe
from gradfuse.analysis.moments import Assumptions
from gradfuse.graph import ConversionError, GradientGraph, InputError, evaluate

TextGraph = Callable[..., GradientGraph]
BODY = "z = MatMul(x, w) h = Relu(z) y = MatMul(h, v)"


@pytest.fixture(scope="module")
def graph(text_graph: TextGraph) -> GradientGraph:
    built: GradientGraph = text_graph(BODY, loss="cross-entropy", w=(16, 24), v=(24, 10))
    return built


@pytest.fixture(scope="module")
def measured(graph: GradientGraph) -> Measurement:
    return probe(graph, Assumptions())


def test_it_measures_what_the_graph_computes(graph: GradientGraph) -> None:
    rng = np.random.default_rng(4)
    x, labels = rng.standard_normal((8, 16), np.float32), rng.integers(0, 10, 8)
    found = probe(graph, Assumptions(batch_size=8), data=(x, labels))
    outputs = evaluate(graph.onnx, {"x": x, "target": labels})
    squares = {
        name: np.sum(outputs[gradient].astype(np.float64) ** 2) for name, gradient in graph.gradients.items()
    }
    for name, square in squares.items():
        assert found.gradients[name] == pytest.approx(
            math.sqrt(square / outputs[graph.gradients[name]].size), rel=1e-5
        )
    assert found.global_norm == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-5)
    assert found.loss == pytest.approx(float(outputs[graph.loss_output]), rel=1e-5)
    assert found.values["y"] == pytest.approx(float(np.sqrt(np.mean(outputs["y"] ** 2))), rel=1e-5)
    assert (found.overflow, found.overflow_phase, found.inputs) == ("", "", "the data")


def test_it_is_seeded(graph: GradientGraph, measured: Measurement) -> None:
    assert probe(graph, Assumptions()) == measured
    assert probe(graph, Assumptions(), seed=1).loss != measured.loss


def test_it_stands_beside_the_prediction(graph: GradientGraph, measured: Measurement) -> None:
    report = analyse(graph, measurement=measured)
    document = json.loads(report.render("json"))
    entries = {entry["tensor"]: entry for entry in document["profile"]}
    assert entries["w"]["measured_grad_rms"] == pytest.approx(measured.gradients["w"], rel=1e-5)
    assert entries["h"]["measured_value_rms"] == pytest.approx(measured.values["h"], rel=1e-5)
    assert entries["w"]["measured_grad_rms"] == pytest.approx(entries["w"]["grad_rms"], rel=0.25)
    assert document["summary"]["basis"] == "measured"
    assert document["probe"]["predicted"]["basis"] == "predicted"
    assert document["probe"]["disagreements"] == []
    text = report.render("text")
    assert "Measured on 4 batches of N(0,1)." in " ".join(text.split())
    assert "Nothing was run" not in text
    assert (
        "measured"
        in text.splitlines()[
            text.splitlines().index("fuse plan: none: the predicted gradients need no clipping") + 2
        ]
    )


def test_it_decides_the_verdict_and_says_where_it_disagrees(graph: GradientGraph) -> None:
    rng = np.random.default_rng(4)
    loud = 3000.0 * rng.standard_normal((64, 16), np.float32)
    report = analyse(graph, measurement=probe(graph, Assumptions(), data=(loud, rng.integers(0, 10, 64))))
    assert (report.predicted.verdict, report.summary.verdict) == ("stable", "explodes")
    assert {finding.code for finding in report.findings} >= {"GF101"}
    assert {entry.tensor for entry in report.disagreements} == {"w", "v"}
    assert "predicted alone: stable" in " ".join(report.render("text").split())


def test_it_names_the_first_value_that_overflows(text_graph: TextGraph) -> None:
    body = "z = MatMul(x, w) a = Exp(z) b = Exp(a) c = Exp(b) y = MatMul(c, v)"
    exponential = text_graph(body, loss="cross-entropy", gain=3.0, w=(16, 24), v=(24, 10))
    found = probe(exponential, Assumptions())
    assert found.overflow in ("b", "c")
    assert found.overflow_phase == "forward"
    assert analyse(exponential, measurement=found).summary.verdict == "explodes"


def test_more_batches_are_run_where_their_gradients_differ(
    graph: GradientGraph, measured: Measurement
) -> None:
    rng = np.random.default_rng(4)
    x, labels = rng.standard_normal((800, 16), np.float32), rng.integers(0, 10, 800)
    x[::100] *= 300
    found = probe(graph, Assumptions(), data=(x, labels))
    # A gradient whose RMS may be a factor of 1.5 below the truth is measured on, up to 64 batches.
    assert (measured.batches, found.batches) == (4, 48)


def test_dropout_drops_anew_and_yet_the_same_for_a_seed(text_graph: TextGraph) -> None:
    ratio = {"ratio": np.array(0.5, np.float32)}
    body = "z = MatMul(x, w) h = Dropout(z, ratio) y = MatMul(h, v)"
    graph = text_graph(body, loss="cross-entropy", given=ratio, w=(16, 24), v=(24, 10))
    assert probe(graph, Assumptions()) == probe(graph, Assumptions())


@pytest.mark.parametrize("loss", ["mse", "l1", "bce-with-logits", "output"])
def test_every_loss_gets_targets(text_graph: TextGraph, loss: str) -> None:
    graph = text_graph(BODY, loss=loss, w=(16, 24), v=(24, 10))
    predicted = {entry.tensor: entry.grad_rms for entry in analyse(graph).profile}
    found = probe(graph, Assumptions())
    assert found.gradients["w"] == pytest.approx(predicted["w"], rel=0.25)


def test_a_sample_gives_mean_variance_and_frequencies(graph: GradientGraph) -> None:
    rng = np.random.default_rng(0)
    x = (2.0 + np.arange(16) * rng.standard_normal((400, 16))).astype(np.float32)
    labels = np.repeat([0, 3], [100, 300])
    assumed = assume(graph, data=(x, labels))
    assert assumed.mean == pytest.approx(x.mean(0), abs=1e-5)
    assert assumed.variance == pytest.approx(x.var(0), rel=1e-5)
    assert assumed.label_frequencies == pytest.approx([0.25, 0, 0, 0.75, 0, 0, 0, 0, 0, 0])
    given = assume(graph, mean=0.5, label_frequencies=[1.0] * 10, data=(x, labels))
    assert given.mean == 0.5
    assert given.label_frequencies == pytest.approx([0.1] * 10)


def test_images_are_averaged_over_positions(text_graph: TextGraph) -> None:
    body = "c = Conv(x, k) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, v)"
    graph = text_graph(body, x="float[batch,3,5,5]", loss="cross-entropy", k=(4, 3, 3, 3), v=(4, 10))
    data = np.random.default_rng(0).standard_normal((50, 3, 5, 5)).astype(np.float32)
    assumed = assume(graph, data=(data, np.zeros(50, np.int64)))
    assert np.shape(assumed.mean) == (3, 1, 1)
    assert np.shape(assume(graph, mean=[0.1, 0.2, 0.3]).mean) == (3, 1, 1)
    with pytest.raises(InputError, match="2 input means or variances for x"):
        assume(graph, mean=[0.1, 0.2])
    with pytest.raises(InputError, match="label frequencies"):
        assume(graph, label_frequencies=[-1.0] * 10)


def test_a_model_in_float64_is_measured_where_there_are_kernels_for_it(text_graph: TextGraph) -> None:
    rng, given = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, shape in (("w", (16, 24)), ("v", (24, 10))):
        given[name] = rng.standard_normal(shape) / 4.0
    graph = text_graph(BODY, "double[batch,16]", "double[batch,10]", given=given, trained=("w", "v"))
    found = probe(graph, Assumptions())
    assert {name for name, rms in found.gradients.items() if math.isfinite(rms)} >= {"w", "v"}


def test_a_missing_kernel_is_said_in_one_line(text_graph: TextGraph) -> None:
    given = {"w": np.ones((4, 3, 3, 3)), "v": np.ones((4, 10))}
    body = "z = Conv(x, w) p = GlobalAveragePool(z) f = Flatten(p) y = MatMul(f, v)"
    graph = text_graph(body, "double[batch,3,8,8]", "double[batch,10]", given=given, trained=("w", "v"))
    with pytest.raises(ConversionError, match="export the model in float32") as raised:
        probe(graph, Assumptions())
    assert "\n" not in str(raised.value)
