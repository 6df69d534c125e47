"""Recurrent nodes written out step by step, so that the table of gradients applies to each step.

With x [T, N, I], a state h [N, H], and for each direction weights W [G H, I], R [G H, H] and biases Wb, Rb [G H], where G is
the number of gates:

    RNN    h' = f(x W' + Wb + h R' + Rb)
    GRU    z, r = f(...);  n = g(x Wn' + Wbn + r (h Rn' + Rbn)), or g(x Wn' + Wbn + (r h) Rn' + Rbn) where
           linear_before_reset is 0;  h' = (1 - z) n + z h
    LSTM   i, o, f = f(...), c~ = g(...);  c' = f c + i c~;  h' = o h(c')

The products with x are taken for all steps at once. The number of steps must be static: the graph grows with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from .builder import Builder, Tensor
from .errors import UnsupportedError
from .rewriting import replace_node
from .source import describe_node

__all__ = ["RECURRENT", "unroll"]

Activation: TypeAlias = Callable[[Tensor], Tensor]

_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_PLAIN_ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus", "HardSigmoid")

RECURRENT = tuple(_GATES)
"""The ops that `unroll` replaces."""


class _Cell:
    """One direction of a recurrent node: its weights, and one step from state to state.

    Args:
        node: The node.
        direction: 0, or 1 for the second direction of a bidirectional node.
        builder: Writes the steps.
    """

    def __init__(self, node: ir.Node, direction: int, builder: Builder) -> None:
        self.op_type, self.builder = node.op_type, builder
        self.gates = _GATES[node.op_type]
        self.hidden = _hidden_size(node)
        self.linear_before_reset = bool(node.attributes.get_int("linear_before_reset", 0))
        self.activations = _activations(node, direction, builder)
        self.w, self.r = (
            _of_direction(_tensor(node, index, builder), direction).transpose(1, 0) for index in (1, 2)
        )
        self.wb: Tensor | None = None
        self.rb: Tensor | None = None
        if _has(node, 3):
            biases = _of_direction(_tensor(node, 3, builder), direction)
            self.wb, self.rb = self.split(biases, [self.gates * self.hidden] * 2, axis=0)

    def split(self, x: Tensor, lengths: Sequence[int], axis: int = -1) -> tuple[Tensor, ...]:
        """`x` cut along an axis."""
        return self.builder.ops(
            "Split", x, self.builder.ints(*lengths), dtypes=[None] * len(lengths), axis=axis
        )

    def run(self, xs: Tensor, state: list[Tensor], order: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """All steps: h of each step in the order of time, and the last state."""
        products = xs @ self.w if self.wb is None else xs @ self.w + self.wb
        steps = [step.squeeze(0) for step in self.split(products, [1] * len(order), axis=0)]
        outputs: dict[int, Tensor] = {}
        for time in order:
            state = self.step(steps[time], state)
            outputs[time] = state[0]
        return [outputs[time] for time in sorted(outputs)], state

    def step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The next state, from x W' + Wb and the state."""
        if self.op_type == "GRU":
            return [self._gru(x, state[0])]
        recurrent = state[0] @ self.r if self.rb is None else state[0] @ self.r + self.rb
        if self.op_type == "RNN":
            return [self.activations[0](x + recurrent)]
        return self._lstm(x + recurrent, state[1])

    def _lstm(self, gates: Tensor, c: Tensor) -> list[Tensor]:
        f, g, h = self.activations
        i, o, forget, candidate = self.split(gates, [self.hidden] * 4)
        c = f(forget) * c + f(i) * g(candidate)
        return [f(o) * h(c), c]

    def _gru(self, x: Tensor, h: Tensor) -> Tensor:
        f, g = self.activations
        sizes = [2 * self.hidden, self.hidden]
        x_gates, x_new = self.split(x, sizes)
        r_gates, r_new = self.split(self.r, sizes)
        b_gates, b_new = (None, None) if self.rb is None else self.split(self.rb, sizes)
        z, r = self.split(f(x_gates + _affine(h, r_gates, b_gates)), [self.hidden] * 2)
        before = self.linear_before_reset
        recurrent = r * _affine(h, r_new, b_new) if before else _affine(r * h, r_new, b_new)
        return (1.0 - z) * g(x_new + recurrent) + z * h


def _affine(h: Tensor, r: Tensor, b: Tensor | None) -> Tensor:
    return h @ r if b is None else h @ r + b


def unroll(node: ir.Node, builder: Builder) -> None:
    """Replace an LSTM, GRU or RNN node by its steps, appended to the graph.

    Raises:
        UnsupportedError: The number of steps is not static, or the node has peepholes, lengths of its own for each example,
            a clip, or an activation with parameters.
    """
    _refuse(node)
    xs = _tensor(node, 0, builder)
    steps = xs.length(0)
    if not isinstance(steps, int) or steps == 0:
        raise UnsupportedError(
            f"{describe_node(node)} runs over {'no' if steps == 0 else 'a dynamic number of'} steps",
            expected="a static sequence length of at least 1",
            remedy="export the model for one sequence length",
        )
    results = _run_directions(node, builder, xs, steps)
    replace_node(node, [_output(output, index, results) for index, output in enumerate(node.outputs)])


def _output(
    value: ir.Value, index: int, results: Sequence[tuple[list[Tensor], list[Tensor]]]
) -> Tensor | None:
    """Output 0 [T, D, N, H], or the last state `index` - 1 [D, N, H]; None where nothing uses it."""
    if not value.uses() and not value.is_graph_output():
        return None
    if index > 0:
        return _joined([state[index - 1].unsqueeze(0) for _, state in results], 0)
    return _joined([_joined([h.unsqueeze(0, 1) for h in outputs], 0) for outputs, _ in results], 1)


def _run_directions(
    node: ir.Node, builder: Builder, xs: Tensor, steps: int
) -> list[tuple[list[Tensor], list[Tensor]]]:
    times, results = range(steps), []
    for index, order in enumerate(_orders(node, times)):
        state = [
            _initial(node, builder, xs, index, slot) for slot in ((5, 6) if node.op_type == "LSTM" else (5,))
        ]
        results.append(_Cell(node, index, builder).run(xs, state, order))
    return results


def _orders(node: ir.Node, times: range) -> list[range]:
    directions = {"forward": [times], "reverse": [times[::-1]], "bidirectional": [times, times[::-1]]}
    return directions[node.attributes.get_string("direction", "forward")]


def _initial(node: ir.Node, builder: Builder, xs: Tensor, direction: int, slot: int) -> Tensor:
    """The first state of a direction: an input, or zeros."""
    if _has(node, slot):
        return _of_direction(_tensor(node, slot, builder), direction)
    zero = ir.tensor([0.0], dtype=xs.dtype)
    shape = builder.concat(xs.length(1), _hidden_size(node))
    return builder.op("ConstantOfShape", shape, dtype=xs.dtype, value=zero)


def _of_direction(x: Tensor, direction: int) -> Tensor:
    return x.slice([direction], [direction + 1], [0], [1]).squeeze(0)


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0].builder.op("Concat", *parts, axis=axis)


def _activations(node: ir.Node, direction: int, builder: Builder) -> list[Activation]:
    defaults = _ACTIVATIONS[node.op_type]
    names = list(node.attributes.get_strings("activations", ())) or defaults * 2
    chosen = names[direction * len(defaults) : (direction + 1) * len(defaults)]

    def activation(name: str) -> Activation:
        return lambda x: builder.op(name, x)

    return [activation(name) for name in chosen]


def _refuse(node: ir.Node) -> None:
    attributes = node.attributes
    unknown = [name for name in attributes.get_strings("activations", ()) if name not in _PLAIN_ACTIVATIONS]
    reasons = {
        "lengths of its own for each example": _has(node, 4),
        "peepholes": node.op_type == "LSTM" and _has(node, 7),
        "a clip": "clip" in attributes,
        "the batch on the first axis (layout 1)": attributes.get_int("layout", 0) == 1,
        "coupled input and forget gates": attributes.get_int("input_forget", 0) == 1,
        f"the activation {', '.join(unknown)}": bool(unknown),
        "parameters of its activations": "activation_alpha" in attributes or "activation_beta" in attributes,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UnsupportedError(
                f"{describe_node(node)} has {reason}",
                expected=f"a plain {node.op_type} with activations of {', '.join(_PLAIN_ACTIVATIONS)}",
                remedy="export the layer without it",
            )


def _hidden_size(node: ir.Node) -> int:
    if "hidden_size" not in node.attributes:
        raise UnsupportedError(f"{describe_node(node)} does not tell its hidden_size")
    return node.attributes["hidden_size"].as_int()


def _has(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _tensor(node: ir.Node, index: int, builder: Builder) -> Tensor:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise UnsupportedError(f"{describe_node(node)} lacks input {index}")
    return builder.tensor(value)
