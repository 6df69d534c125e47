"""Gradients of If, Scan and Loop: the backward pass runs the body again, and its gradient after it.

With a state s_t, an element x_t of each scanned input, and values c that the body takes from outside,

    s_{t+1}, y_t = f(s_t, x_t, c)        for t = 0 .. T-1

the forward node is made to write down its states s_t (the tape). The backward node is a Scan over t = T-1 .. 0 with the
gradient of the state as its state: from ds_{t+1} and dy_t, and f computed once more at s_t and x_t, it finds ds_t, dx_t and
dc += dc_t. Nothing but the states is kept from the forward pass, however large the body is, and T may depend on the data.

An If has one body for each branch, and no tape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx_ir as ir

from ..builder import Builder, Tensor
from ..model import FROZEN
from ..source import describe_node
from .engine import Adjoint, backpropagate, bodies, reached

Gradients = Sequence["Tensor | None"]

_RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
STATE = "gradfuse.state"
"""Metadata key of a gradient that a loop hands from iteration to iteration: the name of the state in the forward body."""

_CHANGED_BY_TRAINING = ("BatchNormalization", "Dropout")


def if_(g: Adjoint) -> Gradients:
    """y = condition ? f(c) : h(c): each branch becomes the gradient of its own c, zeros where it does not use one."""
    outer = _outer(g)
    branches: dict[str, Any] = {
        name: _branch(g, g.node.attributes[name].as_graph(), outer) for name in ("then_branch", "else_branch")
    }
    found = g.builder.ops("If", g.input(0), dtypes=[tensor.dtype for tensor in outer], **branches)
    return _in_order(g, {}, outer, found)


def _branch(g: Adjoint, body: ir.Graph, outer: Sequence[Tensor]) -> ir.Graph:
    builder = _run_again(g, body)
    received = _received(builder, zip(builder.graph.outputs, g.output_gradients, strict=True))
    gradients = backpropagate(builder, received, [tensor.value for tensor in outer], g.table)
    _set_outputs(builder, [_gradient(builder, tensor.value, gradients) for tensor in outer])
    return builder.graph


class _Scanned(NamedTuple):
    """A tensor that a Scan walks along: one element for each iteration, backwards where `direction` is 1."""

    tensor: Tensor
    axis: int = 0
    direction: int = 0

    @property
    def opposite(self) -> int:
        """The direction of the backward pass."""
        return 1 - self.direction


@dataclass(frozen=True)
class _Step:
    """One iteration, written once more for the backward pass.

    Attributes:
        builder: Writes to the copy of the body.
        states: The states at the beginning of the iteration.
        next_states: The states at its end.
        elements: Its element of each scanned input.
        results: Its element of each scanned output.
        outer: The values from outside that need a gradient.
        scanned: Positions of the elements that need a gradient.
        carried: Positions of the states that need a gradient.
        names: What the forward body calls the states.
    """

    builder: Builder
    states: Sequence[ir.Value]
    next_states: Sequence[ir.Value]
    elements: Sequence[ir.Value]
    results: Sequence[ir.Value]
    outer: Sequence[Tensor]
    scanned: Sequence[int]
    carried: Sequence[int]
    names: Sequence[str]


def scan(g: Adjoint) -> Gradients:
    """Scan: the backward pass scans the tape, the inputs and the gradients of the outputs, in the opposite directions."""
    body, count = bodies(g.node)[0], g.attribute("num_scan_inputs", 0)
    n = len(g.node.inputs) - count
    xs, dys = g.inputs[n : n + count], g.output_gradients[n:]
    builder = _run_again(g, body)
    inputs, outputs = builder.graph.inputs, builder.graph.outputs
    values = inputs[:n], outputs[:n], inputs[n:], outputs[n:]
    step = _step(g, builder, values, g.inputs[:n], xs, _names(body.inputs[:n]))
    elements = _along(xs, g.attribute("scan_input_axes", ()), g.attribute("scan_input_directions", ()))
    results = _along(dys, g.attribute("scan_output_axes", ()), g.attribute("scan_output_directions", ()))
    tapes = [_Scanned(tape) for tape in _taped(g, body, body.inputs[:n])]
    heads = _heads(g, step, g.inputs[:n])
    found = _scan_back(g, g.builder, step, heads, tapes, elements, results)
    carried, outer, scanned = _cut(found, len(step.carried), len(step.outer))
    explicit = dict(zip(step.carried, carried, strict=True))
    explicit |= {n + i: dx for i, dx in zip(step.scanned, scanned, strict=True)}
    return _in_order(g, explicit, step.outer, outer)


def loop(g: Adjoint) -> Gradients:
    """Loop: the backward pass scans the tape, which holds as many iterations as were run; with none, nothing is done."""
    body = bodies(g.node)[0]
    n = len(body.inputs) - 2
    initial, dys = g.inputs[2 : 2 + n], g.output_gradients[n:]
    builder = _run_again(g, body)
    number, going, *states = builder.graph.inputs
    _, *outputs = builder.graph.outputs
    values = states, outputs[:n], [number], outputs[n:]
    step = _step(g, builder, values, initial, [None], _names(body.inputs[2:]))
    _always(builder, going)
    number_tape, *tapes = (_Scanned(tape) for tape in _taped(g, body, [body.inputs[0], *body.inputs[2:]]))
    heads = _heads(g, step, initial)
    if not heads:
        return ()
    ran, skipped = (g.builder.inside(ir.Graph([], [], nodes=[], name=name)) for name in ("ran", "skipped"))
    found = _scan_back(g, ran, step, heads, tapes, [number_tape], _along(dys, (), ()))
    _set_outputs(ran, found)
    _set_outputs(skipped, heads)
    some = number_tape.tensor.shape().squeeze(0) > 0
    dtypes = [head.dtype for head in heads]
    found = g.builder.ops("If", some, dtypes=dtypes, then_branch=ran.graph, else_branch=skipped.graph)
    carried, outer, _ = _cut(found, len(step.carried), len(step.outer))
    explicit = {2 + j: ds for j, ds in zip(step.carried, carried, strict=True)}
    return _in_order(g, explicit, step.outer, outer)


def _always(builder: Builder, going: ir.Value) -> None:
    """An iteration that was run began with its condition fulfilled."""
    true = builder.constant(True, ir.DataType.BOOL)
    builder.graph.outputs.clear()
    going.replace_all_uses_with(true.value)


def _along(
    tensors: Iterable[Tensor | None], axes: Sequence[int], directions: Sequence[int]
) -> list[_Scanned | None]:
    return [
        None
        if tensor is None
        else _Scanned(tensor, *(given[i] if given else 0 for given in (axes, directions)))
        for i, tensor in enumerate(tensors)
    ]


def _cut(found: Sequence[Tensor], carried: int, outer: int) -> tuple[Sequence[Tensor], ...]:
    return found[:carried], found[carried : carried + outer], found[carried + outer :]


def _outer(g: Adjoint) -> list[Tensor]:
    """What the bodies take from outside and needs a gradient."""
    captured = g.inputs[len(g.node.inputs) :]
    return [tensor for tensor in captured if tensor is not None and tensor.value in g.varying]


def _in_order(
    g: Adjoint, explicit: Mapping[int, Tensor], outer: Sequence[Tensor], found: Sequence[Tensor]
) -> Gradients:
    """The gradients of the node's own inputs, by position, and of the values from outside, in the order of `g.inputs`."""
    by_value = {tensor.value: gradient for tensor, gradient in zip(outer, found, strict=True)}
    own = len(g.node.inputs)
    captured = [by_value.get(tensor.value) for tensor in g.inputs[own:] if tensor is not None]
    return [*(explicit.get(position) for position in range(own)), *captured]


def _run_again(g: Adjoint, body: ir.Graph) -> Builder:
    """A builder for a copy of a body, which must compute the same when it is run again."""
    for node in body.all_nodes():
        if node.domain == "" and (
            node.op_type in _RANDOM
            or (node.op_type in _CHANGED_BY_TRAINING and FROZEN not in node.metadata_props)
        ):
            raise g.unsupported(
                f"its body contains {describe_node(node)}, which acts differently in each run"
            )
    return g.builder.copying(body)


def _step(
    g: Adjoint,
    builder: Builder,
    values: tuple[Sequence[ir.Value], Sequence[ir.Value], Sequence[ir.Value], Sequence[ir.Value]],
    initial: Sequence[Tensor | None],
    xs: Sequence[Tensor | None],
    names: Sequence[str],
) -> _Step:
    states, next_states, elements, results = values

    def varying(tensors: Sequence[Tensor | None]) -> list[int]:
        return [i for i, t in enumerate(tensors) if t is not None and t.value in g.varying]

    outer, scanned = _outer(g), varying(xs)
    known = {tensor.value for tensor in outer} | {elements[i] for i in scanned}
    known |= {states[j] for j in varying(initial)}
    nodes, grows = list(builder.graph), True
    while grows:
        depending = reached(nodes, known)
        more = {s for s, end in zip(states, next_states, strict=True) if end in depending} - known
        known, grows = known | more, bool(more)
    carried = [j for j, state in enumerate(states) if state in known]
    return _Step(builder, states, next_states, elements, results, outer, scanned, carried, names)


def _names(values: Iterable[ir.Value]) -> list[str]:
    return [value.name or "" for value in values]


def _taped(g: Adjoint, body: ir.Graph, values: Sequence[ir.Value]) -> list[Tensor]:
    """Make the forward node write down inputs of its body: one further scanned output for each."""
    builder, node, first = g.builder.inside(body), g.node, len(g.node.outputs)
    for value in values:
        body.outputs.append(builder.op("Identity", builder.tensor(value)).value)
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            extended = [*node.attributes[name].as_ints(), *[0] * len(values)]
            node.attributes[name] = ir.AttrInt64s(name, extended)
    node.resize_outputs(first + len(values))
    for output, value in zip(node.outputs[first:], values, strict=True):
        output.name = g.builder.unique_name(f"{node.name}/tape/{value.name}")
        output.type = value.type
    return [g.builder.tensor(output) for output in node.outputs[first:]]


def _heads(g: Adjoint, step: _Step, initial: Sequence[Tensor | None]) -> list[Tensor]:
    """What the backward pass begins with: the gradients of the last states, and totals of zero."""
    states = []
    for j in step.carried:
        gradient, first = g.output_gradients[j], initial[j]
        states.append(gradient if gradient is not None or first is None else first.zeros_like())
    totals = [tensor.zeros_like() for tensor in step.outer]
    return [*(state for state in states if state is not None), *totals]


def _scan_back(
    g: Adjoint,
    builder: Builder,
    step: _Step,
    heads: Sequence[Tensor],
    tapes: Sequence[_Scanned],
    elements: Sequence[_Scanned | None],
    results: Sequence[_Scanned | None],
) -> tuple[Tensor, ...]:
    """The backward Scan: gradients of the carried states and of the outer values, and of the scanned elements."""
    given = [result for result in results if result is not None]
    xs = [element for element in elements if element is not None]
    walked, wanted = [*tapes, *xs, *given], [xs[i] for i in step.scanned]
    attributes: dict[str, Any] = {
        f"scan_{side}_{name}": [getattr(scanned, field) for scanned in tensors]
        for side, tensors in (("input", walked), ("output", wanted))
        for name, field in (("axes", "axis"), ("directions", "opposite"))
        if tensors
    }
    return builder.ops(
        "Scan",
        *heads,
        *(scanned.tensor for scanned in walked),
        dtypes=[head.dtype for head in heads] + [scanned.tensor.dtype for scanned in wanted],
        body=_backward_body(g, step, results),
        num_scan_inputs=len(walked),
        **attributes,
    )


def _backward_body(g: Adjoint, step: _Step, results: Sequence[_Scanned | None]) -> ir.Graph:
    """One backward iteration: (ds', totals; states, elements, dy) -> (ds, totals; dx)."""
    builder, graph = step.builder, step.builder.graph
    ends = [_like(builder, step.next_states[j], step.states[j]) for j in step.carried]
    totals = [_like(builder, tensor.value, tensor.value) for tensor in step.outer]
    dys = [
        None if result is None else _like(builder, value, value)
        for value, result in zip(step.results, results, strict=False)
    ]
    pairs = [(step.next_states[j], end) for j, end in zip(step.carried, ends, strict=True)]
    received = _received(builder, [*pairs, *zip(step.results, dys, strict=True)])
    states, xs = [step.states[j] for j in step.carried], [step.elements[i] for i in step.scanned]
    outer = [tensor.value for tensor in step.outer]
    gradients = backpropagate(builder, received, [*states, *xs, *outer], g.table)
    sums = [
        total + gradients[value] if value in gradients else total
        for value, total in zip(outer, totals, strict=True)
    ]
    deltas = [[_gradient(builder, value, gradients) for value in values] for values in (states, xs)]
    _set_outputs(builder, [*deltas[0], *sums, *deltas[1]])
    for j, output in zip(step.carried, graph.outputs, strict=False):
        output.name = builder.unique_name(f"{step.names[j]}_grad")
        output.metadata_props[STATE] = step.names[j]
    heads = [tensor.value for tensor in (*ends, *totals)]
    graph.inputs.clear()
    graph.inputs.extend([*heads, *step.states, *step.elements, *(dy.value for dy in dys if dy is not None)])
    return graph


def _like(builder: Builder, named: ir.Value, value: ir.Value) -> Tensor:
    """A new value for an input of a body, of the type and shape of `value`."""
    name = builder.unique_name(f"{named.name}_grad")
    return builder.tensor(ir.Value(name=name, shape=value.shape, type=value.type))


def _received(builder: Builder, pairs: Iterable[tuple[ir.Value, Tensor | None]]) -> dict[ir.Value, Tensor]:
    """The gradient of each value at the end of a body, summed where one is given out twice."""
    found: dict[ir.Value, Tensor] = {}
    for value, given in pairs:
        if given is not None:
            gradient = builder.tensor(given.value)
            found[value] = found[value] + gradient if value in found else gradient
    return found


def _gradient(builder: Builder, value: ir.Value, gradients: Mapping[ir.Value, Tensor]) -> Tensor:
    return gradients[value] if value in gradients else builder.tensor(value).zeros_like()


def _set_outputs(builder: Builder, results: Iterable[Tensor]) -> None:
    """Let a body give `results`, each of them a value of its own."""
    graph = builder.graph
    graph.outputs.clear()
    for result in results:
        producer = result.value.producer()
        own = producer is not None and producer.graph is graph and not result.value.is_graph_output()
        value = result.value if own else builder.op("Identity", builder.tensor(result.value)).value
        graph.outputs.append(value)
