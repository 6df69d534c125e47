"""From moments to the numbers of a report: RMS of values and gradients with intervals, and the trunk of the backward flow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.source import source_layer
from .moments import Moments, Propagation
from .moments.engine import differentiable_inputs

__all__ = ["ProfileEntry", "Step", "gradient_rms", "make_profile", "rms", "trunk"]

_DENSE, _POSITIONS, _APPROXIMATION = 0.1, 0.08, 0.3
"""Decades by which a prediction may be off: for any, for tensors with positions, and for the approximations passed on the way,
whose errors are taken as independent, so that n of them count as sqrt(n).

The widths are a choice. `benchmarks analysis --seed 3033 --count 2` found the measured RMS inside for 146 of 156 parameters of
dense networks (all 10 misses in networks with BatchNorm, where it was inside for 48 of 58), 113 of 113 of convolutional ones,
and 60 of 60 of sequences and transformers.
"""

_LAYER_OPS = ("Gemm", "MatMul", "Conv", "ConvTranspose")

CAUSES = ("weight", "activation", "normalisation", "residual", "recurrence")
"""What a layer's gain is put down to."""


@dataclass(frozen=True)
class ProfileEntry:
    """The prediction for one tensor. Gradients are those of the mean loss over a batch.

    Attributes:
        tensor: Its name.
        kind: `parameter` or `activation`.
        depth: Weight layers between the input and it, its own included.
        grad_rms: Root mean square of its gradient; infinite where float32 would overflow.
        low: Lower end of the interval.
        high: Upper end of the interval.
        value_rms: Root mean square of its value.
        size: Number of elements, of one example for an activation.
    """

    tensor: str
    kind: str
    depth: int
    grad_rms: float
    low: float
    high: float
    value_rms: float
    size: int


@dataclass(frozen=True)
class Step:
    """One step of the backward flow along the trunk, from a tensor to one before it.

    Attributes:
        layer: Source layer, or the node's name where there is none.
        nodes: The forward nodes passed, last first.
        cause: One of CAUSES.
        log10_gain: How much the gradient's RMS grows by the step.
        after: The tensor that the gradient comes from.
        before: The tensor that it arrives at.
    """

    layer: str
    nodes: tuple[ir.Node, ...]
    cause: str
    log10_gain: float
    after: ir.Value
    before: ir.Value


def make_profile(state: Propagation) -> list[ProfileEntry]:
    """Parameters, then activations, each in forward order."""
    depths = _depths(state)
    entries = []
    model = state.gradients.source
    by_name = {value.name: value for value in state.values}
    for name in model.parameters:
        value = by_name.get(name)
        constant = state.gradients.onnx.graph.initializers[name].const_value
        assert constant is not None
        array = constant.numpy()
        squared = 0.0
        if value is not None and value in state.shared:
            squared = state.shared[value].mean_square(state.assumptions.batch_size)
        depth = 0 if value is None else depths.get(value, 0)
        spread = _spread(state, value) if value else _DENSE
        entries.append(
            _entry(
                name,
                "parameter",
                depth,
                squared,
                float(np.mean(array.astype(np.float64) ** 2)),
                array.size,
                spread,
            )
        )
    for value in (state.output, *state.arrived):
        moments = state.values[value]
        if value.producer() is None or not isinstance(moments, Moments) or value not in state.arrived:
            continue
        squared = gradient_rms(state, value) ** 2
        entries.append(
            _entry(
                value.name or "",
                "activation",
                depths.get(value, 0),
                squared,
                float(np.mean(moments.second)),
                moments.mean.size,
                _spread(state, value),
            )
        )
    unique = {(entry.kind, entry.tensor): entry for entry in entries}
    return sorted(unique.values(), key=lambda entry: (entry.kind != "parameter", entry.depth))


def _entry(
    name: str, kind: str, depth: int, gradient: float, value: float, size: int, spread: float
) -> ProfileEntry:
    grad_rms, factor = rms(gradient), 10.0**spread
    return ProfileEntry(name, kind, depth, grad_rms, grad_rms / factor, grad_rms * factor, rms(value), size)


def rms(square: float) -> float:
    """Square root; infinite where the square is undefined."""
    return math.inf if math.isnan(square) else math.sqrt(square)


def gradient_rms(state: Propagation, value: ir.Value) -> float:
    """RMS of an activation's gradient, of the mean loss over the batch."""
    return rms(float(np.mean(state.arrived[value].second))) / state.assumptions.batch_size


def _spread(state: Propagation, value: ir.Value) -> float:
    """Half the interval, in decades."""
    order = {node: index for index, node in enumerate(state.nodes)}
    nodes = [node for node, _ in value.uses() if node in order]
    start = min((order[node] for node in nodes), default=len(order))
    passed = sum(order[note.node] >= start for note in state.notes)
    moments = [state.values.get(node.outputs[0]) for node in nodes]
    positions = any(isinstance(m, Moments) and m.mean.ndim > 1 for m in (*moments, state.values.get(value)))
    return _DENSE + (_POSITIONS if positions else 0.0) + _APPROXIMATION * math.sqrt(passed)


def _depths(state: Propagation) -> dict[ir.Value, int]:
    """For each tensor, the weight layers before it, its own included."""
    depths: dict[ir.Value, int] = {}
    for node in state.nodes:
        if not isinstance(state.values.get(node.outputs[0]), Moments):
            continue
        inputs = differentiable_inputs(node)
        depth = max((depths.get(value, 0) for value in inputs if value is not None), default=0)
        weight = inputs[1] if node.op_type in _LAYER_OPS else None
        layer = weight is not None and not isinstance(state.values.get(weight), Moments)
        depths.update(dict.fromkeys(node.outputs, depth + layer))
    for node in reversed(state.nodes):
        for value in node.inputs:
            # A weight, and what it is made of, is as deep as the layer that uses it.
            if value is not None and not isinstance(state.values.get(value), Moments):
                depths[value] = max(depths.get(value, 0), depths.get(node.outputs[0], 0))
    return depths


def trunk(state: Propagation) -> list[Step]:
    """The path from the output back to the first layer along which the largest gradients flow; steps in backward order."""
    return list(_walk(state))


def _walk(state: Propagation) -> Iterator[Step]:
    value = state.output
    by_name = {v.name: v for v in state.values}
    while (node := value.producer()) is not None and value in state.arrived:
        moments = state.values[value]
        assert isinstance(moments, Moments)
        nodes: tuple[ir.Node, ...] = (node,)
        if moments.curve is not None and moments.curve.latent != value.name:
            before = by_name[moments.curve.latent]
            nodes = _between(before, value)
        else:
            inputs = [v for v in differentiable_inputs(node) if v is not None and v in state.arrived]
            if not inputs:
                return
            before = max(inputs, key=lambda v: gradient_rms(state, v))
        if before.producer() is None:
            return
        gain = _log10(gradient_rms(state, before)) - _log10(gradient_rms(state, value))
        yield Step(source_layer(node) or node.name or "", nodes, _cause(state, node), gain, value, before)
        value = before


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


def _cause(state: Propagation, node: ir.Node) -> str:
    if node.op_type in _LAYER_OPS:
        return "weight"
    if node.op_type in (
        "BatchNormalization",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
    ):
        return "normalisation"
    if node.op_type in ("RNN", "LSTM", "GRU", "Loop", "Scan"):
        return "recurrence"
    varying = [v for v in node.inputs if v is not None and isinstance(state.values.get(v), Moments)]
    moments = state.values[node.outputs[0]]
    on_curve = (
        isinstance(moments, Moments)
        and moments.curve is not None
        and moments.curve.latent != node.outputs[0].name
    )
    if node.op_type in ("Add", "Sub", "Sum") and len(varying) > 1 and not on_curve:
        return "residual"
    return "activation"


def _log10(number: float) -> float:
    return math.log10(number) if number > 0 else -math.inf
