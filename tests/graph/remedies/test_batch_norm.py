"""Batch normalisation beside the activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from gradfuse.graph import GradientGraph, InputError, TrainableModel, UnsupportedError, evaluate
from gradfuse.graph.remedies import insert_batch_norm

Build = Callable[..., TrainableModel]
Array = np.ndarray[Any, Any]


def parameters(model: TrainableModel) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor(model.onnx.graph.initializers[name].const_value.numpy(), requires_grad=True)
        for name in model.parameters
    }


@pytest.mark.parametrize("where", ["before", "after"])
def test_training_and_inference_are_torchs(mlp: TrainableModel, batch: dict[str, Array], where: str) -> None:
    model = insert_batch_norm(mlp, where)
    order = ["Gemm", "BatchNormalization", "Relu", "Gemm"]
    assert [node.op_type for node in model.onnx.graph] == (
        order if where == "before" else [order[0], order[2], order[1], order[3]]
    )
    onnx.checker.check_model(ir.serde.serialize_model(model.onnx), full_check=True)
    assert len(model.parameters) == 6
    assert len(model.state) == 2
    weights, norm = parameters(model), nn.BatchNorm1d(5)
    middle = nn.Sequential(*([norm, nn.ReLU()] if where == "before" else [nn.ReLU(), norm]))
    z = torch.from_numpy(batch["x"]) @ weights["w1"] + weights["b1"]
    loss = nn.functional.cross_entropy(
        middle(z) @ weights["w2"] + weights["b2"], torch.from_numpy(batch["target"])
    )
    loss.backward()
    gradients = GradientGraph.of(model)
    found = evaluate(gradients.onnx, batch)
    assert found[gradients.loss_output] == pytest.approx(loss.item(), rel=1e-5)
    scale, bias = (name for name in model.parameters if name not in mlp.parameters)
    expected = {name: weight.grad for name, weight in weights.items()} | {
        scale: norm.weight.grad,
        bias: norm.bias.grad,
    }
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[gradients.gradients[name]], gradient, rtol=1e-3, atol=1e-5)
    mean, _ = model.state
    np.testing.assert_allclose(found[gradients.new_state[mean]], norm.running_mean, rtol=1e-5)


def test_the_channels_of_a_convolution(build: Build) -> None:
    model = insert_batch_norm(
        build(
            "c = Conv (x, w) t = Transpose <perm = [0, 2, 3, 1]> (c) r = Relu (t) p = ReduceMean <keepdims = 0> (r, axes)"
            " y = MatMul (p, v)",
            {"w": np.ones((4, 3, 1, 1), np.float32), "v": np.ones((4, 2), np.float32)},
            inputs="float[batch, 3, 5, 5] x",
            state={"axes": np.array([1, 2])},
        )
    )
    types = [node.op_type for node in model.onnx.graph]
    assert types[1:5] == ["Transpose", "Transpose", "BatchNormalization", "Transpose"]
    assert model.onnx.graph.initializers[model.parameters[2]].shape == (4,)
    x = np.random.default_rng(0).standard_normal((6, 3, 5, 5)).astype(np.float32)
    assert evaluate(model.onnx, {"x": x})["y"].shape == (6, 2)


def test_a_graph_that_does_not_tell_the_channels(build: Build) -> None:
    model = build("h = Relu (x) y = MatMul (h, w)", {"w": np.ones((3, 2), np.float32)})
    with pytest.raises(UnsupportedError, match="does not tell its channels; an activation after a dense"):
        insert_batch_norm(model)


def test_refusals(mlp: TrainableModel) -> None:
    with pytest.raises(InputError, match="batch-norm 'beside' the activation; before or after"):
        insert_batch_norm(mlp, "beside")
    with pytest.raises(InputError, match=r"no activation at conv\*"):
        insert_batch_norm(mlp, at=["conv*"])
