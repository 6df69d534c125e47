"""Gradients of loss nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..builder import Tensor
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def softmax_cross_entropy(g: Adjoint) -> Gradients:
    """y = mean over the examples of -ln softmax(x)[label], classes on axis 1: dx = (softmax(x) - onehot(label)) / n."""
    x, labels, classes = g.x, g.input(1), g.x.length(1)
    if g.optional(2) is not None or "ignore_index" in g.node.attributes:
        raise g.unsupported("class weights and ignore_index")
    if not isinstance(classes, int):
        raise g.unsupported("the number of classes is not static")
    index = g.builder.constant(np.arange(classes).reshape(-1, *[1] * (g.rank() - 2)), ir.DataType.INT64)
    hit = labels.unsqueeze(1).equals(index).cast_like(x)
    probabilities = g.extra_output(1, x.dtype).exp()
    return ((probabilities - hit) * _share(g, labels),)


def _share(g: Adjoint, labels: Tensor) -> Tensor:
    """The gradient of the loss of one example."""
    reduction = g.attribute("reduction", "mean")
    if reduction == "none":
        return g.dy.unsqueeze(1)
    if reduction == "sum":
        return g.dy
    return g.dy / g.builder.op("Size", labels).cast_like(g.dy)
