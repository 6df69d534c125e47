"""Stacks of dense layers with one activation between them, in either framework."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from ..converters.frameworks import require
from .activations import keras_activation, pytorch_activation

if TYPE_CHECKING:
    import torch

__all__ = [
    "BATCH_NORM_EPSILON",
    "BATCH_NORM_MOMENTUM",
    "Layer",
    "filled",
    "keras_batch_norm",
    "keras_dense",
    "keras_stack",
    "normal_layers",
    "pytorch_linear",
    "pytorch_stack",
    "uniform_layer",
]

T = TypeVar("T", bound="torch.nn.Module")

Layer: TypeAlias = "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]"
"""Weight [outputs, inputs] and bias [outputs] of a dense layer, float32."""

BATCH_NORM_EPSILON = 1e-5
"""PyTorch's default; Keras's is 1e-3."""

BATCH_NORM_MOMENTUM = 0.9
"""Share of the old statistic that is kept: 1 - momentum in PyTorch's terms."""


def uniform_layer(rng: np.random.Generator, inputs: int, outputs: int) -> Layer:
    """PyTorch's default initialisation: weight and bias uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5
    weight, bias = rng.uniform(-bound, bound, (outputs, inputs)), rng.uniform(-bound, bound, outputs)
    return weight.astype(np.float32), bias.astype(np.float32)


def normal_layers(widths: Sequence[int], gain: float, seed: int) -> list[Layer]:
    """Layers from each width to the next: weights N(0, gain^2 / inputs), biases 0."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(0.0, gain * before**-0.5, (after, before)).astype(np.float32),
            np.zeros(after, np.float32),
        )
        for before, after in pairwise(widths)
    ]


def pytorch_stack(layers: Sequence[Layer], activation: str, batch_norm: bool = False) -> torch.nn.Sequential:
    """The layers `fc1`, `fc2`, ... with the activation between them, and before it BatchNorm `bn1`, ... if wanted."""
    nn = require("torch").nn
    modules: OrderedDict[str, torch.nn.Module] = OrderedDict()
    for number, layer in enumerate(layers, 1):
        modules[f"fc{number}"] = pytorch_linear(layer)
        if number == len(layers):
            break
        width = len(layer[1])
        if batch_norm:
            modules[f"bn{number}"] = nn.BatchNorm1d(
                width, eps=BATCH_NORM_EPSILON, momentum=1 - BATCH_NORM_MOMENTUM
            )
        modules[f"{activation}{number}"] = pytorch_activation(activation, width)
    stack: torch.nn.Sequential = nn.Sequential(modules)
    return stack


def pytorch_linear(layer: Layer) -> torch.nn.Linear:
    """One dense layer."""
    framework = require("torch")
    linear: torch.nn.Linear = framework.nn.utils.skip_init(framework.nn.Linear, *layer[0].shape[::-1])
    return filled(linear, layer)


def filled(module: T, layer: Layer) -> T:
    """A PyTorch module with this weight and bias."""
    tensor = require("torch").from_numpy
    module.load_state_dict({"weight": tensor(layer[0]), "bias": tensor(layer[1])})
    return module


def keras_stack(layers: Sequence[Layer], activation: str, batch_norm: bool = False) -> Any:
    """The same network as a `keras.Sequential`."""
    keras = require("tensorflow", "keras")
    model = keras.Sequential([keras.Input((layers[0][0].shape[1],))])
    for number, layer in enumerate(layers, 1):
        model.add(keras_dense(layer, f"fc{number}"))
        if number == len(layers):
            break
        if batch_norm:
            model.add(keras_batch_norm(f"bn{number}"))
        model.add(keras_activation(activation, f"{activation}{number}"))
    return model


def keras_dense(layer: Layer, name: str) -> Any:
    """One dense layer."""
    weight, bias = layer
    dense = require("tensorflow", "keras").layers.Dense(len(bias), name=name)
    dense.build((None, weight.shape[1]))
    dense.set_weights([weight.T, bias])
    return dense


def keras_batch_norm(name: str) -> Any:
    """Batch normalisation with PyTorch's constants."""
    layers = require("tensorflow", "keras").layers
    return layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM, name=name)
