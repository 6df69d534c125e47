"""Remedies go home: a copy of the framework's model with the activations and normalisations that the graph was trained with."""

from __future__ import annotations

from typing import Any

from ...graph.errors import InputError
from ...graph.model import TrainableModel
from ..frameworks import framework_of
from . import keras, pytorch
from .changes import changes_of

__all__ = ["refuse_remedies", "remedied"]


def refuse_remedies(model: TrainableModel) -> None:
    """Do nothing for a model as its source has it.

    Raises:
        InputError: The model was trained with remedies that its source lacks.
    """
    if changes := changes_of(model):
        layer, change = next(iter(changes.items()))
        what = change.activation or "batch normalisation"
        raise InputError(
            f"the model was trained with {what} in layer {layer!r}, which its source has not",
            remedy="take remedied_source(model): a copy of the source with it",
        )


def remedied(model: TrainableModel, source: Any) -> Any:
    """A copy of `source` with the remedies and the weights of `model`.

    Raises:
        InputError: `source` is no model of the framework that `model` came from, or has other weights.
        ConversionError: A remedy has no layer of its own in `source`.
    """
    build = {"pytorch": pytorch.remedied, "keras": keras.remedied}.get(framework_of(source))
    if build is None:
        raise InputError(
            f"a {type(source).__name__} takes no remedies", expected="a torch.nn.Module or keras.Model"
        )
    initializers = model.onnx.graph.initializers
    weights = {
        name: tensor.numpy()
        for name in (*model.parameters, *model.state)
        if (tensor := initializers[name].const_value) is not None
    }
    return build(source, changes_of(model), weights)
