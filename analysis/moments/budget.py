"""Which layers carry the covariance between their channels, within a budget of seconds, and what a propagation takes.

Of what is left, recurrent layers carry the covariance of all channels of all steps (`transfer.recurrent.plain`, `gated`).

Costs are estimated from shapes alone, so that one model gets one answer on every machine. A covariance C of n features passes a
weight `[n, m]` as W' C W, 2 n m (n + m) operations, and so do the gradient's covariance and its hessian; an activation takes
some hundred for every pair of features. The cheapest layers come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .autocovariance import torus
from .site import Operand
from .state import COVARIANCE_LIMIT, Moments
from .transfer.recurrent.cells import CELLS, Cell

__all__ = ["all_steps_plan", "covariance_plan", "propagation_seconds"]

_RATE = 2e10
"""Multiplications and additions in a second."""

_PER_PAIR = 500
"""Operations for each pair of features of an activation, forward and backward."""

_PER_PAIR_AND_LAG = 8_000
"""The same for each pair of channels at each lag: memory, not the processor, sets the pace."""

_COPIES = 3
"""Arrays of pairs and lags that a layer keeps from the forward pass."""

_MAX_PAIRS_IN_ALL = 32_000_000
"""Pairs of features of all layers together."""

_PER_TENSOR, _PER_NUMBER, _PER_WEIGHT = 1e-3, 3e-7, 2e-8
"""Seconds for each tensor, for each moment or draw of those that depend on the example, and for each element of the others."""


def covariance_plan(nodes: Sequence[ir.Node], seconds: float) -> Mapping[ir.Node, bool]:
    """For every layer with a weight matrix, whether the covariance between channels is carried through it."""
    costs = {node: cost for node in nodes if (cost := _cost(node)) is not None}
    chosen = _cheapest(costs, _Cost(seconds, _MAX_PAIRS_IN_ALL))
    return {node: node in chosen for node in costs}


def all_steps_plan(plan: Mapping[ir.Node, bool], seconds: float) -> frozenset[ir.Node]:
    """The recurrent layers that carry the covariance of all channels of all steps, with what `plan` leaves of the seconds."""
    spent = [cost for node, carried in plan.items() if carried and (cost := _cost(node)) is not None]
    left = _Cost(
        seconds - sum(cost.seconds for cost in spent), _MAX_PAIRS_IN_ALL - sum(cost.pairs for cost in spent)
    )
    carried = (node for node, carried in plan.items() if carried)
    return _cheapest({node: cost for node in carried if (cost := _cost_of_all_steps(node)) is not None}, left)


def _cheapest(costs: Mapping[ir.Node, _Cost], left: _Cost) -> frozenset[ir.Node]:
    chosen, seconds, pairs = set(), 0.0, 0
    for node, cost in sorted(costs.items(), key=lambda item: item[1]):
        seconds += cost.seconds
        pairs += cost.pairs
        if seconds > left.seconds or pairs > left.pairs:
            break
        chosen.add(node)
    return frozenset(chosen)


def propagation_seconds(
    values: Mapping[ir.Value, Operand], plan: Mapping[ir.Node, bool], all_steps: frozenset[ir.Node]
) -> float:
    """Seconds that a propagation takes, forward and backward, which has these values and these plans of covariances."""
    costs = [_cost(node) for node, full in plan.items() if full]
    costs += [_cost_of_all_steps(node) for node in all_steps]
    carried = sum(cost.seconds for cost in costs if cost is not None)
    moments = [value for value in values.values() if isinstance(value, Moments)]
    numbers = sum(m.narrow.mean.size + (0 if m.drawn is None else math.prod(m.drawn.shape)) for m in moments)
    weights = sum(value.size for value in values.values() if isinstance(value, np.ndarray))
    return _PER_TENSOR * len(values) + _PER_NUMBER * numbers + _PER_WEIGHT * weights + carried


@dataclass(frozen=True, order=True)
class _Cost:
    seconds: float
    pairs: int


def _cost(node: ir.Node) -> _Cost | None:
    if node.domain != "":
        return None
    if node.op_type in CELLS:
        return _cost_of_recurrent(node)
    if node.op_type == "Conv":
        return _cost_of_convolution(node)
    return None if (sizes := _features(node)) is None else _cost_of_dense(*sizes)


def _cost_of_dense(n: int, m: int) -> _Cost:
    carried = [min(size, COVARIANCE_LIMIT) for size in (n, m)]
    operations = 6.0 * carried[0] * carried[1] * sum(carried) + _PER_PAIR * carried[1] ** 2
    return _Cost(operations / _RATE, sum(size**2 for size in (n, m) if size <= COVARIANCE_LIMIT))


def _cost_of_convolution(node: ir.Node) -> _Cost | None:
    """At every frequency W K W^H of complex numbers, four operations each, thrice as of dense layers; pairs at every lag."""
    image, kernel = (None if value is None else value.shape for value in node.inputs[:2])
    if image is None or kernel is None:
        return None
    sizes = [size for size in (kernel[0], *image[1:]) if isinstance(size, int)]
    if len(sizes) < len(image):
        return None
    m, n, *lengths = sizes
    lags = math.prod(torus(tuple(lengths)))
    operations = lags * (12.0 * n * m * (n + m) + _PER_PAIR_AND_LAG * m**2)
    return _Cost(operations / _RATE, _COPIES * lags * m**2)


def _cost_of_recurrent(node: ir.Node) -> _Cost | None:
    """q states and p locals of H channels at T steps: M C M' of the locals, and thrice A C A' of the states."""
    cell, hidden, steps = CELLS[node.op_type], node.attributes.get_int("hidden_size", 0), _steps(node)
    if steps is None:
        return None
    states = cell.states * hidden
    operations = steps * (6.0 * cell.locals * hidden * states**2 + 12.0 * states**3)
    return _Cost(operations / _RATE, steps * states**2)


def _cost_of_all_steps(node: ir.Node) -> _Cost | None:
    """Of T^2 / 2 pairs of steps products `[H, H]`, and what elementwise functions take; None for other nodes."""
    steps = _steps(node) if node.domain == "" and node.op_type in CELLS else None
    if steps is None:
        return None
    directions = 2 if node.attributes.get_string("direction", "") == "bidirectional" else 1
    hidden = node.attributes.get_int("hidden_size", 0)
    operations = directions * steps**2 * (_products(CELLS[node.op_type]) * hidden**3 + _PER_PAIR * hidden**2)
    return _Cost(operations / _RATE, (directions * steps * hidden) ** 2)


def _products(cell: Cell) -> float:
    """Half of the products `[H, H]` that two steps take, for q states, p locals and G gates, of as many inputs as channels.

    Forward 2 G (q + 1); back q^2 p of the locals' gradients, 2 q^2 of the output's and p (q + 1) of the inputs'.
    """
    if cell.locals == 1:
        return 10.0
    q, p, gates = cell.states, cell.locals, len(cell.state_gates)
    return 0.5 * (2 * gates * (q + 1) + q**2 * (p + 2) + p * (q + 1))


def _steps(node: ir.Node) -> int | None:
    """The length of a recurrent layer's sequence, where it is known."""
    steps = None if node.inputs[0] is None or node.inputs[0].shape is None else node.inputs[0].shape[0]
    return steps if isinstance(steps, int) else None


def _features(node: ir.Node) -> tuple[int, int] | None:
    """Features before and after a dense layer; None for other nodes."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain != "" or node.inputs[1] is None:
        return None
    dims = [dim for dim in node.inputs[1].shape or () if isinstance(dim, int)]
    known = len(dims) == len(node.inputs[1].shape or ())
    return (dims[0], dims[1]) if known and len(dims) == 2 else None
