"""The losses against PyTorch's, extreme values included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from gradfuse.graph import LOSSES, GradientGraph, InputError, TrainableModel, evaluate

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]

REFERENCE: dict[str, Callable[..., torch.Tensor]] = {
    "cross-entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "bce-with-logits": functional.binary_cross_entropy_with_logits,
    "output": lambda y, target: y.mean(),
}
SIZES = {"moderate": 1.0, "huge": 1e4}


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCE) == set(LOSSES)


def _added(build: Build, shape: tuple[int, ...], dims: str) -> TrainableModel:
    """y = x + w, so that the gradient of w is the loss's gradient of the output."""
    return build(
        "y = Add (x, w)",
        {"w": np.zeros(shape, np.float32)},
        inputs=f"float[{dims}] x",
        outputs=f"float[{dims}] y",
    )


def _target(name: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(1)
    if name == "cross-entropy":
        return rng.integers(0, shape[1], (shape[0], *shape[2:]))
    return rng.integers(0, 2, shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((4, 3), "4, 3"), ((4, 3), "batch, 3"), ((4, 3), "batch, classes"), ((2, 3, 4, 5), "batch, 3, h, w")],
    ids=str,
)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(build: Build, name: str, shape: tuple[int, ...], dims: str, size: float) -> None:
    graph = GradientGraph.of(_added(build, shape, dims), name)
    x = (np.random.default_rng(0).standard_normal(shape) * size).astype(np.float32)
    target = _target(name, shape)
    found = evaluate(graph.onnx, {"x": x} | ({"target": target} if graph.target else {}))
    leaf = torch.from_numpy(x).requires_grad_()
    loss = REFERENCE[name](leaf, torch.from_numpy(target))
    loss.backward()
    assert leaf.grad is not None
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(
        found["w_grad"], leaf.grad, rtol=1e-4, atol=1e-6 * float(leaf.grad.abs().max())
    )


def test_the_target_looks_like_the_output(build: Build) -> None:
    graph = GradientGraph.of(_added(build, (2, 3, 4, 5), "batch, 3, h, w"))
    assert str(graph.target) == "target int64[batch, h, w]"


def test_an_unknown_loss_lists_what_exists(mlp: TrainableModel) -> None:
    with pytest.raises(InputError, match="unknown loss 'hinge'; one of cross-entropy, mse"):
        GradientGraph.of(mlp, "hinge")


def test_cross_entropy_needs_a_class_axis(build: Build) -> None:
    model = build("s = ReduceSum (x) y = Mul (s, w)", {"w": np.ones(1, np.float32)}, outputs="float[1] y")
    with pytest.raises(InputError, match=r"cross-entropy on the output y float\[1\]; .*classes"):
        GradientGraph.of(model)


def test_a_scalar_output_is_a_loss(build: Build) -> None:
    model = build(
        "m = MatMul (x, w) y = ReduceSum <keepdims = 0> (m)",
        {"w": np.ones((3, 2), np.float32)},
        outputs="float y",
    )
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": np.ones((4, 3), np.float32)})
    assert found["loss"] == 24
    assert found["w_grad"].tolist() == [[4, 4]] * 3
