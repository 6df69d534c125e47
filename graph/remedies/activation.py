"""Another activation in the place of one.

    relu -> leaky_relu:0.01    Relu(x) -> LeakyRelu(x)
    relu -> prelu:0.25         Relu(x) -> PRelu(x, slope), one trained slope for each activation

An activation phi multiplies the squared gradient by E[phi'(z)^2], z ~ N(0, 1), and a layer of weights of variance s / inputs by
s. Matching the gain scales the weights before a swapped activation by sqrt(E[old'^2] / E[new'^2]), so that the product stays:
from He's sqrt(2) for ReLU to sqrt(2 / (1 + a^2)) for a LeakyReLU (He et al. 2015). Weights under a normalisation stay as they
are: it takes their scale away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..errors import InputError
from ..model import TrainableModel
from .places import Array, add_initializer, chosen, layer_of, moved_from, stands_alone

__all__ = ["ACTIVATIONS", "SWAPPED", "Activation", "parse_activation", "swap_activation"]

SWAPPED = "gradfuse.swapped"
"""Metadata key of an activation that took another's place: what it is now, as `leaky_relu:0.01`."""


@dataclass(frozen=True)
class Activation:
    """An elementwise activation that is one ONNX op.

    Attributes:
        op_type: The op.
        derivative: phi'(x), given x and the op's number.
        number: The default of its slope (`leaky_relu`, `prelu`) or alpha (`elu`); None where it has none.
    """

    op_type: str
    derivative: Callable[[Array, float], Array]
    number: float | None = None


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

ACTIVATIONS = {
    "relu": Activation("Relu", lambda x, a: np.where(x > 0, 1.0, 0.0)),
    "leaky_relu": Activation("LeakyRelu", lambda x, a: np.where(x > 0, 1.0, a), 0.01),
    "prelu": Activation("PRelu", lambda x, a: np.where(x > 0, 1.0, a), 0.25),
    "elu": Activation("Elu", lambda x, a: np.where(x > 0, 1.0, a * np.exp(x)), 1.0),
    "selu": Activation("Selu", lambda x, a: _SELU_SCALE * np.where(x > 0, 1.0, _SELU_ALPHA * np.exp(x))),
    "sigmoid": Activation("Sigmoid", lambda x, a: _sigmoid(x) * (1 - _sigmoid(x))),
    "softplus": Activation("Softplus", lambda x, a: _sigmoid(x)),
    "tanh": Activation("Tanh", lambda x, a: 1 - np.tanh(x) ** 2),
}
"""Every activation that can be swapped, by name."""

_PASSED = (
    "Add",
    "Identity",
    "Dropout",
    "MaxPool",
    "AveragePool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
)
"""Ops between a layer's weights and its activation."""

_LINEAR = ("Gemm", "MatMul", "Conv", "ConvTranspose")


def swap_activation(
    model: TrainableModel, old: str, new: str, *, at: Sequence[str] | None = None, match_gain: bool = True
) -> TrainableModel:
    """A copy with one activation in the place of another.

    Args:
        model: The model.
        old: Name of an activation: one of ACTIVATIONS.
        new: Name of another, with its number where it takes one: `leaky_relu:0.2`, `elu:1.0`, `prelu:0.25` (where each
            slope starts).
        at: Patterns for the source layers or the nodes to change; None: all of them.
        match_gain: Scale the weights before it so that the gradient keeps its size.

    Raises:
        InputError: There is no such activation, or the model has none of `old` there.
    """
    (old_kind, _), (kind, number) = parse_activation(old), parse_activation(new)
    result = replace(model, onnx=model.onnx.clone())
    nodes = [node for node in result.onnx.graph if node.op_type == old_kind.op_type and stands_alone(node)]
    factors: dict[ir.Value, float] = {}
    added: list[str] = []
    for node in chosen(nodes, at, old):
        weight = _weight_before(node) if match_gain else None
        if weight is not None:
            chi = _chi(old_kind, _number_of(node, old_kind))
            factors[weight] = float(np.sqrt(chi / _chi(kind, number)))
        added += _become(result, node, kind, number)
        node.metadata_props[SWAPPED] = new if kind.number is None else f"{new.partition(':')[0]}:{number:g}"
    for weight, factor in factors.items():
        _scale(weight, factor)
    return replace(result, parameters=(*_still_used(model, result), *added))


def _still_used(model: TrainableModel, result: TrainableModel) -> list[str]:
    """The parameters of `model` but for the slopes that have gone with their activations."""
    RemoveUnusedNodesPass()(result.onnx)
    before, after = (
        {value.name for node in m.onnx.graph for value in node.inputs if value is not None}
        for m in (model, result)
    )
    return [name for name in model.parameters if name in after or name not in before]


def parse_activation(text: str) -> tuple[Activation, float]:
    """An activation and its number, from a text such as `leaky_relu:0.01`.

    Raises:
        InputError: There is no such activation, or it takes no number.
    """
    name, colon, number = text.partition(":")
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}", expected=f"one of {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[name]
    if not colon:
        return activation, activation.number or 0.0
    try:
        value = float(number)
    except ValueError:
        value = np.nan
    if activation.number is None or not np.isfinite(value):
        expected = f"{name}:NUMBER" if activation.number is not None else f"{name} without a number"
        raise InputError(f"activation {text!r}", expected=expected)
    return activation, value


def _number_of(node: ir.Node, activation: Activation) -> float:
    """The slope or alpha of a node."""
    if activation.number is None:
        return 0.0
    if node.op_type != "PRelu":
        return node.attributes.get_float("alpha", activation.number)
    slope = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    return activation.number if slope is None else float(np.mean(slope.numpy()))


def _chi(activation: Activation, number: float) -> float:
    """E[phi'(z)^2], z ~ N(0, 1): midpoints, none of which is the kink at 0."""
    z = (np.arange(-8000, 8000) + 0.5) / 1000
    return float(
        np.sum(activation.derivative(z, number) ** 2 * np.exp(-(z**2) / 2)) / np.sqrt(2 * np.pi) / 1000
    )


def _weight_before(node: ir.Node) -> ir.Value | None:
    """The weight of the layer before an activation; None where a normalisation lies between them."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type in _LINEAR:
            return moved_from(producer.inputs[1])
        if producer.op_type not in _PASSED:
            return None
        varying = [value for value in producer.inputs if value is not None and moved_from(value) is None]
        value = varying[0] if len(varying) == 1 else None
    return None


def _scale(weight: ir.Value, factor: float) -> None:
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    weight.const_value = ir.tensor((array * factor).astype(array.dtype), name=weight.name)


def _become(model: TrainableModel, node: ir.Node, kind: Activation, number: float) -> list[str]:
    """Change an activation's op in place; returns the names of its new parameters."""
    node.op_type = kind.op_type
    node.attributes.clear()
    node.resize_inputs(1)
    if kind.op_type in ("LeakyRelu", "Elu"):
        node.attributes["alpha"] = ir.AttrFloat32("alpha", number)
    if kind.op_type != "PRelu":
        return []
    x = node.inputs[0]
    assert x is not None
    slope = np.full((1,) * max(len(x.shape or ()) - 1, 1), number, (x.dtype or ir.DataType.FLOAT).numpy())
    name = f"{layer_of(node)}/alpha" if model.framework == "keras" else f"{layer_of(node)}.weight"
    value = add_initializer(model, name, slope)
    node.resize_inputs(2)
    node.replace_input_with(1, value)
    return [value.name or ""]
