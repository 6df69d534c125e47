"""A transformer encoder with LayerNorm after each sum (post-LN), see `transformer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .transformer import EncoderShape, draw_encoder, keras_encoder, pytorch_encoder

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    size: int = 8,
    width: int = 32,
    heads: int = 4,
    hidden: int = 64,
    layers: int = 4,
    classes: int = 10,
    seed: int = 0,
) -> torch.nn.Module:
    """Logits [batch, classes] from pixels [batch, size * size].

    Args:
        size: Height and width of the image: number of tokens, and length of each before the embedding.
        width: Length of a token's features, a multiple of `heads`.
        heads: Number of attention heads.
        hidden: Length of the hidden layer of each layer's network.
        layers: Number of layers.
        classes: Number of logits.
        seed: Seed of the weights.
    """
    shape = EncoderShape(size, width, heads, hidden, layers, classes, norm_first=False)
    return pytorch_encoder(shape, draw_encoder(shape, seed))


def keras(
    size: int = 8,
    width: int = 32,
    heads: int = 4,
    hidden: int = 64,
    layers: int = 4,
    classes: int = 10,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras."""
    shape = EncoderShape(size, width, heads, hidden, layers, classes, norm_first=False)
    return keras_encoder(shape, draw_encoder(shape, seed))
