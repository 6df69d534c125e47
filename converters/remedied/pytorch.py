"""PyTorch: the module of an activation gives way to the new one, or to a Sequential of it and a BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ...graph.remedies import parse_activation
from ..frameworks import require
from ..parity import Array
from ..weights import to_pytorch
from .changes import Change, homeless

__all__ = ["remedied"]


def remedied(source: Any, changes: Mapping[str, Change], weights: Mapping[str, Array]) -> Any:
    """A copy of the module with the changes and the weights."""
    module, names = copy.deepcopy(source), dict[str, str]()
    for layer, change in changes.items():
        old = module.get_submodule(layer)
        if not layer or list(old.children()) or not _is_activation(old):
            raise homeless(layer, "calls its activation as a function")
        new = _activation(change.activation) if change.activation else old
        path = layer
        if change.where:
            new, path = _with_norm(new, change, len(weights[change.norm[0]])), f"{layer}.activation"
            targets = ("weight", "bias", "running_mean", "running_var")
            names |= {name: f"{layer}.bn.{target}" for name, target in zip(change.norm, targets, strict=True)}
        if change.slope:
            names[change.slope] = f"{path}.weight"
        module.set_submodule(layer, new)
    slopes = {change.slope for change in changes.values()}
    to_pytorch(
        {names.get(name, name): a.reshape(-1) if name in slopes else a for name, a in weights.items()}, module
    )
    return module


def _is_activation(module: Any) -> bool:
    nn = require("torch").nn
    return isinstance(module, nn.PReLU) or not list(module.parameters(recurse=False))


def _with_norm(activation: Any, change: Change, channels: int) -> Any:
    nn = require("torch").nn
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(change.rank, nn.BatchNorm1d)
    parts = {"bn": kind(channels), "activation": activation}
    order = ("bn", "activation") if change.where == "before" else ("activation", "bn")
    ordered = nn.Sequential()
    for name in order:
        ordered.add_module(name, parts[name])
    return ordered


def _activation(text: str) -> Any:
    nn = require("torch").nn
    kinds = {
        "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU,
        "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "tanh": nn.Tanh,
    }  # fmt: skip
    activation, number = parse_activation(text)
    name = text.partition(":")[0]
    if name == "prelu":
        return nn.PReLU(init=number)
    return kinds[name]() if activation.number is None else kinds[name](number)
