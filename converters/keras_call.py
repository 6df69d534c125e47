"""Calling a Keras model: what its inputs and outputs are, and what it computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph.errors import InputError
from .frameworks import require
from .keras_layers import without_randomness
from .parity import Array, DrawTarget, Reference

__all__ = [
    "TENSORFLOW_LOSSES",
    "Signature",
    "call",
    "check_backend",
    "example_for",
    "layers_of",
    "reference",
    "signature_of",
    "variables",
]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model.

    Attributes:
        names: What the inputs are called.
        shapes: Their shapes; None for the batch, and for what is open.
        dtypes: Their element types.
        structure: How they are nested: a list, a dict, ... of anything.
        outputs: What the outputs are called.
    """

    names: Sequence[str]
    shapes: Sequence[tuple[int | None, ...]]
    dtypes: Sequence[str]
    structure: Any
    outputs: Sequence[str]


def signature_of(model: Any, examples: Sequence[Array] | None = None) -> Signature:
    """How a model is called.

    Args:
        model: The model, built.
        examples: An example for each input. A model of a class of its own tells no element types, but these do; and they give
            open lengths of sequences that recurrent layers run over.

    Raises:
        InputError: The model is not built, does not tell its inputs, or Keras does not run on TensorFlow.
    """
    _check_built(model)
    if getattr(model, "inputs", None) is not None:
        return _declared(model, examples)
    structure = (getattr(model, "_build_shapes_dict", None) or {}).get("input_shape", None)
    if structure is None:
        raise InputError(
            f"the Keras model {model.name!r} does not tell the shape of its input",
            expected="a functional or Sequential model, or one that was called on one argument",
        )
    keras = require("tensorflow", "keras")
    shapes: list[tuple[int | None, ...]] = []
    structure = keras.tree.map_shape_structure(shapes.append, structure)
    names = ["input"] if len(shapes) == 1 else [f"input_{index}" for index in range(len(shapes))]
    dtypes = ["float32"] * len(shapes) if examples is None else [str(array.dtype) for array in examples]
    return Signature(names, [(None, *shape[1:]) for shape in shapes], dtypes, structure, ["output"])


def _declared(model: Any, examples: Sequence[Array] | None) -> Signature:
    keras = require("tensorflow", "keras")
    names = [re.sub(r"^keras_tensor(_\d+)?$", "input", tensor.name) for tensor in model.inputs]
    shapes = [(None, *tensor.shape[1:]) for tensor in model.inputs]
    if examples and any(isinstance(layer, keras.layers.RNN) for layer in layers_of(model)):
        shapes = [(None, *array.shape[1:]) for array in examples]
    structure = getattr(model, "_inputs_struct", model.inputs[0])  # a Sequential has one input
    outputs = getattr(model, "output_names", [model.layers[-1].name])
    return Signature(names, shapes, [tensor.dtype for tensor in model.inputs], structure, outputs)


def layers_of(model: Any) -> list[Any]:
    """All layers within the model, at any depth."""
    return list(model._flatten_layers(include_self=False))


def variables(model: Any) -> dict[str, Any]:
    """The model's variables by their names in the converted graph.

    Raises:
        InputError: The model is not built, or Keras does not run on TensorFlow.
    """
    _check_built(model)
    named: dict[str, Any] = {}
    for variable in model.variables:
        path, count = variable.path.removeprefix(f"{model.name}/"), 1
        name = path
        while name in named:
            count += 1
            name = f"{path}_{count}"
        named[name] = variable
    return named


def notes(model: Any) -> tuple[str, ...]:
    """What Keras's own training adds to a model that its converted graph does not have."""
    found = [
        f"the {what} of {', '.join(names)} stays with Keras: {instead}"
        for what, instead in _OF_TRAINING.items()
        if (names := [v.path for v in model.trainable_variables if getattr(v, what, None) is not None])
    ]
    active = [layer.name for layer in layers_of(model) if getattr(layer, "activity_regularizer", None)]
    return (*found, *(f"the activity regularizer of {name} stays with Keras" for name in active))


_OF_TRAINING = {
    "regularizer": "gradfuse minimises the loss alone; weight decay does what an L2 penalty does under SGD",
    "constraint": "gradfuse's optimizers do not project parameters",
}


def check_backend() -> None:
    """Raise InputError if Keras does not run on TensorFlow."""
    keras = require("tensorflow", "keras")
    if (backend := keras.backend.backend()) != "tensorflow":
        raise InputError(
            f"Keras runs on {backend}",
            expected="the TensorFlow backend",
            remedy="set KERAS_BACKEND=tensorflow before Keras is imported",
        )


def _check_built(model: Any) -> None:
    check_backend()
    if not model.built:
        raise InputError(
            f"the Keras model {model.name!r} is not built",
            expected="a model that knows its input shape",
            remedy="begin it with keras.Input, or call it once on an example",
        )


def call(
    model: Any, structure: Any, values: Mapping[int, Any], inputs: Sequence[Any], *, training: bool = True
) -> tuple[Any, list[Any]]:
    """Outputs and new non-trainable variables.

    Args:
        model: The model.
        structure: How its inputs are nested.
        values: What to take for each variable, by its id.
        inputs: The inputs.
        training: Whether in train mode.
    """
    keras = require("tensorflow", "keras")
    nested = keras.tree.pack_sequence_as(structure, list(inputs))
    with keras.StatelessScope([(variable, values[id(variable)]) for variable in model.variables]) as scope:
        outputs = keras.tree.flatten(model(nested, training=training))
    return outputs, [scope.get_current_value(variable) for variable in model.non_trainable_variables]


def example_for(model: Any, shape: Sequence[int] | None = None) -> tuple[Array, ...]:
    """An example of two for each input.

    Args:
        model: The model.
        shape: Shape of one input without the batch, where the model leaves it open; the same for each input.

    Raises:
        InputError: There is no shape, and the model leaves a length open.
    """
    keras = require("tensorflow", "keras")
    embeddings = [layer for layer in layers_of(model) if isinstance(layer, keras.layers.Embedding)]
    token = min((layer.input_dim for layer in embeddings), default=1) - 1
    examples, signature = [], signature_of(model)
    for own_shape, dtype in zip(signature.shapes, signature.dtypes, strict=True):
        lengths = own_shape[1:] if shape is None else tuple(shape)
        if None in lengths:
            raise InputError(
                f"the Keras model {model.name!r} takes inputs of shape {list(own_shape)}",
                expected="example_input, or --input-shape, as 28x28x1",
            )
        examples.append(np.full((2, *(length or 0 for length in lengths)), token, dtype))
    return tuple(examples)


def reference(model: Any, inputs: Sequence[Array], loss: str, draw_target: DrawTarget) -> Reference:
    """What Keras computes for a batch in train mode and at inference, with dropout and noise off; the model stays as it was.

    Args:
        model: The model.
        inputs: An array for each input.
        loss: `cross-entropy` or `mse`.
        draw_target: Makes the target for an output.
    """
    tf = require("tensorflow")
    names = {id(variable): name for name, variable in variables(model).items()}
    values = {id(variable): tf.identity(variable.value) for variable in model.variables}
    trained = [values[id(variable)] for variable in model.trainable_variables]
    structure, tensors = signature_of(model, inputs).structure, [tf.constant(array) for array in inputs]
    with tf.GradientTape() as tape, without_randomness():
        tape.watch(trained)
        outputs, state = call(model, structure, values, tensors)
        target = draw_target(outputs[0].numpy())
        scalar = TENSORFLOW_LOSSES[loss](tf, outputs[0], target)
    gradients = tape.gradient(scalar, trained)
    with without_randomness():
        inference, _ = call(model, structure, values, tensors, training=False)
    return Reference(
        outputs=[output.numpy() for output in outputs],
        target=target,
        gradients={
            names[id(variable)]: tf.convert_to_tensor(gradient).numpy()
            for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
            if gradient is not None
        },
        state={
            names[id(variable)]: new.numpy()
            for variable, new in zip(model.non_trainable_variables, state, strict=True)
        },
        inference=[output.numpy() for output in inference],
    )


TENSORFLOW_LOSSES: Mapping[str, Callable[[Any, Any, Array], Any]] = {
    "cross-entropy": lambda tf, output, target: tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(target, output)
    ),
    "mse": lambda tf, output, target: tf.reduce_mean(tf.square(output - target)),
}
"""The losses of the parity check, from TensorFlow, an output and a target."""
