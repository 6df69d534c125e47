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
from .dense import Layer, filled, pytorch_linear, uniform_layer

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]

_EPSILON = 1e-5  # PyTorch's default; Keras's is 1e-3
_MOMENTUM = 0.9  # share of the old statistic that is kept: 1 - momentum in PyTorch's terms


def pytorch(
    size: int = 8, channels: int = 16, classes: int = 10, dropout: float = 0.25, seed: int = 0
) -> torch.nn.Sequential:
    """Logits [batch, classes] from pixels [batch, size * size].

    Args:
        size: Height and width of the image, a multiple of 4: 8 for scikit-learn's digits, 28 for MNIST.
        channels: Channels of the first convolution; the second has twice as many.
        classes: Number of logits.
        dropout: Probability that a feature is dropped, in [0, 1).
        seed: Seed of the weights.
    """
    nn, weights = require("torch").nn, _draw(size, channels, classes, seed)
    network: torch.nn.Sequential = nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, size, size)),
            conv1=_pytorch_conv(weights.conv1),
            bn1=nn.BatchNorm2d(channels, eps=_EPSILON, momentum=1 - _MOMENTUM),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=_pytorch_conv(weights.conv2),
            bn2=nn.BatchNorm2d(2 * channels, eps=_EPSILON, momentum=1 - _MOMENTUM),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(dropout),
            fc=pytorch_linear(weights.fc),
        )
    )
    return network


def keras(size: int = 8, channels: int = 16, classes: int = 10, dropout: float = 0.25, seed: int = 0) -> Any:
    """The same network, with the same weights, in Keras; there the channels are the last axis of an image."""
    k, weights = require("tensorflow", "keras"), _draw(size, channels, classes, seed)
    layers = k.layers
    model = k.Sequential(
        [
            k.Input((size * size,)),
            layers.Reshape((size, size, 1), name="image"),
            layers.Conv2D(channels, 3, padding="same", name="conv1"),
            layers.BatchNormalization(epsilon=_EPSILON, momentum=_MOMENTUM, name="bn1"),
            layers.ReLU(name="relu1"),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Conv2D(2 * channels, 3, padding="same", name="conv2"),
            layers.BatchNormalization(epsilon=_EPSILON, momentum=_MOMENTUM, name="bn2"),
            layers.ReLU(name="relu2"),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(dropout, name="dropout"),
            layers.Dense(classes, name="fc"),
        ]
    )
    for name in ("conv1", "conv2"):
        kernel, bias = getattr(weights, name)
        model.get_layer(name).set_weights([kernel.transpose(2, 3, 1, 0), bias])
    kernel, bias = weights.fc
    by_pixel = kernel.reshape(classes, 2 * channels, size // 4, size // 4).transpose(2, 3, 1, 0)
    model.get_layer("fc").set_weights([by_pixel.reshape(-1, classes), bias])
    return model


@dataclass(frozen=True)
class _Weights:
    """In PyTorch's layout: kernels [outputs, inputs, 3, 3], the dense weight [classes, channels * height * width]."""

    conv1: Layer
    conv2: Layer
    fc: Layer


def _draw(size: int, channels: int, classes: int, seed: int) -> _Weights:
    rng = np.random.default_rng(seed)
    features = 2 * channels * (size // 4) ** 2
    return _Weights(
        _conv(rng, 1, channels), _conv(rng, channels, 2 * channels), uniform_layer(rng, features, classes)
    )


def _conv(rng: np.random.Generator, inputs: int, outputs: int) -> Layer:
    weight, bias = uniform_layer(rng, inputs * 9, outputs)
    return weight.reshape(outputs, inputs, 3, 3), bias


def _pytorch_conv(layer: Layer) -> torch.nn.Conv2d:
    framework, (outputs, inputs) = require("torch"), layer[0].shape[:2]
    conv: torch.nn.Conv2d = framework.nn.utils.skip_init(framework.nn.Conv2d, inputs, outputs, 3, padding=1)
    return filled(conv, layer)
