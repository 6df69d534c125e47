"""Trained weights go home: into the module or Keras model that a TrainableModel came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..graph.errors import InputError, some
from .frameworks import framework_of, require
from .keras_call import variables
from .parity import Array

if TYPE_CHECKING:
    import torch

__all__ = ["to_keras", "to_pytorch", "to_source"]


def to_source(weights: Mapping[str, Array], model: Any) -> None:
    """Fill a `torch.nn.Module` or a `keras.Model`, all of `weights` or, on an error, none.

    Raises:
        InputError: The model is neither, or lacks one of the weights, or has it in another shape.
    """
    fill = {"pytorch": to_pytorch, "keras": to_keras}.get(framework_of(model))
    if fill is None:
        raise InputError(
            f"a {type(model).__name__} takes no weights", expected="a torch.nn.Module or keras.Model"
        )
    fill(weights, model)


def to_pytorch(weights: Mapping[str, Array], module: torch.nn.Module) -> None:
    """Fill parameters and running statistics of a module, all of `weights` or, on an error, none.

    Weights that layers share are filled under any of their names. What `weights` does not name stays as it is: parameters that
    the forward does not use, and BatchNorm's `num_batches_tracked`, which only `momentum=None` reads.

    Args:
        weights: An array for each name of the module's state_dict.
        module: The module, of the same architecture.

    Raises:
        InputError: The module has no such parameter or buffer, or one of another shape.
    """
    framework = require("torch")
    targets = dict(
        [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    )
    _check(weights, targets, type(module).__name__)
    with framework.no_grad():
        for name, array in weights.items():
            targets[name].copy_(framework.tensor(array))


def to_keras(weights: Mapping[str, Array], model: Any) -> None:
    """Fill the variables of a Keras model, all of `weights` or, on an error, none; the others stay as they are.

    Args:
        weights: An array for each name, as `gradfuse.converters.from_keras` gives them: `dense/kernel`.
        model: The model, of the same architecture, and with the same layer names.

    Raises:
        InputError: The model has no such variable, or one of another shape.
    """
    targets = variables(model)
    _check(weights, targets, f"the Keras model {model.name!r}")
    for name, array in weights.items():
        targets[name].assign(array)


def _check(weights: Mapping[str, Array], targets: Mapping[str, Any], owner: str) -> None:
    for name, array in weights.items():
        if name not in targets:
            raise InputError(f"{owner} has no weight {name!r}", expected=f"one of {some(targets)}")
        if tuple(targets[name].shape) != array.shape:
            raise InputError(
                f"the weight {name!r} has shape {list(array.shape)}",
                expected=f"shape {list(targets[name].shape)}, as {owner} has it",
                remedy="build the model as it was when it was converted",
            )
