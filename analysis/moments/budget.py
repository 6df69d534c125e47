"""Which layers carry the covariance between their channels, within a budget of seconds, and what a propagation takes.

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

from .site import Operand
from .state import COVARIANCE_LIMIT, Moments
from .transfer.recurrent.cells import CELLS

__all__ = ["covariance_plan", "propagation_seconds"]

_RATE = 2e10
"""Multiplications and additions in a second."""

_PER_PAIR = 500
"""Operations for each pair of features of an activation, forward and backward."""

_MAX_PAIRS_IN_ALL = 32_000_000
"""Pairs of features of all layers together."""

_PER_TENSOR, _PER_NUMBER, _PER_WEIGHT = 5e-4, 3e-7, 2e-8
"""Seconds for each tensor, for each moment or draw of those that depend on the example, and for each element of the others."""


def covariance_plan(nodes: Sequence[ir.Node], seconds: float) -> Mapping[ir.Node, bool]:
    """For every layer with a weight matrix, whether the covariance between channels is carried through it."""
    costs = {node: cost for node in nodes if (cost := _cost(node)) is not None}
    plan, pairs = dict.fromkeys(costs, False), 0
    for node, cost in sorted(costs.items(), key=lambda item: item[1]):
        seconds -= cost.seconds
        pairs += cost.pairs
        if seconds < 0 or pairs > _MAX_PAIRS_IN_ALL:
            break
        plan[node] = True
    return plan


def propagation_seconds(values: Mapping[ir.Value, Operand], plan: Mapping[ir.Node, bool]) -> float:
    """Seconds that a propagation takes, forward and backward, which has these values and this plan of covariances."""
    carried = sum(cost.seconds for node, full in plan.items() if full and (cost := _cost(node)) is not None)
    moments = [value for value in values.values() if isinstance(value, Moments)]
    numbers = sum(m.mean.size + (0 if m.drawn is None else math.prod(m.drawn.shape)) for m in moments)
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
    return None if (sizes := _features(node)) is None else _cost_of_dense(*sizes)


def _cost_of_dense(n: int, m: int) -> _Cost:
    carried = [min(size, COVARIANCE_LIMIT) for size in (n, m)]
    operations = 6.0 * carried[0] * carried[1] * sum(carried) + _PER_PAIR * carried[1] ** 2
    return _Cost(operations / _RATE, sum(size**2 for size in (n, m) if size <= COVARIANCE_LIMIT))


def _cost_of_recurrent(node: ir.Node) -> _Cost | None:
    """q states and p locals of H channels at T steps: M C M' of the locals, and thrice A C A' of the states."""
    cell, hidden = CELLS[node.op_type], node.attributes.get_int("hidden_size", 0)
    steps = None if node.inputs[0] is None or node.inputs[0].shape is None else node.inputs[0].shape[0]
    if not isinstance(steps, int):
        return None
    states = cell.states * hidden
    operations = steps * (6.0 * cell.locals * hidden * states**2 + 12.0 * states**3)
    return _Cost(operations / _RATE, steps * states**2)


def _features(node: ir.Node) -> tuple[int, int] | None:
    """Features before and after a dense layer; None for other nodes."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain != "" or node.inputs[1] is None:
        return None
    dims = [dim for dim in node.inputs[1].shape or () if isinstance(dim, int)]
    known = len(dims) == len(node.inputs[1].shape or ())
    return (dims[0], dims[1]) if known and len(dims) == 2 else None
