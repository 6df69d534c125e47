"""Gradients of loss nodes, with a weight for each class and a label that does not count.

With a weight w[t] for each example's label t (0 where t is `ignore_index`), and p = softmax(x) for the cross-entropy:

    loss_n = -w[t_n] ln p[n, t_n],    y = sum loss_n / sum w[t_n] (mean), sum loss_n (sum) or loss_n (none)
"""

from __future__ import annotations

from collections.abc import Sequence

from ..builder import Tensor
from .engine import Adjoint
from .normalization import per_channel

Gradients = Sequence["Tensor | None"]


def softmax_cross_entropy(g: Adjoint) -> Gradients:
    """Of logits x with classes on axis 1: d loss_n / dx = w[t_n] (p - onehot(t_n))."""
    log_probabilities = g.extra_output(1, g.x.dtype)
    hit, counts = _hits(g)
    share, dweight = _shares(g, hit, counts, log_probabilities)
    return (log_probabilities.exp() * counts - hit) * share, None, dweight


def negative_log_likelihood(g: Adjoint) -> Gradients:
    """Of log-probabilities x with classes on axis 1: d loss_n / dx = -w[t_n] onehot(t_n)."""
    hit, counts = _hits(g)
    share, dweight = _shares(g, hit, counts, g.x)
    return -hit * share, None, dweight


def _hits(g: Adjoint) -> tuple[Tensor, Tensor]:
    """onehot(t) [N, C, ...] with zeros for an ignored label, and what it sums to over the classes."""
    x, labels = g.x, g.input(1)
    classes = g.builder.arange(x.length(1)).cast_like(labels)
    hit = labels.unsqueeze(1).equals(per_channel(classes, g.rank()))
    ignored = g.attribute("ignore_index", None)
    if ignored is None:
        return hit.cast_like(x), g.builder.constant(1.0, x.dtype)
    kept = ~labels.equals(ignored).unsqueeze(1)
    return (hit & kept).cast_like(x), kept.cast_like(x)


def _shares(
    g: Adjoint, hit: Tensor, counts: Tensor, log_probabilities: Tensor
) -> tuple[Tensor, Tensor | None]:
    """w[t_n] times the gradient that loss_n / w[t_n] receives, and the gradient of w."""
    weight, reduction = g.optional(2), g.attribute("reduction", "mean")
    of_label = None if weight is None else (hit * per_channel(weight, g.rank())).sum([1])
    received = g.dy.unsqueeze(1) if reduction == "none" else g.dy
    if reduction == "mean":
        received = received / _total(g, counts if of_label is None else of_label)
    if of_label is None:
        return received, None
    loss = -log_probabilities - g.y if reduction == "mean" else -log_probabilities
    others = [axis for axis in range(g.rank()) if axis != 1]
    return received * of_label, (hit * received * loss).sum(others, keepdims=False)


def _total(g: Adjoint, weights: Tensor) -> Tensor:
    """The sum of the weights of all examples, each of which is 1 where there are none; 1 where every label is ignored."""
    if "ignore_index" in g.node.attributes or g.optional(2) is not None:
        total = weights.sum(keepdims=False)
        return total + total.equals(0.0).cast_like(total)
    return g.input(1).count().cast_like(g.dy)
