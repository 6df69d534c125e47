"""Quadrature and Hermite series against closed forms, and against Monte Carlo."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.analysis.moments.correlation import second_moments
from gradfuse.analysis.moments.elementwise_op import evaluate_node, partial_derivatives
from gradfuse.analysis.moments.quadrature import NODES, expectation, hermite_coefficients


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (NODES**2, 1.0),
        (NODES**4, 3.0),
        (np.maximum(NODES, 0.0), 1.0 / math.sqrt(2.0 * math.pi)),
        ((NODES > 0).astype(float), 0.5),
        (np.exp(NODES), math.exp(0.5)),
        (np.abs(NODES), math.sqrt(2.0 / math.pi)),
    ],
    ids=["square", "fourth", "relu", "step", "exp", "abs"],
)
def test_expectation(curve: np.ndarray, expected: float) -> None:  # type: ignore[type-arg]
    assert expectation(curve) == pytest.approx(expected, rel=2e-3)


def test_hermite_coefficients_of_a_hermite_polynomial() -> None:
    coefficients = hermite_coefficients((NODES**3 - 3.0 * NODES) / math.sqrt(6.0))
    assert coefficients == pytest.approx(np.eye(9)[3], abs=1e-4)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.4, 0.95])
def test_mehlers_formula_against_the_arc_cosine_kernel(rho: float) -> None:
    """E relu(x) relu(y) = (sqrt(1 - r^2) + r (pi - arccos r)) / (2 pi) (Cho and Saul 2009)."""
    curve = np.maximum(NODES, 0.0)[:, None] * np.ones(2)
    expected = (math.sqrt(1.0 - rho**2) + rho * (math.pi - math.acos(rho))) / (2.0 * math.pi)
    result = second_moments(curve, np.array([[1.0, rho], [rho, 1.0]]))
    assert result[0, 1] == pytest.approx(expected, rel=0.01)
    assert result[0, 0] == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize(
    "op_type", ["Relu", "Tanh", "Sigmoid", "Erf", "Softplus", "Exp", "Selu", "Neg", "Sqrt", "Abs"]
)
def test_partial_derivatives_against_differences(op_type: str) -> None:
    x = np.random.default_rng(0).uniform(0.2, 2.0, (5, 3)) * (
        1.0 if op_type == "Sqrt" else np.array([1.0, -1.0, 1.0])
    )
    node = _node(op_type, 1)
    (slope,) = partial_derivatives(node, [x])
    up, down = (evaluate_node(node, [x + step])[0] for step in (1e-4, -1e-4))
    assert slope == pytest.approx((up - down) / 2e-4, abs=1e-2 if op_type == "Erf" else 1e-6)


def test_partial_derivatives_of_a_product() -> None:
    x, y = np.array([[1.0, 2.0]]), np.array([3.0, 5.0])
    dx, dy = partial_derivatives(_node("Mul", 2), [x, y])
    assert dx == pytest.approx(np.array([[3.0, 5.0]]))
    assert dy == pytest.approx(x)


def _node(op_type: str, inputs: int) -> ir.Node:
    values = [
        ir.val(f"x{index}", dtype=ir.DataType.FLOAT, shape=ir.Shape(("n", 3))) for index in range(inputs)
    ]
    node = ir.node(op_type, values, name="node")
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node
