"""Lowering leaves the computed function as it is, and refuses what it cannot lower."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from gradfuse.graph import GradfuseError, GradientGraph, TrainableModel, UnsupportedError, evaluate
from gradfuse.graph.gradients import TABLE
from gradfuse.graph.lowering import OPSETS, infer_shapes, lower

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]

HEADER = '<ir_version: 10, opset_import: ["" : {}]>\nmodel ({}) => ({}) {{ {} }}'


def _text(body: str, inputs: str, outputs: str = "float[a, b, c, d] y", opset: int = 20) -> ir.Model:
    return ir.from_onnx_text(HEADER.format(opset, inputs, outputs, body))


TRANSPOSED = [
    'auto_pad = "SAME_UPPER", strides = [2, 2]',
    'auto_pad = "SAME_LOWER", strides = [2, 2]',
    'auto_pad = "SAME_UPPER", strides = [3, 1]',
    'auto_pad = "SAME_UPPER", strides = [2, 2], output_padding = [1, 0]',
    'auto_pad = "SAME_LOWER", strides = [2, 2], dilations = [2, 1]',
    "output_shape = [11, 8], strides = [2, 2]",
    'output_shape = [11, 8], strides = [2, 2], auto_pad = "SAME_UPPER"',
    "output_shape = [10, 9], strides = [2, 2], output_padding = [1, 1]",
]


@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_padding_of_transposed_convolutions(attributes: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (1, 2, 5, 5), "w": (2, 3, 4, 3)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = _text(f"y = ConvTranspose <{attributes}> (x, w)", "float[1, 2, 5, 5] x, float[2, 3, 4, 3] w")
    before = evaluate(model, feeds)["y"]
    lower(model)
    (node,) = model.graph
    assert node.attributes["auto_pad"].as_string() == "NOTSET"
    assert "output_shape" not in node.attributes
    np.testing.assert_array_equal(evaluate(model, feeds)["y"], before)


@pytest.mark.parametrize(
    "body",
    [
        'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)',
        'y = MaxPool <auto_pad = "SAME_LOWER", strides = [2, 2], kernel_shape = [3, 3]> (x)',
        "y = ConvTranspose <output_shape = [10, 10], strides = [2, 2]> (x, w)",
    ],
)
def test_padding_that_depends_on_a_dynamic_size_is_refused(body: str) -> None:
    model = _text(body, "float[n, 2, h, w2] x, float[2, 2, 3, 3] w")
    with pytest.raises(
        UnsupportedError, match=r"dynamic image size; a static image size.*; export the model"
    ):
        lower(model)


def _has_body(op_type: str, opset: int) -> bool:
    schema: Any = onnx.defs.get_schema(op_type, opset)
    return any(
        version <= opset
        for version in (*schema.function_opset_versions, *schema.context_dependent_function_opset_versions)
    )


CALLS = {
    "HardSwish": "y = HardSwish (x)",
    "Mish": "y = Mish (x)",
    "ThresholdedRelu": "y = ThresholdedRelu (x)",
    "Shrink": "y = Shrink (x)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization (x)",
    "GroupNormalization": "y = GroupNormalization <num_groups = 3> (x, w, w)",
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op_type", CALLS)
def test_function_bodies_compute_the_op_at_every_opset(op_type: str, opset: int) -> None:
    assert _has_body(op_type, opset)
    model = _text(
        CALLS[op_type], "float[2, 3, 4, 5] x, float[3] w, int64[2, 4, 5] t", "float[a, b, c, d] y", opset
    )
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 3, 4, 5)).astype(np.float32),
        "w": rng.standard_normal(3).astype(np.float32),
        "t": rng.integers(0, 3, (2, 4, 5)),
    }
    before = evaluate(model, feeds)["y"]
    lower(model)
    assert op_type not in {node.op_type for node in model.graph}
    assert {(node.domain, node.op_type) for node in model.graph} <= set(TABLE) | _WITHOUT_GRADIENT
    onnx.checker.check_model(ir.serde.serialize_model(model))
    np.testing.assert_allclose(evaluate(model, feeds)["y"], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "split",
    [
        "n = Constant <value_int = 2> () s = SplitToSequence <axis = 1> (x, n)",
        "n = Constant <value_ints = [1, 1, 3]> () s = SplitToSequence <axis = 1> (x, n)",
        "s = SplitToSequence <axis = 1> (x)",
    ],
)
def test_sequences_whose_elements_are_taken_by_number_are_splits(split: str) -> None:
    body = split + (
        " i = Constant <value_int = -1> () j = Constant <value_int = 0> () "
        "a = SequenceAt (s, i) b = SequenceAt (s, j) y = Concat <axis = 1> (a, b)"
    )
    model = _text(body, "float[2, 5] x", "float[k, l] y")
    feeds = {"x": np.arange(10, dtype=np.float32).reshape(2, 5)}
    before = evaluate(model, feeds)["y"]
    lower(model)
    assert {node.op_type for node in model.graph} == {"Split", "Identity", "Concat"}
    np.testing.assert_array_equal(evaluate(model, feeds)["y"], before)


def test_a_graph_with_sequences_runs_after_its_shapes_are_inferred() -> None:
    body = "s = SplitToSequence <axis = 1> (x) i = Constant <value_int = 1> () y = SequenceAt (s, i)"
    model = _text(body, "float[2, 5] x", "float[k, l] y")
    infer_shapes(model)
    assert model.graph[0].outputs[0].type == ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    np.testing.assert_array_equal(evaluate(model, {"x": x})["y"], x[:, 1:2])


def test_a_split_without_lengths_may_drop_its_axis() -> None:
    body = "i = Constant <value_int = 1> () s = SplitToSequence <keepdims = 0> (x) y = SequenceAt (s, i)"
    model = _text(body, "float[2, 5] x", "float[k] y")
    feeds = {"x": np.arange(10, dtype=np.float32).reshape(2, 5)}
    lower(model)
    np.testing.assert_array_equal(evaluate(model, feeds)["y"], feeds["x"][1])


def test_padding_that_counts_is_written_out_where_windows_reach_beyond_it() -> None:
    attributes = (
        "ceil_mode = 1, count_include_pad = 1, kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
    )
    model = _text(f"y = AveragePool <{attributes}> (x)", "float[2, 3, 8, 8] x")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    lower(model)
    assert [node.op_type for node in model.graph] == ["Pad", "AveragePool"]
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 3, 2, 1, ceil_mode=True)
    np.testing.assert_allclose(evaluate(model, {"x": x})["y"], expected.numpy(), rtol=1e-5, atol=1e-6)


_WITHOUT_GRADIENT = {
    ("", op_type)
    for op_type in ("Less", "Greater", "And", "Or", "Not", "Shape", "Equal", "Size", "Div", "LessOrEqual")
}


@pytest.mark.parametrize("opset", [7, 17, 22, 9999])
def test_an_opset_outside_the_range_is_refused(opset: int) -> None:
    model = _text("y = Relu (x)", "float[1] x", "float[1] y")
    model.opset_imports[""] = opset
    with pytest.raises(UnsupportedError, match=f"opset {opset}; opset 18 to 21; convert it"):
        lower(model)


def test_a_missing_opset_is_refused() -> None:
    model = _text("y = Relu (x)", "float[1] x", "float[1] y")
    del model.opset_imports[""]
    with pytest.raises(UnsupportedError, match="no opset"):
        lower(model)


def test_nodes_without_a_name_get_one_each() -> None:
    model = _text("a = Relu (x) b = Relu (a) y = Relu (b)", "float[1] x", "float[1] y")
    for node in model.graph:
        node.name = "same"
    lower(model)
    assert len({node.name for node in model.graph}) == 3
    assert all(node.name for node in model.graph)


MIXTURE = """
    c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, kernel)
    n = BatchNormalization (c, scale, bias, mean, var)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (n)
    a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (p)
    flat = Constant <value_ints = [0, -1]> ()
    f = Reshape (a, flat)
    g = Gemm <transB = 1> (f, weight)
    t = Transpose <perm = [1, 0]> (g)
    zero = Constant <value_ints = [0]> ()
    m = ReduceMean <keepdims = 1> (t, zero)
    d = Sub (t, m)
    u, v = Split <axis = 0, num_outputs = 2> (d)
    k = Concat <axis = 0> (u, v)
    e = Transpose <perm = [1, 0]> (k)
    h = Softmax <axis = 1> (e)
    y = HardSwish (h)
"""
SHAPES = {"kernel": (4, 1, 3, 3), "scale": (4,), "bias": (4,), "mean": (4,), "var": (4,), "weight": (10, 16)}


def _damage(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(proto.graph.node)
    match rng.randrange(6):
        case 0 if node.attribute:
            del node.attribute[rng.randrange(len(node.attribute))]
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(["", "x", "c", "y", "flat", "bias"])
        case 2:
            node.op_type = rng.choice([*(n.op_type for n in proto.graph.node), "If", "Gather", "Cast", "Pad"])
        case 3 if node.attribute and (numbers := rng.choice(node.attribute).ints):
            numbers[rng.randrange(len(numbers))] = rng.choice([-5, 0, 7, 2**40, -(2**62)])
        case 4:
            tensor = rng.choice(proto.graph.initializer)
            array = np.zeros(rng.choice([(), (0,), (1,), (3, 3), (2, 2, 2)]), rng.choice(["f4", "f8", "i8"]))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        case _:
            del proto.graph.input[0].type.tensor_type.shape.dim[rng.randrange(5) :]


def test_a_damaged_model_is_differentiated_or_refused_in_one_line() -> None:
    proto = onnx.parser.parse_model(HEADER.format(20, "float[n, 1, 8, 8] x", "float[n, 10] y", MIXTURE))
    for name, shape in SHAPES.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    rng, outcomes = random.Random(0), {"differentiated": 0, "refused": 0}
    for _ in range(300):
        damaged = onnx.ModelProto.FromString(proto.SerializeToString())
        _damage(damaged, rng)
        try:
            onnx.checker.check_model(damaged)
            model = ir.serde.deserialize_model(damaged)
        except (onnx.checker.ValidationError, ir.serde.SerdeError):
            continue
        outcomes[_differentiated_or_refused(model)] += 1
    assert min(outcomes.values()) > 20


def _differentiated_or_refused(model: ir.Model) -> str:
    try:
        GradientGraph.of(TrainableModel(model, ("kernel", "scale", "bias", "weight")))
    except GradfuseError:
        return "refused"
    return "differentiated"
