"""Recurrent nodes written in other ops, so that the table of gradients applies to them.

A short sequence of static length is written out step by step; a long one, or one whose length only the data tell, becomes a
Scan for each direction with the cell (`recurrent_cell`) as its body. The products with x are taken for all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .builder import Builder, Tensor, where
from .errors import UnsupportedError
from .recurrent_cell import GATES, Cell, hidden_size, of_direction, optional_input
from .recurrent_edges import carried, received
from .rewriting import replace_node
from .source import describe_node

__all__ = ["LONGEST_UNROLLED", "RECURRENT", "write_out"]

RECURRENT = tuple(GATES)
"""The ops that `write_out` replaces."""

LONGEST_UNROLLED = 64
"""Steps that are written out one by one, where fuses and analysis see each of them. At this length a Scan is as fast, and its
graph is built and loaded some twenty times faster (`benchmarks recurrence`)."""

Results = tuple[Tensor, list[Tensor]]
"""h of every step [T, N, H] in the order of time, and the last state."""


def write_out(node: ir.Node, builder: Builder) -> None:
    """Replace an LSTM, GRU or RNN node, appending to the graph.

    Raises:
        UnsupportedError: An activation is unknown, or there is no step.
    """
    xs = optional_input(node, 0, builder)
    if xs is None:
        raise UnsupportedError(f"{describe_node(node)} lacks input 0")
    if xs.length(_batch_first(node)) == 0:
        raise UnsupportedError(
            f"{describe_node(node)} runs over no steps", expected="a sequence of at least one step"
        )
    directions = range(2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1)
    results = [_run(node, builder, xs, direction) for direction in directions]
    replace_node(node, [_output(node, index, results) for index in range(len(node.outputs))])


def _batch_first(node: ir.Node) -> bool:
    return node.attributes.get_int("layout", 0) == 1


def _backwards(node: ir.Node, direction: int) -> bool:
    name = node.attributes.get_string("direction", "forward")
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[name][direction]


def _run(node: ir.Node, builder: Builder, xs: Tensor, direction: int) -> Results:
    cell, backwards = Cell.of(node, direction, builder), _backwards(node, direction)
    steps, state = xs.length(_batch_first(node)), _initial_state(node, builder, xs, direction)
    products = cell.products(xs.transpose(1, 0, 2) if _batch_first(node) else xs)
    lengths = optional_input(node, 4, builder)
    lengths = None if lengths is None else lengths.cast(ir.DataType.INT64)
    layer = f"{node.name}/backwards" if direction else node.name or node.op_type
    if isinstance(steps, int) and steps <= LONGEST_UNROLLED:
        times = range(steps)[::-1] if backwards else range(steps)
        return _unrolled(cell, products, state, lengths, times, layer)
    return _scanned(cell, products, state, lengths, builder.arange(steps), backwards, layer)


def _initial_state(node: ir.Node, builder: Builder, xs: Tensor, direction: int) -> list[Tensor]:
    """h, and c of an LSTM: the inputs that give them, or zeros."""
    found = []
    for index in (5, 6) if node.op_type == "LSTM" else (5,):
        given = optional_input(node, index, builder)
        if given is None:
            shape = builder.concat(xs.length(1 - _batch_first(node)), hidden_size(node))
            zero = ir.tensor([0.0], dtype=xs.dtype)
            found.append(builder.op("ConstantOfShape", shape, dtype=xs.dtype, value=zero))
        else:
            found.append(of_direction(given.transpose(1, 0, 2) if _batch_first(node) else given, direction))
    return found


def _step(
    cell: Cell, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, time: Tensor | int
) -> tuple[list[Tensor], Tensor]:
    """The next state and the output; an example that has ended keeps its state, and its output is 0."""
    after = cell.step(x, state)
    if lengths is None:
        return after, after[0]
    runs = (lengths > time).unsqueeze(1)
    return [where(runs, new, old) for new, old in zip(after, state, strict=True)], where(runs, after[0], 0.0)


def _unrolled(
    cell: Cell, products: Tensor, state: list[Tensor], lengths: Tensor | None, times: range, layer: str
) -> Results:
    builder, outputs = products.builder, {}
    parts = builder.ops(
        "Split", products, builder.ints(*[1] * len(times)), dtypes=[None] * len(times), axis=0
    )
    for number, time in enumerate(times):
        before = carried(builder, layer, state, number - 1) if number else state
        state, outputs[time] = _step(cell, parts[time].squeeze(0), before, lengths, time)
    return _joined([outputs[time].unsqueeze(0) for time in sorted(outputs)], 0), state


def _scanned(
    cell: Cell,
    products: Tensor,
    state: list[Tensor],
    lengths: Tensor | None,
    times: Tensor,
    backwards: bool,
    layer: str,
) -> Results:
    builder = products.builder
    walked = [products] if lengths is None else [products, times]
    inner = builder.inside(ir.Graph([], [], nodes=[], name=builder.unique_name("cell")))
    before = received(inner, layer, [tensor.dtype for tensor in state])
    x, *time = (inner.input("step", tensor.dtype) for tensor in walked)
    ends = None if lengths is None else inner.tensor(lengths.value)
    after, h = _step(cell.inside(inner), x, before, ends, time[0] if time else 0)
    inner.graph.outputs.extend(tensor.value for tensor in (*after, inner.op("Identity", h)))
    *last, hs = builder.ops(
        "Scan",
        *state,
        *walked,
        dtypes=[None] * (len(state) + 1),
        body=inner.graph,
        num_scan_inputs=len(walked),
        scan_input_directions=[int(backwards)] * len(walked),
        scan_output_directions=[int(backwards)],
    )
    return hs, last


def _output(node: ir.Node, index: int, results: Sequence[Results]) -> Tensor | None:
    """Output 0 [T, D, N, H], or the last state `index` - 1 [D, N, H]; None where nothing uses it."""
    value = node.outputs[index]
    if not value.uses() and not value.is_graph_output():
        return None
    if index > 0:
        last = _joined([state[index - 1].unsqueeze(0) for _, state in results], 0)
        return last.transpose(1, 0, 2) if _batch_first(node) else last
    hs = _joined([hs.unsqueeze(1) for hs, _ in results], 1)
    return hs.transpose(2, 0, 1, 3) if _batch_first(node) else hs


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0].builder.op("Concat", *parts, axis=axis)
