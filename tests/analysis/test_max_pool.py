"""Maxima over windows: what their positions receive, and what sums of it, whose parts a batch normalisation makes cancel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.transfer.max_pool import _independent

from .analysis_networks import gradient_graph, measured_rms

BATCH = 16


@pytest.mark.parametrize(
    ("pool", "after", "bounds"),
    [
        # After one tap and a batch normalisation the windows' gradients add up to 0: a shift's gradient is that of the windows
        # without a positive value. After nine taps it is, beside that, what the border leaves out.
        (nn.MaxPool2d(3, 2, 1), 1, 1.25),
        (nn.MaxPool2d(2), 1, 1.25),
        (nn.MaxPool2d(3, 2, 1), 3, 1.5),
    ],
    ids=["overlapping", "apart", "border"],
)
def test_a_normalisation_before_a_maximum(pool: nn.Module, after: int, bounds: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), pool,
        nn.Conv2d(12, 12, after, padding=after // 2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    state = propagate(gradient_graph(module, (3, 16, 16)), Assumptions(BATCH))
    predicted = {value.name: math.sqrt(found.mean_square(BATCH)) for value, found in state.shared.items()}
    measured = measured_rms(module, (3, 16, 16), batches=16, batch_size=BATCH)
    for name in ("0.weight", "1.weight", "1.bias"):
        assert 1.0 / bounds < predicted[name] / measured[name] < bounds, name


@pytest.mark.parametrize("size", [2, 4, 9])
def test_gaussians_that_share_half_of_their_variance(size: int) -> None:
    """All of them lie below their mean with probability 1 / (size + 1): the one that they share is then the largest of all."""
    correlation = np.stack([np.eye(size), 0.5 + 0.5 * np.eye(size)])
    np.testing.assert_allclose(_independent(correlation), [size, np.log2(size + 1)], rtol=2e-3)
