"""float16 files train in float32; quantised ones are refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.converters import convert, from_onnx
from gradfuse.graph import GradientGraph, UnsupportedError, evaluate

from .conftest import WriteModel

HALF = """
g (float16[n, 4] x) => (float16[n, 3] y) {
    h = MatMul (x, w) two = Constant <value = float16[1] {2}> () s = Mul (h, two)
    f = Cast <to = 1> (s) e = Softplus (f) b = Cast <to = 10> (e) y = Add (b, bias)
}
"""


def test_a_float16_file_becomes_float32(write_model: WriteModel) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3)).astype(np.float16), "bias": np.ones(3, np.float16)}
    conversion = convert(write_model(HALF, weights))
    assert conversion.notes == ("float16 became float32, in which it trains",)
    assert conversion.parity is not None
    assert 0 < conversion.parity.error < 5e-3
    values = [*conversion.model.onnx.graph.inputs, *conversion.model.onnx.graph.initializers.values()]
    assert {value.dtype for value in values} == {ir.DataType.FLOAT}
    np.testing.assert_array_equal(
        conversion.model.onnx.graph.initializers["w"].const_value.numpy(), weights["w"].astype(np.float32)
    )
    graph = GradientGraph.of(conversion.model, "mse")
    feeds = {"x": np.ones((2, 4), np.float32), "target": np.zeros((2, 3), np.float32)}
    assert evaluate(graph.onnx, feeds)["w_grad"].dtype == np.float32


@pytest.mark.parametrize(
    ("body", "op_type"),
    [
        ("q, s, z = DynamicQuantizeLinear (x) y = Cast <to = 1> (q)", "DynamicQuantizeLinear"),
        (
            "s = Constant <value = float {0.1}> () d = DequantizeLinear (w8, s) y = MatMul (x, d)",
            "DequantizeLinear",
        ),
    ],
)
def test_a_quantised_file_is_refused_with_its_node(write_model: WriteModel, body: str, op_type: str) -> None:
    text = f"g (float[n, 4] x) => (float[n, 4] y) {{ {body} }}".replace("d = De", "[dq] d = De")
    with pytest.raises(UnsupportedError, match=rf"{op_type} node '.*': the model is quantised") as caught:
        from_onnx(write_model(text, {"w8": np.ones((4, 4), np.int8)}))
    assert "\n" not in str(caught.value)


def test_an_op_of_a_runtime_is_refused(write_model: WriteModel) -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { h = MatMul (x, w) y = com.microsoft.FastGelu (h) }"
    with pytest.raises(
        UnsupportedError, match=r"com\.microsoft\.FastGelu node .* is not of the ONNX standard"
    ):
        from_onnx(write_model(text, {"w": (4, 4)}, imports=', "com.microsoft" : 1'))
