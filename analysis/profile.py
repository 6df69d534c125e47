"""From moments to the numbers of a report: RMS of values and gradients, predicted with intervals, and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx_ir as ir

from .moments import Moments, Propagation
from .moments.blocks import mean_square
from .moments.engine import differentiable_inputs
from .probe import Measurement

__all__ = ["LAYER_OPS", "ProfileEntry", "gradient_rms", "make_profile", "rms", "without_noise"]

_DENSE, _POSITIONS, _LAWS, _APPROXIMATION = 0.1, 0.08, 0.15, 0.3
"""Decades by which a prediction may be off: for any, for tensors with positions, where the inputs follow several laws
(`moments.mixture`), and for the approximations passed on the way, whose errors are taken as independent, so that n of them
count as sqrt(n).

The widths are a choice. `benchmarks analysis --seed 3033 --count 2` found the measured RMS inside for 146 of 156 parameters of
dense networks (all 10 misses in networks with BatchNorm, where it was inside for 48 of 58), 113 of 113 of convolutional ones,
and 60 of 60 of sequences and transformers.
"""

_NOISE = 1e-12
"""Share of the largest predicted gradient below which one is rounding noise."""

LAYER_OPS = ("Gemm", "MatMul", "Conv", "ConvTranspose")
"""Ops that multiply by a weight."""


@dataclass(frozen=True)
class ProfileEntry:
    """One tensor. Gradients are those of the mean loss over a batch.

    Attributes:
        tensor: Its name.
        kind: `parameter` or `activation`.
        depth: Weight layers between the input and it, its own included.
        grad_rms: Predicted root mean square of its gradient; infinite where float32 would overflow.
        low: Lower end of the interval.
        high: Upper end of the interval.
        value_rms: Root mean square of its value, predicted for an activation.
        size: Number of elements, of one example for an activation.
        measured_grad_rms: What the probe measured; None without one.
        measured_value_rms: What the probe measured of an activation; None without one.
    """

    tensor: str
    kind: str
    depth: int
    grad_rms: float
    low: float
    high: float
    value_rms: float
    size: int
    measured_grad_rms: float | None = None
    measured_value_rms: float | None = None

    @property
    def gradient(self) -> float:
        """Root mean square of its gradient: measured where it was, else predicted."""
        return self.grad_rms if self.measured_grad_rms is None else self.measured_grad_rms

    @property
    def value(self) -> float:
        """Root mean square of its value: measured where it was, else predicted or, for a parameter, known."""
        return self.value_rms if self.measured_value_rms is None else self.measured_value_rms

    @property
    def disagreement(self) -> float:
        """Decades between the measured gradient and the predicted one; 0 where nothing was measured, or both are 0."""
        if self.measured_grad_rms is None or self.measured_grad_rms == self.grad_rms:
            return 0.0
        if not 0 < self.grad_rms < math.inf or not 0 < self.measured_grad_rms < math.inf:
            return math.inf
        return abs(math.log10(self.measured_grad_rms / self.grad_rms))


def make_profile(state: Propagation, measurement: Measurement | None = None) -> list[ProfileEntry]:
    """Parameters, then activations, each in forward order."""
    depths, spreads = _depths(state), _Spreads(state)
    entries = chain(
        _parameters(state, depths, spreads, measurement), _activations(state, depths, spreads, measurement)
    )
    return sorted(entries, key=lambda entry: (entry.kind != "parameter", entry.depth))


def without_noise(profile: Sequence[ProfileEntry]) -> list[ProfileEntry]:
    """The entries but those whose gradient is zero up to rounding, as that of a bias before BatchNormalization."""
    finite = [entry.grad_rms for entry in profile if math.isfinite(entry.grad_rms)]
    least = _NOISE * max(finite, default=0.0)
    return [entry for entry in profile if entry.grad_rms > least]


def rms(square: float) -> float:
    """Square root; infinite where the square is undefined."""
    return math.inf if math.isnan(square) else math.sqrt(square)


def gradient_rms(state: Propagation, value: ir.Value) -> float:
    """RMS of an activation's gradient, of the mean loss over the batch."""
    return rms(state.arrived[value].mean_square(1)) / state.assumptions.batch_size


def _parameters(
    state: Propagation, depths: dict[ir.Value, int], spreads: _Spreads, measurement: Measurement | None
) -> Iterator[ProfileEntry]:
    initializers = state.graph.initializers
    for name in state.gradients.source.parameters:
        value = initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        shared = state.shared.get(value)
        gradient = rms(0.0 if shared is None else shared.mean_square(state.assumptions.batch_size))
        factor = 10.0 ** spreads.of(value)
        yield ProfileEntry(
            name,
            "parameter",
            depths.get(value, 0),
            gradient,
            gradient / factor,
            gradient * factor,
            rms(mean_square(array)),
            array.size,
            None if measurement is None else measurement.gradients.get(name),
        )


def _activations(
    state: Propagation, depths: dict[ir.Value, int], spreads: _Spreads, measurement: Measurement | None
) -> Iterator[ProfileEntry]:
    for value in dict.fromkeys((state.output, *state.arrived)):
        moments, name = state.values[value], value.name or ""
        if value.producer() is None or not isinstance(moments, Moments) or value not in state.arrived:
            continue
        gradient, factor = gradient_rms(state, value), 10.0 ** spreads.of(value)
        yield ProfileEntry(
            name,
            "activation",
            depths.get(value, 0),
            gradient,
            gradient / factor,
            gradient * factor,
            rms(float(np.mean(moments.narrow.second))),
            moments.mean.size,
            None if measurement is None else measurement.gradients.get(name),
            None if measurement is None else measurement.values.get(name),
        )


class _Spreads:
    """Half the interval of each tensor, in decades."""

    def __init__(self, state: Propagation) -> None:
        self.values, self.least = state.values, _DENSE + (_LAWS if state.laws > 1 else 0.0)
        self.order = {node: index for index, node in enumerate(state.nodes)}
        self.notes = sorted(self.order[note.node] for note in state.notes if note.node in self.order)

    def of(self, value: ir.Value) -> float:
        nodes = [node for node, _ in value.uses() if node in self.order]
        start = min((self.order[node] for node in nodes), default=len(self.order))
        passed = len(self.notes) - int(np.searchsorted(self.notes, start))
        moments = [self.values.get(node.outputs[0]) for node in nodes]
        positions = any(
            isinstance(m, Moments) and m.mean.ndim > 1 for m in (*moments, self.values.get(value))
        )
        return self.least + (_POSITIONS if positions else 0.0) + _APPROXIMATION * math.sqrt(passed)


def _depths(state: Propagation) -> dict[ir.Value, int]:
    """For each tensor, the weight layers before it, its own included."""
    depths: dict[ir.Value, int] = {}
    for node in state.nodes:
        if not isinstance(state.values.get(node.outputs[0]), Moments):
            continue
        inputs = differentiable_inputs(node)
        depth = max((depths.get(value, 0) for value in inputs if value is not None), default=0)
        weight = inputs[1] if node.op_type in LAYER_OPS else None
        layer = weight is not None and not isinstance(state.values.get(weight), Moments)
        depths.update(dict.fromkeys(node.outputs, depth + layer))
    for node in reversed(state.nodes):
        for value in node.inputs:
            # A weight, and what it is made of, is as deep as the layer that uses it.
            if value is not None and not isinstance(state.values.get(value), Moments):
                depths[value] = max(depths.get(value, 0), depths.get(node.outputs[0], 0))
    return depths
