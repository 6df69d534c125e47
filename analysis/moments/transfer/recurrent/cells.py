"""Recurrent cells as functions of a few numbers per channel: its locals.

A cell maps the locals of channel k, linear in the input x and the states h of all channels (and its own states), to the states
of channel k. q states of which the first is h, p locals, gates in ONNX's order:

    RNN    a;             h' = f(a)
    LSTM   i, o, f, g, c; c' = F c + I G, h' = O H(c')            I, O, F = f(i), f(o), f(f); G = g(g)
    GRU    z, r, u, v, h; n = g(u + R v), h' = (1 - Z) n + Z h     u = W_n x, v = R_n h: the reset gate after the product
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ...quadrature import Array

__all__ = ["ACTIVATIONS", "CELLS", "Activation", "Cell"]

Activation: TypeAlias = "Callable[[Array], tuple[Array, Array]]"
"""Values and slopes."""


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent cell.

    Attributes:
        states: q.
        input_gates: For each gate of the input weight, the local that it feeds.
        state_gates: The same of the recurrent weight.
        own: (local, state) where a local is the channel's own state.
        activations: Their names where the node gives none.
        gates: (local, activation) where one activation is of one local alone.
        evaluate: From locals `[p, *]` to states `[q, *]` and their derivatives `[q, p, *]`.
    """

    states: int
    input_gates: tuple[int, ...]
    state_gates: tuple[int, ...]
    own: tuple[tuple[int, int], ...]
    activations: tuple[str, ...]
    gates: tuple[tuple[int, int], ...]
    evaluate: Callable[[Array, Sequence[Activation]], tuple[Array, Array]]

    @property
    def locals(self) -> int:
        """p."""
        return max(*self.input_gates, *self.state_gates, *(local for local, _ in self.own)) + 1


def _rnn(local: Array, activations: Sequence[Activation]) -> tuple[Array, Array]:
    h, slope = activations[0](local[0])
    return h[None], slope[None, None]


def _lstm(local: Array, activations: Sequence[Activation]) -> tuple[Array, Array]:
    f, g, h = activations
    (i, di), (o, do), (forget, dforget) = (f(gate) for gate in local[:3])
    candidate, dcandidate = g(local[3])
    zero = np.zeros_like(i)
    c = forget * local[4] + i * candidate
    dc = np.stack([di * candidate, zero, dforget * local[4], i * dcandidate, forget])
    out, dout = h(c)
    dh = o * dout * dc
    dh[1] = do * out
    return np.stack([o * out, c]), np.stack([dh, dc])


def _gru(local: Array, activations: Sequence[Activation]) -> tuple[Array, Array]:
    f, g = activations
    (z, dz), (r, dr) = f(local[0]), f(local[1])
    n, dn = g(local[2] + r * local[3])
    kept, passed = 1.0 - z, (1.0 - z) * dn
    slopes = [dz * (local[4] - n), passed * dr * local[3], passed, passed * r, z]
    return (kept * n + z * local[4])[None], np.stack(slopes)[None]


CELLS: Mapping[str, Cell] = {
    "RNN": Cell(1, (0,), (0,), (), ("Tanh",), ((0, 0),), _rnn),
    "LSTM": Cell(
        2,
        (0, 1, 2, 3),
        (0, 1, 2, 3),
        ((4, 1),),
        ("Sigmoid", "Tanh", "Tanh"),
        ((0, 0), (1, 0), (2, 0), (3, 1)),
        _lstm,
    ),
    "GRU": Cell(1, (0, 1, 2), (0, 1, 3), ((4, 0),), ("Sigmoid", "Tanh"), ((0, 0), (1, 0)), _gru),
}
"""By op type."""


def _sigmoid(x: Array) -> tuple[Array, Array]:
    y = 1.0 / (1.0 + np.exp(-x))
    return y, y * (1.0 - y)


def _tanh(x: Array) -> tuple[Array, Array]:
    y = np.tanh(x)
    return y, 1.0 - y**2


def _hard_sigmoid(x: Array) -> tuple[Array, Array]:
    line = 0.2 * x + 0.5
    return np.clip(line, 0.0, 1.0), 0.2 * ((line > 0) & (line < 1))


ACTIVATIONS: Mapping[str, Activation] = {
    "Relu": lambda x: (np.maximum(x, 0.0), (x > 0).astype(np.float64)),
    "Tanh": _tanh,
    "Sigmoid": _sigmoid,
    "Softsign": lambda x: (x / (1.0 + np.abs(x)), 1.0 / (1.0 + np.abs(x)) ** 2),
    "Softplus": lambda x: (np.logaddexp(0.0, x), _sigmoid(x)[0]),
    "HardSigmoid": _hard_sigmoid,
}
"""The activations that `graph.recurrence` takes."""
