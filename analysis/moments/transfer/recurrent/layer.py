"""A recurrent node's inputs and outputs, and its directions.

The ONNX layout: x `[T, (N), I]`, W `[D, G H, I]`, R `[D, G H, H]`, biases `[D, 2 G H]`, first states `[D, (N), H]`; outputs
Y `[T, D, (N), H]`, then the last states `[D, (N), H]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UnknownTransferError
from ...quadrature import NODES, Array
from ...site import Contribution, Site
from ...state import GradientMoments, Moments, ParameterGradient
from ...steps import numbered, of_tokens
from . import gated, plain
from .backward import Arriving, Gradients, back
from .cells import ACTIVATIONS, CELLS, Activation, Cell
from .direction import Direction, blocks
from .forward import Inputs, Trace, run
from .gated import GatedTrace
from .plain import PlainTrace

__all__ = ["arrived_first", "backward", "forward", "gate_curves"]

_STATES = (5, 6)
"""Where a node has its first states."""


@dataclass
class _Run:
    """What the forward pass keeps for the backward pass, a trace for each direction, and that for who asks afterwards.

    `arrived_first` is the sum of E[gradient^2] over what the states before the first step receive.
    """

    x: Inputs
    directions: list[Direction]
    traces: list[Trace | PlainTrace]
    arrived_first: float = 0.0


def arrived_first(kept: object) -> float | None:
    """The sum of E[gradient^2] over a layer's first states, of one example, from what its rule has kept; None without one."""
    return kept.arrived_first if isinstance(kept, _Run) else None


def gate_curves(kept: object) -> Array | None:
    """Each gate of the last step at the quadrature nodes of its local, `[NODES, gates]`, from what a layer's rule has kept."""
    if not isinstance(kept, _Run):
        return None
    curves = []
    for direction, trace in zip(kept.directions, kept.traces, strict=True):
        deviation = np.sqrt(np.diagonal(trace.local[-1], axis1=1, axis2=2).T)
        for local, activation in direction.cell.gates:
            inputs = trace.centre[-1][local] + deviation[local] * NODES[:, None]
            curves.append(direction.activations[activation](inputs)[0])
    return np.concatenate(curves, 1)


def forward(site: Site) -> Sequence[Moments]:
    """All directions, side by side."""
    _refuse(site)
    cell, x = CELLS[site.node.op_type], _inputs(site)
    if site.node.op_type == "GRU" and not site.attribute("linear_before_reset", 0):
        site.notes.append("its reset gate is taken to act after the product with the state")
    directions = [_direction(site, cell, index) for index in range(len(_orders(site)))]
    through = _through(cell, all_steps=site.all_steps)
    traces = [through(d, x, *_first(site, d, index)) for index, d in enumerate(directions)]
    site.memory[site.node] = _Run(x, directions, traces)
    last = [_last_state(traces, state) for state in range(cell.states)]
    return [_outputs(directions, traces), *last][: len(site.node.outputs)]


def _through(
    cell: Cell, *, all_steps: bool
) -> Callable[[Direction, Inputs, Array, Array], Trace | PlainTrace]:
    if not all_steps:
        return run
    return plain.run if cell.locals == 1 else gated.run


def _refuse(site: Site) -> None:
    odd = [name for name in ("clip", "activation_alpha", "activation_beta") if name in site.node.attributes]
    present = [index for index in (4, 7) if index < len(site.operands) and site.operands[index] is not None]
    if odd or present or site.attribute("layout", 0) or site.attribute("input_forget", 0):
        raise UnknownTransferError(
            "it has peepholes, lengths of its own for each example, a clip or another layout"
        )


def _inputs(site: Site) -> Inputs:
    x, value = site.x, site.node.inputs[0]
    if x.mean.ndim != 2 or value is None or value.shape is None or not isinstance(value.shape[0], int):
        raise UnknownTransferError("one example of its input is no sequence of a fixed number of vectors")
    steps = x.steps
    if steps is None and x.tokens is not None and x.tokens.axes == (0,):
        steps = of_tokens(x.tokens, x.variance)
    if steps is None or not steps.is_in_order():
        return Inputs(x.mean, x.variance, None)
    across = steps.between(full=site.all_steps)
    return Inputs(x.mean, steps.within if site.full_covariance else x.variance, across)


def _orders(site: Site) -> list[range]:
    times = range(site.x.shape[0])
    named = {"forward": [times], "reverse": [times[::-1]], "bidirectional": [times, times[::-1]]}
    return named[site.attribute("direction", "forward")]


def _direction(site: Site, cell: Cell, index: int) -> Direction:
    weight, recurrent = (site.array(i)[index].astype(np.float64) for i in (1, 2))
    gates, channels = len(cell.input_gates), recurrent.shape[1]
    p, q = cell.locals, cell.states
    inputs, states = np.zeros((p, channels, weight.shape[1])), np.zeros((p, channels, q * channels))
    inputs[list(cell.input_gates)] = weight.reshape(gates, channels, -1)
    states[list(cell.state_gates), :, :channels] = recurrent.reshape(gates, channels, -1)
    for local, state in cell.own:
        states[local, range(channels), state * channels + np.arange(channels)] = 1.0
    bias = np.zeros((p, channels))
    if site.is_static(3):
        of_inputs, of_states = site.array(3)[index].astype(np.float64).reshape(2, gates, channels)
        bias[list(cell.input_gates)] += of_inputs
        bias[list(cell.state_gates)] += of_states
    return Direction(cell, _activations(site, cell, index), inputs, states, bias, _orders(site)[index])


def _activations(site: Site, cell: Cell, index: int) -> list[Activation]:
    given: tuple[str, ...] = site.attribute("activations", ())
    count, names = len(cell.activations), list(given) or list(cell.activations) * 2
    chosen = names[index * count : (index + 1) * count]
    unknown = [name for name in chosen if name not in ACTIVATIONS]
    if unknown:
        raise UnknownTransferError(f"it has the activation {', '.join(unknown)}")
    return [ACTIVATIONS[name] for name in chosen]


def _first(site: Site, direction: Direction, index: int) -> tuple[Array, Array]:
    """Mean and covariance of the states before the first step."""
    q, channels = direction.cell.states, direction.channels
    mean, variance = np.zeros((q, channels)), np.zeros((q, channels))
    for state, slot in enumerate(_STATES[:q]):
        if slot < len(site.operands) and site.operands[slot] is not None:
            given = site.operands[slot]
            if isinstance(given, Moments):
                mean[state], variance[state] = given.mean[index], given.variance[index]
            elif given is not None:
                mean[state] = given[index].reshape(-1, channels)[0]
    if site.full_covariance:
        return mean, np.diag(variance.reshape(-1))
    return mean, variance.T[:, :, None] * np.eye(q)


def _outputs(directions: Sequence[Direction], traces: Sequence[Trace | PlainTrace]) -> Moments:
    """Moments of Y `[T, D, H]`; directions count as uncorrelated."""
    count, channels = len(directions[0].order), directions[0].channels
    size = len(directions) * channels
    mean, within = np.zeros((count, len(directions), channels)), np.zeros((count, size, size))
    parts = [
        _between_steps(trace, channels)[:: d.order.step, :: d.order.step]
        for d, trace in zip(directions, traces, strict=True)
    ]
    across = parts[0] if len(parts) == 1 else np.zeros((count, count, *[size] * (parts[0].ndim - 2)))
    for index, (direction, trace) in enumerate(zip(directions, traces, strict=True)):
        own, back = slice(index * channels, (index + 1) * channels), direction.order.step
        mean[::back, index] = [state[0] for state in trace.mean[1:]]
        within[::back, own, own] = [_of_h(covariance, channels) for covariance in trace.covariance[1:]]
        if len(parts) > 1:
            across[(slice(None), slice(None), *[own] * (across.ndim - 2))] = parts[index]
    variance = np.diagonal(within, axis1=1, axis2=2).reshape(mean.shape)
    return Moments(mean, variance, steps=numbered(within, across, mean.shape))


def _between_steps(trace: Trace | PlainTrace, channels: int) -> Array:
    """Covariance of h at two steps in the order they are taken, `[T, T, H]` or `[T, T, H, H]`."""
    if isinstance(trace, PlainTrace | GatedTrace):
        return trace.states[1:, 1:]
    count = len(trace.covariance) - 1
    across = np.zeros((count, count, channels))
    for number, covariance in enumerate(trace.covariance[1:]):
        across[number, number] = np.diagonal(_of_h(covariance, channels))
        for lag, between in enumerate(trace.state_lags[number + 1][:number], 1):
            across[number, number - lag] = across[number - lag, number] = between[:, 0, 0]
    return across


def _of_h(covariance: Array, channels: int) -> Array:
    if covariance.ndim == 3:
        return np.diag(covariance[:, 0, 0])
    return covariance[:channels, :channels]


def _last_state(traces: Sequence[Trace | PlainTrace], state: int) -> Moments:
    """Moments of the last states `[D, H]`, as a sequence of one step."""
    mean = np.stack([trace.mean[-1][state] for trace in traces])
    channels = mean.shape[1]
    size = mean.size
    within = np.zeros((1, size, size))
    for index, trace in enumerate(traces):
        own, rows = (
            slice(index * channels, (index + 1) * channels),
            slice(state * channels, (state + 1) * channels),
        )
        held = trace.covariance[-1]
        within[0, own, own] = np.diag(held[:, state, state]) if held.ndim == 3 else held[rows, rows]
    variance = np.diagonal(within, axis1=1, axis2=2)
    return Moments(mean, variance.reshape(mean.shape), steps=numbered(within, variance[None], mean.shape))


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """Gradients of x, W, R, the biases and the first states."""
    kept = site.memory[site.node]
    assert isinstance(kept, _Run)
    found = [
        _back(kept.x, direction, trace, _arriving(site, direction, index, gradients))
        for index, (direction, trace) in enumerate(zip(kept.directions, kept.traces, strict=True))
    ]
    kept.arrived_first = sum(_energy(*f.first) for f in found)
    cell = CELLS[site.node.op_type]
    inputs, states = list(cell.input_gates), list(cell.state_gates)
    weight = _by_gate([f.inputs for f in found], inputs)
    recurrent = _by_gate([f.states for f in found], states)
    bias = None
    if site.is_static(3):
        halves = [_by_gate([f.bias for f in found], gates) for gates in (inputs, states)]
        bias = ParameterGradient(
            np.concatenate([half.mean[..., 0] for half in halves], 1),
            np.concatenate([half.variance[..., 0] for half in halves], 1),
        )
    received: list[Contribution] = [_of_inputs(site, found), weight, recurrent, bias, None]
    firsts = [_of_first(site, found, state, slot) for state, slot in enumerate(_STATES[: cell.states])]
    return [*received, *firsts][: len(site.operands)]


def _back(x: Inputs, direction: Direction, trace: Trace | PlainTrace, arriving: Arriving) -> Gradients:
    if isinstance(trace, PlainTrace):
        return plain.back(direction, x, trace, arriving)
    if isinstance(trace, GatedTrace):
        return gated.back(direction, x, trace, arriving)
    return back(direction, x, trace, arriving)


def _energy(mean: Array, covariance: Array) -> float:
    return float(np.sum(mean**2) + np.trace(blocks(covariance, mean.shape[1]), axis1=1, axis2=2).sum())


def _by_gate(gradients: Sequence[ParameterGradient], gates: list[int]) -> ParameterGradient:
    """`[D, G H, n]` from `[p, H, n]` of each direction."""
    means = [gradient.mean[gates].reshape(-1, gradient.mean.shape[2]) for gradient in gradients]
    variances = [gradient.variance[gates].reshape(-1, gradient.mean.shape[2]) for gradient in gradients]
    return ParameterGradient(np.stack(means), np.stack(variances))


def _arriving(
    site: Site, direction: Direction, index: int, gradients: Sequence[GradientMoments | None]
) -> Arriving:
    channels, q, y = direction.channels, direction.cell.states, gradients[0]
    size = q * channels
    own = slice(index * channels, (index + 1) * channels)
    mean, covariance = np.zeros((q, channels)), np.zeros((size, size))
    hessian = np.zeros((size, size)) if site.full_covariance else None
    for state, dy in enumerate(gradients[1 : q + 1]):
        if dy is not None:
            rows = slice(state * channels, (state + 1) * channels)
            mean[state] = dy.mean[index]
            covariance[rows, rows] = np.diag(dy.variance[index])
            if dy.steps is not None:
                covariance[rows, rows] = dy.steps.within[0, own, own]
                if hessian is not None and dy.steps.hessian is not None:
                    hessian[rows, rows] = dy.steps.hessian[0, own, own]
    last = (mean, covariance if site.full_covariance else blocks(covariance, channels), hessian)
    if y is None:
        count = len(direction.order)
        return Arriving(np.zeros((count, channels)), np.zeros((count, channels)), None, None, last)
    steps = y.steps
    if steps is None and y.tokens is not None and y.tokens.axes == (0,):
        steps = of_tokens(y.tokens, y.variance.reshape(len(y.mean), -1))
    if steps is None or not steps.is_in_order():
        return Arriving(y.mean[:, index], y.variance[:, index], None, None, last)
    curvature = None if steps.hessian is None else steps.hessian[:, own, own]
    across = steps.between(full=site.all_steps)
    across = across[:, :, own, own] if site.all_steps else across[:, :, own]
    return Arriving(y.mean[:, index], steps.within[:, own, own], across, curvature, last)


def _of_inputs(site: Site, found: Sequence[Gradients]) -> GradientMoments | None:
    if 0 not in site.varying:
        return None
    mean = np.sum([f.mean for f in found], 0)
    covariance = np.sum([f.covariance for f in found], 0)
    if found[0].across is None:
        return GradientMoments.of(mean, covariance)
    if covariance.ndim == 2:
        covariance = covariance[:, :, None] * np.eye(mean.shape[1])
    across = functools.reduce(np.add, [f.across for f in found if f.across is not None])
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return GradientMoments.of(mean, variance, steps=numbered(covariance, across, mean.shape))


def _of_first(site: Site, found: Sequence[Gradients], state: int, slot: int) -> Contribution:
    if slot >= len(site.operands) or site.operands[slot] is None:
        return None
    operand, channels = site.operands[slot], found[0].first[0].shape[1]
    mean = np.stack([f.first[0][state] for f in found])
    variance = np.stack([blocks(f.first[1], channels)[:, state, state] for f in found])
    if isinstance(operand, Moments):
        return GradientMoments.of(mean, variance)
    assert operand is not None
    return ParameterGradient(mean.reshape(operand.shape), variance.reshape(operand.shape))
