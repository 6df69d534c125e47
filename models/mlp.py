"""The network that gradfuse began with: one hidden layer of 128 ReLUs, for flat images of digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .dense import Layer, keras_stack, pytorch_stack, uniform_layer

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    inputs: int = 64,
    hidden: int = 128,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    seed: int = 0,
) -> torch.nn.Sequential:
    """Logits [batch, classes] from [batch, inputs]; 64 inputs for scikit-learn's digits, 784 for MNIST.

    Args:
        inputs: Length of the input.
        hidden: Length of the hidden layer.
        classes: Number of logits.
        activation: One of `gradfuse.models.activations.ACTIVATIONS`.
        batch_norm: Whether BatchNorm stands before the activation.
        seed: Seed of the weights.
    """
    return pytorch_stack(_layers(inputs, hidden, classes, seed), activation, batch_norm)


def keras(
    inputs: int = 64,
    hidden: int = 128,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras."""
    return keras_stack(_layers(inputs, hidden, classes, seed), activation, batch_norm)


def _layers(inputs: int, hidden: int, classes: int, seed: int) -> list[Layer]:
    rng = np.random.default_rng(seed)
    return [uniform_layer(rng, inputs, hidden), uniform_layer(rng, hidden, classes)]
