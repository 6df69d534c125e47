"""The factor on the squared gradient per layer, chi = sigma_w^2 E[phi'^2], of networks whose value the theory gives.

Weights are orthogonal, so that the theory's infinite width is met at a finite one. Expected values: Poole 2016,
Schoenholz 2017, Yang 2019, and simulations at width 512 for batches of 256.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.profile import gradient_rms
from gradfuse.graph import GradientGraph, TrainableModel

WIDTH, DEPTH = 128, 12

Layer = tuple[str, dict[str, Any], dict[str, np.ndarray[Any, Any]]]
"""Op type, attributes, further inputs by name."""

ONES, ZEROS = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
BATCH_NORM: Layer = (
    "BatchNormalization",
    {},
    {"gamma": ONES, "beta": ZEROS, "mean": ZEROS, "variance": ONES},
)
LAYER_NORM: Layer = ("LayerNormalization", {}, {"gamma": ONES, "beta": ZEROS})
RELU: Layer = ("Relu", {}, {})
TANH: Layer = ("Tanh", {}, {})
SELU: Layer = ("Selu", {}, {})
LEAKY: Layer = ("LeakyRelu", {"alpha": 0.2}, {})


def network(variance: float, *layers: Layer) -> GradientGraph:
    """DEPTH times a dense layer with weights of this variance times the width, and `layers`; then ten logits."""
    rng = np.random.default_rng(1)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(("batch", WIDTH)))
    nodes, initializers, value = [], [], x
    for depth in range(DEPTH):
        weight = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * variance**0.5
        for op_type, attributes, inputs in (("MatMul", {}, {"weight": weight.astype(np.float32)}), *layers):
            operands = [_initializer(f"{op_type}_{depth}.{name}", array) for name, array in inputs.items()]
            node = ir.node(op_type, [value, *operands], attributes, name=f"{op_type}_{depth}")
            value = node.outputs[0]
            value.name, value.type = f"{op_type}_{depth}_output", x.type
            nodes.append(node)
            initializers += operands
    head = _initializer("head", rng.standard_normal((WIDTH, 10)).astype(np.float32))
    nodes.append(ir.node("MatMul", [value, head], name="head"))
    logits = nodes[-1].outputs[0]
    logits.name, logits.type, logits.shape = "logits", x.type, ir.Shape(("batch", 10))
    graph = ir.Graph(
        [x], [logits], nodes=nodes, initializers=[*initializers, head], opset_imports={"": 18}, name="net"
    )
    trained = tuple(value.name or "" for value in (*initializers, head) if "mean" not in value.name)
    return GradientGraph.of(TrainableModel(ir.Model(graph, ir_version=10), trained))


def _initializer(name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )


def chi(variance: float, *layers: Layer) -> float:
    """From the gradients at the outputs of the dense layers in the middle of the network."""
    state = propagate(network(variance, *layers), Assumptions(batch_size=256))
    rms = [gradient_rms(state, node.outputs[0]) for node in state.nodes if node.op_type == "MatMul"]
    first, last = DEPTH // 4, 3 * DEPTH // 4
    return (rms[first] / rms[last]) ** (2.0 / (last - first))


@pytest.mark.parametrize(
    ("variance", "activation", "expected"),
    [
        (2.0, RELU, 1.0),
        (1.0 / 3.0, RELU, 1.0 / 6.0),
        (4.0, RELU, 2.0),
        (2.0, LEAKY, 1.04),
        (2.0, ("PRelu", {}, {"slope": np.full(1, 0.25, np.float32)}), 1.0625),
        (25.0 / 9.0, TANH, 1.210),
        (4.0, TANH, 1.363),
        (1.0, SELU, 1.0716),
        (1.0, ("Sigmoid", {}, {}), 0.0557),
    ],
    ids=["relu-he", "relu-torch", "relu-4", "leaky", "prelu", "tanh-5/3", "tanh-4", "selu", "sigmoid"],
)
def test_activation(variance: float, activation: Layer, expected: float) -> None:
    assert chi(variance, activation) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("norm", "activation", "expected"),
    [
        (BATCH_NORM, RELU, 1.467),
        (BATCH_NORM, LEAKY, 1.244),
        (BATCH_NORM, TANH, 1.178),
        (BATCH_NORM, ("Identity", {}, {}), 1.0),
        (LAYER_NORM, RELU, 1.0),
        (LAYER_NORM, TANH, 1.178),
        (LAYER_NORM, SELU, 1.072),
    ],
    ids=["bn-relu", "bn-leaky", "bn-tanh", "bn-linear", "ln-relu", "ln-tanh", "ln-selu"],
)
def test_normalisation(norm: Layer, activation: Layer, expected: float) -> None:
    assert chi(1.0, norm, activation) == pytest.approx(expected, rel=0.03)
