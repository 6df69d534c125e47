"""Forward in training form, loss and backward as one ordinary ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .builder import Builder, Tensor
from .errors import InputError
from .files import save_model
from .gradients import STATE, TABLE, differentiate
from .losses import Loss, attach_loss, loss_named
from .lowering import infer_shapes, lower
from .model import TensorSpec, TrainableModel, spec_of
from .training_form import apply_training_form, protect_dropout

__all__ = ["GradientGraph"]


@dataclass(frozen=True)
class GradientGraph:
    """A graph that computes loss, outputs, gradients and new running statistics from data, target, parameters and state.

    Inputs: the model's data inputs, the target, parameters and state, the last two with their values as defaults.
    Outputs: the loss, the model's outputs, `<parameter>_grad` for each parameter, new state.

    Attributes:
        onnx: The graph.
        source: The model that it differentiates.
        loss: Name of the loss function.
        loss_function: The loss function.
        loss_output: Name of the scalar loss among the graph's outputs.
        target: The target input; None where the loss takes none.
        gradients: Name of each parameter's gradient, a graph output.
        activation_gradients: Name of the gradient of each forward value between the parameters and the loss.
        recurrent_gradients: Name of the gradient of each state that a Scan hands from iteration to iteration, by the name of
            the state in the forward body; it is an output of the backward body.
        new_state: Name of each running statistic's new value, a graph output.
    """

    onnx: ir.Model
    source: TrainableModel
    loss: str
    loss_function: Loss
    loss_output: str
    target: TensorSpec | None
    gradients: Mapping[str, str]
    activation_gradients: Mapping[str, str] = field(repr=False)
    recurrent_gradients: Mapping[str, str] = field(repr=False)
    new_state: Mapping[str, str]

    @classmethod
    def of(cls, model: TrainableModel, loss: str | Loss = "cross-entropy") -> GradientGraph:
        """Differentiate `model` under a loss, given by its name or itself.

        Raises:
            InputError: The loss is unknown, or does not fit the model's output.
            UnsupportedError: An op between the parameters and the loss has no gradient.
        """
        function = loss_named(loss)
        if not model.outputs:
            raise InputError("the model has no output", expected="one that the loss is computed from")
        spec = model.outputs[0]
        clone = model.onnx.clone()
        graph = clone.graph
        lower(clone)
        builder = Builder(graph)
        outputs = list(graph.outputs)
        state = apply_training_form(builder)
        scalar, target = attach_loss(builder, outputs[0], spec, function)
        infer_shapes(clone)
        gradients = differentiate(
            builder, scalar.value, [graph.initializers[name] for name in model.parameters], TABLE
        )
        protect_dropout(builder)
        named = _name_gradients(builder, gradients)
        parameters = {
            name: _parameter_gradient(builder, graph.initializers[name], gradients)
            for name in model.parameters
        }
        scalar.value.name = builder.unique_name("loss")
        new_state = _name_state(builder, state)
        _set_signature(graph, model, [scalar, *parameters.values(), *new_state.values()])
        RemoveUnusedNodesPass()(clone)
        return cls(
            clone,
            model,
            function.name,
            function,
            scalar.value.name,
            None if target is None else spec_of(target),
            {name: tensor.value.name or "" for name, tensor in parameters.items()},
            named,
            _recurrent_gradients(graph),
            {name: tensor.value.name or "" for name, tensor in new_state.items()},
        )

    def clone(self) -> GradientGraph:
        """A copy whose graph can be changed; the tensors are shared."""
        return replace(self, onnx=self.onnx.clone())

    def save(self, path: str | Path) -> Path:
        """Write the graph to an `.onnx` file, atomically."""
        return save_model(self.onnx, path)


def _name_gradients(builder: Builder, gradients: Mapping[ir.Value, Tensor]) -> dict[str, str]:
    """Call the gradient of each value `<value>_grad`."""
    names = {}
    for value, tensor in gradients.items():
        if tensor.value.producer() is not None:
            tensor.value.name = builder.unique_name(f"{value.name}_grad")
            names[value.name or ""] = tensor.value.name
    return names


def _recurrent_gradients(graph: ir.Graph) -> dict[str, str]:
    return {
        value.metadata_props[STATE]: value.name or ""
        for node in graph
        if node.op_type == "Scan"
        for value in node.attributes["body"].as_graph().outputs
        if STATE in value.metadata_props
    }


def _parameter_gradient(
    builder: Builder, parameter: ir.Value, gradients: Mapping[ir.Value, Tensor]
) -> Tensor:
    """The gradient of a parameter; zeros where the loss does not depend on it."""
    if parameter in gradients:
        gradient = gradients[parameter]
        # Inference does not see through every loop, and a graph's output must tell its shape.
        gradient.value.shape = gradient.value.shape or parameter.shape
        return gradient
    with builder.scope(f"grad/{parameter.name}"):
        zeros = builder.tensor(parameter).zeros_like()
    zeros.value.name, zeros.value.shape = builder.unique_name(f"{parameter.name}_grad"), parameter.shape
    return zeros


def _name_state(builder: Builder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in state.items():
        tensor.value.name = builder.unique_name(f"{name}_new")
        tensor.value.shape = builder.graph.initializers[name].shape
    return dict(state)


def _set_signature(graph: ir.Graph, model: TrainableModel, results: list[Tensor]) -> None:
    """Loss first, then the model's outputs, gradients and state; parameters and state become inputs with defaults."""
    outputs = list(graph.outputs)
    graph.outputs.clear()
    graph.outputs.extend([results[0].value, *outputs, *(tensor.value for tensor in results[1:])])
    for name in (*model.parameters, *model.state):
        if graph.initializers[name] not in graph.inputs:
            graph.inputs.append(graph.initializers[name])
