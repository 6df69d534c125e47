"""One training step as one ONNX graph - loss, gradients, fuses, the optimizer's update - and its evaluation-only sibling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph.builder import Builder, Dim, Tensor
from ..graph.fuses import fuse_bits, fuse_states
from ..graph.gradient_graph import GradientGraph
from ..graph.losses import Loss, attach_loss, base_name, loss_named
from ..graph.model import TensorSpec, TrainableModel, spec_of
from ..graph.rewriting import use_early
from .optimizers import Array, Optimizer

__all__ = ["EvaluationGraph", "StepGraph", "initial_values"]

_LARGE, _LONG = 1 << 28, 1 << 12
"""Bytes of a parameter, and elements of its rows, from which it is updated row by row."""


@dataclass(frozen=True)
class StepGraph:
    """A graph that turns data, target, learning rate and the present state into the next state.

    The state is everything that goes in and comes out: parameters, running statistics, and what the optimizer and the fuses
    remember. Its inputs have no defaults.

    Attributes:
        onnx: The graph.
        data: The inputs that a batch fills: the model's data inputs, then the target where the loss takes one.
        learning_rate: Name of the float64 scalar input.
        initial: The state before the first step, by input name.
        memory: Names of the state's inputs that only the optimizer reads.
        next: Name of the output with the next value of each part of the state, by input name.
        loss: Name of the output with the loss.
        gradient_norm: Name of the output with the Euclidean norm of all parameters' gradients, before the fuses on them.
        correct: Name of the int64 output that counts right predictions; None where the loss knows no right and wrong.
        fuses: Names of the fuses.
        bits: Name of the bool output [fuses] that tells which of them changed a gradient; None where there are none.
    """

    onnx: ir.Model
    data: tuple[TensorSpec, ...]
    learning_rate: str
    initial: Mapping[str, Array]
    memory: tuple[str, ...]
    next: Mapping[str, str]
    loss: str
    gradient_norm: str
    correct: str | None
    fuses: tuple[str, ...]
    bits: str | None

    @classmethod
    def of(cls, gradients: GradientGraph, optimizer: Optimizer, *, by_rows: bool = True) -> StepGraph:
        """Add the optimizer's update to a gradient graph, which stays as it is.

        Args:
            gradients: The gradient graph.
            optimizer: What updates its parameters.
            by_rows: Update large parameters row by row, so that nothing as large as they are is held on the way. A CPU does
                so in the same time; on other devices each row costs the start of a kernel.
        """
        source, model = gradients.source, gradients.onnx.clone()
        graph, builder = model.graph, Builder(model.graph)
        values = {value.name: builder.tensor(value) for node in graph for value in node.outputs}
        grads = {name: values[gradient] for name, gradient in gradients.gradients.items()}
        memory = optimizer.initial_state(initial_values(source, source.parameters))
        rate = _input(builder, "learning_rate", ir.DataType.DOUBLE, ())
        updates = _append_update(builder, optimizer, grads, memory, rate, by_rows)
        states = fuse_states(model)
        updates |= {name: values[output] for name, output in {**gradients.new_state, **states}.items()}
        loss = values[gradients.loss_output].cast(ir.DataType.FLOAT)
        norm = _gradient_norm(builder, grads.values(), set(fused := fuse_bits(model)))
        targets = [
            value for value in graph.inputs if gradients.target and value.name == gradients.target.name
        ]
        correct = _count_correct(builder, gradients.loss_function, graph.outputs[1], targets)
        bits = _join_bits(builder, fused.values())
        results = (loss, norm, correct, bits, *updates.values())
        graph.outputs[:] = [tensor.value for tensor in results if tensor is not None]
        kept = (*source.parameters, *source.state, *states)
        initial = {**_values(graph, kept), **memory}
        _drop_defaults(graph, kept)
        use_early(graph, len(gradients.onnx.graph))
        return cls(
            model,
            (*source.inputs, *(spec_of(value) for value in targets)),
            _name(rate),
            initial,
            tuple(memory),
            {name: _name(tensor) for name, tensor in updates.items()},
            _name(loss),
            _name(norm),
            None if correct is None else _name(correct),
            tuple(fused),
            None if bits is None else _name(bits),
        )

    @property
    def random(self) -> bool:
        """Whether two runs on the same inputs may differ."""
        return any(node.op_type == "Dropout" for node in self.onnx.graph)


@dataclass(frozen=True)
class EvaluationGraph:
    """The model in inference form with its loss, and with parameters and running statistics as inputs without defaults.

    Attributes:
        onnx: The graph.
        data: The inputs that a batch fills: the model's data inputs, then the target where the loss takes one.
        state: Names of the inputs for parameters and running statistics.
        loss: Name of the output with the loss.
        correct: Name of the int64 output that counts right predictions; None where the loss knows no right and wrong.
    """

    onnx: ir.Model
    data: tuple[TensorSpec, ...]
    state: tuple[str, ...]
    loss: str
    correct: str | None

    @classmethod
    def of(cls, source: TrainableModel, loss: str | Loss) -> EvaluationGraph:
        """Add a loss to a model, which stays as it is."""
        model, function = source.onnx.clone(), loss_named(loss)
        graph, builder = model.graph, Builder(model.graph)
        output, state = graph.outputs[0], (*source.parameters, *source.state)
        scalar, target = attach_loss(builder, output, source.outputs[0], function)
        targets = [] if target is None else [target]
        correct = _count_correct(builder, function, output, targets)
        scalar = scalar.cast(ir.DataType.FLOAT)
        graph.outputs[:] = [tensor.value for tensor in (scalar, correct) if tensor is not None]
        graph.inputs.extend(
            graph.initializers[name] for name in state if graph.initializers[name] not in graph.inputs
        )
        _drop_defaults(graph, state)
        data = (*source.inputs, *(spec_of(value) for value in targets))
        return cls(model, data, state, _name(scalar), None if correct is None else _name(correct))


def initial_values(model: TrainableModel, names: Iterable[str]) -> dict[str, Array]:
    """The values of a model's initializers, by name."""
    return _values(model.onnx.graph, names)


def _values(graph: ir.Graph, names: Iterable[str]) -> dict[str, Array]:
    values = {}
    for name in names:
        tensor = graph.initializers[name].const_value
        assert tensor is not None, f"initializer {name} has no value"
        values[name] = tensor.numpy()
    return values


def _input(builder: Builder, name: str, dtype: ir.DataType, dims: tuple[Dim, ...]) -> Tensor:
    value = ir.val(builder.unique_name(name), dtype=dtype, shape=ir.Shape(dims))
    builder.graph.inputs.append(value)
    return builder.tensor(value)


def _input_like(builder: Builder, name: str, array: Array) -> Tensor:
    return _input(builder, name, ir.DataType.from_numpy(array.dtype), array.shape)


def _name(tensor: Tensor) -> str:
    return tensor.value.name or ""


def _append_update(
    builder: Builder,
    optimizer: Optimizer,
    gradients: Mapping[str, Tensor],
    memory: Mapping[str, Array],
    learning_rate: Tensor,
    by_rows: bool,
) -> dict[str, Tensor]:
    """The next value of each parameter and of all that the optimizer remembers, under the name `<name>_new`."""
    parameters = {name: builder.tensor(builder.graph.initializers[name]) for name in gradients}
    state = {name: _input_like(builder, name, array) for name, array in memory.items()}
    large = {name for name in parameters if by_rows and _is_large(parameters[name])}
    with builder.scope("optimizer"):
        small = {name: tensor for name, tensor in parameters.items() if name not in large}
        updates = optimizer.update(small, gradients, state, learning_rate)
        for name in large:
            updates |= _update_by_rows(
                optimizer, name, parameters[name], gradients[name], state, learning_rate
            )
    for name, tensor in updates.items():
        tensor.value.name = builder.unique_name(f"{name}_new")
    return updates


def _is_large(parameter: Tensor) -> bool:
    dims = [dim for dim in parameter.dims or () if isinstance(dim, int)]
    return math.prod(dims) * parameter.dtype.itemsize >= _LARGE and math.prod(dims[1:]) >= _LONG


def _update_by_rows(
    optimizer: Optimizer,
    name: str,
    parameter: Tensor,
    gradient: Tensor,
    state: Mapping[str, Tensor],
    learning_rate: Tensor,
) -> dict[str, Tensor]:
    """The optimizer's update of one parameter, as a Scan over its first axis."""
    builder = parameter.builder
    body = builder.inside(ir.Graph([], [], nodes=[], name=builder.unique_name("row")))
    # What the optimizer remembers of one parameter has its shape; the rest, as the number of steps, is a scalar.
    mine = [key for key, array in optimizer.initial_state({name: np.zeros(1)}).items() if array.ndim]
    whole = [parameter, gradient, *(state[key] for key in mine)]
    row, row_gradient, *rest = (body.input("row", tensor.dtype) for tensor in whole)
    shared = {key: body.tensor(tensor.value) for key, tensor in state.items() if key not in mine}
    rows = {**shared, **dict(zip(mine, rest, strict=True))}
    updates = optimizer.update({name: row}, {name: row_gradient}, rows, body.tensor(learning_rate.value))
    body.graph.outputs.extend(updates[key].value for key in (name, *mine))
    results = builder.ops(
        "Scan", *whole, dtypes=[None] * (1 + len(mine)), body=body.graph, num_scan_inputs=len(whole)
    )
    return dict(zip((name, *mine), results, strict=True))


def _drop_defaults(graph: ir.Graph, names: Iterable[str]) -> None:
    for name in names:
        graph.initializers.pop(name).const_value = None


def _gradient_norm(builder: Builder, gradients: Iterable[Tensor], fuses: set[str]) -> Tensor:
    """The Euclidean norm of all gradients together, before the fuses of these names."""
    with builder.scope("gradient_norm"):
        squares = [
            builder.op("ReduceSumSquare", builder.tensor(_before(gradient.value, fuses)), keepdims=0)
            for gradient in gradients
        ]
        norm = builder.op("Sum", *squares).sqrt().cast(ir.DataType.FLOAT)
    norm.value.name, norm.value.shape = builder.unique_name("gradient_norm"), ir.Shape(())
    return norm


def _join_bits(builder: Builder, bits: Iterable[ir.Value]) -> Tensor | None:
    """The scalars that tell whether a fuse bit as one vector; None where there are none."""
    with builder.scope("fuses/bits"):
        parts = [builder.tensor(bit).reshape(1) for bit in bits]
        joined = builder.op("Concat", *parts, axis=0) if parts else None
    if joined is not None:
        joined.value.name, joined.value.shape = builder.unique_name("fuse_bits"), ir.Shape([len(parts)])
    return joined


def _before(value: ir.Value, fuses: set[str]) -> ir.Value:
    """What goes into the fuses of these names that `value` comes out of."""
    producer = value.producer()
    if producer is None or producer.name not in fuses:
        return value
    source = producer.inputs[producer.outputs.index(value)]
    assert source is not None
    return _before(source, fuses)


def _count_correct(builder: Builder, loss: Loss, output: ir.Value, targets: list[ir.Value]) -> Tensor | None:
    """How many predictions are right: the largest logit is the label's, or a logit's sign is the target's side of 1/2."""
    with builder.scope("correct"):
        if loss.classes:
            predicted = builder.op("ArgMax", builder.tensor(output), axis=1, keepdims=0)
            hits = predicted.equals(builder.tensor(targets[0]))
        elif base_name(loss.name) == "bce-with-logits":
            hits = (builder.tensor(output) > 0).equals(builder.tensor(targets[0]) > 0.5)
        else:
            return None
        count = hits.cast(ir.DataType.INT64).sum(keepdims=False)
    count.value.name, count.value.shape = builder.unique_name("correct"), ir.Shape(())
    return count
