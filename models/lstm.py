"""An LSTM for the adding problem (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .recurrent import draw_recurrent, keras_recurrent, pytorch_recurrent

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]


def pytorch(
    inputs: int = 2, hidden: int = 64, outputs: int = 1, radius: float = 1.0, seed: int = 0
) -> torch.nn.Module:
    """[batch, outputs] from sequences [batch, time, inputs] of any length; see `gradfuse.models.adding` for data.

    Args:
        inputs: Numbers at each time.
        hidden: Length of the state.
        outputs: Number of outputs.
        radius: Spectral radius of the recurrent weights of each gate.
        seed: Seed of the weights.
    """
    return pytorch_recurrent("LSTM", draw_recurrent(4, inputs, hidden, outputs, radius, seed))


def keras(
    inputs: int = 2, hidden: int = 64, outputs: int = 1, radius: float = 1.0, length: int = 30, seed: int = 0
) -> Any:
    """The same network, with the same weights, in Keras, for sequences of one `length`."""
    return keras_recurrent("LSTM", length, draw_recurrent(4, inputs, hidden, outputs, radius, seed))
