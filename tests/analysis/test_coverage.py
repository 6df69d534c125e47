"""Every op is passed: by its rule, or by the stated approximation and a note; never by an error."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import analyse
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.converters import convert
from gradfuse.graph import GradientGraph, evaluate

INT = np.int64


def predict(graph: GradientGraph) -> list[str]:
    """The ops that rules made notes on; every parameter has a finite positive prediction."""
    report = analyse(graph)
    report.render("text")
    assert all(math.isfinite(entry.grad_rms) for entry in report.profile)
    parameters = [entry for entry in report.profile if entry.kind == "parameter"]
    assert [entry.tensor for entry in parameters if not entry.grad_rms > 0] == []
    assert {entry.tensor for entry in parameters} == set(graph.gradients)
    return sorted({note.node.op_type for note in propagate(graph, Assumptions()).notes})


def test_softmax_in_the_middle(text_graph: Callable[..., GradientGraph]) -> None:
    body = "h = MatMul(x, a) p = Softmax<axis=1>(h) y = MatMul(p, b)"
    assert predict(text_graph(body, a=(16, 12), b=(12, 10))) == ["Softmax"]


def test_product_of_two_tensors_that_vary(text_graph: Callable[..., GradientGraph]) -> None:
    body = "h = MatMul(x, a) t = Transpose<perm=[0,2,1]>(x) s = MatMul(h, t) f = Flatten(s) y = MatMul(f, b)"
    graph = text_graph(body, x="float[batch,6,16]", a=(16, 16), b=(36, 10))
    assert predict(graph) == []
    assert_close(graph, (6, 16), 1.3)


def test_quotient_of_two_tensors_that_vary(text_graph: Callable[..., GradientGraph]) -> None:
    body = "g = MatMul(x, a) h = MatMul(x, b) s = Softplus(h) q = Div(g, s) y = MatMul(q, c)"
    assert predict(text_graph(body, a=(16, 12), b=(16, 12), c=(12, 10))) == ["Div"]


def test_weight_that_multiplies_from_the_left(text_graph: Callable[..., GradientGraph]) -> None:
    body = "h = MatMul(a, x) f = Flatten(h) y = MatMul(f, b)"
    graph = text_graph(body, x="float[batch,6,16]", a=(4, 6), b=(64, 10))
    assert predict(graph) == []
    assert_close(graph, (6, 16), 1.3)


def test_sequences_whose_batch_is_the_second_axis(text_graph: Callable[..., GradientGraph]) -> None:
    body = """
        t = Transpose<perm=[1,0,2]>(x) h = MatMul(t, a) s = Add(h, c) r = Relu(s)
        u = Transpose<perm=[1,0,2]>(r) f = Flatten(u) y = MatMul(f, b)
    """
    shapes = {"a": (16, 8), "c": (8,), "b": (48, 10)}
    graph = text_graph(body, x="float[batch,6,16]", **shapes)
    assert predict(graph) == []
    assert_close(graph, (6, 16), 1.3)


def test_heads_that_are_folded_into_the_batch(text_graph: Callable[..., GradientGraph]) -> None:
    body = """
        s = Reshape(x, folded) h = MatMul(s, a) r = Relu(h) t = Reshape(r, unfolded) y = MatMul(t, b)
    """
    folded, unfolded = np.array([-1, 8], INT), np.array([-1, 16], INT)
    given = {"folded": folded, "unfolded": unfolded}
    graph = text_graph(body, given=given, a=(8, 8), b=(16, 10))
    assert predict(graph) == []
    assert_close(graph, (16,), 1.3)


TRANSPOSED = {
    "strided": ("ConvTranspose<strides=[2,2]>", (6, 8, 2, 2)),
    "overlapping": ("ConvTranspose<strides=[2,2], pads=[1,1,1,1]>", (6, 8, 4, 4)),
    "grouped": ("ConvTranspose<group=2, pads=[1,1,1,1]>", (6, 4, 3, 3)),
    "padded at the end": ("ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>", (6, 8, 3, 3)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_against_measured_gradients(
    name: str, text_graph: Callable[..., GradientGraph]
) -> None:
    op, shape = TRANSPOSED[name]
    body = f"""
        h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) t = {op}(r, w, c) s = Tanh(t)
        p = GlobalAveragePool(s) f = Flatten(p) y = MatMul(f, b)
    """
    graph = text_graph(body, x="float[batch,3,5,5]", a=(6, 3, 3, 3), w=shape, c=(8,), b=(8, 10))
    assert predict(graph) == []
    assert_close(graph, (3, 5, 5), 1.3)


@pytest.mark.parametrize(("mode", "factor"), [("nearest", 2), ("nearest", 3), ("linear", 2), ("linear", 3)])
def test_upsampling_against_measured_gradients(
    mode: str, factor: int, text_graph: Callable[..., GradientGraph]
) -> None:
    body = f"""
        h = Conv<pads=[1,1,1,1]>(x, a) t = Resize<mode="{mode}">(h, , scales) s = Conv<strides=[2,2]>(t, w)
        f = Flatten(s) y = MatMul(f, b)
    """
    given = {"scales": np.array([1, 1, factor, factor], np.float32)}
    side = (4 * factor - 3) // 2 + 1
    shapes = {"a": (6, 3, 3, 3), "w": (8, 6, 3, 3), "b": (8 * side**2, 10)}
    graph = text_graph(body, x="float[batch,3,4,4]", given=given, **shapes)
    assert predict(graph) == ["Resize"]
    assert all("equally correlated" in note.text for note in propagate(graph, Assumptions()).notes)
    assert_close(graph, (3, 4, 4), 1.5)


def test_an_upsampled_image_before_batch_normalisation(text_graph: Callable[..., GradientGraph]) -> None:
    """Neighbours receive alike within an example, and over a batch nothing in common: `d` gets what the border leaves out."""
    body = """
        h = Conv<pads=[1,1,1,1]>(x, a, d) t = Resize<mode="nearest">(h, , scales) s = Conv<pads=[1,1,1,1]>(t, w)
        n = BatchNormalization(s, one, zero, zero, one) r = Relu(n) p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, b)
    """
    given = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "one": np.ones(8, np.float32),
        "zero": np.zeros(8, np.float32),
    }
    shapes = {"a": (8, 3, 3, 3), "d": (8,), "w": (8, 8, 3, 3), "b": (8, 10)}
    graph = text_graph(body, x="float[batch,3,5,5]", given=given, loss="cross-entropy", **shapes)
    assert_close(graph, (3, 5, 5), 1.35)


def test_another_resizing_is_passed_with_a_note(text_graph: Callable[..., GradientGraph]) -> None:
    body = 't = Resize<mode="cubic">(x, , scales) f = Flatten(t) y = MatMul(f, b)'
    graph = text_graph(
        body, x="float[batch,3,4,4]", given={"scales": np.array([1, 1, 2, 2], np.float32)}, b=(192, 10)
    )
    assert predict(graph) == ["Resize"]
    assert any("upsampling" in note.text for note in propagate(graph, Assumptions()).notes)


NORMALISED = {
    "3x3": (8, 3, 3, 3),
    "1x1": (8, 3, 1, 1),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_instance_normalisation_against_measured_gradients(
    name: str, text_graph: Callable[..., GradientGraph]
) -> None:
    kernel = NORMALISED[name]
    body = """
        h = Conv(x, w) n = InstanceNormalization(h, g, c) r = Tanh(n) k = Conv<pads=[1,1,1,1]>(r, v)
        m = InstanceNormalization(k, e, d) s = Relu(m) f = Flatten(s) y = MatMul(f, b)
    """
    side = 7 - kernel[-1]
    given = {
        name: np.full(8, number, np.float32)
        for name, number in zip("gced", (1.5, 0.3, 1.0, -0.2), strict=True)
    }
    shapes = {"w": kernel, "v": (8, 8, 3, 3), "b": (8 * side**2, 10)}
    # Of g and c the prediction is up to 5 times too small: what a second normalisation cancels does not survive tanh exactly.
    graph = text_graph(
        body, "float[batch,3,6,6]", loss="cross-entropy", given=given, trained=("e", "d"), **shapes
    )
    assert predict(graph) == []
    assert_close(graph, (3, 6, 6), 1.5)


@pytest.mark.parametrize("gate", ["Sigmoid(g)", "Mul(g, t)", "Tanh(g)"])
def test_gates_against_measured_gradients(gate: str, text_graph: Callable[..., GradientGraph]) -> None:
    """A gate times a value, both of the same input: sigmoid (GLU), SiLU (SwiGLU), tanh."""
    body = f"""
        g = MatMul(x, a) t = Sigmoid(g) s = {gate} v = MatMul(x, b) h = Mul(s, v) r = MatMul(h, c)
        u = Tanh(r) y = MatMul(u, d)
    """
    graph = text_graph(body, a=(16, 24), b=(16, 24), c=(24, 16), d=(16, 10))
    assert predict(graph) == []
    assert_close(graph, (16,), 1.3)


def test_a_weight_that_is_a_product_of_weights(text_graph: Callable[..., GradientGraph]) -> None:
    body = "w = MatMul(a, b) y = MatMul(x, w)"
    assert predict(text_graph(body, a=(16, 4), b=(4, 10))) == ["MatMul"]


def test_weights_that_are_split_and_joined_move_without_a_note(
    text_graph: Callable[..., GradientGraph],
) -> None:
    body = """
        a, b = Split<axis=1, num_outputs=2>(w) c = Concat<axis=1>(b, a) h = MatMul(x, c) y = MatMul(h, d)
    """
    graph = text_graph(body, w=(16, 12), d=(12, 10))
    assert predict(graph) == []
    joined = {entry.tensor: entry.grad_rms for entry in analyse(graph).profile}
    plain = analyse(text_graph("h = MatMul(x, w) y = MatMul(h, d)", w=(16, 12), d=(12, 10)))
    expected = {entry.tensor: entry.grad_rms for entry in plain.profile}
    assert joined["w"] == pytest.approx(expected["w"], rel=0.1)


def test_a_dropout_whose_mask_no_gradient_reads_is_its_output(
    text_graph: Callable[..., GradientGraph],
) -> None:
    ratio = np.float32(0.3)
    body = "d = Dropout(x, ratio) h = MatMul(d, a) r = Relu(h) y = MatMul(r, b)"
    graph = text_graph(body, given={"ratio": np.array(ratio)}, a=(16, 12), b=(12, 10))
    assert [node.op_type for node in graph.onnx.graph][:2] == ["Dropout", "Where"]
    assert predict(graph) == []
    noisy = next(entry for entry in analyse(graph).profile if entry.tensor == "d")
    assert noisy.value_rms == pytest.approx((1.0 - ratio) ** -0.5)


MEANS = {
    "features": ("h = MatMul(x, a) m = ReduceMean(h, one) y = MatMul(m, b)", (16,), (16, 12), (1, 10)),
    "positions": ("h = MatMul(x, a) m = ReduceMean<keepdims=0>(h, one) y = MatMul(m, b)", (6, 16), (16, 8), (8, 10)),
    "channels last": (
        "h = MatMul(x, a) r = Tanh(h) m = ReduceMean<keepdims=0>(r, two) y = MatMul(m, b)",
        (4, 4, 16),
        (16, 8),
        (8, 10),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANS)
def test_means_over_whichever_axes_against_measured_gradients(
    name: str, text_graph: Callable[..., GradientGraph]
) -> None:
    body, shape, a, b = MEANS[name]
    given = {"one": np.array([1], INT), "two": np.array([1, 2], INT)}
    used = {key: value for key, value in given.items() if key in body}
    x = f"float[batch,{','.join(map(str, shape))}]"
    graph = text_graph(body, x=x, given=used, a=a, b=b)
    assert_close(graph, shape, 1.3)


def test_an_embedding_against_measured_gradients(text_graph: Callable[..., GradientGraph]) -> None:
    body = "e = Gather<axis=0>(table, x) f = Flatten(e) y = MatMul(f, b)"
    graph = text_graph(body, x="int64[batch,6]", table=(30, 8), b=(48, 10))
    assert predict(graph) == ["Gather"]
    assert_close(graph, (6,), 1.3, rows=30)


def assert_close(graph: GradientGraph, shape: tuple[int, ...], factor: float, rows: int = 0) -> None:
    """Predicted RMS of every parameter's gradient within a factor of that over 40 batches."""
    rng, squares = np.random.default_rng(1), dict.fromkeys(graph.gradients, 0.0)
    for _ in range(40):
        x = rng.integers(0, rows, (32, *shape)) if rows else rng.standard_normal((32, *shape), np.float32)
        labels = graph.loss == "cross-entropy"
        target = rng.integers(0, 10, 32) if labels else rng.standard_normal((32, 10), np.float32)
        outputs = evaluate(graph.onnx, {"x": x, "target": target})
        for name, gradient in graph.gradients.items():
            squares[name] += float(np.mean(outputs[gradient] ** 2)) / 40
    predicted = {entry.tensor: entry.grad_rms for entry in analyse(graph).profile}
    for name, square in squares.items():
        assert 1.0 / factor < predicted[name] / math.sqrt(square) < factor, name


def test_a_normalisation_in_primitives_stays_finite(text_graph: Callable[..., GradientGraph]) -> None:
    """Keras writes LayerNormalization so; the variance is never negative, whatever its own spread."""
    body = """
        h = MatMul(x, a) m = ReduceMean(h, one) c = Sub(h, m) s = Mul(c, c) v = ReduceMean(s, one)
        e = Add(v, epsilon) d = Sqrt(e) r = Reciprocal(d) n = Mul(c, r) y = MatMul(n, b)
    """
    given = {"one": np.array([1], INT), "epsilon": np.array([1e-3], np.float32)}
    graph = text_graph(body, given=given, a=(16, 8), b=(8, 10))
    assert predict(graph) == []
    assert_close(graph, (16,), 1.6)


class Encoder(nn.Module):
    """A pre-LN transformer encoder layer, pooled over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=True)
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x).mean(1))  # type: ignore[no-any-return]


def test_a_transformer_layer_of_pytorch() -> None:
    torch.manual_seed(0)
    noted = predict(GradientGraph.of(convert(Encoder(), example_input=(4, 16), verify=False).model))
    assert noted == []


def test_layer_norm_of_positions_whose_gradients_are_correlated(
    text_graph: Callable[..., GradientGraph],
) -> None:
    body = """
        h = MatMul(x, a) n = LayerNormalization<axis=2>(h, g, c) m = ReduceMean<keepdims=0>(n, two) y = MatMul(m, b)
    """
    given = {"two": np.array([2], INT)}
    shapes = {"a": (16, 8), "g": (8,), "c": (8,), "b": (6, 10)}
    noted = predict(text_graph(body, x="float[batch,6,16]", given=given, **shapes))
    assert noted == []


def test_a_recurrent_node(text_graph: Callable[..., GradientGraph]) -> None:
    body = """
        t = Transpose<perm=[1,0,2]>(x) s, h = LSTM<hidden_size=8>(t, w, r, c) l = Squeeze(h, zero) y = MatMul(l, b)
    """
    given = {"zero": np.array([0], INT)}
    shapes = {"w": (1, 32, 16), "r": (1, 32, 8), "c": (1, 64), "b": (8, 10)}
    assert "Softmax" not in predict(text_graph(body, x="float[batch,4,16]", given=given, **shapes))


def test_a_model_that_is_mostly_behind_an_op_without_a_rule_is_not_called_stable(
    text_graph: Callable[..., GradientGraph],
) -> None:
    body = "h = MatMul(x, a) p = CumSum(h, one) y = MatMul(p, b)"
    given = {"one": np.array(1)}
    report = analyse(text_graph(body, given=given, a=(16, 16), b=(16, 10)))
    assert report.summary.verdict == "at-risk"
    warning, note = (finding for finding in report.findings if finding.code == "GF901")
    assert (warning.severity, note.severity) == ("warning", "note")
    assert warning.evidence["followed"] == ["b"]
    assert "rests on 1 of 2 parameters" in warning.message


def test_an_op_without_a_rule_before_few_parameters_is_a_note_alone(
    text_graph: Callable[..., GradientGraph],
) -> None:
    body = "h = CumSum(x, one) s = Mul(h, g) r = MatMul(s, a) y = MatMul(r, b)"
    report = analyse(text_graph(body, given={"one": np.array(1)}, g=(16,), a=(16, 16), b=(16, 10)))
    assert [finding.severity for finding in report.findings if finding.code == "GF901"] == ["note"]
    assert report.summary.verdict != "at-risk"
