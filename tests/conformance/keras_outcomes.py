"""Converts the rows, many at a time, and compares each row's outputs and gradients with Keras's.

Rows with inputs of one shape share a model, and so one trace: each has a variable of its own that scales its inputs, whose
gradient tells the gradient of the row's input, and the model's output is everything that the rows compute, side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir

from gradfuse.converters import convert, to_keras
from gradfuse.converters.keras_call import reference
from gradfuse.converters.parity import Array, ParityResult, check_parity
from gradfuse.graph import GradfuseError, TrainableModel, evaluate

from .keras_rows import FAMILIES, REFUSED, Row, keras
from .page import Line

BATCHES = (1, 2, 7)
TOLERANCE = 1e-4
_FLAT = "laid_flat"
"""The scope of what the suite does to a row's outputs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        ops: ONNX ops of its forward.
        opset: Opset of the graph.
        variables: Names of the parameters that it must have: its trainable variables, and the scales of its inputs.
        errors: The relative error of each of its parameters' gradients, the worst over all batches.
    """

    ops: tuple[str, ...]
    opset: int
    variables: frozenset[str]
    errors: dict[str, float]


class _Scaled(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A row's layer behind variables that scale its inputs of floating-point numbers."""

    def __init__(self, row: Row, name: str) -> None:
        super().__init__(name=name)
        self.labels, self.row = row.labels, row.make()
        self.scales = [
            self.add_weight(shape=shape, initializer=_around_one, name=f"scale{index}")
            for index, shape in enumerate(row.shapes)
            if index not in row.labels
        ]

    def call(self, inputs: Sequence[Any]) -> Any:
        scales = iter(self.scales)
        scaled = [x if index in self.labels else x * next(scales) for index, x in enumerate(inputs)]
        result = self.row(*scaled)
        with keras.name_scope(_FLAT):
            flat = [keras.ops.reshape(y, (-1, math.prod(y.shape[1:]))) for y in keras.tree.flatten(result)]
            return keras.ops.concatenate(flat, axis=1)


def _around_one(shape: Sequence[int], dtype: Any = None) -> Array:
    return (1 + 0.1 * np.random.default_rng(2).standard_normal(shape)).astype(np.float32)


@dataclass(frozen=True)
class Group:
    """Rows that share a model.

    Attributes:
        rows: The rows.
        source: The Keras model.
        model: What it was converted to.
        examples: An example for each of its inputs.
    """

    rows: Sequence[Row]
    source: Any
    model: TrainableModel
    examples: Sequence[Array]


def key(row: Row) -> Any:
    """What rows must have in common to share a model."""
    return row.shapes, tuple(row.labels.items())


@cache
def group(shared: Any) -> Group:
    """The rows with that key in common, converted."""
    rows = [row for row in chain.from_iterable(FAMILIES.values()) if key(row) == shared]
    source, examples = _source(rows)
    return Group(rows, source, convert(source, example_input=tuple(examples), verify=False).model, examples)


def _source(rows: Sequence[Row]) -> tuple[Any, list[Array]]:
    """The model of rows with inputs in common, and an example."""
    keras.utils.clear_session()  # which numbers the layers anew: the page quotes their names
    keras.utils.set_random_seed(0)
    examples = [
        np.full((2, *shape), rows[0].labels[index] - 1, np.int32)
        if index in rows[0].labels
        else np.zeros((2, *shape), np.float32)
        for index, shape in enumerate(rows[0].shapes)
    ]
    inputs = [keras.Input(array.shape[1:], dtype=str(array.dtype)) for array in examples]
    outputs = [_Scaled(row, f"row{index}")(inputs) for index, row in enumerate(rows)]
    joined = keras.layers.Concatenate()(outputs) if len(outputs) > 1 else outputs[0]
    # A third axis makes the check take the mean square for its loss, in which the rows do not mix.
    return keras.Model(inputs, keras.layers.Reshape((-1, 1))(joined)), examples


def outcome(row: Row) -> Outcome:
    """Convert the row, with those that share its model, and compare it at every batch size."""
    return _outcomes(key(row))[group(key(row)).rows.index(row)]


@cache
def _outcomes(shared: Any) -> list[Outcome]:
    found = group(shared)
    compare = partial(check_parity, compute=partial(reference, found.source), examples=found.examples)
    results = [
        compare(found.model, batches=BATCHES, tolerance=TOLERANCE),
        compare(_static(found.model, 2), batches=[2], tolerance=TOLERANCE),
    ]
    return [_of_row(index, found, results) for index in range(len(found.rows))]


def _static(model: TrainableModel, batch: int) -> TrainableModel:
    """The model for one batch size."""
    clone = model.onnx.clone()
    for value in chain.from_iterable(node.outputs for node in clone.graph):
        value.shape = None
    for value in (*clone.graph.inputs, *clone.graph.outputs):
        dims = next(spec.dims for spec in (*model.inputs, *model.outputs) if spec.name == value.name)
        value.shape = ir.Shape([batch, *dims[1:]])
    return replace(model, onnx=clone)


def _of_row(index: int, found: Group, results: Sequence[ParityResult]) -> Outcome:
    layer = f"row{index}"
    errors: dict[str, float] = {}
    for what, error in chain.from_iterable(result.errors.items() for result in results):
        name = re.fullmatch(rf"the gradient of '({layer}/.*)'", what)
        if name:
            errors[name[1]] = max(error, errors.get(name[1], 0.0))
    variables = [variable.path for variable in found.source.get_layer(layer).trainable_variables]
    opset = found.model.onnx.opset_imports[""]
    return Outcome(_ops(found, index), opset, frozenset(variables), errors)


def _ops(found: Group, index: int) -> tuple[str, ...]:
    """What the row's part of the output follows from, back to its scales.

    Nodes are reached by their edges and not by their names: tf2onnx merges equal nodes of several rows into one of them,
    and hashes decide into which.
    """
    waiting, nodes = (
        [_before(found.model.onnx.graph.outputs[0], 0)],
        set[ir.Node](),
    )  # the last node adds an axis
    if len(found.rows) > 1:
        waiting = [_before(waiting[0], index)]
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in nodes and not _scales(node, f"row{index}/scale"):
            nodes.add(node)
            waiting += node.inputs
    return tuple(sorted({node.op_type for node in nodes if f"/{_FLAT}/" not in (node.name or "")}))


def _before(value: ir.Value | None, index: int) -> ir.Value | None:
    node = value.producer() if value is not None else None
    assert node is not None
    return node.inputs[index]


def _scales(node: ir.Node, scale: str) -> bool:
    return any(value is not None and (value.name or "").startswith(scale) for value in node.inputs)


def difference_after_training(shared: Any) -> float:
    """How far the source is from the converted model, both with all their weights changed, at inference."""
    found, rng = group(shared), np.random.default_rng(3)
    graph = found.model.onnx.graph
    weights = {
        name: _moved(graph.initializers[name].const_value, rng)
        for name in (*found.model.parameters, *found.model.state)
    }
    inputs = [_drawn(array, rng) for array in found.examples]
    data = dict(zip((spec.name for spec in found.model.inputs), inputs, strict=True))
    (ours,) = evaluate(_with(found.model, weights), data).values()
    to_keras(weights, found.source)
    theirs = found.source(inputs, training=False).numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _moved(tensor: Any, rng: np.random.Generator) -> Array:
    array = tensor.numpy()
    return np.asarray(array * rng.uniform(0.8, 1.2, array.shape), array.dtype)


def _drawn(example: Array, rng: np.random.Generator) -> Array:
    if example.dtype == np.int32:
        return rng.integers(0, example.max() + 1, example.shape).astype(np.int32)
    return rng.standard_normal(example.shape).astype(np.float32)


def _with(model: TrainableModel, weights: Mapping[str, Array]) -> ir.Model:
    clone = model.onnx.clone()
    for name, array in weights.items():
        clone.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return clone


@cache
def refusal(index: int) -> str:
    """Why gradfuse does not convert a row of `REFUSED`; empty where it does."""
    source, examples = _source([REFUSED[index][0]])
    try:
        convert(source, example_input=tuple(examples))
    except GradfuseError as error:
        return str(error)
    return ""


def head() -> str:
    """What stands above the tables of Keras in `docs/coverage.md`."""
    return _HEAD.format(
        count=sum(map(len, FAMILIES.values())), refused=len(REFUSED), batches=", ".join(map(str, BATCHES))
    )


def families() -> dict[str, list[Line]]:
    """The tables of Keras in `docs/coverage.md`."""
    passed = {name: list(map(_line, rows)) for name, rows in FAMILIES.items()}
    return {**passed, "Refused": list(map(_refused_line, range(len(REFUSED))))}


_HEAD = (
    "{count} rows pass, {refused} are refused. Each is converted once, with a dynamic batch, and run at batches of {batches},\n"
    "and once more with a static batch; the gradients of all of its parameters and of its inputs are compared with\n"
    "`tf.GradientTape`. Then all weights are changed and go home, and the layer computes what the graph computes."
)


def _line(row: Row) -> Line:
    found = outcome(row)
    return Line(row.name, found.ops, found.opset, "passes", max(found.errors.values()))


def _refused_line(index: int) -> Line:
    return Line(REFUSED[index][0].name, (), None, f"refused: {refusal(index).partition(';')[0]}", None)
