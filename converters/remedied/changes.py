"""What the remedies in a graph change in its source, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from ...graph.errors import ConversionError
from ...graph.model import TrainableModel
from ...graph.remedies import INSERTED, SWAPPED
from ...graph.source import source_layer

__all__ = ["Change", "changes_of", "homeless"]


@dataclass
class Change:
    """What becomes of one layer.

    Attributes:
        activation: The new activation and its number, as `leaky_relu:0.01`; empty where it stays.
        slope: Name of a PReLU's slope.
        where: Of a batch normalisation: `before` or `after` the activation; empty where there is none.
        norm: Names of its scale, bias, mean and variance.
        rank: Number of axes of the activation.
    """

    activation: str = ""
    slope: str = ""
    where: str = ""
    norm: list[str] = field(default_factory=list)
    rank: int = 2


def changes_of(model: TrainableModel) -> dict[str, Change]:
    """The changes by source layer.

    Raises:
        ConversionError: A layer has two of a kind.
    """
    changes: dict[str, Change] = {}
    for node in model.onnx.graph:
        change = Change() if (layer := source_layer(node)) not in changes else changes[layer]
        if SWAPPED in node.metadata_props:
            if change.activation:
                raise homeless(layer, "has more than one swapped activation")
            change.activation = node.metadata_props[SWAPPED]
            change.slope = (_name(node, 1)) if node.op_type == "PRelu" else ""
            change.rank = len(node.outputs[0].shape or ()) or 2
        if INSERTED in node.metadata_props and node.op_type == "BatchNormalization":
            change.where = node.metadata_props[INSERTED]
            change.norm = [_name(node, index) for index in range(1, 5)]
            change.rank = len(node.outputs[0].shape or ()) or 2
        if change != Change():
            changes[layer] = change
    return changes


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None else value.name or ""


def homeless(layer: str, why: str) -> ConversionError:
    """The error for a remedy that no layer of the source can take."""
    return ConversionError(
        f"layer {layer!r} {why}",
        expected="one module of its own for each activation",
        remedy="take the trained ONNX model, or write the remedy into the source model and train that",
    )
