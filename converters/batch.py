"""A file that was exported for one batch size becomes one for any, where that is safe.

    before                             after
    input [1, 3, 224, 224]             [batch, 3, 224, 224]
    Reshape(x, [1, 512]), or [1, -1]   Reshape(x, [-1, 512])

It counts as safe only where shape inference then finds `batch` on the first axis of every output; the comparison with the
file proves it: a batch must give what its examples give one by one.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.lowering import infer_shapes

__all__ = ["fixed_batch", "with_any_batch"]

_BATCH = "batch"


def fixed_batch(model: ir.Model) -> int | None:
    """The batch size that all of the inputs prescribe; None where they leave it open, or prescribe different ones."""
    lengths = {None if value.shape is None or not value.shape else value.shape[0] for value in _inputs(model)}
    (length,) = lengths if len(lengths) == 1 else (None,)
    return length if isinstance(length, int) else None


def with_any_batch(model: ir.Model) -> ir.Model | None:
    """The model for any batch size; None where it cannot be had for certain."""
    clone = model.clone()
    infer_shapes(clone)
    varying = set(_inputs(clone))
    builder = Builder(clone.graph)
    for node in list(clone.graph):
        if varying.intersection(node.inputs):
            varying |= set(node.outputs)
            if node.op_type == "Reshape" and node.domain == "":
                _free_reshape(node, builder)
    for value in _inputs(clone):
        assert value.shape is not None  # fixed_batch has read it
        value.shape = ir.Shape([_BATCH, *list(value.shape)[1:]])
    for value in varying.difference(_inputs(clone)):
        value.shape = None
    infer_shapes(clone)
    firsts = [
        None if value.shape is None or not value.shape else value.shape[0] for value in clone.graph.outputs
    ]
    return clone if all(isinstance(dim, ir.SymbolicDim) and dim.value == _BATCH for dim in firsts) else None


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _free_reshape(node: ir.Node, builder: Builder) -> None:
    """Leave the first length of the new shape, if that is constant, to the data."""
    shape = node.outputs[0].shape
    lengths = [] if shape is None else [length for length in shape if isinstance(length, int)]
    if shape is not None and lengths and len(lengths) == len(shape):
        node.replace_input_with(1, builder.ints(-1, *lengths[1:]).value)
