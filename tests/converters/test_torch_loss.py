"""Losses that a user writes in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import gradfuse
from gradfuse.analysis import analyse
from gradfuse.converters import find_loss, from_pytorch, loss_from_torch
from gradfuse.graph import ConversionError, GradientGraph, InputError, evaluate
from gradfuse.graph.losses import Loss
from gradfuse.runtime import score


def focal(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    likelihood = -functional.cross_entropy(output, labels, reduction="none")
    return -((1 - likelihood.exp()) ** 2 * likelihood).mean()


def quantile(output: torch.Tensor, target: torch.Tensor, tau: float = 0.9) -> torch.Tensor:
    error = target - output
    return torch.maximum(tau * error, (tau - 1) * error)


def energy(output: torch.Tensor) -> torch.Tensor:
    return functional.mish(output).square().sum()


TARGETS = {
    focal: torch.tensor([0, 2, 1, 1]),
    quantile: torch.randn(4, 3, generator=torch.Generator().manual_seed(1)),
    energy: None,
}


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


@pytest.mark.parametrize("function", TARGETS)
def test_value_and_gradients_are_those_of_autograd(
    module: nn.Module, function: Callable[..., torch.Tensor]
) -> None:
    graph = GradientGraph.of(from_pytorch(module, torch.zeros(2, 5)), loss_from_torch(function))
    x, target = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), TARGETS[function]
    loss = function(module(x), *([] if target is None else [target])).mean()
    expected = torch.autograd.grad(loss, list(module.parameters()))
    feeds = {graph.source.inputs[0].name: x.numpy()}
    if target is not None:
        assert graph.target is not None
        feeds[graph.target.name] = target.numpy()
    found = evaluate(graph.onnx, feeds)
    assert found[graph.loss_output] == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in zip(("weight", "bias"), expected, strict=True):
        np.testing.assert_allclose(found[graph.gradients[name]], gradient, rtol=1e-4, atol=1e-6)


def test_a_model_trains_with_it_and_the_report_says_what_it_assumes(
    module: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def margin(output, target):\n    return ((output - target).abs() - 0.1).clamp(min=0)\n"
    )
    rng = np.random.default_rng(0)
    data = rng.standard_normal((64, 5)).astype(np.float32), rng.standard_normal((64, 3)).astype(np.float32)
    spelled = f"{tmp_path / 'mine.py'}:margin"
    trained = gradfuse.train(module, data, loss=spelled, epochs=4, lr=0.3)
    assert trained.history[-1].train_loss < trained.history[0].train_loss
    model = from_pytorch(module, torch.zeros(2, 5))
    loss = find_loss(spelled)
    assert score(model, data, loss).loss > score(trained.model, data, loss).loss
    notes = [finding.message for finding in analyse(GradientGraph.of(model, loss)).findings]
    assert any("taken as the mean square's" in note for note in notes)


def test_labels_are_checked(module: nn.Module) -> None:
    data = np.zeros((4, 5), np.float32), np.array([0, 1, 2, 3])
    with pytest.raises(InputError, match="label 3 in row 3"):
        gradfuse.train(module, data, loss=focal)


def test_a_module_s_arguments_are_those_of_its_forward() -> None:
    loss = find_loss(nn.HuberLoss(delta=0.5))
    assert isinstance(loss, Loss)
    assert loss.name == "HuberLoss"
    with pytest.raises(InputError, match="takes 3 arguments"):
        loss_from_torch(nn.CosineEmbeddingLoss())


def test_what_is_no_loss_says_so(module: nn.Module) -> None:
    with pytest.raises(InputError, match=r"takes 3 arguments; loss\(output, target\)"):
        loss_from_torch(lambda x, y, z: x)
    model = from_pytorch(module, torch.zeros(2, 5))

    def wrong(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output @ target

    with pytest.raises(
        ConversionError, match=r"torch\.export refuses wrong at test_torch_loss.py:\d+: a and b"
    ):
        GradientGraph.of(model, loss_from_torch(wrong))
