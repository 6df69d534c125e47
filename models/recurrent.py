"""A recurrent layer and a dense head on its last state, in either framework.

PyTorch's cells have two biases that only ever occur as a sum; the second is frozen at zero, so that both frameworks train the
same parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..converters.frameworks import require
from .dense import Layer, keras_dense, pytorch_linear, uniform_layer

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]

Array = np.ndarray[Any, Any]

_GATES = {"RNN": 1, "LSTM": 4}
_KERAS = {"RNN": "SimpleRNN", "LSTM": "LSTM"}
"""By the name of the cell in `torch.nn`: gates, and name in `keras.layers`."""


def pytorch(
    cell: str, inputs: int = 2, hidden: int = 64, outputs: int = 1, radius: float = 1.0, seed: int = 0
) -> torch.nn.Module:
    """[batch, outputs] from sequences [batch, time, inputs] of any length; see `gradfuse.models.adding` for data.

    Args:
        cell: `RNN` or `LSTM`.
        inputs: Numbers at each time.
        hidden: Length of the state.
        outputs: Number of outputs.
        radius: Spectral radius of the recurrent weights, of each gate.
        seed: Seed of the weights.
    """
    return _pytorch_recurrent(cell, _draw_recurrent(_GATES[cell], inputs, hidden, outputs, radius, seed))


def keras(
    cell: str,
    inputs: int = 2,
    hidden: int = 64,
    outputs: int = 1,
    radius: float = 1.0,
    length: int = 30,
    seed: int = 0,
) -> Any:
    """The same network, with the same weights, in Keras, for sequences of one `length`."""
    weights = _draw_recurrent(_GATES[cell], inputs, hidden, outputs, radius, seed)
    return _keras_recurrent(_KERAS[cell], length, weights)


@dataclass(frozen=True)
class _RecurrentWeights:
    """In PyTorch's layout.

    Attributes:
        kernel: Of the inputs, [gates * hidden, inputs].
        recurrent: Of the state, [gates * hidden, hidden].
        bias: [gates * hidden].
        head: The dense layer.
    """

    kernel: Array
    recurrent: Array
    bias: Array
    head: Layer


def _draw_recurrent(
    gates: int, inputs: int, hidden: int, outputs: int, radius: float, seed: int
) -> _RecurrentWeights:
    """Weights N(0, 1 / inputs) of the inputs, and normal ones of the state with this spectral radius for each gate."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0.0, inputs**-0.5, (gates * hidden, inputs))
    recurrent = np.concatenate(
        [_with_radius(rng.normal(size=(hidden, hidden)), radius) for _ in range(gates)]
    )
    return _RecurrentWeights(
        kernel.astype(np.float32),
        recurrent.astype(np.float32),
        np.zeros(gates * hidden, np.float32),
        uniform_layer(rng, hidden, outputs),
    )


def _with_radius(matrix: Array, radius: float) -> Array:
    return np.asarray(matrix * (radius / np.abs(np.linalg.eigvals(matrix)).max()))


def _pytorch_recurrent(cell: str, weights: _RecurrentWeights) -> torch.nn.Module:
    """[batch, outputs] from sequences [batch, time, inputs]; `cell` is the name of a class of `torch.nn`."""
    framework = require("torch")

    class Recurrent(framework.nn.Module):  # type: ignore[misc, name-defined]
        """A recurrent layer, and a dense one on its last state."""

        def __init__(self) -> None:
            super().__init__()
            hidden, inputs = weights.recurrent.shape[1], weights.kernel.shape[1]
            self.cell = getattr(framework.nn, cell)(inputs, hidden, batch_first=True)
            self.head = pytorch_linear(weights.head)
            arrays = weights.kernel, weights.recurrent, weights.bias, np.zeros_like(weights.bias)
            names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
            self.cell.load_state_dict(
                {n: framework.from_numpy(a) for n, a in zip(names, arrays, strict=True)}
            )
            self.cell.bias_hh_l0.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.cell(x)[0][:, -1])
            return y

    network: torch.nn.Module = Recurrent()
    return network


def _keras_recurrent(cell: str, length: int, weights: _RecurrentWeights) -> Any:
    """The same network in Keras; `cell` is the name of a class of `keras.layers`."""
    keras = require("tensorflow", "keras")
    hidden, inputs = weights.recurrent.shape[1], weights.kernel.shape[1]
    layer = getattr(keras.layers, cell)(hidden, name="cell")
    model = keras.Sequential([keras.Input((length, inputs)), layer, keras_dense(weights.head, "head")])
    layer.set_weights([weights.kernel.T, weights.recurrent.T, weights.bias])
    return model
