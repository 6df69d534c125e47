"""Operators that torch's ONNX exporter translates into something else than PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["decompositions", "translations"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operators to take apart before the exporter sees them.

    Of cross_entropy the exporter (seen in torch 2.13) drops the label smoothing, takes probabilities for labels, and gives a
    loss without reduction the shape of a scalar.
    """
    import torch

    return {torch.ops.aten.cross_entropy_loss.default: _cross_entropy}


def _cross_entropy(
    x: Any,
    target: Any,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
    smoothing: float = 0.0,
) -> Any:
    if not smoothing and not target.is_floating_point() and reduction != 0:
        return NotImplemented  # the exporter's own translation is right
    classes = min(x.dim() - 1, 1)
    scores = -x.log_softmax(classes)
    if weight is None:
        weight = x.new_ones(x.shape[classes])
    weighted = scores * weight.reshape(-1, *[1] * (x.dim() - classes - 1))
    if target.is_floating_point():
        target = target * (1.0 - smoothing) + smoothing / x.shape[classes]
        losses = (weighted * target).sum(classes)
        return (losses, losses.mean(), losses.sum())[reduction]
    kept = target != ignore_index
    labels = target.where(kept, 0)
    losses = weighted.gather(classes, labels.unsqueeze(classes)).squeeze(classes) * kept
    uniform = weighted.sum(classes) * kept * (smoothing / x.shape[classes])
    losses = losses * (1.0 - smoothing) + uniform
    return (losses, losses.sum() / (weight[labels] * kept).sum(), losses.sum())[reduction]


def translations() -> dict[Any, Callable[..., Any]]:
    """Operators with a translation of our own: the exporter's log(sigmoid(x)) is -inf where x is far below 0."""
    import torch
    from onnxscript import opset18 as op

    def log_sigmoid(x: Any) -> Any:
        return op.Neg(op.Softplus(op.Neg(x)))

    return {torch.ops.aten.log_sigmoid.default: log_sigmoid}
