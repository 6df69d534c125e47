"""Gradients of loss nodes."""

from __future__ import annotations

from collections.abc import Sequence

from ..builder import Tensor
from .engine import Adjoint
from .normalization import per_channel

Gradients = Sequence["Tensor | None"]


def softmax_cross_entropy(g: Adjoint) -> Gradients:
    """y = mean over the examples of -ln softmax(x)[label], classes on axis 1: dx = (softmax(x) - onehot(label)) / n."""
    x, labels = g.x, g.input(1)
    if g.optional(2) is not None or "ignore_index" in g.node.attributes:
        raise g.unsupported("class weights and ignore_index")
    classes = g.builder.arange(x.length(1)).cast_like(labels)
    hit = labels.unsqueeze(1).equals(per_channel(classes, g.rank())).cast_like(x)
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
