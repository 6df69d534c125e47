"""Checks of what turns out empty when a graph runs: an error that names it, where onnxruntime would end the process."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import evaluate
from gradfuse.graph.checks import check_elements
from gradfuse.graph.errors import ConversionError


def _sliced(body: str) -> ir.Model:
    """A model of the first n rows of x."""
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[batch, 3, 3] x, int64[1] n) => (float[] y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, float[3, 4] w = {{1,1,1,1,1,1,1,1,1,1,1,1}},
         float[1, 3, 3] r = {{1,1,1,1,1,1,1,1,1}}> {{
            h = Slice (x, zero, n, zero) {body}
        }}"""
    )


AT_RUN_TIME = {
    "Einsum": 'y = Einsum <equation = "nij->n"> (h)',
    "ConvTranspose": "t = Transpose <perm = [1, 2, 0]> (h) k = Transpose <perm = [1, 2, 0]> (r) "
    "y = ConvTranspose (t, k)",
    "Gemm": "m = Flatten (h) y = Gemm <transB = 1> (m, m)",
    "LRN": "f = Unsqueeze (h, one) y = LRN <size = 3> (f)",
    "LpNormalization": "y = LpNormalization <axis = 0> (h)",
    "MatMul": "y = MatMul (h, w)",
    "ReduceL1": "y = ReduceL1 (h)",
    "ReduceMax": "y = ReduceMax (h)",
    "ReduceMin": "a = Relu (h) y = ReduceMin (a)",
    "RNN": "y, last = RNN <hidden_size = 3> (h, r, r)",
    "TopK": "y, i = TopK <axis = 0> (h, one)",
    "SoftmaxCrossEntropyLoss": "s = ArgMax <axis = 1, keepdims = 0> (h) y = SoftmaxCrossEntropyLoss (h, s)",
}


@pytest.mark.parametrize("op", sorted(AT_RUN_TIME))
def test_what_turns_out_empty_is_an_error_that_names_it(op: str) -> None:
    model, x = _sliced(AT_RUN_TIME[op]), np.ones((2, 3, 3), np.float32)
    assert evaluate(model, {"x": x, "n": np.array([2])})["y"].size
    with pytest.raises(
        ConversionError, match=f"no elements in '.', which {op} node .* takes; at least one element"
    ):
        evaluate(model, {"x": x, "n": np.array([0])})


def test_checks_leave_the_results_as_they_are() -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32), "n": np.array([3])}
    expected = np.sort(feeds["x"][:3], axis=0)[-1:]
    np.testing.assert_array_equal(evaluate(_sliced(AT_RUN_TIME["TopK"]), feeds)["y"], expected)


def test_bodies_and_functions_are_checked() -> None:
    body = """yes = Greater (n, zero) taken = Squeeze (yes)
        y = If (taken) <then_branch = t () => (float[k] a) { a = ReduceMax <keepdims = 0> (h, zero) },
                        else_branch = e () => (float[k] b) { b = ReduceMin <keepdims = 0> (h, zero) }>"""
    with pytest.raises(ConversionError, match="no elements in 'h', which ReduceMin"):
        evaluate(_sliced(body), {"x": np.ones((2, 3, 3), np.float32), "n": np.array([0])})


@pytest.mark.parametrize("body", ["h2 = Relu (x) y = ReduceMax (h2)", "y = MatMul (x, w)", "y = Relu (h)"])
def test_a_model_without_doubt_runs_as_it_is(body: str) -> None:
    model = _sliced(body)
    assert check_elements(model) is model
