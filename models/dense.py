"""Stacks of dense layers with one activation between them, in either framework."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from ..converters.frameworks import require
from ..graph.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ACTIVATIONS",
    "Layer",
    "filled",
    "keras_stack",
    "pytorch_linear",
    "pytorch_stack",
    "uniform_layer",
]

T = TypeVar("T", bound="torch.nn.Module")

Layer: TypeAlias = "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]"
"""Weight [outputs, inputs] and bias [outputs] of a dense layer, float32."""

ACTIVATIONS = {
    "elu": "ELU", "gelu": "GELU", "relu": "ReLU", "selu": "SELU", "sigmoid": "Sigmoid", "silu": "SiLU", "tanh": "Tanh",
}  # fmt: skip
"""The activations by their Keras names, with the names of their PyTorch classes."""


def uniform_layer(rng: np.random.Generator, inputs: int, outputs: int) -> Layer:
    """PyTorch's default initialisation: weight and bias uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5
    weight, bias = rng.uniform(-bound, bound, (outputs, inputs)), rng.uniform(-bound, bound, outputs)
    return weight.astype(np.float32), bias.astype(np.float32)


def pytorch_stack(layers: Sequence[Layer], activation: str) -> torch.nn.Sequential:
    """The layers `fc1`, `fc2`, ... with the activation between them."""
    nn, name = require("torch").nn, _pytorch_name(activation)
    modules: OrderedDict[str, torch.nn.Module] = OrderedDict()
    for number, layer in enumerate(layers, 1):
        if number > 1:
            modules[f"{activation}{number - 1}"] = getattr(nn, name)()
        modules[f"fc{number}"] = pytorch_linear(layer)
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


def keras_stack(layers: Sequence[Layer], activation: str) -> Any:
    """The same network as a `keras.Sequential`."""
    keras = require("tensorflow", "keras")
    _pytorch_name(activation)
    model = keras.Sequential([keras.Input((layers[0][0].shape[1],))])
    for number, (weight, bias) in enumerate(layers, 1):
        last = number == len(layers)
        dense = keras.layers.Dense(len(bias), activation=None if last else activation, name=f"fc{number}")
        model.add(dense)
        dense.set_weights([weight.T, bias])
    return model


def _pytorch_name(activation: str) -> str:
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown activation {activation!r}", expected=f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]
