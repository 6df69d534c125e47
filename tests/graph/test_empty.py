"""Empty tensors: what onnxruntime does not survive is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import GradientGraph, TrainableModel, evaluate
from gradfuse.graph.errors import ConversionError, UnsupportedError
from gradfuse.graph.lowering import lower

Build = Callable[..., TrainableModel]


def _model(inputs: str, body: str) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\ng ({inputs}) => (float[] y) {{ {body} }}'
    )


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ("float[0, 4] x", 'y = Einsum <equation = "ni->n"> (x)'),
        ("float[2, 0] x, float[0, 2] w", "y = Gemm (x, w)"),
        ("float[0, 2] x, float[2, 2] w", "y = MatMul (x, w)"),
        ("float[0, 2] x", "y = ReduceMax (x)"),
        ("float[2, 0] x", "k = Constant <value_ints = [0]> () y, i = TopK (x, k)"),
        ("float[0, 2] x, int64[0] t", "y = SoftmaxCrossEntropyLoss (x, t)"),
        ("float[0, 4] x", "y = LpNormalization (x)"),
        ("float[2, 0, 5] x, float[3, 0, 3] w", "y = Conv (x, w)"),
        ("float[2, 0, 5] x, float[0, 3, 3] w", "y = ConvTranspose (x, w)"),
        ("float[2, 2, 0] x, float[2, 3, 3] w", "y = ConvTranspose (x, w)"),
        ("float[0, 4] x", "r = Relu (x) y = LpNormalization (r)"),
    ],
)
def test_an_empty_operand_that_onnxruntime_does_not_survive_is_refused(inputs: str, body: str) -> None:
    with pytest.raises(UnsupportedError, match=r"no elements.*at least one element.*batch of at least one"):
        lower(_model(inputs, body))


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ("float[0, 2, 5] x, float[3, 2, 3] w", "y = Conv (x, w)"),
        ("float[0, 2, 5] x, float[2, 3, 3] w", "y = ConvTranspose (x, w)"),
        ("float[2, 3] x", "axes = Constant <value = int64[0] {}> () y = ReduceMax (x, axes)"),
    ],
    ids=["batch of a convolution", "batch of a transposed one", "axes of a reduction"],
)
def test_what_may_be_empty_is_not_refused(inputs: str, body: str) -> None:
    lower(_model(inputs, body))


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_the_gradient_of_a_product_over_an_empty_batch_is_an_error(build: Build, op: str) -> None:
    graph = GradientGraph.of(build(f"y = {op} (x, w)", {"w": np.ones((3, 2), np.float32)}), "mse")
    feeds = {"x": np.ones((0, 3), np.float32), "target": np.ones((0, 2), np.float32)}
    with pytest.raises(ConversionError, match="K_ > 0"):
        evaluate(graph.onnx, feeds)


def test_reductions_get_their_axes_where_none_means_all() -> None:
    model = _model("float[n, 3] x", "y = ReduceL2 (x)")
    lower(model)
    (node,) = model.graph
    axes = node.inputs[1]
    assert axes is not None
    assert axes.const_value is not None
    assert axes.const_value.numpy().tolist() == [0, 1]


def test_reductions_of_nothing_stay_as_they_are() -> None:
    model = _model("float[n, 3] x", "y = ReduceL2 <noop_with_empty_axes = 1> (x)")
    lower(model)
    (node,) = model.graph
    assert len(node.inputs) == 1
