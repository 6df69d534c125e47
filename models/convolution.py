"""Convolutions over images, in either framework: kernels 3x3 that keep the size, unless strided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..converters.frameworks import require
from .dense import (
    BATCH_NORM_EPSILON,
    BATCH_NORM_MOMENTUM,
    Layer,
    filled,
    keras_dense,
    uniform_layer,
)

if TYPE_CHECKING:
    import torch

__all__ = ["conv_layer", "keras_conv", "keras_image_dense", "pytorch_batch_norm", "pytorch_conv"]


def conv_layer(rng: np.random.Generator, inputs: int, outputs: int) -> Layer:
    """Kernel [outputs, inputs, 3, 3] and bias, by PyTorch's default initialisation."""
    weight, bias = uniform_layer(rng, inputs * 9, outputs)
    return weight.reshape(outputs, inputs, 3, 3), bias


def pytorch_conv(layer: Layer) -> torch.nn.Conv2d:
    """One convolution with padding 1."""
    framework, (outputs, inputs) = require("torch"), layer[0].shape[:2]
    conv: torch.nn.Conv2d = framework.nn.utils.skip_init(framework.nn.Conv2d, inputs, outputs, 3, padding=1)
    return filled(conv, layer)


def pytorch_batch_norm(channels: int) -> torch.nn.BatchNorm2d:
    """Batch normalisation of images."""
    norm: torch.nn.BatchNorm2d = require("torch").nn.BatchNorm2d(
        channels, eps=BATCH_NORM_EPSILON, momentum=1 - BATCH_NORM_MOMENTUM
    )
    return norm


def keras_conv(layer: Layer, name: str) -> Any:
    """The same, for images with the channels last."""
    kernel, bias = layer
    conv = require("tensorflow", "keras").layers.Conv2D(len(bias), 3, padding="same", name=name)
    conv.build((None, None, None, kernel.shape[1]))
    conv.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    return conv


def keras_image_dense(layer: Layer, channels: int, size: int, name: str) -> Any:
    """A dense layer on a flattened image with the channels last, given one that counts the channels first."""
    weight, bias = layer
    by_pixel = weight.reshape(len(bias), channels, size, size).transpose(2, 3, 1, 0)
    return keras_dense((by_pixel.reshape(-1, len(bias)).T, bias), name)
