"""One step of an RNN, GRU or LSTM node, in standard ops.

With x [N, I], a state h [N, H] (an LSTM's c too), weights W [G H, I], R [G H, H], biases Wb, Rb [G H] and an LSTM's peepholes
Pi, Po, Pf [H], where G is the number of gates:

    RNN    h' = f(x W' + Wb + h R' + Rb)
    GRU    z, r = f(...);  n = g(x Wn' + Wbn + r (h Rn' + Rbn)), or g(x Wn' + Wbn + (r h) Rn' + Rbn) where
           linear_before_reset is 0;  h' = (1 - z) n + z h
    LSTM   i = f(... + Pi c), f = f(... + Pf c) or 1 - i where they are coupled, c~ = g(...);  c' = f c + i c~;
           o = f(... + Po c');  h' = o h(c')

An attribute `clip` bounds what the activations f and g are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import onnx_ir as ir

from .builder import Builder, Tensor
from .errors import UnsupportedError
from .source import describe_node

__all__ = ["GATES", "Cell", "hidden_size", "of_direction", "optional_input"]

Activation: TypeAlias = Callable[[Tensor], Tensor]

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
"""Number of gates of each recurrent op."""

_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}

_ACTIVATIONS: Mapping[str, tuple[Mapping[str, float], Callable[..., Tensor]]] = {
    "Relu": ({}, lambda x: x.builder.op("Relu", x)),
    "Tanh": ({}, lambda x: x.tanh()),
    "Sigmoid": ({}, lambda x: x.sigmoid()),
    "Softsign": ({}, lambda x: x.builder.op("Softsign", x)),
    "Softplus": ({}, lambda x: x.builder.op("Softplus", x)),
    "HardSigmoid": ({"alpha": 0.2, "beta": 0.5}, lambda x, **slope: x.builder.op("HardSigmoid", x, **slope)),
    "LeakyRelu": ({"alpha": 0.01}, lambda x, alpha: x.builder.op("LeakyRelu", x, alpha=alpha)),
    "Elu": ({"alpha": 1.0}, lambda x, alpha: x.builder.op("Elu", x, alpha=alpha)),
    "ThresholdedRelu": ({"alpha": 1.0}, lambda x, alpha: x * (x > alpha).cast_like(x)),
    "Affine": ({"alpha": 1.0, "beta": 0.0}, lambda x, alpha, beta: x * alpha + beta),
    "ScaledTanh": ({"alpha": 1.0, "beta": 1.0}, lambda x, alpha, beta: (x * beta).tanh() * alpha),
}
"""For each activation its parameters with their defaults, and what it computes."""


@dataclass(frozen=True)
class Cell:
    """One direction of a recurrent node.

    Attributes:
        op_type: RNN, GRU or LSTM.
        hidden: H, the units.
        activations: f, g and h, as far as the op has them.
        w: W' [I, G H].
        wb: Wb [G H]; None where there is none.
        r: R' [H, G H], for a GRU those of z and r only.
        rb: Rb to `r`.
        r_new: Rn' [H, H] of a GRU.
        rb_new: Rbn of a GRU.
        peepholes: Pi, Po, Pf [H] of an LSTM, or nothing.
        linear_before_reset: Whether a GRU resets h Rn' + Rbn, not h.
        coupled: Whether an LSTM forgets exactly where it takes in.
        clip: The bound; None where there is none.
    """

    op_type: str
    hidden: int
    activations: Sequence[Activation]
    w: Tensor
    wb: Tensor | None
    r: Tensor
    rb: Tensor | None
    r_new: Tensor | None
    rb_new: Tensor | None
    peepholes: tuple[Tensor, ...]
    linear_before_reset: bool
    coupled: bool
    clip: float | None

    @classmethod
    def of(cls, node: ir.Node, direction: int, builder: Builder) -> Cell:
        """Read direction 0 or 1 of a node."""
        op_type, hidden = node.op_type, hidden_size(node)
        w, r = (_weight(node, index, direction, builder) for index in (1, 2))
        rows = GATES[op_type] * hidden
        biases, peepholes = (optional_input(node, index, builder) for index in (3, 7))
        wb, rb = (None, None) if biases is None else _split(of_direction(biases, direction), [rows] * 2, 0)
        r_new = rb_new = None
        if op_type == "GRU":
            r, r_new = _split(r, [2 * hidden, hidden])
            rb, rb_new = (None, None) if rb is None else _split(rb, [2 * hidden, hidden], 0)
        attributes = node.attributes
        return cls(
            op_type,
            hidden,
            _activations(node, direction),
            w,
            wb,
            r,
            rb,
            r_new,
            rb_new,
            () if peepholes is None else _split(of_direction(peepholes, direction), [hidden] * 3, 0),
            bool(attributes.get_int("linear_before_reset", 0)),
            bool(attributes.get_int("input_forget", 0)),
            attributes.get_float("clip", 0.0) or None,
        )

    def inside(self, builder: Builder) -> Cell:
        """The same cell for the body of a Scan, which takes its weights from outside."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = builder.tensor(value.value)
        changed["peepholes"] = tuple(builder.tensor(peephole.value) for peephole in self.peepholes)
        return replace(self, **changed)

    def products(self, xs: Tensor) -> Tensor:
        """x W' + Wb [T, N, G H] of all steps at once."""
        return _affine(xs, self.w, self.wb)

    def step(self, x: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        """The next state, from x W' + Wb [N, G H] and the state."""
        if self.op_type == "GRU":
            return [self._gru(x, state[0])]
        gates = x + _affine(state[0], self.r, self.rb)
        return [self._activated(0, gates)] if self.op_type == "RNN" else self._lstm(gates, state[1])

    def _activated(self, index: int, x: Tensor) -> Tensor:
        if self.clip is not None:
            x = x.builder.op(
                "Clip", x, *(x.builder.constant(bound, x.dtype) for bound in (-self.clip, self.clip))
            )
        return self.activations[index](x)

    def _lstm(self, gates: Tensor, c: Tensor) -> list[Tensor]:
        i, o, f, candidate = _split(gates, [self.hidden] * 4)
        if self.peepholes:
            i, f = i + self.peepholes[0] * c, f + self.peepholes[2] * c
        taken = self._activated(0, i)
        kept = 1.0 - taken if self.coupled else self._activated(0, f)
        c = kept * c + taken * self._activated(1, candidate)
        if self.peepholes:
            o = o + self.peepholes[1] * c
        # The standard would have the argument of h clipped too; onnxruntime (seen in 1.19) clips the gates only.
        return [self._activated(0, o) * self.activations[2](c), c]

    def _gru(self, x: Tensor, h: Tensor) -> Tensor:
        assert self.r_new is not None
        x_gates, x_new = _split(x, [2 * self.hidden, self.hidden])
        z, r = _split(self._activated(0, x_gates + _affine(h, self.r, self.rb)), [self.hidden] * 2)
        if self.linear_before_reset:
            recurrent = r * _affine(h, self.r_new, self.rb_new)
        else:
            recurrent = _affine(r * h, self.r_new, self.rb_new)
        return (1.0 - z) * self._activated(1, x_new + recurrent) + z * h


def _affine(h: Tensor, r: Tensor, b: Tensor | None) -> Tensor:
    return h @ r if b is None else h @ r + b


def _split(x: Tensor, lengths: Sequence[int], axis: int = -1) -> tuple[Tensor, ...]:
    return x.builder.ops("Split", x, x.builder.ints(*lengths), dtypes=[None] * len(lengths), axis=axis)


def _weight(node: ir.Node, index: int, direction: int, builder: Builder) -> Tensor:
    tensor = optional_input(node, index, builder)
    if tensor is None:
        raise UnsupportedError(f"{describe_node(node)} lacks input {index}")
    return of_direction(tensor, direction).transpose(1, 0)


def of_direction(x: Tensor, direction: int) -> Tensor:
    """The part of a direction of a tensor [directions, ...]."""
    return x.slice([direction], [direction + 1], [0], [1]).squeeze(0)


def optional_input(node: ir.Node, index: int, builder: Builder) -> Tensor | None:
    """An input, or None where it is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else builder.tensor(value)


def hidden_size(node: ir.Node) -> int:
    """H, the units of each direction."""
    if "hidden_size" not in node.attributes:
        raise UnsupportedError(f"{describe_node(node)} does not tell its hidden_size")
    return node.attributes["hidden_size"].as_int()


def _activations(node: ir.Node, direction: int) -> list[Activation]:
    defaults = _DEFAULTS[node.op_type]
    names = list(node.attributes.get_strings("activations", ())) or defaults * 2
    given = {key: iter(node.attributes.get_floats(f"activation_{key}", ())) for key in ("alpha", "beta")}
    found = [_activation(node, name, given) for name in names]
    chosen = found[direction * len(defaults) : (direction + 1) * len(defaults)]
    if len(chosen) < len(defaults):
        raise ValueError(f"{len(names)} activations")
    return chosen


def _activation(node: ir.Node, name: str, given: Mapping[str, Iterator[float]]) -> Activation:
    """The next parameters of those given belong to the first activation that takes them."""
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{describe_node(node)} has the activation {name}",
            expected=f"one of {', '.join(_ACTIVATIONS)}",
            remedy="export the layer with one of these",
        )
    defaults, function = _ACTIVATIONS[name]
    parameters = {key: next(given[key], default) for key, default in defaults.items()}
    return lambda x: function(x, **parameters)
