"""Networks for the tests of this room: as ONNX text with random weights, or exported from PyTorch once for all tests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import GradientGraph, TrainableModel

TextGraph = Callable[..., GradientGraph]


@pytest.fixture(scope="session")
def text_graph() -> TextGraph:
    """Builds the gradient graph of a network `x -> y` given by its nodes and the shapes of its weights."""
    return _text_graph


def _text_graph(
    body: str,
    x: str = "float[batch,16]",
    y: str = "float[batch,10]",
    loss: str = "mse",
    gain: float = 1.0,
    given: Mapping[str, np.ndarray[Any, Any]] | None = None,
    trained: Sequence[str] = (),
    **shapes: Sequence[int],
) -> GradientGraph:
    rng = np.random.default_rng(0)
    weights = {
        name: (gain * rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 1))).astype(np.float32)
        for name, shape in shapes.items()
    }
    arrays = {**weights, **(given or {})}
    inputs = ", ".join([f"{x} x", *(f"{_type(array)} {name}" for name, array in arrays.items())])
    text = f'<ir_version: 10, opset_import: ["": 18]>\nnet ({inputs}) => ({y} y) {{ {body} }}'
    model = ir.from_onnx_text(text)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[value.name or ""], name=value.name)
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    return GradientGraph.of(TrainableModel(model, (*weights, *trained)), loss)


@pytest.fixture(scope="session")
def relu_stack() -> Callable[..., GradientGraph]:
    """Builds a network of dense layers with ReLU between them, whose weights have deviation gain / sqrt(inputs)."""
    return _relu_stack


def _relu_stack(depth: int, gain: float) -> GradientGraph:
    layers = [f"z{i} = MatMul(h{i - 1}, w{i}) h{i} = Relu(z{i})" for i in range(1, depth)]
    body = f"h0 = Identity(x) {' '.join(layers)} y = MatMul(h{depth - 1}, w{depth})"
    widths = [16, *[32] * (depth - 1), 10]
    shapes = {f"w{index + 1}": widths[index : index + 2] for index in range(depth)}
    return _text_graph(body, loss="cross-entropy", gain=gain, **shapes)


def _type(array: np.ndarray[Any, Any]) -> str:
    kind = {"f": "float", "i": "int64", "b": "bool"}[array.dtype.kind]
    kind = "double" if array.dtype == np.float64 else kind
    return f"{kind}[{','.join(map(str, array.shape))}]"
