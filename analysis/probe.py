"""The probe: a few batches run through the real gradient graph, and what is measured on them.

Of every gradient, and of every value that a gradient flows through, the graph itself computes the mean square, in float64, so
that a run gives back one number for each tensor. What is measured is the root of its mean over the batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.errors import InputError
from ..graph.evaluation import evaluator
from ..graph.gradient_graph import GradientGraph
from ..graph.losses import base_name
from .moments import Assumptions
from .moments.quadrature import Array
from .moments.site import batch_axis, example_shape
from .sample import check_lengths, describe_inputs
from .thresholds import THRESHOLDS

__all__ = ["BATCHES", "Measurement", "probe"]

BATCHES, MORE, MOST = 4, 16, 64
"""Batches that a probe runs; up to how many while the norm is uncertain; and while a gradient is rough, or the norm's
uncertainty leaves open whether it is in bounds.

Gradients that explode have heavy tails: a few batches may miss their mean.
"""

_ERROR, _FACTOR = 0.15, 1.5
"""The global norm counts as uncertain where the standard error of its square is above that share of it; a parameter's gradient
as rough where its RMS may be that factor below the truth, at 95 % confidence.
"""


@dataclass(frozen=True)
class Measurement:
    """What a probe found. Gradients are those of the mean loss over a batch; a number that is not finite counts as infinite.

    Attributes:
        gradients: Root mean square of each tensor's gradient, by the name of the parameter or activation.
        values: Root mean square of each activation's value.
        global_norm: Root mean square over the batches of the Euclidean norm of all parameters' gradients.
        loss: Mean of the batches' losses.
        overflow: The first value, or else the first gradient on the way back, that was not finite; empty if all were.
        overflow_phase: `forward` or `backward`.
        batches: How many were run.
        inputs: Where they came from: `N(0,1)`, or `the data`.
    """

    gradients: Mapping[str, float]
    values: Mapping[str, float]
    global_norm: float
    loss: float
    overflow: str
    overflow_phase: str
    batches: int
    inputs: str


def probe(
    gradients: GradientGraph,
    assumptions: Assumptions,
    *,
    data: Sequence[Array] | None = None,
    seed: int = 0,
    limit: float = THRESHOLDS["GF101.norm"],
) -> Measurement:
    """Run batches of the assumed size: BATCHES, and more while their own spread leaves a gradient uncertain.

    Args:
        gradients: The model's gradient graph.
        assumptions: The batch size, and what inputs and labels are drawn from.
        data: An array for each input of the model, then the target, examples along the first axis; batches are drawn from
            them. None draws normal inputs, and targets as the prediction takes them.
        seed: Decides what is drawn.
        limit: The global norm that the verdict turns on.

    Raises:
        InputError: A shape is not known well enough to draw inputs or targets.
    """
    model, names = _measuring(gradients)
    batches, outputs = _batches(gradients, assumptions, data, seed), list[Mapping[str, Array]]()
    with np.errstate(all="ignore"):
        run = evaluator(model)
        while len(outputs) < BATCHES or _is_open(_squares(gradients, names, outputs), limit):
            outputs += [run(batch) for batch in islice(batches, BATCHES)]
    roots = {key: _root([float(output[name]) for output in outputs]) for key, name in names.items()}
    inputs = describe_inputs(assumptions) if data is None else "the data"
    return _measurement(
        gradients, roots, [float(output[gradients.loss_output]) for output in outputs], inputs
    )


def _batches(
    gradients: GradientGraph, assumptions: Assumptions, data: Sequence[Array] | None, seed: int
) -> Iterator[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    while True:
        if data is None:
            yield _drawn(gradients, assumptions, rng)
        else:
            yield _taken(gradients, data, assumptions, rng)


def _is_open(squares: Array, limit: float) -> bool:
    """Whether more batches are worth while, given for each the squared norm of every parameter's gradient, `[batches, n]`."""
    count, norms = len(squares), squares.sum(1)
    mean, error = float(np.mean(norms)), float(_standard_error(norms))
    near = abs(mean - limit**2) < 2 * error
    margin = _student(count - 1) * _standard_error(squares)
    rough = bool(np.any(margin > (1.0 - _FACTOR**-2) * squares.mean(0)))
    return (count < MOST and (near or rough)) or (count < MORE and error > _ERROR * mean)


def _standard_error(squares: Array) -> Array:
    """Of the mean over the batches."""
    return np.asarray(np.std(squares, axis=0, ddof=1) / math.sqrt(len(squares)))


def _student(freedom: int) -> float:
    """How many standard errors hold 95 % of Student's distribution (Abramowitz and Stegun 1964, 26.7.5).

    A few batches seldom hold the large gradients that make a heavy tail, so that their spread is too small.
    """
    z = 1.95996
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _squares(
    gradients: GradientGraph, names: Mapping[tuple[str, str], str], outputs: Sequence[Mapping[str, Array]]
) -> Array:
    """The squared norm of each parameter's gradient in each batch, `[batches, n]`."""
    sizes = gradients.source.sizes
    sized = [
        (tensor, sizes[name])
        for (kind, name), tensor in names.items()
        if kind == "gradient" and name in sizes
    ]
    return np.array([[size * float(output[tensor]) for tensor, size in sized] for output in outputs])


def _measuring(gradients: GradientGraph) -> tuple[ir.Model, dict[tuple[str, str], str]]:
    """The graph with the loss and the mean squares as outputs, and the output of each: ("gradient" or "value", tensor)."""
    model = gradients.onnx.clone()
    graph, builder, names = model.graph, Builder(model.graph), {}
    produced = {value.name or "": value for node in graph for value in node.outputs}
    loss = produced[gradients.loss_output]
    wanted = [("gradient", name, grad) for name, grad in gradients.gradients.items()]
    for name, grad in gradients.activation_gradients.items():
        wanted += [("value", name, name), ("gradient", name, grad)]
    graph.outputs[:] = [loss]
    for kind, name, tensor in wanted:
        if tensor in produced and (kind, name) not in names:
            # One op sums the squares, so that no second float64 tensor of this size is held.
            exact = builder.tensor(produced[tensor]).cast(ir.DataType.DOUBLE)
            square = builder.op("ReduceSumSquare", exact, keepdims=0) / exact.count()
            graph.outputs.append(square.value)
            names[kind, name] = square.value.name or ""
    for index, node in enumerate(node for node in graph if node.op_type == "Dropout"):
        node.attributes["seed"] = ir.AttrInt64("seed", index)
    return model, names


def _root(squares: Sequence[float]) -> float:
    mean = float(np.mean(squares))
    return math.sqrt(mean) if math.isfinite(mean) else math.inf


def _measurement(
    gradients: GradientGraph, roots: Mapping[tuple[str, str], float], losses: Sequence[float], inputs: str
) -> Measurement:
    by_kind = {
        kind: {name: root for (k, name), root in roots.items() if k == kind} for kind in ("gradient", "value")
    }
    found, loss = by_kind["gradient"], float(np.mean(losses))
    norm = math.hypot(
        *(found.get(name, 0.0) * math.sqrt(size) for name, size in gradients.source.sizes.items())
    )
    overflow, phase = _overflow(gradients, by_kind, loss)
    return Measurement(found, by_kind["value"], norm, loss, overflow, phase, len(losses), inputs)


def _overflow(
    gradients: GradientGraph, by_kind: Mapping[str, Mapping[str, float]], loss: float
) -> tuple[str, str]:
    for name in _in_order(gradients):
        if by_kind["value"].get(name) == math.inf:
            return name, "forward"
    if not math.isfinite(loss):
        return gradients.loss_output, "forward"
    for name in [*reversed(list(_in_order(gradients))), *gradients.gradients]:
        if by_kind["gradient"].get(name) == math.inf:
            return name, "backward"
    return "", ""


def _in_order(gradients: GradientGraph) -> Iterator[str]:
    return (value.name or "" for node in gradients.onnx.graph for value in node.outputs)


def _taken(
    gradients: GradientGraph, data: Sequence[Array], assumptions: Assumptions, rng: np.random.Generator
) -> dict[str, Array]:
    """A batch of the data; with replacement only where there are fewer examples."""
    count, size = len(data[0]), assumptions.batch_size
    rows = rng.choice(count, size, replace=count < size)
    specs = [*gradients.source.inputs, *([gradients.target] if gradients.target else [])]
    return {spec.name: array[rows] for spec, array in zip(specs, data, strict=True)}


def _drawn(gradients: GradientGraph, assumptions: Assumptions, rng: np.random.Generator) -> dict[str, Array]:
    check_lengths(gradients)
    graph = gradients.onnx.graph
    inputs = {value.name: value for value in graph.inputs}
    batch = {spec.name: _input(inputs[spec.name], assumptions, rng) for spec in gradients.source.inputs}
    if gradients.target is not None:
        batch[gradients.target.name] = _target(gradients, assumptions, rng)
    return batch


def _input(value: ir.Value, assumptions: Assumptions, rng: np.random.Generator) -> Array:
    shape, axis = example_shape(value), batch_axis(value)
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    full = (assumptions.batch_size, *shape)
    drawn: Array = rng.integers(0, _rows_looked_up(value), full)
    if np.issubdtype(dtype, np.floating):
        drawn = assumptions.mean + np.sqrt(assumptions.variance) * rng.standard_normal(full)
    return np.moveaxis(drawn, 0, axis).astype(dtype)


def _rows_looked_up(value: ir.Value) -> int:
    """Rows of the table that integers index; 2 where they index none."""
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1 and node.inputs[0] is not None and node.inputs[0].shape:
            rows = node.inputs[0].shape[0]
            return rows if isinstance(rows, int) else 2
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose"):
            return _rows_looked_up(node.outputs[0])
    return 2


def _target(gradients: GradientGraph, assumptions: Assumptions, rng: np.random.Generator) -> Array:
    """Labels by their frequencies, coins for two classes, equal probabilities, N(0, 1) for regression."""
    spec, output = gradients.target, gradients.source.outputs[0]
    assert spec is not None
    lengths = [dim for dim in spec.dims[1:] if isinstance(dim, int)]
    classes = output.dims[1] if gradients.loss_function.classes else 2
    if len(lengths) < len(spec.dims) - 1 or not isinstance(classes, int):
        raise InputError(
            f"the probe cannot draw targets for the output {output}",
            expected="known lengths of all its axes but the first",
            remedy="give it examples with --data",
        )
    shape = (assumptions.batch_size, *lengths)
    if gradients.loss_function.classes:
        return rng.choice(classes, shape, p=assumptions.label_frequencies).astype(spec.dtype.numpy())
    drawn: Array
    match base_name(gradients.loss):
        case "bce" | "bce-with-logits":
            drawn = rng.integers(0, 2, shape)
        case "hinge" | "hinge-embedding":
            drawn = 2 * rng.integers(0, 2, shape) - 1
        case "kl":
            drawn = np.full(shape, 1.0 / lengths[0])
        case _:
            drawn = rng.standard_normal(shape)
    return np.asarray(drawn).astype(spec.dtype.numpy())
