"""A small residual network for flat grey images, with or without BatchNorm.

A convolution, residual blocks of two convolutions each, the mean over the image and a dense layer. Each block is
x + branch(x), and the activation follows the sum (He 2016, the original form). Without BatchNorm the stream grows from block to
block, and the gradient grows with it on its way back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..converters.frameworks import require
from .activations import keras_activation, pytorch_activation
from .convolution import conv_layer, keras_conv, pytorch_batch_norm, pytorch_conv
from .dense import Layer, keras_batch_norm, keras_dense, pytorch_linear, uniform_layer

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    size: int = 8,
    channels: int = 16,
    blocks: int = 3,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = True,
    seed: int = 0,
) -> torch.nn.Sequential:
    """Logits [batch, classes] from pixels [batch, size * size].

    Args:
        size: Height and width of the image.
        channels: Channels of every convolution.
        blocks: Number of residual blocks.
        classes: Number of logits.
        activation: One of `gradfuse.models.activations.ACTIVATIONS`.
        batch_norm: Whether BatchNorm follows every convolution.
        seed: Seed of the weights.
    """
    nn, weights = require("torch").nn, _draw(channels, blocks, classes, seed)

    class Residual(nn.Module):  # type: ignore[misc, name-defined]
        """x + branch(x), then the activation."""

        def __init__(self, convs: tuple[Layer, Layer]) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                unit(convs[0]), pytorch_activation(activation, channels), unit(convs[1])
            )
            self.activation = pytorch_activation(activation, channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.activation(x + self.branch(x))
            return y

    def unit(conv: Layer) -> torch.nn.Sequential:
        norm = OrderedDict(bn=pytorch_batch_norm(channels)) if batch_norm else OrderedDict()
        sequence: torch.nn.Sequential = nn.Sequential(OrderedDict(conv=pytorch_conv(conv), **norm))
        return sequence

    network: torch.nn.Sequential = nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, size, size)),
            stem=unit(weights.stem),
            stem_activation=pytorch_activation(activation, channels),
            **{f"block{number}": Residual(convs) for number, convs in enumerate(weights.blocks, 1)},
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=pytorch_linear(weights.fc),
        )
    )
    return network


def keras(
    size: int = 8,
    channels: int = 16,
    blocks: int = 3,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = True,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras; there the channels are the last axis of an image."""
    k, weights = require("tensorflow", "keras"), _draw(channels, blocks, classes, seed)

    def unit(x: Any, conv: Layer, name: str) -> Any:
        y = keras_conv(conv, f"{name}_conv")(x)
        return keras_batch_norm(f"{name}_bn")(y) if batch_norm else y

    def active(x: Any, name: str) -> Any:
        return keras_activation(activation, name, positions=2)(x)

    pixels = k.Input((size * size,))
    x = active(unit(k.layers.Reshape((size, size, 1))(pixels), weights.stem, "stem"), "stem_activation")
    for number, (first, second) in enumerate(weights.blocks, 1):
        name = f"block{number}"
        y = active(unit(x, first, f"{name}_1"), f"{name}_1_activation")
        x = active(k.layers.Add(name=f"{name}_sum")([x, unit(y, second, f"{name}_2")]), f"{name}_activation")
    features = k.layers.GlobalAveragePooling2D(name="pool")(x)
    return k.Model(pixels, keras_dense(weights.fc, "fc")(features))


@dataclass(frozen=True)
class _Weights:
    """In PyTorch's layout: kernels [outputs, inputs, 3, 3]."""

    stem: Layer
    blocks: tuple[tuple[Layer, Layer], ...]
    fc: Layer


def _draw(channels: int, blocks: int, classes: int, seed: int) -> _Weights:
    rng = np.random.default_rng(seed)
    return _Weights(
        conv_layer(rng, 1, channels),
        tuple(
            (conv_layer(rng, channels, channels), conv_layer(rng, channels, channels)) for _ in range(blocks)
        ),
        uniform_layer(rng, channels, classes),
    )
