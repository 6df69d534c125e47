"""Converts the rows, many at a time, and compares each row's outputs and gradients with PyTorch's.

Rows with inputs of one shape share a module, and so one export: each has a parameter of its own that scales its inputs, whose
gradient tells the gradient of the row's input, and the module's output is everything that the rows compute, side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from gradfuse.analysis import analyse
from gradfuse.analysis.moments import Assumptions
from gradfuse.converters import convert, to_source, torch_reference
from gradfuse.converters.parity import ParityResult, check_parity
from gradfuse.graph import GradfuseError, GradientGraph, TrainableModel
from gradfuse.graph.source import LAYER

from .page import Line
from .torch_rows import FAMILIES, REFUSED, Row

BATCHES = (1, 2, 7)
TOLERANCE = 1e-4
MOST = 40
ROWS = {row.name: row for row in chain.from_iterable(FAMILIES.values())}


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        ops: ONNX ops of its forward.
        opset: Opset of the graph.
        errors: The relative error of each of its parameters' gradients, the worst over all batches.
    """

    ops: tuple[str, ...]
    opset: int
    errors: dict[str, float]


class _Scaled(nn.Module):
    """A row's module behind parameters that scale its inputs of floating-point numbers."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.row = row.make()
        self.scales = nn.ParameterDict(
            {
                str(index): nn.Parameter(1 + 0.1 * torch.randn(shape, generator=generator))
                for index, shape in enumerate(row.shapes)
                if index not in row.labels
            }
        )

    def forward(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        scaled = [x * self.scales[str(i)] if str(i) in self.scales else x for i, x in enumerate(inputs)]
        result = self.row(*scaled)
        y: torch.Tensor = result[0] if isinstance(result, tuple) else result
        if y.dim() == 0:
            return y.reshape(1, 1).expand(inputs[0].shape[0], 1)
        return y.flatten(1) if y.dim() > 1 else y.unsqueeze(1)


class _Together(nn.Module):
    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(_Scaled(row) for row in rows)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        # A third axis makes the check take the mean square for its loss, in which the rows do not mix.
        return torch.cat([row(inputs) for row in self.rows], 1).unsqueeze(-1)


def _module(rows: Sequence[Row]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module of rows with inputs in common, and an example."""
    torch.manual_seed(0)
    row = rows[0]
    example = tuple(
        torch.full((2, *shape), row.labels[index] - 1) if index in row.labels else torch.randn(2, *shape)
        for index, shape in enumerate(row.shapes)
    )
    return _Together(rows), example


def _key(row: Row) -> Any:
    """What rows must have in common to share a module."""
    return row.shapes, row.labels, row.least


def _together(row: Row) -> tuple[str, ...]:
    """The names of the rows that share a module with `row`, itself included; the exporter slows down with large ones."""
    names = [name for name, other in ROWS.items() if _key(other) == _key(row)]
    start = names.index(row.name) // MOST * MOST
    return tuple(names[start : start + MOST])


def outcome(row: Row) -> Outcome:
    """Convert the row, with those that share its module, and compare it at every batch size."""
    return _outcomes(_together(row))[row.name]


@cache
def _outcomes(names: tuple[str, ...]) -> dict[str, Outcome]:
    rows = [ROWS[name] for name in names]
    module, example = _module(rows)
    model = convert(module, example_input=example, verify=False).model
    analyse(GradientGraph.of(model, "mse"), Assumptions(budget=0.0))  # whatever converts has a report
    check = partial(
        check_parity,
        compute=partial(torch_reference.reference, module),
        examples=[tensor.numpy() for tensor in example],
        tolerance=TOLERANCE,
    )
    results = [
        check(model, batches=[batch for batch in BATCHES if batch >= rows[0].least]),
        check(_of_batch(_sent_home(model, module), BATCHES[-1]), batches=BATCHES[-1:]),
    ]
    return {name: _of_row(index, model, results) for index, name in enumerate(names)}


def _sent_home(model: TrainableModel, module: nn.Module) -> TrainableModel:
    """The model with other parameters and running statistics, which the module has been filled with."""
    clone, weights = model.onnx.clone(), {}
    for name in (*model.parameters, *model.state):
        value = clone.graph.initializers[name]
        assert value.const_value is not None
        weights[name] = value.const_value.numpy() * np.float32(1.05)
        value.const_value = ir.tensor(weights[name], name=name)
    to_source(weights, module)
    return replace(model, onnx=clone)


def _of_batch(model: TrainableModel, batch: int) -> TrainableModel:
    """The model with a static batch, from which more of the shapes follow."""
    clone = model.onnx.clone()
    for node in clone.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value, spec in zip(clone.graph.outputs, model.outputs, strict=True):
        value.shape = ir.Shape((batch, *spec.dims[1:]))
    for value, spec in zip(clone.graph.inputs, model.inputs, strict=False):
        value.shape = ir.Shape((batch, *spec.dims[1:]))
    return replace(model, onnx=clone)


def _of_row(index: int, model: TrainableModel, results: Sequence[ParityResult]) -> Outcome:
    layer = re.compile(rf"rows\.{index}\.row(\.|$)")
    ops = {
        node.op_type
        for node in model.onnx.graph
        if layer.match(node.metadata_props.get(LAYER, "")) and node.op_type != "Constant"
    }
    errors: dict[str, float] = {}
    for what, error in chain.from_iterable(result.errors.items() for result in results):
        name = re.search(rf"gradient of 'rows\.{index}\.(.*)'", what)
        if name:
            errors[name[1]] = max(error, errors.get(name[1], 0.0))
    return Outcome(tuple(sorted(ops)), model.onnx.opset_imports[""], errors)


@cache
def refusal(index: int) -> str:
    """Why gradfuse does not convert a row of `REFUSED`; empty where it does."""
    module, example = _module([REFUSED[index][0]])
    try:
        convert(module, example_input=example)
    except GradfuseError as error:
        return str(error)
    return ""


def head() -> str:
    """What stands above the tables of PyTorch in `docs/coverage.md`."""
    return _HEAD.format(count=len(ROWS), refused=len(REFUSED), batches=", ".join(map(str, BATCHES)))


def families() -> dict[str, list[Line]]:
    """The tables of PyTorch in `docs/coverage.md`."""
    passed = {name: list(map(_line, rows)) for name, rows in FAMILIES.items()}
    return {**passed, "Refused": list(map(_refused_line, range(len(REFUSED))))}


_HEAD = (
    "{count} rows pass, {refused} are refused. Each is converted once and run at batches of {batches}, with a dynamic batch\n"
    "and, for the last, with a static one, after other weights and statistics were sent home into the module; the gradients\n"
    "of all of its parameters and inputs are compared with those of PyTorch's autograd."
)


def _line(row: Row) -> Line:
    found = outcome(row)
    return Line(row.name, found.ops, found.opset, "passes", max(found.errors.values()))


def _refused_line(index: int) -> Line:
    return Line(REFUSED[index][0].name, (), None, f"refused: {refusal(index).partition(';')[0]}", None)
