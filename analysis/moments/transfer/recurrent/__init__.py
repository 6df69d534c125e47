"""RNN, LSTM and GRU nodes: their states through time, and the gradients of weights that every step shares.

Of one step the covariance of all states is carried where the budget allows; between steps that of each channel with itself, or,
of plain RNNs, of all channels (`plain`).
"""

from .layer import arrived_first, backward, forward, gate_curves

__all__ = ["arrived_first", "backward", "forward", "gate_curves"]
