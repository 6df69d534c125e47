"""Activations by one name in both frameworks, with the same constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..converters.frameworks import require
from ..graph.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["ACTIVATIONS", "keras_activation", "pytorch_activation"]

_PYTORCH = {
    "elu": "ELU", "gelu": "GELU", "relu": "ReLU", "selu": "SELU", "sigmoid": "Sigmoid", "silu": "SiLU", "tanh": "Tanh",
}  # fmt: skip
"""Those that PyTorch has as classes without arguments, by their Keras names."""

ACTIVATIONS = (*_PYTORCH, "exponential", "leaky_relu", "prelu")
"""Every activation by name. PReLU has a slope for each feature or channel."""

LEAKY_SLOPE = 0.01
"""Of `leaky_relu`: PyTorch's default; Keras's is 0.3 as a layer, and 0.2 by name."""

PRELU_SLOPE = 0.25
"""Of `prelu` at the start: PyTorch's default (He 2015); Keras's is 0."""


def pytorch_activation(name: str, features: int) -> torch.nn.Module:
    """A module for tensors with so many features, or channels, on axis 1."""
    _check(name)
    framework = require("torch")
    module: torch.nn.Module
    if name == "leaky_relu":
        module = framework.nn.LeakyReLU(LEAKY_SLOPE)
    elif name == "prelu":
        module = framework.nn.PReLU(features, init=PRELU_SLOPE)
    elif name == "exponential":
        module = _exponential()
    else:
        module = getattr(framework.nn, _PYTORCH[name])()
    return module


def keras_activation(name: str, layer_name: str, positions: int = 0) -> Any:
    """A layer for tensors with so many axes of positions between the batch and the channels."""
    _check(name)
    layers, initializers = require("tensorflow", "keras").layers, require("keras").initializers
    if name == "leaky_relu":
        return layers.LeakyReLU(negative_slope=LEAKY_SLOPE, name=layer_name)
    if name == "prelu":
        slope = initializers.Constant(PRELU_SLOPE)
        shared = list(range(1, positions + 1)) or None
        return layers.PReLU(alpha_initializer=slope, shared_axes=shared, name=layer_name)
    return layers.Activation(name, name=layer_name)


def _exponential() -> torch.nn.Module:
    """PyTorch has no module for it."""
    framework = require("torch")

    class Exponential(framework.nn.Module):  # type: ignore[misc, name-defined]
        """The exponential of each element."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

    module: torch.nn.Module = Exponential()
    return module


def _check(name: str) -> None:
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}", expected=f"one of {', '.join(sorted(ACTIVATIONS))}")
