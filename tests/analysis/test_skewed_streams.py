"""Residual streams that an activation cuts off after each sum: reflected random walks, with masks that a path meets in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis.moments import Assumptions, Moments, propagate, skewness
from gradfuse.analysis.moments.quadrature import WEIGHTS, Array
from gradfuse.analysis.moments.skewness import quantiles
from gradfuse.analysis.profile import gradient_rms

from .analysis_networks import gradient_graph

BLOCKS, BATCH = 6, 32


@pytest.mark.parametrize("skew", [-1.2, -0.4, 0.0, 0.4, 1.2])
def test_quantiles_of_a_gamma_distribution(skew: float) -> None:
    nodes = quantiles(np.array([skew]))
    moments = [float(WEIGHTS @ nodes[:, 0] ** power) for power in (1, 2, 3)]
    assert moments == pytest.approx([0.0, 1.0, skew], abs=0.02)
    assert np.all(np.diff(nodes, axis=0) >= 0)
    if skew > 0:
        shape = 4.0 / skew**2
        draws = (np.random.default_rng(0).gamma(shape, size=200_000) - shape) / np.sqrt(shape)
        for share in (0.02, 0.25, 0.5, 0.9, 0.99):
            cut = np.interp(share, np.cumsum(WEIGHTS) - 0.5 * WEIGHTS, nodes[:, 0])
            assert cut == pytest.approx(np.quantile(draws, share), abs=0.03)


def test_skewness_of_a_sum() -> None:
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal((0.0, 1.0), 1.0, (200_000, 2)), 0.0)
    whole = values - 2.0 * rng.standard_normal(values.shape)
    centred = whole - whole.mean(0)
    expected = np.mean(centred**3, 0) / np.mean(centred**2, 0) ** 1.5
    own = skewness.of_values(values, np.full(len(values), 1.0 / len(values)))
    parts = [_moments(values, own), _moments(np.zeros((1, 2)), None)]
    total = _moments(whole, None)
    np.testing.assert_allclose(skewness.of_sum(parts, (1.0, -1.0), total), expected, atol=0.02)
    np.testing.assert_allclose(skewness.of_sum(parts[::-1], (1.0, -1.0), total), -expected, atol=0.02)
    assert skewness.of_sum([parts[1]] * 2, (1.0, 1.0), total) is None


def _moments(draws: Array, own: Array | None) -> Moments:
    return Moments(draws.mean(0), draws.var(0), skewness=own)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.active = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.active(x + self.branch(x))


def test_a_stream_of_positions() -> None:
    torch.manual_seed(0)
    width, shape = 48, (3, 6, 6)
    blocks = [Block(width) for _ in range(BLOCKS)]
    module = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip
    state = propagate(gradient_graph(module, shape), Assumptions(BATCH))
    ends = [node.outputs[0] for node in state.nodes if node.op_type == "Relu"]
    streams = [module[2], *(block.active for block in blocks)]
    values, gradients = _measured(module, streams, shape)
    for value, square, gradient in zip(ends, values, gradients, strict=True):
        assert float(np.mean(state.values[value].second)) == pytest.approx(square, rel=0.02)
        assert gradient_rms(state, value) == pytest.approx(gradient, rel=0.05)


def _measured(
    module: nn.Module, streams: list[nn.Module], shape: tuple[int, ...], batches: int = 8
) -> tuple[Array, Array]:
    """Mean square of each stream's values, and RMS of its gradients."""
    squares = np.zeros((2, len(streams)))

    def record(index: int, output: torch.Tensor) -> None:
        squares[0, index] += output.detach().square().mean().item()
        output.register_hook(
            lambda g: squares[1].__setitem__(index, squares[1, index] + g.square().mean().item())
        )

    for index, stream in enumerate(streams):
        stream.register_forward_hook(lambda _, inputs, output, index=index: record(index, output))
    generator = torch.Generator().manual_seed(1)
    for _ in range(batches):
        x = torch.randn(BATCH, *shape, generator=generator)
        labels = torch.randint(10, (BATCH,), generator=generator)
        nn.functional.cross_entropy(module(x), labels).backward()
    return squares[0] / batches, np.sqrt(squares[1] / batches)
