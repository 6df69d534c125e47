"""Batch normalisation beside the activations.

    before    phi(x) -> phi(BatchNormalization(x))
    after     phi(x) -> BatchNormalization(phi(x))

It is inserted in its inference form with mean 0 and variance 1, and trains as every other (see `training_form`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..builder import Builder
from ..errors import InputError, UnsupportedError
from ..lowering import infer_shapes
from ..model import UNBIASED_VARIANCE, TrainableModel
from ..source import LAYER, describe_node
from .activation import ACTIVATIONS
from .places import add_initializer, chosen, layer_of, moved_from, stands_alone

__all__ = ["INSERTED", "insert_batch_norm"]

INSERTED = "gradfuse.inserted"
"""Metadata key of a BatchNormalization that was inserted: `before` or `after` the activation of its layer."""

_EPSILON, _MOMENTUM = 1e-5, 0.9

_CHANNELS_FIRST = (
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "MaxPool",
    "AveragePool",
    "Gemm",
)

_NAMES = {"keras": "_bn/gamma _bn/beta _bn/moving_mean _bn/moving_variance"}
_PYTORCH_NAMES = ".bn.weight .bn.bias .bn.running_mean .bn.running_var"


def insert_batch_norm(
    model: TrainableModel, where: str = "before", *, at: Sequence[str] | None = None
) -> TrainableModel:
    """A copy with batch normalisation over the channels before or after each activation of ACTIVATIONS.

    Scale 1, bias 0, eps 1e-5; the running statistics keep 0.9 of themselves in each step. Scale and bias are trained.

    Args:
        model: The model.
        where: `before` or `after` the activation.
        at: Patterns for the source layers or the nodes of the activations; None: all of them.

    Raises:
        InputError: `where` is neither, or there is no activation there.
        UnsupportedError: The graph does not tell which axis of an activation has the channels, or how many there are.
    """
    if where not in ("before", "after"):
        raise InputError(f"batch-norm {where!r} the activation", expected="before or after")
    result = replace(model, onnx=model.onnx.clone())
    graph = result.onnx.graph
    infer_shapes(result.onnx)
    kinds = {activation.op_type for activation in ACTIVATIONS.values()}
    nodes = chosen([node for node in graph if node.op_type in kinds and stands_alone(node)], at, "activation")
    added = [name for node in nodes for name in _normalise(result, node, where)]
    graph.sort()
    return replace(result, parameters=(*model.parameters, *added))


def _normalise(model: TrainableModel, node: ir.Node, where: str) -> list[str]:
    """Insert one BatchNormalization; returns the names of its scale and bias."""
    value = node.inputs[0] if where == "before" else node.outputs[0]
    assert value is not None
    axis, count = _channels(node)
    users = [(node, 0)] if where == "before" else list(value.uses())
    names = _NAMES.get(model.framework, _PYTORCH_NAMES).split()
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    tensors = [
        add_initializer(model, f"{layer_of(node)}{name}", np.full(count, start, dtype))
        for name, start in zip(names, (1.0, 0.0, 0.0, 1.0), strict=True)
    ]
    result = _append(model, node, value, tensors, axis, where)
    for user, index in users:
        user.replace_input_with(index, result)
    if where == "after":
        outputs = model.onnx.graph.outputs
        outputs[:] = [result if output is value else output for output in outputs]
    return [tensor.name or "" for tensor in tensors[:2]]


def _append(
    model: TrainableModel, node: ir.Node, value: ir.Value, tensors: Sequence[ir.Value], axis: int, where: str
) -> ir.Value:
    """The nodes; the channels are moved to axis 1 and back where they are elsewhere."""
    builder = Builder(model.onnx.graph)
    facts = {LAYER: layer_of(node), INSERTED: where}
    if model.framework == "pytorch":
        facts[UNBIASED_VARIANCE] = "true"
    rank = len(value.shape or ())
    perm = [0, axis, *(other for other in range(1, rank) if other != axis)]
    with builder.scope(f"{node.name}/batch_norm", facts):
        x = builder.tensor(value).transpose(*perm)
        operands = [builder.tensor(tensor) for tensor in tensors]
        normal = builder.op("BatchNormalization", x, *operands, epsilon=_EPSILON, momentum=_MOMENTUM)
        result = normal.transpose(*(perm.index(place) for place in range(rank)))
    result.value.shape = value.shape
    return result.value


def _channels(node: ir.Node) -> tuple[int, int]:
    """The axis of the channels of an activation, and how many there are."""
    value = node.inputs[0]
    axis = None if value is None else _channel_axis(value)
    length = None if axis is None or value is None or value.shape is None else value.shape[axis]
    if axis is None or not isinstance(length, int):
        raise UnsupportedError(
            f"{describe_node(node)}: the graph does not tell its channels",
            expected="an activation after a dense or convolutional layer",
            remedy="choose other activations with a pattern",
        )
    return axis, length


def _channel_axis(value: ir.Value) -> int | None:
    """The axis along which the layer before a value has its output units."""
    node, rank = value.producer(), len(value.shape or ())
    if node is None or rank < 2:
        return None
    if node.op_type in _CHANNELS_FIRST:
        return 1
    if node.op_type == "MatMul":
        return rank - 1
    varying = [source for source in node.inputs if source is not None and moved_from(source) is None]
    if not varying or len(varying[0].shape or ()) != rank:
        return None
    before = _channel_axis(varying[0])
    if node.op_type == "Transpose" and before is not None:
        return list(node.attributes.get_ints("perm", tuple(range(rank))[::-1])).index(before)
    return before
