"""A deep network of equal dense layers, as badly initialised as one likes.

Weights are normal with standard deviation gain / sqrt(inputs), biases 0. With ReLU, the gradient that flows back through a
layer grows by the factor gain / sqrt(2) on average, and so do the activations on their way forward: sqrt(2) is He's
initialisation (He 2015), and the default of 2.1 makes both grow 2,700-fold over 20 layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .dense import keras_stack, normal_layers, pytorch_stack

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    inputs: int = 64,
    width: int = 64,
    depth: int = 20,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    gain: float = 2.1,
    seed: int = 0,
) -> torch.nn.Sequential:
    """Logits [batch, classes] from [batch, inputs], through `depth` dense layers in all.

    Args:
        inputs: Length of the input.
        width: Length of every hidden layer.
        depth: Number of dense layers, at least 1.
        classes: Number of logits.
        activation: Name of the activation between the layers: one of `gradfuse.models.activations.ACTIVATIONS`.
        batch_norm: Whether BatchNorm stands before every activation.
        gain: Standard deviation of the weights, times the square root of the number of inputs of their layer.
        seed: Seed of the weights.
    """
    return pytorch_stack(
        normal_layers(_widths(inputs, width, depth, classes), gain, seed), activation, batch_norm
    )


def keras(
    inputs: int = 64,
    width: int = 64,
    depth: int = 20,
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    gain: float = 2.1,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras."""
    return keras_stack(
        normal_layers(_widths(inputs, width, depth, classes), gain, seed), activation, batch_norm
    )


def _widths(inputs: int, width: int, depth: int, classes: int) -> list[int]:
    return [inputs, *[width] * (depth - 1), classes]
