"""RNN, LSTM and GRU nodes: their states through time, and the gradients of weights that every step shares.

Of one step the covariance of all states is carried where the budget allows; between steps that of all channels (`plain`,
`gated`) where it allows that, too, and otherwise that of each channel with itself (`forward`, `backward`).
"""

from .layer import arrived_first, backward, forward, gate_curves

__all__ = ["arrived_first", "backward", "forward", "gate_curves"]
