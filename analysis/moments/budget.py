"""Which layers carry the covariance between their channels, within a budget of seconds.

Costs are estimated from shapes alone, so that one model gets one answer on every machine. A covariance C of n features passes a
weight `[n, m]` as W' C W, 2 n m (n + m) operations, and so do the gradient's covariance and its hessian; an activation takes
some hundred for every pair of features. The cheapest layers come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

__all__ = ["COVARIANCE_LIMIT", "covariance_plan"]

_RATE = 2e10
"""Multiplications and additions in a second."""

_PER_PAIR = 500
"""Operations for each pair of features of an activation, forward and backward."""

COVARIANCE_LIMIT = 2048
"""Features beyond which no covariance between them is carried, whatever the budget: it would take more than 32 MB."""

_MAX_PAIRS_IN_ALL = 32_000_000
"""Pairs of features of all layers together."""


def covariance_plan(nodes: Sequence[ir.Node], seconds: float) -> Mapping[ir.Node, bool]:
    """For every layer with a matrix product, whether the covariance between channels is carried through it."""
    sizes = {node: size for node in nodes if (size := _features(node)) is not None}
    plan, pairs = dict.fromkeys(sizes, False), 0
    for node, (n, m) in sorted(sizes.items(), key=lambda item: _cost(*item[1])):
        seconds -= _cost(n, m)
        pairs += sum(size**2 for size in (n, m) if size <= COVARIANCE_LIMIT)
        if seconds < 0 or pairs > _MAX_PAIRS_IN_ALL:
            break
        plan[node] = True
    return plan


def _features(node: ir.Node) -> tuple[int, int] | None:
    """Features before and after a dense layer; None for other nodes."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain != "" or node.inputs[1] is None:
        return None
    dims = list(node.inputs[1].shape or ())
    if len(dims) != 2 or not all(isinstance(dim, int) for dim in dims):
        return None
    return int(dims[0]), int(dims[1])  # type: ignore[arg-type]


def _cost(n: int, m: int) -> float:
    n, m = min(n, COVARIANCE_LIMIT), min(m, COVARIANCE_LIMIT)
    return (6.0 * n * m * (n + m) + _PER_PAIR * m * m) / _RATE
