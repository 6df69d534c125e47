"""The rows of the suite. To cover one more layer, add a row to its family."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from .activations import ACTIVATIONS, ELEMENTWISE
from .kinks import KINKS
from .layers import CONVOLUTIONS, LINEAR, NORMALIZATION, POOLS
from .losses import LOSSES
from .moves import MOVES, REDUCTIONS
from .row import Row, layer, named, op, tokens
from .sequences import SEQUENCES

__all__ = ["FAMILIES", "REFUSED", "Row"]

FAMILIES = {
    "Activations": ACTIVATIONS,
    "Elementwise": ELEMENTWISE,
    "Linear maps": LINEAR,
    "Convolutions and images": CONVOLUTIONS,
    "Pooling and resizing": POOLS,
    "Normalisation and dropout": NORMALIZATION,
    "Sequences and attention": SEQUENCES,
    "Moving elements": MOVES,
    "Reductions": REDUCTIONS,
    "Kinks and ties": KINKS,
    "Losses inside the module": LOSSES,
}

REFUSED = [
    (named("RReLU"), "draws a slope for each number while it trains"),
    (layer("FeatureAlphaDropout", nn.FeatureAlphaDropout, (4, 8)), "draws random numbers"),
    (
        layer("BatchNorm1d(momentum=None)", lambda: nn.BatchNorm1d(4, momentum=None), (4, 8)),
        "cumulative average",
    ),
    (
        layer("spectral_norm", lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)), (4, 5)),
        "changes its buffer",
    ),
    (
        tokens("Embedding(max_norm)", lambda: nn.Embedding(7, 3, max_norm=1.0)),
        "changes its weight in the forward",
    ),
    (
        tokens("Embedding(scale_grad_by_freq)", lambda: nn.Embedding(7, 3, scale_grad_by_freq=True)),
        "by frequencies",
    ),
    (
        op(
            "grid_sample",
            lambda x: functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False),
            (4, 8, 8),
        ),
        "no gradient for GridSample",
    ),
]
"""What is refused, and words of the reason."""
