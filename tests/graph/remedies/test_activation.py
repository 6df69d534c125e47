"""Swapping activations on the graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradfuse.graph import GradientGraph, InputError, TrainableModel, evaluate
from gradfuse.graph.remedies import ACTIVATIONS, swap_activation

Build = Callable[..., TrainableModel]
Array = np.ndarray[Any, Any]

TORCH = {
    "relu": torch.relu,
    "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.2),
    "prelu": lambda x: torch.nn.functional.leaky_relu(x, 0.2),
    "elu": lambda x: torch.nn.functional.elu(x, 0.2),
    "selu": torch.selu,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
}


def weights(model: TrainableModel) -> dict[str, Array]:
    return {name: model.onnx.graph.initializers[name].const_value.numpy() for name in model.parameters}


def op_types(model: TrainableModel) -> list[str]:
    return [node.op_type for node in model.onnx.graph]


@pytest.mark.parametrize("new", ACTIVATIONS)
def test_the_new_activation_is_torchs(mlp: TrainableModel, batch: dict[str, Array], new: str) -> None:
    text = new if ACTIVATIONS[new].number is None else f"{new}:0.2"
    swapped = swap_activation(mlp, "relu", text, match_gain=False)
    assert op_types(swapped) == ["Gemm", ACTIVATIONS[new].op_type, "Gemm"]
    w1, b1, w2, b2 = map(torch.from_numpy, weights(mlp).values())
    expected = TORCH[new](torch.from_numpy(batch["x"]) @ w1 + b1) @ w2 + b2
    found = evaluate(swapped.onnx, {"x": batch["x"]})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    GradientGraph.of(swapped)


def test_the_slope_of_a_prelu_is_trained(mlp: TrainableModel, batch: dict[str, Array]) -> None:
    swapped = swap_activation(mlp, "relu", "prelu:0.1", match_gain=False)
    (slope,) = set(swapped.parameters) - set(mlp.parameters)
    assert weights(swapped)[slope].shape == (1,)
    gradients = GradientGraph.of(swapped)
    found = evaluate(gradients.onnx, batch)[gradients.gradients[slope]]
    w1, b1, w2, b2 = map(torch.from_numpy, weights(mlp).values())
    prelu = torch.nn.PReLU(init=0.1)
    logits = prelu(torch.from_numpy(batch["x"]) @ w1 + b1) @ w2 + b2
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["target"])).backward()
    np.testing.assert_allclose(found, prelu.weight.grad, rtol=1e-5)


def smooth_chi(derivative: Callable[[Array], Array]) -> float:
    """E[phi'(z)^2] by Gauss-Hermite quadrature, for a phi without kinks."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(np.sum(weights * derivative(nodes) ** 2) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ("relu", "leaky_relu:0.2", math.sqrt(1 / 1.04)),
        ("relu", "prelu:0.25", math.sqrt(1 / 1.0625)),
        ("relu", "tanh", math.sqrt(0.5 / 0.4644)),
        ("relu", "selu", math.sqrt(0.5 / 1.0716)),
        ("relu", "sigmoid", math.sqrt(0.5 / smooth_chi(lambda z: 1 / (2 + 2 * np.cosh(z))))),
    ],
)
def test_a_matched_gain_keeps_chi(mlp: TrainableModel, old: str, new: str, factor: float) -> None:
    """chi of unit variance: (1 + a^2) / 2 for a LeakyReLU, E[phi'^2] = 0.4644 for tanh, 1.0716 for SELU."""
    swapped = swap_activation(mlp, old, new)
    np.testing.assert_allclose(weights(swapped)["w1"] / weights(mlp)["w1"], factor, rtol=2e-3)
    for name in ("b1", "w2", "b2"):
        np.testing.assert_array_equal(weights(swapped)[name], weights(mlp)[name])


def test_he_weights_become_he_weights_of_the_leaky_relu(build: Build) -> None:
    """Kaiming's gain as torch computes it, and a stack of layers keeps the size of its gradient."""
    gain = torch.nn.init.calculate_gain
    swapped = swap_activation(
        build("h = MatMul (x, w) y = Relu (h)", {"w": np.ones((3, 2), np.float32)}), "relu", "leaky_relu:0.3"
    )
    expected = gain("leaky_relu", 0.3) / gain("relu")
    np.testing.assert_allclose(weights(swapped)["w"], expected, rtol=1e-5)


def test_weights_under_a_normalisation_stay(build: Build) -> None:
    ones = np.ones(2, np.float32)
    model = build(
        "h = MatMul (x, w) n = BatchNormalization (h, s, b, m, v) y = Relu (n)",
        {"w": np.ones((3, 2), np.float32), "s": ones, "b": 0 * ones},
        state={"m": 0 * ones, "v": ones},
    )
    swapped = swap_activation(model, "relu", "tanh")
    np.testing.assert_array_equal(weights(swapped)["w"], weights(model)["w"])


def test_a_weight_that_two_activations_follow_is_scaled_once(build: Build) -> None:
    model = build(
        "a = MatMul (x, w) b = Relu (a) c = MatMul (b, w) y = Relu (c)",
        {"w": np.ones((3, 3), np.float32)},
        outputs="float[batch, 3] y",
    )
    swapped = swap_activation(model, "relu", "leaky_relu:1.0")
    np.testing.assert_allclose(weights(swapped)["w"], math.sqrt(0.5), rtol=1e-5)


def test_only_some_of_them(build: Build) -> None:
    model = build("a = Relu (x) b = MatMul (a, w) y = Relu (b)", {"w": np.ones((3, 2), np.float32)})
    for index, node in enumerate(model.onnx.graph):
        node.name = f"node{index}"
    swapped = swap_activation(model, "relu", "tanh", at=["node2"])
    assert op_types(swapped) == ["Relu", "MatMul", "Tanh"]
    assert op_types(model) == ["Relu", "MatMul", "Relu"]
    with pytest.raises(InputError, match=r"no relu at block\*; a pattern for one of node0, node2"):
        swap_activation(model, "relu", "tanh", at=["block*"])


def test_a_prelu_that_goes_takes_its_slope_with_it(build: Build) -> None:
    parameters = {"w": np.ones((3, 2), np.float32), "slope": np.array([0.3], np.float32)}
    model = build("h = MatMul (x, w) y = PRelu (h, slope)", parameters)
    swapped = swap_activation(model, "prelu", "leaky_relu:0.3")
    assert swapped.parameters == ("w",)
    np.testing.assert_allclose(weights(swapped)["w"], 1.0, rtol=1e-6)
    assert "slope" not in swapped.onnx.graph.initializers


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul (x, w) s = Sigmoid (h) y = Mul (h, s)",
        "h = MatMul (x, w) p = Relu (h) m = Neg (h) r = Relu (m) y = Sub (p, r)",
    ],
)
def test_parts_of_other_activations_are_left_alone(build: Build, body: str) -> None:
    model = build(body, {"w": np.ones((3, 2), np.float32)})
    name = "sigmoid" if "Sigmoid" in body else "relu"
    with pytest.raises(InputError, match=f"the model has no {name}"):
        swap_activation(model, name, "tanh")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gelu", "relu", "unknown activation 'gelu'; one of relu, leaky_relu, prelu"),
        ("relu", "relu7", "unknown activation 'relu7'"),
        ("relu", "tanh:2", "activation 'tanh:2'; tanh without a number"),
        ("relu", "elu:x", "activation 'elu:x'; elu:NUMBER"),
        ("tanh", "relu", "the model has no tanh"),
    ],
)
def test_refusals(mlp: TrainableModel, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        swap_activation(mlp, old, new)
