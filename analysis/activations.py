"""What kind of function a chain of elementwise ops is, from its curve over the predicted distribution of its input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .moments import Moments, Propagation
from .moments.quadrature import NODES, WEIGHTS, Array
from .moments.transfer import elementwise
from .moments.transfer.recurrent import gate_curves
from .trunk import Step

__all__ = [
    "Activation",
    "activations",
    "bounded_steps",
    "dead_share",
    "fast_steps",
    "growth_exponent",
    "is_replaceable",
    "saturated_share",
]

_FLAT = 0.05
"""Share of a function's steepest slope below which it counts as flat."""

_LINEAR = ("Add", "Cast", "Identity", "Mul", "Neg", "Sub")
"""Ops that are linear in one tensor."""

_ALIVE = 1e-3
"""Share of the inputs below which a unit that gives something for them counts as dead."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function of a tensor, or the gates of a recurrent node at its last step.

    Attributes:
        node: The last node of the chain.
        curve: Its values at the quadrature nodes, `[NODES, *elements]`.
    """

    node: ir.Node
    curve: Array


def activations(state: Propagation) -> Iterator[Activation]:
    """Every chain of elementwise ops whose end something else takes, in forward order; then the gates of recurrent nodes."""
    forward = set(state.nodes)
    for value, moments in state.values.items():
        node = value.producer()
        if node is None or not isinstance(moments, Moments) or moments.curve is None:
            continue
        curve = moments.curve
        floating = curve.latent != value.name and curve.values.dtype.kind == "f"
        if floating and any(
            _latent(state, user.outputs[0]) != curve.latent for user, _ in value.uses() if user in forward
        ):
            yield Activation(node, curve.values)
    for node, kept in state.memory.items():
        if (gates := gate_curves(kept)) is not None:
            yield Activation(node, gates)


def _latent(state: Propagation, value: ir.Value) -> str:
    moments = state.values.get(value)
    return moments.curve.latent if isinstance(moments, Moments) and moments.curve is not None else ""


def is_replaceable(state: Propagation, step: Step) -> bool:
    """Whether the step passes a function, and not only sums and products with constants, of a tensor that a layer gives."""
    elementwise_ops = step.cause == "activation" and step.nodes[0].op_type in elementwise.OPS
    return elementwise_ops and any(_bends(state, node) for node in step.nodes)


def _bends(state: Propagation, node: ir.Node) -> bool:
    varying = sum(isinstance(state.values.get(value), Moments) for value in node.inputs if value is not None)
    return node.op_type not in _LINEAR or varying > 1


def fast_steps(
    state: Propagation, steps: Sequence[Step], thresholds: Mapping[str, float]
) -> list[tuple[Step, float]]:
    """Steps whose function grows faster than the power GF102.exponent of its input, with that power.

    Where the values before a function have overflown, it has no curve: it then counts as what the same ops are elsewhere.
    """
    curves = [(step, curve) for step in steps if (curve := _curve_of(state, step)) is not None]
    powers = [(step, 0.0 if np.all(np.isnan(curve)) else growth_exponent(curve)) for step, curve in curves]
    known: dict[tuple[str, ...], float] = {}
    for step, power in powers:
        known[_ops(step)] = max(power, known.get(_ops(step), 0.0))
    found = [(step, power or known[_ops(step)]) for step, power in powers]
    return [(step, power) for step, power in found if power > thresholds["GF102.exponent"]]


def bounded_steps(state: Propagation, steps: Sequence[Step]) -> list[Step]:
    """Steps whose function is flat on both sides, as tanh, and where the values do not reach these, the same ops."""
    curves = [(step, curve) for step in steps if (curve := _curve_of(state, step)) is not None]
    bounded = {_ops(step) for step, curve in curves if np.median(_tails(curve)) > 0}
    return [step for step, _ in curves if _ops(step) in bounded]


def _curve_of(state: Propagation, step: Step) -> Array | None:
    """The function that an activation's step passes, at the quadrature nodes; None for any other step."""
    moments = state.values[step.after]
    if step.cause != "activation" or not isinstance(moments, Moments) or moments.curve is None:
        return None
    return moments.curve.values


def growth_exponent(curve: Array) -> float:
    """Power p of |f| ~ |xi|^p from half the range of the nodes to its end, in the steeper direction, of the median channel."""
    low = len(NODES) // 4
    with np.errstate(all="ignore"):
        sides = [(curve[0], curve[low], NODES[low]), (curve[-1], curve[-1 - low], NODES[-1 - low])]
        powers = [_power(np.abs(outer), np.abs(inner), NODES[-1] / abs(node)) for outer, inner, node in sides]
        grown = [
            np.where(np.abs(outer) >= 0.5 * np.abs(curve).max(0), p, 0.0)
            for p, (outer, _, _) in zip(powers, sides, strict=True)
        ]
    return float(np.median(np.maximum(*grown)))


def saturated_share(curve: Array) -> float:
    """Share of the inputs at which a function that is flat on both sides is flat; 0 for any other function.

    Where a function is exactly zero, as behind a ReLU6, it is switched off and not saturated.
    """
    if not np.all(np.isfinite(curve)):
        return 0.0
    flat = _flat(curve) & (curve != 0)
    shares = np.tensordot(WEIGHTS, flat.astype(float), 1)
    return float(np.mean(np.where(_tails(curve), shares, 0.0)))


def dead_share(curve: Array) -> float:
    """Share of the units that give exactly zero for all but one in 1000 of their inputs."""
    alive = np.tensordot(WEIGHTS, (curve != 0).astype(float), 1)
    return float(np.mean(alive < _ALIVE))


def _ops(step: Step) -> tuple[str, ...]:
    return tuple(node.op_type for node in step.nodes)


def _flat(curve: Array) -> Array:
    slope = np.abs(np.gradient(curve, NODES, axis=0))
    return np.asarray(slope < _FLAT * slope.max(0))


def _tails(curve: Array) -> Array:
    """Whether the function is flat, and not exactly zero, on both sides."""
    flat = _flat(curve) & (curve != 0)
    return np.asarray(flat[0] & flat[-1])


def _power(outer: Array, inner: Array, ratio: float) -> Array:
    grown = np.nan_to_num(outer / np.maximum(inner, np.finfo(float).tiny), nan=np.inf, posinf=np.inf)
    return np.asarray(np.log(grown) / math.log(ratio))
