"""The losses against PyTorch's, extreme values included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from gradfuse.graph import LOSSES, GradientGraph, InputError, TrainableModel, evaluate
from gradfuse.graph.losses import base_name, loss_named

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]

F = functional
WEIGHTS = torch.tensor([0.5, 2, 1])
REFERENCE: dict[str, Callable[..., torch.Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "cross-entropy(weight=[0.5, 2, 1])": lambda y, t: F.cross_entropy(y, t, WEIGHTS),
    "cross-entropy(ignore_index=1)": lambda y, t: F.cross_entropy(y, t, ignore_index=1),
    "cross-entropy(label_smoothing=0.2)": lambda y, t: F.cross_entropy(y, t, label_smoothing=0.2),
    "cross-entropy(weight=[0.5, 2, 1], ignore_index=0, label_smoothing=0.2)": lambda y, t: F.cross_entropy(
        y, t, WEIGHTS, ignore_index=0, label_smoothing=0.2
    ),
    "nll": F.nll_loss,
    "nll(weight=[0.5, 2, 1], ignore_index=2)": lambda y, t: F.nll_loss(y, t, WEIGHTS, ignore_index=2),
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth-l1": F.smooth_l1_loss,
    "smooth-l1(beta=0.3)": lambda y, t: F.smooth_l1_loss(y, t, beta=0.3),
    "huber": F.huber_loss,
    "huber(delta=0.3)": lambda y, t: F.huber_loss(y, t, delta=0.3),
    "bce-with-logits": F.binary_cross_entropy_with_logits,
    "bce-with-logits(pos_weight=3)": lambda y, t: F.binary_cross_entropy_with_logits(
        y, t, pos_weight=torch.tensor(3.0)
    ),
    "kl": lambda y, t: F.kl_div(y, t, reduction="batchmean"),
    "kl(log_target=True)": lambda y, t: F.kl_div(y, t, reduction="batchmean", log_target=True),
    "hinge": lambda y, t: F.margin_ranking_loss(y, torch.zeros_like(y), t, margin=1.0),
    "hinge(margin=0.5)": lambda y, t: F.margin_ranking_loss(y, torch.zeros_like(y), t, margin=0.5),
    "hinge-embedding": F.hinge_embedding_loss,
    "hinge-embedding(margin=2)": lambda y, t: F.hinge_embedding_loss(y, t, margin=2.0),
    "output": lambda y, target: y.mean(),
}
VECTORS: dict[str, Callable[..., torch.Tensor]] = {
    "multi-margin": F.multi_margin_loss,
    "multi-margin(margin=0.3)": lambda y, t: F.multi_margin_loss(y, t, margin=0.3),
    "cosine-embedding": lambda y, t: F.cosine_embedding_loss(y, t, torch.ones(len(y))),
    "bce-with-logits(pos_weight=[3, 1, 0.5])": lambda y, t: F.binary_cross_entropy_with_logits(
        y, t, pos_weight=torch.tensor([3, 1, 0.5])
    ),
    "bce": F.binary_cross_entropy,
}
"""Losses that the wider tests do not suit: of vectors alone, or of probabilities."""

SIZES = {"moderate": 1.0, "huge": 1e4}


def test_every_loss_has_a_reference() -> None:
    assert {base_name(name) for name in REFERENCE | VECTORS} == set(LOSSES)


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
    if loss_named(name).classes:
        return rng.integers(0, shape[1], (shape[0], *shape[2:]))
    if name == "cosine-embedding":
        return rng.standard_normal(shape).astype(np.float32)
    signs = 2 if name.startswith("hinge") else 1
    return (signs * rng.integers(0, 2, shape) - (signs - 1)).astype(np.float32)


def _compare(
    model: TrainableModel, name: str, reference: Callable[..., torch.Tensor], x: Array, target: Array
) -> None:
    graph = GradientGraph.of(model, name)
    found = evaluate(graph.onnx, {"x": x} | ({"target": target} if graph.target else {}))
    leaf = torch.from_numpy(x).requires_grad_()
    loss = reference(leaf, torch.from_numpy(target))
    loss.backward()
    assert leaf.grad is not None
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(
        found["w_grad"], leaf.grad, rtol=1e-4, atol=1e-6 * float(leaf.grad.abs().max())
    )


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((4, 3), "4, 3"), ((4, 3), "batch, 3"), ((4, 3), "batch, classes"), ((2, 3, 4, 5), "batch, 3, h, w")],
    ids=str,
)
@pytest.mark.parametrize("name", REFERENCE)
def test_loss_and_gradient(build: Build, name: str, shape: tuple[int, ...], dims: str, size: float) -> None:
    x = (np.random.default_rng(0).standard_normal(shape) * size).astype(np.float32)
    _compare(_added(build, shape, dims), name, REFERENCE[name], x, _target(name, shape))


@pytest.mark.parametrize("dims", ["4, 3", "batch, 3", "batch, classes"])
@pytest.mark.parametrize("name", VECTORS)
def test_losses_of_vectors(build: Build, name: str, dims: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    x = 1 / (1 + np.exp(-x)) if name == "bce" else x
    _compare(_added(build, (4, 3), dims), name, VECTORS[name], x, _target(name, (4, 3)))


@pytest.mark.parametrize(
    ("name", "x", "target"),
    [
        ("bce", [[0, 1, 1e-30]] * 2, [[0, 0, 0], [1, 1, 1]]),
        ("hinge", [[1, 0, -1]] * 2, [[1, 1, 1], [-1, -1, -1]]),
        ("hinge-embedding", [[1, 0, -1]] * 2, [[1, 1, 1], [-1, -1, -1]]),
        ("huber", [[1, 0, -1]] * 2, [[0, 0, 0], [1, 1, 1]]),
        ("l1", [[1, 0, -1]] * 2, [[0, 0, 0], [1, 1, 1]]),
        ("kl", [[-1, -2, -3]] * 2, [[0, 1, 0], [0.5, 0.5, 0]]),
        ("multi-margin", [[1, 0, -1]] * 2, [0, 1]),
        ("cosine-embedding", [[0, 0, 0], [1, 2, 3]], [[1, 1, 1], [0, 0, 0]]),
    ],
)
def test_kinks_and_bounds(build: Build, name: str, x: Any, target: Any) -> None:
    kind = np.int64 if loss_named(name).classes else np.float32
    reference = {**REFERENCE, **VECTORS}[name]
    _compare(_added(build, (2, 3), "2, 3"), name, reference, np.array(x, np.float32), np.array(target, kind))


def test_parameters_can_be_given_from_python(build: Build) -> None:
    loss = loss_named("huber", delta=0.5)
    assert loss.name == "huber(delta=0.5)"
    graph = GradientGraph.of(_added(build, (1, 2), "1, 2"), loss)
    feeds = {"x": np.array([[3.0, 0.25]], np.float32), "target": np.zeros((1, 2), np.float32)}
    assert evaluate(graph.onnx, feeds)["w_grad"].tolist() == [[0.25, 0.125]]
    assert (graph.loss, graph.loss_function) == ("huber(delta=0.5)", loss)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("huber(delta=0)", r"delta=0 for the loss huber; a finite number between 1e-12 and inf"),
        ("huber(beta=1)", "the loss huber has no parameter 'beta'; one of delta"),
        ("mse(beta=1)", "the loss mse has no parameter 'beta'; none"),
        ("huber(1)", r"'huber\(1\)' cannot be read; name\(parameter=number"),
        ("huber(delta=open)", "cannot be read"),
        ("huber(delta=1", "cannot be read"),
        ("cross-entropy(weight=1)", "weight=1 for the loss cross-entropy; finite numbers in brackets"),
        ("cross-entropy(weight=[1, nan])", "cannot be read"),
        ("cross-entropy(ignore_index=0.5)", "ignore_index=0.5 .*; a whole number"),
        ("cross-entropy(label_smoothing=2)", "label_smoothing=2 .*between 0 and 1"),
        ("kl(log_target=1)", "log_target=1 .*; True or False"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(spelled: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss_named(spelled)


def test_there_must_be_a_weight_for_each_class(build: Build) -> None:
    with pytest.raises(InputError, match="2 weights of classes; one for each of 3 classes"):
        GradientGraph.of(_added(build, (4, 3), "4, 3"), "cross-entropy(weight=[1, 2])")


def test_the_target_looks_like_the_output(build: Build) -> None:
    graph = GradientGraph.of(_added(build, (2, 3, 4, 5), "batch, 3, h, w"))
    assert str(graph.target) == "target int64[batch, h, w]"


def test_an_unknown_loss_lists_what_exists(mlp: TrainableModel) -> None:
    with pytest.raises(InputError, match="unknown loss 'dice'; one of cross-entropy, nll"):
        GradientGraph.of(mlp, "dice")


def test_cross_entropy_needs_a_class_axis(build: Build) -> None:
    model = build("s = ReduceSum (x) y = Mul (s, w)", {"w": np.ones(1, np.float32)}, outputs="float[1] y")
    with pytest.raises(InputError, match=r"a loss of labels on the output y float\[1\]; .*classes"):
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
