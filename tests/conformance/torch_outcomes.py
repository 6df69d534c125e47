"""Converts the rows, many at a time, and compares each row's outputs and gradients with PyTorch's.

Rows with inputs of one shape share a module, and so one export: each has a parameter of its own that scales its inputs, whose
gradient tells the gradient of the row's input, and the module's output is everything that the rows compute, side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from gradfuse.converters import convert, pytorch
from gradfuse.converters.parity import ParityResult, check_parity
from gradfuse.graph import GradfuseError, TrainableModel
from gradfuse.graph.source import LAYER

from .page import Line, table
from .torch_rows import FAMILIES, REFUSED, Row

BATCHES = (1, 2, 7)
TOLERANCE = 1e-4


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

    def _all(self, *inputs: torch.Tensor) -> torch.Tensor:
        # A third axis makes the check take the mean square for its loss, in which the rows do not mix.
        return torch.cat([row(inputs) for row in self.rows], 1).unsqueeze(-1)


class _OneInput(_Together):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._all(x)


class _TwoInputs(_Together):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self._all(x, other)


def _module(rows: Sequence[Row]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module of rows with inputs in common, and an example."""
    torch.manual_seed(0)
    row = rows[0]
    example = tuple(
        torch.full((2, *shape), row.labels[index] - 1) if index in row.labels else torch.randn(2, *shape)
        for index, shape in enumerate(row.shapes)
    )
    return (_OneInput if len(example) == 1 else _TwoInputs)(rows), example


def key(row: Row) -> Any:
    """What rows must have in common to share a module."""
    return row.shapes, tuple(row.labels.items()), row.least


def together(row: Row) -> tuple[Row, ...]:
    """All rows that share a module with `row`, itself included."""
    return tuple(other for other in chain.from_iterable(FAMILIES.values()) if key(other) == key(row))


def outcome(row: Row) -> Outcome:
    """Convert the row, with those that share its module, and compare it at every batch size."""
    rows = together(row)
    return _outcomes(key(row))[rows.index(row)]


@cache
def _outcomes(shared: Any) -> list[Outcome]:
    rows = [row for row in chain.from_iterable(FAMILIES.values()) if key(row) == shared]
    module, example = _module(rows)
    model = convert(module, example_input=example, verify=False).model
    arrays = [tensor.numpy() for tensor in example]
    results = [
        check_parity(model, partial(pytorch.reference, module), arrays, batch=batch, tolerance=TOLERANCE)
        for batch in BATCHES
        if batch >= rows[0].least
    ]
    return [_of_row(index, model, results) for index in range(len(rows))]


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


def section() -> str:
    """The section of PyTorch in `docs/coverage.md`."""
    count = sum(map(len, FAMILIES.values()))
    tables = [table(name, map(_line, rows)) for name, rows in FAMILIES.items()]
    refused = table("Refused", (_refused_line(index) for index in range(len(REFUSED))))
    head = _HEAD.format(count=count, refused=len(REFUSED), batches=", ".join(map(str, BATCHES)))
    return "\n\n".join([head, *tables, refused])


_HEAD = (
    "{count} rows pass, {refused} are refused. Each is converted once, with a dynamic batch, and run at batches of {batches};\n"
    "the gradients of all of its parameters and of its inputs are compared with PyTorch's autograd."
)


def _line(row: Row) -> Line:
    found = outcome(row)
    return Line(row.name, found.ops, found.opset, "passes", max(found.errors.values()))


def _refused_line(index: int) -> Line:
    return Line(REFUSED[index][0].name, (), None, f"refused: {refusal(index).partition(';')[0]}", None)
