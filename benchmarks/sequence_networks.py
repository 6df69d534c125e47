"""Random transformers: encoder layers of PyTorch or attention written out, with and without a causal mask, several heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = ["encoder"]

CLASSES = 10


class Attention(nn.Module):
    """A block whose attention is written out; LayerNorm before the branches or after the sums."""

    def __init__(self, width: int, heads: int, norm_first: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.norm_first, self.causal = heads, norm_first, causal
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        # A bias of the keys has no gradient: it moves all scores of a query alike.
        self.query, self.key, self.value = (nn.Linear(width, width, bias=b) for b in (True, False, True))
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled dot-product attention, `[batch, tokens, features]`."""
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attention and feed-forward, each with a skip."""
        first, second = self.norms
        if self.norm_first:
            x = x + self.attend(first(x))
            return x + self.feed_forward(second(x))  # type: ignore[no-any-return]
        x = first(x + self.attend(x))
        return second(x + self.feed_forward(x))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Blocks, then the mean over tokens, the first or the last of them."""

    def __init__(self, blocks: list[nn.Module], width: int, pool: str, norm: bool) -> None:
        super().__init__()
        self.blocks, self.pool = nn.Sequential(*blocks), pool
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, `[batch, CLASSES]`."""
        x = self.norm(self.blocks(x))
        return self.last(x.mean(1) if self.pool == "mean" else x[:, 0 if self.pool == "first" else -1])  # type: ignore[no-any-return]


def encoder(rng: np.random.Generator, norm_first: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """A network and the shape of one of its inputs, `[tokens, features]`."""
    length, heads = int(rng.choice([8, 12, 16, 24, 32, 64])), int(rng.choice([1, 2, 4, 8]))
    width, depth = max(16, heads * int(rng.choice([8, 16]))), int(rng.integers(2, 9))
    blocks: list[nn.Module]
    if rng.integers(2):
        causal = bool(rng.integers(2))
        blocks = [Attention(width, heads, norm_first, causal) for _ in range(depth)]
        pool = "last" if causal else str(rng.choice(["mean", "first"]))
    else:
        layer = nn.TransformerEncoderLayer
        blocks = [
            layer(width, heads, 2 * width, 0.1, batch_first=True, norm_first=norm_first) for _ in range(depth)
        ]
        pool = str(rng.choice(["mean", "first"]))
    return Classifier(blocks, width, pool, norm_first), (length, width)
