"""Keras: the model is cloned with the changed layers; an activation that is part of a layer becomes a layer after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ...graph.errors import ConversionError, InputError
from ...graph.remedies import parse_activation
from ..frameworks import require
from ..keras_call import variables
from ..parity import Array
from .changes import Change, homeless

__all__ = ["remedied"]

_Variable: TypeAlias = "tuple[Any, str | int]"
"""A layer, and the name or the number of one of its variables, which exist only once the model is built."""


def remedied(source: Any, changes: Mapping[str, Change], weights: Mapping[str, Array]) -> Any:
    """A clone of the model with the changes and the weights."""
    framework = require("tensorflow", "keras")
    names = {id(variable): name for name, variable in variables(source).items()}
    targets: dict[str, _Variable] = {}

    def clone(layer: Any) -> Any:
        change = changes.get(layer.name)
        parts = [layer.__class__.from_config(layer.get_config())]
        if change is not None:
            parts = _changed(framework.layers, layer, change, targets)
        for index, variable in enumerate(layer.variables):
            if id(variable) in names and not (change and change.activation and _is_activation(layer)):
                targets[names[id(variable)]] = parts[0], index
        return parts[0] if len(parts) == 1 else framework.Sequential(parts, name=layer.name)

    try:
        model = framework.models.clone_model(source, clone_function=clone)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConversionError(
            f"Keras cannot clone the model {source.name!r}: {error}", remedy="take the trained ONNX model"
        ) from error
    known = {layer.name for layer in source.layers}
    if missing := [layer for layer in changes if layer not in known]:
        raise homeless(missing[0], "is no layer of the model itself")
    for name, array in weights.items():
        if name not in targets:
            raise InputError(f"the Keras model {source.name!r} has no weight {name!r}")
        variable = _variable(*targets[name])
        variable.assign(np.reshape(array, variable.shape))
    return model


def _variable(layer: Any, key: str | int) -> Any:
    return getattr(layer, key) if isinstance(key, str) else layer.variables[key]


def _is_activation(layer: Any) -> bool:
    """Whether the layer is nothing but an activation."""
    layers = require("tensorflow", "keras").layers
    return isinstance(layer, layers.Activation | layers.ReLU | layers.LeakyReLU | layers.PReLU | layers.ELU)


def _changed(layers: Any, layer: Any, change: Change, targets: dict[str, _Variable]) -> list[Any]:
    """What takes the place of a layer, in order."""
    config, base = layer.get_config(), []
    if _is_activation(layer):
        old = layer.__class__.from_config(config)
    elif "activation" in config:
        base = [layer.__class__.from_config({**config, "activation": "linear"})]
        old = layers.Activation(config["activation"], name=f"{layer.name}_activation")
    else:
        raise homeless(layer.name, "calls its activation as a function")
    parts = [_activation(layers, change, f"{layer.name}_activation") if change.activation else old]
    if change.slope:
        targets[change.slope] = parts[0], "alpha"
    if change.where:
        norm = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{layer.name}_bn")
        for name, attribute in zip(
            change.norm, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True
        ):
            targets[name] = norm, attribute
        return [*base, norm, *parts] if change.where == "before" else [*base, *parts, norm]
    return [*base, *parts]


def _activation(layers: Any, change: Change, name: str) -> Any:
    kind, _, _ = change.activation.partition(":")
    _, number = parse_activation(change.activation)
    if kind == "prelu":
        # One slope for each activation, as in the graph: it is shared along every axis.
        return layers.PReLU(shared_axes=list(range(1, change.rank)), name=name)
    if kind == "leaky_relu":
        return layers.LeakyReLU(negative_slope=number, name=name)
    return layers.ELU(alpha=number, name=name) if kind == "elu" else layers.Activation(kind, name=name)
