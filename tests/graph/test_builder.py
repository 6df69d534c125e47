"""The notation that writes nodes: names, constants, shapes, and the sum that undoes broadcasting."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import evaluate
from gradfuse.graph.builder import Builder, Tensor, where
from gradfuse.graph.gradients.broadcast import sum_to


def _builder(declared: str = "float[n, 3] x") -> Builder:
    name = declared.split()[-1].strip(",")
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]>\nmodel ({declared}) => () {{ taken = Identity ({name}) }}'
    )
    return Builder(ir.from_onnx_text(text).graph)


def _input(builder: Builder, index: int = 0) -> Tensor:
    return builder.tensor(builder.graph.inputs[index])


def _value(builder: Builder, result: Tensor, **feeds: np.ndarray) -> np.ndarray:
    builder.graph.outputs.append(result.value)
    model = ir.Model(builder.graph, ir_version=10)
    return evaluate(model, feeds)[result.value.name or ""]


def test_operators_are_mathematics() -> None:
    builder = _builder()
    x = _input(builder)
    result = where(x > 0.0, 2.0 * x - 1.0, -x / 4.0) + x.square()
    data = np.array([[-1.0, 0.0, 2.0]], np.float32)
    assert _value(builder, result, x=data).tolist() == [[1.25, 0.0, 7.0]]


def test_equal_constants_share_one_initializer() -> None:
    builder = _builder()
    x = _input(builder)
    assert (x * 2.0).value.producer().inputs[1] is (x + 2.0).value.producer().inputs[1]
    assert len(builder.graph.initializers) == 1


def test_zero_and_minus_zero_are_two_constants() -> None:
    builder = _builder()
    assert (
        builder.constant(0.0, ir.DataType.FLOAT).value is not builder.constant(-0.0, ir.DataType.FLOAT).value
    )


def test_names_are_unique_and_say_their_scope() -> None:
    builder = _builder()
    x = _input(builder)
    with builder.scope("grad/fc", {"key": "value"}):
        first, second = x.exp().value, x.exp().value
    outside = x.exp().value.producer()
    assert (first.name, second.name, outside.name) == ("grad/fc/Exp", "grad/fc/Exp_2", "op/Exp")
    assert first.producer().metadata_props == {"key": "value"}
    assert outside.metadata_props == {}
    assert builder.unique_name("taken") == "taken_2"
    assert builder.unique_name("x") == "x_2"


def test_static_shapes_are_constants() -> None:
    builder = _builder("float[2, 3] x")
    x = _input(builder)
    assert x.length(-1) == 3
    assert x.shape().value.const_value is not None
    assert x.count([0, 1]).value.const_value.numpy() == 6


@pytest.mark.parametrize("declared", ["float[2, 3] x", "float[n, 3] x", "float[n, m] x", "float[] x"])
def test_counts_and_ranges(declared: str) -> None:
    data = np.zeros((2, 3), np.float32)
    builder = _builder(declared)
    assert _value(builder, _input(builder).count(), x=data) == 6
    builder = _builder(declared)
    assert _value(builder, builder.arange(_input(builder).length(1)), x=data).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("full", "own"),
    [((2, 3, 4), (3, 1)), ((2, 3), ()), ((3,), (1,)), ((2, 3), (2, 3)), ((1, 3), (3,)), ((2, 1, 1), (1, 1))],
    ids=str,
)
@pytest.mark.parametrize("declared", ["static", "dynamic", "unknown rank"])
def test_sum_to_undoes_broadcasting(full: tuple[int, ...], own: tuple[int, ...], declared: str) -> None:
    def shape(name: str, dims: tuple[int, ...]) -> str:
        if declared == "unknown rank":
            return f"float[] {name}"
        listed = ", ".join(
            str(dim) if declared == "static" else f"{name}{axis}" for axis, dim in enumerate(dims)
        )
        return f"float[{listed}] {name}" if dims else f"float {name}"

    builder = _builder(f"{shape('g', full)}, {shape('t', own)}")
    gradient, target = _input(builder), _input(builder, 1)
    found = _value(
        builder,
        sum_to(gradient, target, gradient.dims, [None]),
        g=np.arange(np.prod(full), dtype=np.float32).reshape(full),
        t=np.zeros(own, np.float32),
    )
    padded = (1,) * (len(full) - len(own)) + own
    axes = tuple(axis for axis, (a, b) in enumerate(zip(full, padded, strict=True)) if a != b)
    expected = np.arange(np.prod(full), dtype=np.float32).reshape(full).sum(axes).reshape(own)
    np.testing.assert_array_equal(found, expected)


def test_where_needs_a_tensor() -> None:
    builder = _builder()
    with pytest.raises(TypeError, match="at least one side"):
        where(_input(builder) > 0.0, 1.0, 2.0)
