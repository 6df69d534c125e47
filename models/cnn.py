"""A small convolutional network with BatchNorm and Dropout, for flat grey images.

Twice convolution 3x3, BatchNorm, ReLU and 2x2 max-pooling; then dropout and one dense layer. It takes the pixels as a flat
vector, and shapes them itself, so that the same data fits both frameworks, whichever axis they keep channels on.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..converters.frameworks import require
from .activations import keras_activation, pytorch_activation
from .convolution import conv_layer, keras_conv, keras_image_dense, pytorch_batch_norm, pytorch_conv
from .dense import Layer, keras_batch_norm, pytorch_linear, uniform_layer

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    size: int = 8,
    channels: int = 16,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = True,
    dropout: float = 0.25,
    seed: int = 0,
) -> torch.nn.Sequential:
    """Logits [batch, classes] from pixels [batch, size * size].

    Args:
        size: Height and width of the image, a multiple of 4: 8 for scikit-learn's digits, 28 for MNIST.
        channels: Channels of the first convolution; the second has twice as many.
        classes: Number of logits.
        activation: One of `gradfuse.models.activations.ACTIVATIONS`.
        batch_norm: Whether BatchNorm stands before the activations.
        dropout: Probability that a feature is dropped, in [0, 1).
        seed: Seed of the weights.
    """
    nn, weights = require("torch").nn, _draw(size, channels, classes, seed)
    modules: OrderedDict[str, torch.nn.Module] = OrderedDict(image=nn.Unflatten(1, (1, size, size)))
    for number, conv in enumerate(weights.convs, 1):
        width = number * channels
        modules[f"conv{number}"] = pytorch_conv(conv)
        if batch_norm:
            modules[f"bn{number}"] = pytorch_batch_norm(width)
        modules[f"{activation}{number}"] = pytorch_activation(activation, width)
        modules[f"pool{number}"] = nn.MaxPool2d(2)
    modules |= OrderedDict(flatten=nn.Flatten(), dropout=nn.Dropout(dropout), fc=pytorch_linear(weights.fc))
    network: torch.nn.Sequential = nn.Sequential(modules)
    return network


def keras(
    size: int = 8,
    channels: int = 16,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = True,
    dropout: float = 0.25,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras; there the channels are the last axis of an image."""
    k, weights = require("tensorflow", "keras"), _draw(size, channels, classes, seed)
    layers = k.layers
    model = k.Sequential([k.Input((size * size,)), layers.Reshape((size, size, 1), name="image")])
    for number, conv in enumerate(weights.convs, 1):
        model.add(keras_conv(conv, f"conv{number}"))
        if batch_norm:
            model.add(keras_batch_norm(f"bn{number}"))
        model.add(keras_activation(activation, f"{activation}{number}", positions=2))
        model.add(layers.MaxPooling2D(2, name=f"pool{number}"))
    model.add(layers.Flatten(name="flatten"))
    model.add(layers.Dropout(dropout, name="dropout"))
    model.add(keras_image_dense(weights.fc, 2 * channels, size // 4, "fc"))
    return model


@dataclass(frozen=True)
class _Weights:
    """In PyTorch's layout: kernels [outputs, inputs, 3, 3], the dense weight [classes, channels * height * width]."""

    convs: tuple[Layer, Layer]
    fc: Layer


def _draw(size: int, channels: int, classes: int, seed: int) -> _Weights:
    rng = np.random.default_rng(seed)
    features = 2 * channels * (size // 4) ** 2
    convs = conv_layer(rng, 1, channels), conv_layer(rng, channels, 2 * channels)
    return _Weights(convs, uniform_layer(rng, features, classes))
