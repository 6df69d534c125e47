"""Losses inside the module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .row import Row, Shape, Tensor


class _Loss(nn.Module):
    """A loss of an input and a target, with a weight for each of four classes as a constant."""

    weights: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("weights", torch.tensor([0.5, 1.0, 2.0, 0.7]), persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.function(x, target, self.weights)


def _loss(
    name: str, function: Callable[[Tensor, Tensor, Tensor], Tensor], shape: Shape = (4,), classes: int = 0
) -> Row:
    target = shape[1:] if classes else shape
    return Row(f"loss: {name}", lambda: _Loss(function), (shape, target), {1: classes} if classes else {})


_F = functional

LOSSES = [
    _loss("cross_entropy", lambda x, t, w: _F.cross_entropy(x, t), (4,), 4),
    _loss("cross_entropy(weight)", _F.cross_entropy, (4,), 4),
    _loss("cross_entropy(ignore_index)", lambda x, t, w: _F.cross_entropy(x, t, ignore_index=2), (4,), 4),
    _loss(
        "cross_entropy(label_smoothing)", lambda x, t, w: _F.cross_entropy(x, t, label_smoothing=0.1), (4,), 4
    ),
    _loss(
        "cross_entropy(weight, ignore_index), classes in the middle",
        lambda x, t, w: _F.cross_entropy(x, t, w, ignore_index=1),
        (4, 3, 2),
        4,
    ),
    _loss(
        "cross_entropy(reduction=sum)", lambda x, t, w: _F.cross_entropy(x, t, w, reduction="sum"), (4,), 4
    ),
    _loss(
        "cross_entropy(reduction=none)",
        lambda x, t, w: _F.cross_entropy(x, t, w, reduction="none", ignore_index=3, label_smoothing=0.2),
        (4,),
        4,
    ),
    _loss(
        "cross_entropy of probabilities",
        lambda x, t, w: _F.cross_entropy(x, t.softmax(1), w, label_smoothing=0.2),
    ),
    _loss(
        "focal loss",
        lambda x, t, w: (1 - (-_F.cross_entropy(x, t, reduction="none")).exp()).square().mean(),
        (4,),
        4,
    ),
    _loss("nll_loss", lambda x, t, w: _F.nll_loss(x.log_softmax(1), t, w), (4,), 4),
    _loss("mse_loss", lambda x, t, w: _F.mse_loss(x, t)),
    _loss("l1_loss", lambda x, t, w: _F.l1_loss(x, t)),
    _loss("smooth_l1_loss", lambda x, t, w: _F.smooth_l1_loss(x, t, beta=0.5)),
    _loss("huber_loss", lambda x, t, w: _F.huber_loss(x, t, delta=0.5)),
    _loss("binary_cross_entropy", lambda x, t, w: _F.binary_cross_entropy(x.sigmoid(), t.sigmoid())),
    _loss(
        "binary_cross_entropy_with_logits(pos_weight)",
        lambda x, t, w: _F.binary_cross_entropy_with_logits(x, t.sigmoid(), pos_weight=w),
    ),
    _loss(
        "binary_cross_entropy_with_logits of 1e4",
        lambda x, t, w: _F.binary_cross_entropy_with_logits(1e4 * x, t.sigmoid()),
    ),
    _loss("kl_div", lambda x, t, w: _F.kl_div(x.log_softmax(1), t.softmax(1), reduction="batchmean")),
    _loss("hinge_embedding_loss", lambda x, t, w: _F.hinge_embedding_loss(x, t.sign())),
    _loss("cosine_embedding_loss", lambda x, t, w: _F.cosine_embedding_loss(x, t, t[:, 0].sign())),
    _loss("margin_ranking_loss", lambda x, t, w: _F.margin_ranking_loss(x, t, t.sign(), margin=0.3)),
    _loss("soft_margin_loss", lambda x, t, w: _F.soft_margin_loss(x, t.detach().sign())),
    _loss("triplet_margin_loss", lambda x, t, w: _F.triplet_margin_loss(x, t, t * 2)),
    _loss("poisson_nll_loss", lambda x, t, w: _F.poisson_nll_loss(x, t.exp())),
]
