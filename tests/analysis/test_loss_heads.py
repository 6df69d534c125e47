"""The predicted gradient of each loss against autograd on many drawn outputs and targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from gradfuse.analysis.moments.loss import HEADS, output_gradient
from gradfuse.analysis.moments.state import Moments
from gradfuse.graph.losses import base_name

Draw = Callable[[torch.Generator, int], torch.Tensor]
F = functional
N, MEAN, VARIANCE = 20000, np.array([0.4, -0.3, 0.6]), np.array([0.5, 1.0, 0.2])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


def _labels(generator: torch.Generator, n: int) -> torch.Tensor:
    return torch.randint(0, 3, (n,), generator=generator)


def _normal(generator: torch.Generator, n: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


def _bits(generator: torch.Generator, n: int) -> torch.Tensor:
    return torch.randint(0, 2, (n, 3), generator=generator).double()


def _signs(generator: torch.Generator, n: int) -> torch.Tensor:
    return 2 * _bits(generator, n) - 1


def _shares(generator: torch.Generator, n: int) -> torch.Tensor:
    return torch.full((n, 3), 1 / 3, dtype=torch.float64)


CASES: dict[str, tuple[Draw, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "cross-entropy": (_labels, F.cross_entropy),
    "cross-entropy(label_smoothing=0.3)": (_labels, lambda z, t: F.cross_entropy(z, t, label_smoothing=0.3)),
    "nll": (_labels, F.nll_loss),
    "multi-margin(margin=0.5)": (_labels, lambda z, t: F.multi_margin_loss(z, t, margin=0.5)),
    "mse": (_normal, F.mse_loss),
    "l1": (_normal, F.l1_loss),
    "smooth-l1(beta=0.5)": (_normal, lambda z, t: F.smooth_l1_loss(z, t, beta=0.5)),
    "huber(delta=0.5)": (_normal, lambda z, t: F.huber_loss(z, t, delta=0.5)),
    "bce-with-logits": (_bits, F.binary_cross_entropy_with_logits),
    "bce-with-logits(pos_weight=3)": (
        _bits,
        lambda z, t: F.binary_cross_entropy_with_logits(z, t, pos_weight=torch.tensor(3.0)),
    ),
    "kl": (_shares, lambda z, t: F.kl_div(z, t, reduction="batchmean")),
    "hinge": (_signs, lambda z, t: F.margin_ranking_loss(z, torch.zeros_like(z), t, margin=1.0)),
    "hinge-embedding": (_signs, F.hinge_embedding_loss),
    "cosine-embedding": (_normal, lambda z, t: F.cosine_embedding_loss(z, t, torch.ones(len(z)))),
    "output": (_normal, lambda z, t: z.mean()),
}


def test_every_loss_is_known() -> None:
    assert {base_name(name) for name in CASES} == set(HEADS) - {"bce"}


@pytest.mark.parametrize("name", CASES)
def test_moments_of_the_gradient(name: str) -> None:
    draw, loss = CASES[name]
    generator = torch.Generator().manual_seed(0)
    z = torch.from_numpy(MEAN) + torch.from_numpy(VARIANCE).sqrt() * _normal(generator, N)
    z.requires_grad_()
    loss(z, draw(generator, N)).backward()
    assert z.grad is not None
    gradient = z.grad.numpy() * N
    found = output_gradient(name, Moments(MEAN, VARIANCE))
    scale = np.sqrt((gradient**2).mean())
    np.testing.assert_allclose(found.mean, gradient.mean(0), atol=0.05 * scale)
    np.testing.assert_allclose(found.variance, gradient.var(0), rtol=0.15, atol=0.01 * scale**2)


def test_probabilities_of_two_classes() -> None:
    p = Moments(np.full(2, 0.5), np.full(2, 1e-6))
    found = output_gradient("bce", p)
    np.testing.assert_allclose(found.mean**2 + found.variance, np.ones(2), rtol=1e-2)


def test_weights_change_the_frequencies() -> None:
    logits = Moments(np.zeros(3), np.full(3, 1e-9))
    found = output_gradient("cross-entropy(weight=[1, 2, 3])", logits)
    np.testing.assert_allclose(found.mean, 1 / 3 - np.array([1, 2, 3]) / 6, atol=1e-4)


@pytest.mark.parametrize("name", ["mse", "l1", "bce-with-logits", "kl"])
def test_an_output_of_one_number(name: str) -> None:
    """`[batch]`, of which an example has no axes."""
    one, row = (Moments(np.full(shape, 0.3), np.full(shape, 2.0)) for shape in ((), (1,)))
    found, expected = output_gradient(name, one), output_gradient(name, row)
    assert (found.mean, found.variance) == pytest.approx((expected.mean[0], expected.variance[0]))
