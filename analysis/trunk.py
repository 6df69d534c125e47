"""The trunk of the backward flow: the path from the output back to the first layer along which the largest gradients flow."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ..graph.recurrence import RECURRENT
from ..graph.source import source_layer
from .moments import Moments, Propagation
from .moments.engine import differentiable_inputs
from .moments.transfer.recurrent import arrived_first
from .profile import LAYER_OPS, gradient_rms

__all__ = ["CAUSES", "NORMALISATION", "Step", "initializer_of", "path_lengths", "trunk"]

CAUSES = ("weight", "activation", "normalisation", "residual", "recurrence")
"""What a layer's gain is put down to."""

NORMALISATION = (
    "BatchNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "InstanceNormalization",
    "GroupNormalization",
)
"""Ops that bring their input to a fixed mean and variance, or norm."""

_MOVES = ("Cast", "Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_TIE = 1e-6
"""Relative difference below which two gradients count as equal: both operands of a sum receive the sum's own."""


@dataclass(frozen=True)
class Step:
    """One step of the backward flow along the trunk, from a tensor to one before it.

    Attributes:
        layer: Source layer, or the node's name where there is none.
        nodes: The forward nodes passed, last first.
        cause: One of CAUSES.
        log10_gain: How much the gradient's RMS grows by the step.
        after: The tensor that the gradient comes from.
        before: The tensor that it arrives at; that which it comes from where a layer's own first state is the end.
    """

    layer: str
    nodes: tuple[ir.Node, ...]
    cause: str
    log10_gain: float
    after: ir.Value
    before: ir.Value


def trunk(state: Propagation) -> list[Step]:
    """Steps in backward order."""
    return list(_Walk(state).steps())


def initializer_of(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a weight is made of by moving its elements; None where it is made otherwise."""
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0] if node.op_type in _MOVES else None
    return value if value is not None and value.const_value is not None else None


def path_lengths(state: Propagation) -> dict[ir.Value, int]:
    """For each tensor, the nodes on the longest way to it from an input."""
    lengths: dict[ir.Value, int] = {}
    for node in state.nodes:
        if isinstance(state.values.get(node.outputs[0]), Moments):
            longest = max(
                (lengths.get(v, 0) for v in differentiable_inputs(node) if v is not None), default=0
            )
            lengths.update(dict.fromkeys(node.outputs, longest + 1))
    return lengths


class _Walk:
    def __init__(self, state: Propagation) -> None:
        self.state = state
        self.by_name = {value.name: value for value in state.values}
        self.order = {node: index for index, node in enumerate(state.nodes)}
        self.length = path_lengths(state)
        self.trained = _trained(state)
        self.recurrences = list(_recurrences(state, self.order))

    def steps(self) -> Iterator[Step]:
        value = self.state.output
        while (node := value.producer()) is not None and value in self.state.arrived:
            nodes, before = self._before(value, node)
            if before is None or before not in self.trained:
                yield from self._through_time(value, node)
                return
            gain = _log10(gradient_rms(self.state, before)) - _log10(gradient_rms(self.state, value))
            yield Step(source_layer(node) or node.name or "", nodes, self._cause(node), gain, value, before)
            value = before

    def _through_time(self, value: ir.Value, node: ir.Node) -> Iterator[Step]:
        """From what a recurrent layer gives back to its first state, where no trained layer stands before it."""
        first = arrived_first(self.state.memory.get(node))
        if first is not None:
            given = self.state.arrived[value].means + self.state.arrived[value].variances
            gain = (_log10(first) - _log10(given)) / 2
            yield Step(source_layer(node) or node.name or "", (node,), "recurrence", gain, value, value)

    def _before(self, value: ir.Value, node: ir.Node) -> tuple[tuple[ir.Node, ...], ir.Value | None]:
        """The nodes to pass, and where they lead: of several ways the one with the largest gradient, then the longest."""
        moments = self.state.values[value]
        if isinstance(moments, Moments) and moments.curve is not None and moments.curve.latent != value.name:
            before = self.by_name[moments.curve.latent]
            return _between(before, value), before
        inputs = [v for v in differentiable_inputs(node) if v is not None and v in self.state.arrived]
        inputs = [v for v in inputs if v in self.trained and self._varies(v)]
        largest = max((gradient_rms(self.state, v) for v in inputs), default=0.0)
        ties = [v for v in inputs if not gradient_rms(self.state, v) < largest * (1 - _TIE)]
        return (node,), max(ties, key=lambda v: self.length.get(v, 0), default=None)

    def _varies(self, value: ir.Value) -> bool:
        """Whether it is more than a constant, as a state's first product with a gate is."""
        moments = self.state.values[value]
        return isinstance(moments, Moments) and not np.all(moments.variance == 0)

    def _cause(self, node: ir.Node) -> str:
        if node.op_type in (*RECURRENT, "Loop", "Scan") or any(
            self.order[node] in span for span in self.recurrences
        ):
            return "recurrence"
        if node.op_type in LAYER_OPS:
            return "weight"
        if node.op_type in NORMALISATION:
            return "normalisation"
        return "residual" if self._is_residual(node) else "activation"

    def _is_residual(self, node: ir.Node) -> bool:
        """A sum of tensors that are no functions of one latent."""
        varying = [v for v in node.inputs if v is not None and isinstance(self.state.values.get(v), Moments)]
        moments, output = self.state.values[node.outputs[0]], node.outputs[0].name
        on_curve = isinstance(moments, Moments) and moments.curve and moments.curve.latent != output
        return node.op_type in ("Add", "Sub", "Sum") and len(varying) > 1 and not on_curve


def _trained(state: Propagation) -> set[ir.Value | None]:
    """The tensors that depend on a parameter: a gradient flows back to no other."""
    initializers = state.graph.initializers
    found: set[ir.Value | None] = {initializers[name] for name in state.gradients.source.parameters}
    for node in state.nodes:
        if any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found - {None}


def _recurrences(state: Propagation, order: dict[ir.Node, int]) -> Iterator[range]:
    """Where, in the graph's order, a tensor is multiplied by one weight again and again, each time after the time before."""
    uses: defaultdict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in state.nodes:
        weight = initializer_of(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is not None:
            uses[weight].append(node)
    for nodes in uses.values():
        if len(nodes) > 1 and all(_depends(later, earlier, order) for earlier, later in pairwise(nodes)):
            yield range(order[nodes[0]], order[nodes[-1]] + 1)


def _depends(later: ir.Node, earlier: ir.Node, order: dict[ir.Node, int]) -> bool:
    seen, queue = set(), [later]
    while queue:
        for value in queue.pop().inputs:
            node = None if value is None else value.producer()
            if node is earlier:
                return True
            if node is not None and node not in seen and order.get(node, -1) > order[earlier]:
                seen.add(node)
                queue.append(node)
    return False


def _between(latent: ir.Value, end: ir.Value) -> tuple[ir.Node, ...]:
    """The elementwise nodes of a chain, last first."""
    found: dict[ir.Node, None] = {}
    queue = [end]
    while queue:
        value = queue.pop(0)
        node = value.producer()
        if value is latent or node is None or node in found:
            continue
        found[node] = None
        queue.extend(v for v in node.inputs if v is not None)
    return tuple(found)


def _log10(number: float) -> float:
    return math.log10(number) if number > 0 else -math.inf
