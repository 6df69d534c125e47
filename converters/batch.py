"""A file that was exported for one batch size becomes one for any, where that is safe.

    before                             after
    input [1, 3, 224, 224]             [batch, 3, 224, 224]
    Reshape(x, [1, 512]), or [1, -1]   Reshape(x, [0, 512]) where the batch leads x, else Reshape(x, [-1, 512])

It counts as safe only if shape inference then finds any batch again on the first axis of every output. The comparison with
the file proves it: a batch must give what its examples give one by one.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.lowering import infer_shapes

__all__ = ["fixed_batch", "with_any_batch"]

_BATCH = "batch"

_TRIED = (3, 5)


def fixed_batch(model: ir.Model) -> int | None:
    """The batch size that all of the inputs prescribe; None where they leave it open, or prescribe different ones."""
    lengths = {None if value.shape is None or not value.shape else value.shape[0] for value in _inputs(model)}
    (length,) = lengths if len(lengths) == 1 else (None,)
    return length if isinstance(length, int) else None


def with_any_batch(model: ir.Model) -> ir.Model | None:
    """The model for any batch size; None where it cannot be had for certain."""
    clone = model.clone()
    infer_shapes(clone)
    varying = _varying(clone)
    builder = Builder(clone.graph)
    for node in list(clone.graph):
        if node.op_type == "Reshape" and node.domain == "" and node.inputs[0] in varying:
            _free_reshape(node, builder)
    for value in varying.difference(_inputs(clone)):
        value.shape = None
    if not all(_leads_everywhere(clone, batch) for batch in _TRIED):
        return None
    _set_batch(clone, _BATCH)
    infer_shapes(clone)
    for value in clone.graph.outputs:
        value.shape = None if value.shape is None else ir.Shape([_BATCH, *list(value.shape)[1:]])
    return clone


def _varying(model: ir.Model) -> set[ir.Value]:
    """The values that depend on the inputs."""
    varying = set(_inputs(model))
    for node in model.graph:
        if varying.intersection(node.inputs):
            varying |= set(node.outputs)
    return varying


def _leads_everywhere(model: ir.Model, batch: int) -> bool:
    """Whether every output has the batch on its first axis."""
    tried = model.clone()
    _set_batch(tried, batch)
    infer_shapes(tried)
    shapes = [value.shape for value in tried.graph.outputs]
    return all(shape is not None and len(shape) > 0 and shape[0] == batch for shape in shapes)


def _set_batch(model: ir.Model, batch: int | str) -> None:
    for value in _inputs(model):
        assert value.shape is not None  # fixed_batch has read it
        value.shape = ir.Shape([batch, *list(value.shape)[1:]])


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _free_reshape(node: ir.Node, builder: Builder) -> None:
    """Leave the first length of the new shape, if it is known, to the data."""
    x, shape = node.inputs[0], node.outputs[0].shape
    lengths = [] if shape is None else [length for length in shape if isinstance(length, int)]
    if x is None or shape is None or not lengths or len(lengths) < len(shape):
        return
    leads = x.shape is not None and len(x.shape) > 0 and x.shape[0] == lengths[0]
    node.replace_input_with(1, builder.ints(0 if leads else -1, *lengths[1:]).value)
    node.attributes.pop("allowzero", None)
