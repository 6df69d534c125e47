"""The rules about causes, each on a network that it must flag and on near misses that it must not."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gradfuse.analysis import Finding, TrainingSetup, analyse
from gradfuse.graph import GradientGraph

TextGraph = Callable[..., GradientGraph]
WIDTH = 32


def stack(
    build: TextGraph,
    depth: int,
    layer: str = "z{i} = MatMul(h{p}, w{i}) h{i} = Relu(z{i})",
    gain: float = 1.4,
    extra: Sequence[str] = ("w",),
    loss: str = "cross-entropy",
) -> GradientGraph:
    """Layers of width WIDTH, the given text for each, then a dense layer to 10 logits."""
    body = "".join(layer.format(i=i, p=i - 1) + " " for i in range(1, depth + 1))
    shapes = {f"{name}{i}": (WIDTH, WIDTH) for i in range(1, depth + 1) for name in extra}
    given = {"ones": np.ones(WIDTH, np.float32), "zeros": np.zeros(WIDTH, np.float32), **_statistics(depth)}
    used = {name: array for name, array in given.items() if f"{name}," in body or f"{name})" in body}
    text = f"h0 = MatMul(x, w0) {body} y = MatMul(h{depth}, v)"
    return build(text, loss=loss, gain=gain, given=used, w0=(16, WIDTH), v=(WIDTH, 10), **shapes)


def _statistics(depth: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    zeros, ones = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    return {f"{name}{i}": array for i in range(1, depth + 1) for name, array in (("m", zeros), ("s", ones))}


BATCH_NORM = (
    "z{i} = MatMul(h{p}, w{i}) n{i} = BatchNormalization(z{i}, ones, zeros, m{i}, s{i}) h{i} = Relu(n{i})"
)
LAYER_NORM = "z{i} = MatMul(h{p}, w{i}) n{i} = LayerNormalization(z{i}, ones, zeros) h{i} = Relu(n{i})"
RESIDUAL = "r{i} = Relu(h{p}) a{i} = MatMul(r{i}, w{i}) h{i} = Add(h{p}, a{i})"
PRE_NORM = "n{i} = LayerNormalization(h{p}, ones, zeros) r{i} = Relu(n{i}) a{i} = MatMul(r{i}, w{i}) h{i} = Add(h{p}, a{i})"
POST_NORM = "r{i} = Relu(h{p}) a{i} = MatMul(r{i}, w{i}) t{i} = Add(h{p}, a{i}) h{i} = LayerNormalization(t{i}, ones, zeros)"


def of(code: str, graph: GradientGraph, **options: object) -> list[Finding]:
    return [finding for finding in analyse(graph, **options).findings if finding.code == code]


def test_gf103_says_that_weights_are_too_large(text_graph: TextGraph) -> None:
    (finding,) = of("GF103", stack(text_graph, 14, gain=3.0))
    assert finding.severity == "error"
    assert finding.evidence["median_scale"] == pytest.approx(3.0, rel=0.1)
    assert finding.remedies[0].kind == "init"


def test_gf103_names_one_layer_alone_unless_a_normalisation_follows(text_graph: TextGraph) -> None:
    def with_one_large(layer: str) -> GradientGraph:
        graph = stack(text_graph, 3, layer)
        weight = graph.onnx.graph.initializers["w2"]
        assert weight.const_value is not None
        weight.const_value = type(weight.const_value)(4.0 * weight.const_value.numpy(), name="w2")  # type: ignore[call-arg]
        return graph

    (finding,) = of("GF103", with_one_large("z{i} = MatMul(h{p}, w{i}) h{i} = Relu(z{i})"))
    assert (finding.severity, len(finding.evidence["layers"])) == ("warning", 1)
    assert of("GF103", with_one_large(LAYER_NORM)) == []
    assert of("GF103", stack(text_graph, 14)) == []


def test_gf104_names_batch_norm_in_a_plain_deep_network(text_graph: TextGraph) -> None:
    (finding,) = of("GF104", stack(text_graph, 30, BATCH_NORM))
    assert finding.severity == "error"
    assert 10 ** finding.evidence["log10_gain_of_each"] == pytest.approx(1.21, abs=0.06)
    assert finding.remedies[0].kind == "normalisation"
    assert abs(finding.remedies[0].predicted_log10_gain) < 1.0


@pytest.mark.parametrize(
    ("depth", "layer"), [(6, BATCH_NORM), (30, LAYER_NORM)], ids=["shallow", "LayerNorm"]
)
def test_gf104_leaves_alone(text_graph: TextGraph, depth: int, layer: str) -> None:
    assert of("GF104", stack(text_graph, depth, layer)) == []


def test_gf105_names_a_residual_stream_that_grows(text_graph: TextGraph) -> None:
    (finding,) = of("GF105", stack(text_graph, 20, RESIDUAL))
    assert 10 ** finding.evidence["log10_gain_of_each"] == pytest.approx(2**0.5, abs=0.1)
    assert finding.evidence["blocks"] == 20
    (residual, *_) = finding.remedies
    assert residual.kind == "residual"
    assert residual.cures
    assert "0.22 *" in residual.pytorch


def test_gf105_leaves_a_normalised_stream_alone(text_graph: TextGraph) -> None:
    assert of("GF105", stack(text_graph, 20, PRE_NORM)) == []


def test_gf107_notes_many_norms_behind_sums(text_graph: TextGraph) -> None:
    (finding,) = of("GF107", stack(text_graph, 14, POST_NORM))
    assert (finding.severity, finding.evidence["blocks"]) == ("note", 14)


@pytest.mark.parametrize(("depth", "layer"), [(6, POST_NORM), (14, PRE_NORM)], ids=["shallow", "pre-LN"])
def test_gf107_leaves_alone(text_graph: TextGraph, depth: int, layer: str) -> None:
    assert of("GF107", stack(text_graph, depth, layer)) == []


def test_gf108_says_that_gradients_vanish_and_what_would_help(text_graph: TextGraph) -> None:
    (finding,) = of("GF108", stack(text_graph, 10, "z{i} = MatMul(h{p}, w{i}) h{i} = Sigmoid(z{i})"))
    assert finding.severity == "warning"
    assert finding.evidence["causes"]["activation"] < -4.0
    assert {remedy.kind for remedy in finding.remedies} >= {"activation", "init"}
    assert of("GF108", stack(text_graph, 10)) == []


def test_gf108_swaps_the_activation_of_every_layer(text_graph: TextGraph) -> None:
    """The later ones, too, whose values vary so little that they do not reach where a sigmoid is flat."""
    (finding,) = of("GF108", stack(text_graph, 14, "z{i} = MatMul(h{p}, w{i}) h{i} = Sigmoid(z{i})"))
    (swap,) = (remedy for remedy in finding.remedies if remedy.kind == "activation")
    assert abs(swap.predicted_log10_gain) < 1.0


def test_gf109_says_that_a_function_is_saturated(text_graph: TextGraph) -> None:
    body = "z = MatMul(x, w) h = Tanh(z) y = MatMul(h, v)"
    (finding,) = of("GF109", text_graph(body, gain=10.0, w=(16, 32), v=(32, 10)))
    assert finding.phase == "forward"
    assert finding.evidence["share"] == pytest.approx(0.83, abs=0.06)


@pytest.mark.parametrize(
    ("function", "gain"), [("Tanh(z{i})", 1.5), ("Relu(z{i})", 6.0), ("Clip(z{i}, low, high)", 6.0)], ids=str
)
def test_gf109_leaves_alone(text_graph: TextGraph, function: str, gain: float) -> None:
    low, high = np.float32(0.0), np.float32(6.0)
    body = "z1 = MatMul(x, w) h1 = " + function.format(i=1) + " y = MatMul(h1, v)"
    given = {"low": np.array(low), "high": np.array(high)} if "low" in function else {}
    assert of("GF109", text_graph(body, gain=gain, given=given, w=(16, 32), v=(32, 10))) == []


@pytest.mark.parametrize(("op_type", "gates"), [("RNN", 1), ("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize(("gain", "saturated"), [(1.0, False), (12.0, True)])
def test_gf109_looks_into_recurrent_nodes(
    text_graph: TextGraph, op_type: str, gates: int, gain: float, saturated: bool
) -> None:
    rng, width = np.random.default_rng(1), 24
    given = {
        "w": (gain / 4.0 * rng.standard_normal((1, gates * width, 16))).astype(np.float32),
        "r": (rng.standard_normal((1, gates * width, width)) / width**0.5).astype(np.float32),
    }
    body = f"o, l = {op_type}<hidden_size={width}>(x, w, r) h = Squeeze(l, zero) y = MatMul(h, v)"
    graph = text_graph(
        body,
        "float[6,batch,16]",
        loss="cross-entropy",
        given={**given, "zero": np.array([0])},
        trained=("w", "r"),
        v=(width, 10),
    )
    found = of("GF109", graph)
    assert [finding.evidence["nodes"] for finding in found] == ([[f"{op_type}_0"]] if saturated else [])


@pytest.mark.parametrize(("bias", "found"), [(-4.0, 1), (-1.0, 0)])
def test_gf110_counts_dead_units(text_graph: TextGraph, bias: float, found: int) -> None:
    body = "m = MatMul(x, w) z = Add(m, b) h = Relu(z) y = MatMul(h, v)"
    given = {"b": np.full(32, bias, np.float32)}
    findings = of("GF110", text_graph(body, given=given, w=(16, 32), v=(32, 10)))
    assert [finding.severity for finding in findings] == ["warning"] * found


def recurrent(build: TextGraph, gain: float, steps: int, loss: str = "cross-entropy") -> GradientGraph:
    """A ReLU RNN, written out in time."""
    body = "p = MatMul(x, w) h0 = Relu(p) "
    body += "".join(
        f"u{i} = MatMul(h{i - 1}, r) p{i} = MatMul(x, w) s{i} = Add(u{i}, p{i}) h{i} = Relu(s{i}) "
        for i in range(1, steps + 1)
    )
    rng = np.random.default_rng(3)
    matrix = gain * rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    graph = build(
        f"{body} y = MatMul(h{steps}, v)",
        loss=loss,
        gain=0.1,
        given={"r": matrix},
        w=(16, WIDTH),
        v=(WIDTH, 10),
    )
    source = type(graph.source)(graph.source.onnx, (*graph.source.parameters, "r"))
    return GradientGraph.of(source, loss)


def test_gf106_names_a_recurrence_that_grows_through_time(text_graph: TextGraph) -> None:
    (finding,) = of("GF106", recurrent(text_graph, 1.8, 24))
    assert finding.evidence["time_steps"] == 24
    assert finding.evidence["log10_gain_of_recurrence"] > 1.0
    assert "orthogonal" in finding.remedies[0].text
    assert of("GF106", recurrent(text_graph, 0.9, 24)) == []


@pytest.mark.parametrize(("loss", "last", "found"), [
    ("cross-entropy", "Softmax(z)", 1),
    ("cross-entropy", "LogSoftmax(z)", 0),
    ("bce-with-logits", "Sigmoid(z)", 1),
    ("mse", "Sigmoid(z)", 0),
    ("cross-entropy", "Identity(z)", 0),
])  # fmt: skip
def test_gf502_finds_probabilities_where_logits_are_expected(
    text_graph: TextGraph, loss: str, last: str, found: int
) -> None:
    graph = text_graph(f"z = MatMul(x, w) s = {last} y = Identity(s)", loss=loss, w=(16, 10))
    assert len(of("GF502", graph)) == found


def test_gf501_finds_steps_larger_than_the_weights_and_gives_the_rate(text_graph: TextGraph) -> None:
    graph = stack(text_graph, 2)
    assert of("GF501", graph) == []
    (finding,) = of("GF501", graph, setup=TrainingSetup(lr=20.0))
    rate = float(finding.remedies[0].pytorch.split("lr=")[1].split(",")[0])
    assert 0.0 < rate < 0.5
    assert of("GF501", graph, setup=TrainingSetup(lr=rate)) == []


def test_gf401_finds_values_beyond_float16(text_graph: TextGraph) -> None:
    graph = stack(text_graph, 2, gain=80.0, loss="output")
    assert [f.severity for f in of("GF401", graph) if f.phase == "forward"] == ["note"]
    asked = of("GF401", graph, setup=TrainingSetup(precision="float16"))
    assert [f.severity for f in asked if f.phase == "forward"] == ["error"]


def test_gf401_gives_a_loss_scale_for_small_gradients(text_graph: TextGraph) -> None:
    graph = stack(text_graph, 4, gain=0.15)
    (finding,) = of("GF401", graph, setup=TrainingSetup(precision="float16"))
    scale = finding.evidence["loss_scale"]
    assert finding.severity == "warning"
    assert np.log2(scale) == int(np.log2(scale)) > 0
    assert finding.evidence["largest"] * scale <= 65504 / 16
    assert finding.evidence["largest"] * scale * 2 > 65504 / 16
    assert of("GF401", stack(text_graph, 2)) == []


def test_gf402_finds_updates_that_bfloat16_rounds_away(text_graph: TextGraph) -> None:
    graph = stack(text_graph, 2)
    assert of("GF402", graph) == []
    (finding,) = of("GF402", graph, setup=TrainingSetup(lr=1e-4, precision="bfloat16"))
    assert finding.evidence["lost"] > finding.evidence["of"] / 2
    assert of("GF402", graph, setup=TrainingSetup(lr=1.0, precision="bfloat16")) == []


def test_gf402_finds_a_mean_that_drowns_what_varies(text_graph: TextGraph) -> None:
    body = "m = MatMul(x, w) z = Add(m, b) n = LayerNormalization(z, ones, zeros) y = MatMul(n, v)"
    given = {
        name: np.full(32, fill, np.float32) for name, fill in (("b", 500.0), ("ones", 1.0), ("zeros", 0.0))
    }
    (finding,) = of("GF402", text_graph(body, given=given, w=(16, 32), v=(32, 10)))
    assert finding.severity == "note"
    assert finding.evidence["mean_over_deviation"] > 256
    given["b"] = np.full(32, 5.0, np.float32)
    assert of("GF402", text_graph(body, given=given, w=(16, 32), v=(32, 10))) == []
