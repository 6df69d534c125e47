"""Small models as ONNX text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import TrainableModel

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]


@pytest.fixture
def build() -> Build:
    """Build a model: `build(body, parameters, inputs="float[batch, 3] x", outputs="float[batch, 2] y")`."""
    return build_model


def build_model(
    body: str,
    parameters: dict[str, Array],
    *,
    inputs: str = "float[batch, 3] x",
    outputs: str = "float[batch, 2] y",
    state: dict[str, Array] | None = None,
    functions: str = "",
) -> TrainableModel:
    imports = '"" : 20' + (', "local" : 1' if functions else "")
    text = f"<ir_version: 10, opset_import: [{imports}]>\nmodel ({inputs}) => ({outputs}) {{ {body} }}\n{functions}"
    model = ir.from_onnx_text(text)
    for name, array in {**parameters, **(state or {})}.items():
        _give_value(model.graph, name, array)
    return TrainableModel(model, tuple(parameters))


def _give_value(graph: ir.Graph, name: str, array: Array) -> None:
    """Turn the free name `name` of the text into an initializer."""
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    for node in graph:
        for index, used in enumerate(node.inputs):
            if used is not None and used.name == name:
                node.replace_input_with(index, value)
    graph.register_initializer(value)


@pytest.fixture
def mlp(build: Build) -> TrainableModel:
    """Two dense layers with a ReLU between them: 3 inputs, 5 hidden units, 2 outputs."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (3, 5), "b1": (5,), "w2": (5, 2), "b2": (2,)}
    return build(
        "z = Gemm (x, w1, b1) h = Relu (z) y = Gemm (h, w2, b2)",
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
    )


@pytest.fixture
def batch() -> dict[str, Array]:
    """Four examples for `mlp`, with labels."""
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((4, 3)).astype(np.float32), "target": np.array([0, 1, 1, 0])}
