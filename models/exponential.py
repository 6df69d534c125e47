"""A network that really blows up: exponentials between dense layers, a genuine case of an activation as the cause.

What is normal before an exponential is log-normal behind it, with a mean square of exp(2 variance), and its slope is its
value. One example in a batch then outweighs all others, and the first steps throw the weights away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import deep_mlp

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    inputs: int = 64,
    width: int = 64,
    depth: int = 3,
    classes: int = 10,
    activation: str = "exponential",
    batch_norm: bool = False,
    gain: float = 1.0,
    seed: int = 0,
) -> torch.nn.Sequential:
    """Logits [batch, classes] from [batch, inputs]; the arguments are those of `gradfuse.models.deep_mlp`."""
    return deep_mlp.pytorch(inputs, width, depth, classes, activation, batch_norm, gain, seed)


def keras(
    inputs: int = 64,
    width: int = 64,
    depth: int = 3,
    classes: int = 10,
    activation: str = "exponential",
    batch_norm: bool = False,
    gain: float = 1.0,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras."""
    return deep_mlp.keras(inputs, width, depth, classes, activation, batch_norm, gain, seed)
