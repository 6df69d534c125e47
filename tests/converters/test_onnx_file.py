import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradfuse.converters import convert, from_onnx
from gradfuse.graph import GradientGraph, InputError, TrainableModel, evaluate
from gradfuse.graph.model import FROZEN

EVERYTHING = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[batch, 1, 4, 4] x, int64[batch] token) => (float[batch, 3] y)
<float[2, 1, 3, 3] kernel = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[2] kernel_bias = {1, 2},
 float[2] scale = {1, 2}, float[2] shift = {0, 1}, float[2] mean = {0, 0}, float[2] variance = {1, 1},
 float[8, 3] dense = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float[1, 3] offset = {1, 2, 3},
 float[5, 3] table = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float half = {0.5}, int64[2] shape = {-1, 8}, float[1] slope = {0.1}>
{
    c = Conv <pads = [0, 0, 0, 0]> (x, kernel, kernel_bias)
    n = BatchNormalization (c, scale, shift, mean, variance)
    a = PRelu (n, slope)
    f = Reshape (a, shape)
    m = MatMul (f, dense)
    flat = Identity (offset)
    b = Add (m, flat)
    lifted = Constant <value = float[3] {1, 2, 3}> ()
    s = Mul (b, lifted)
    number = Constant <value = float[1] {3}> ()
    t = Mul (s, number)
    h = Mul (t, half)
    e = Gather (table, token)
    y = Add (h, e)
}
"""

TRAINING = """
<ir_version: 8, opset_import: ["" : 15]>
g (float[batch, 2] x) => (float[batch, 2] y, float[2] new_mean)
<float[2] scale = {1, 2}, float[2] shift = {0, 1}, float[2] mean = {0, 0}, float[2] variance = {1, 1}>
{
    b, new_mean, new_variance = BatchNormalization <training_mode = 1, momentum = 0.8> (x, scale, shift, mean, variance)
    f = BatchNormalization (b, scale, shift, mean, variance)
    ratio = Constant <value = float {0.3}> ()
    yes = Constant <value = bool {1}> ()
    d, mask = Dropout (f, ratio, yes)
    y = Dropout (d)
}
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "model.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return to_file


def marks(model):
    return [
        (n.op_type, FROZEN in n.metadata_props)
        for n in model.onnx.graph
        if n.op_type in ("BatchNormalization", "Dropout")
    ]


def test_parameters_are_the_initializers_that_ops_use_as_weights(write):
    model = from_onnx(write(EVERYTHING))
    expected = {"kernel", "kernel_bias", "scale", "shift", "dense", "offset", "table", "slope", "lifted"}
    assert set(model.parameters) == expected
    assert model.state == ("mean", "variance")
    assert model.framework == "onnx"
    assert model.source.endswith("model.onnx")


def test_the_read_model_trains(write):
    graph = GradientGraph.of(from_onnx(write(EVERYTHING)))
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.random((4, 1, 4, 4)).astype(np.float32),
        "token": np.arange(4),
        "target": np.array([0, 1, 2, 0]),
    }
    results = evaluate(graph.onnx, feeds)
    assert all(np.isfinite(results[name]).all() for name in graph.gradients.values())
    assert set(graph.new_state) == {"mean", "variance"}


def test_patterns_choose_the_parameters(write):
    assert from_onnx(write(EVERYTHING), train=["kernel*", "dense"]).parameters == (
        "kernel",
        "kernel_bias",
        "dense",
    )


def test_a_pattern_that_matches_nothing_is_named(write):
    with pytest.raises(
        InputError, match=r"no parameter matches 'layer4.\*'; a pattern for kernel, kernel_bias"
    ):
        convert(write(EVERYTHING), train=["dense", "layer4.*"])


def test_a_graph_in_training_form_becomes_its_inference_form(write):
    model = from_onnx(write(TRAINING))
    assert marks(model) == [
        ("BatchNormalization", False),
        ("BatchNormalization", True),
        ("Dropout", False),
        ("Dropout", True),
    ]
    bn = next(node for node in model.onnx.graph if node.op_type == "BatchNormalization")
    assert len(bn.outputs) == 1
    assert "training_mode" not in bn.attributes
    assert bn.attributes["momentum"].value == pytest.approx(0.8)
    assert all(len(node.inputs) <= 2 for node in model.onnx.graph if node.op_type == "Dropout")
    assert [output.name for output in model.outputs] == ["y"]
    onnx.checker.check_model(ir.serde.serialize_model(model.onnx), full_check=True)


def test_statistics_that_the_graph_goes_on_to_use_are_refused(write):
    text = TRAINING.replace("y = Dropout (d)", "y = Add (d, new_variance)")
    with pytest.raises(
        InputError, match=r"the new statistics of BatchNormalization node .* are used inside the graph"
    ):
        from_onnx(write(text))


@pytest.mark.parametrize(("opset", "expected"), [(11, 18), (17, 18), (18, 18), (20, 20), (21, 21), (22, 21)])
def test_the_opset_comes_into_the_range_that_can_be_trained(write, opset, expected):
    large = ", ".join(["0.5"] * 4096)
    text = f"""
        <ir_version: 10, opset_import: ["" : {opset}]>
        g (float[batch, 64] x) => (float[batch, 64] y) <float[64, 64] weight = {{{large}}}>
        {{ m = MatMul (x, weight) n = Squeeze (m) y = Relu (n) }}
    """
    if opset < 13:
        text = text.replace("Squeeze (m)", "Identity (m)")
    model = from_onnx(write(text))
    assert model.onnx.opset_imports[""] == expected
    assert model.onnx.ir_version <= 10
    assert model.parameters == ("weight",)
    assert [spec.name for spec in model.inputs] == ["x"]
    np.testing.assert_array_equal(
        model.onnx.graph.initializers["weight"].const_value.numpy(), np.full((64, 64), 0.5)
    )


def test_weights_inside_a_function_are_found_at_any_opset(write):
    text = """
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[batch, 2] x) => (float[batch, 2] y) <float[2, 2] weight = {1, 2, 3, 4}>
        { y = local.Layer (x, weight) }
        <opset_import: ["" : 17], domain: "local"> Layer (x, w) => (y) { m = MatMul (x, w) y = Relu (m) }
    """
    model = from_onnx(write(text))
    assert model.parameters == ("weight",)
    assert [node.op_type for node in model.onnx.graph] == ["MatMul", "Relu"]


def test_a_file_that_gradfuse_wrote_keeps_its_facts(write, tmp_path):
    model = from_onnx(write(EVERYTHING))
    chosen = TrainableModel(model.onnx, ("dense",), "pytorch", "net.py:build")
    path = chosen.save(tmp_path / "saved.onnx")
    again = convert(path).model
    assert (again.parameters, again.framework, again.source) == (("dense",), "pytorch", "net.py:build")


def test_whole_numbers_as_weights_are_named(write):
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (int32[n, 2] x) => (int32[n, 1] y) <int32[2, 1] w = {1, 2}> { y = MatMul (x, w) }"""
    with pytest.raises(
        InputError, match=r"no parameters to train: MatMul node '.*' takes 'w' of INT32; floating"
    ):
        from_onnx(write(text))


def test_a_file_without_weights_is_refused(write):
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) { y = Relu (x) }'
    with pytest.raises(InputError, match="has no parameters to train; floating-point initializers"):
        from_onnx(write(text))
