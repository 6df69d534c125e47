"""Operators that torch's ONNX exporter lacks, or translates into something else than PyTorch computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .torch_recurrent import recurrent_decompositions, recurrent_translations

__all__ = ["decompositions", "translations"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operators to take apart before the exporter sees them, and of what they are made.

    Of cross_entropy the exporter (seen in torch 2.13) drops the label smoothing, takes probabilities for labels, and gives a
    loss without reduction the shape of a scalar. An extremum along one axis hands its whole gradient to one element, where the
    exporter's ReduceMax shares it among those that tie. The others it does not know, or not with these arguments.
    """
    import torch

    aten = torch.ops.aten
    return {
        aten.cross_entropy_loss.default: _cross_entropy,
        aten.max.dim: _first_maximum,
        aten.min.dim: _first_minimum,
        aten.cummax.default: lambda x, axis: _cumulative(x, axis, 1.0),
        aten.cummin.default: lambda x, axis: _cumulative(x, axis, -1.0),
        aten.median.dim: lambda x, axis, keepdim=False: _kth(x, (x.shape[axis] + 1) // 2, axis, keepdim),
        aten.kthvalue.default: _kth,
        aten.std.correction: _standard_deviation,
        aten.std.dim: lambda x, axes, unbiased=True, keepdim=False: _standard_deviation(
            x, axes, correction=int(unbiased), keepdim=keepdim
        ),
        aten.clamp.Tensor: _clamp,
        aten.hypot.default: lambda x, y: (x.square() + y.square()).sqrt(),
        aten.cdist.default: _distances,
        aten.rrelu.default: _rrelu,
        aten.scaled_dot_product_attention.default: _attention,
        aten.adaptive_max_pool1d.default: _adaptive_max_pool,
        aten.adaptive_max_pool2d.default: _adaptive_max_pool,
        aten.adaptive_max_pool3d.default: _adaptive_max_pool,
        **recurrent_decompositions(),
    }


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


def _first_maximum(x: Any, axis: int, keepdim: bool = False) -> Any:
    return _taken(x, x.argmax(axis, keepdim=True), axis, keepdim)


def _first_minimum(x: Any, axis: int, keepdim: bool = False) -> Any:
    return _taken(x, x.argmin(axis, keepdim=True), axis, keepdim)


def _taken(x: Any, places: Any, axis: int, keepdim: bool) -> Any:
    """The elements at `places`, and `places`."""
    values = x.gather(axis, places)
    return (values, places) if keepdim else (values.squeeze(axis), places.squeeze(axis))


def _kth(x: Any, k: int, axis: int = -1, keepdim: bool = False) -> Any:
    """The element that is at place k, counted from 1, when the axis is sorted."""
    values, places = x.sort(axis)
    values, places = values.narrow(axis, k - 1, 1), places.narrow(axis, k - 1, 1)
    return (values, places) if keepdim else (values.squeeze(axis), places.squeeze(axis))


def _cumulative(x: Any, axis: int, sign: float) -> Any:
    """The largest element so far, the last one where several tie: the maximum of each row of a triangle."""
    import torch

    last = x.movedim(axis, -1)
    length = last.shape[-1]
    triangle = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    so_far = (last * sign).unsqueeze(-2).masked_fill(~triangle, -torch.inf)
    places = length - 1 - so_far.flip(-1).argmax(-1)
    return last.gather(-1, places).movedim(-1, axis), places.movedim(-1, axis)


def _standard_deviation(
    x: Any, axes: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Any:
    """The root of the variance; where that is 0, the gradient is 0 and not infinite."""
    variance = x.var(axes, correction=1 if correction is None else correction, keepdim=keepdim)
    constant = variance == 0
    return variance.masked_fill(constant, 1.0).sqrt().masked_fill(constant, 0.0)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """At a bound the gradient goes to x alone; the exporter's Min and Max share it between the two."""
    if low is not None:
        x = low.where(x < low, x)
    return x if high is None else high.where(x > high, x)


def _distances(x: Any, y: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
    """Between each row of x [..., N, D] and each row of y [..., M, D]."""
    import torch

    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def _rrelu(x: Any, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, *_: Any) -> Any:
    import torch

    return NotImplemented if training else torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


def _attention(q: Any, k: Any, v: Any, mask: Any = None, *others: Any, **options: Any) -> Any:
    """Without an axis of heads, the attention of one head."""
    import torch

    if q.dim() != 3:
        return NotImplemented
    if mask is not None and mask.dim() == 3:
        mask = mask.unsqueeze(1)
    q, k, v = (tensor.unsqueeze(1) for tensor in (q, k, v))
    return torch.ops.aten.scaled_dot_product_attention.default(q, k, v, mask, *others, **options).squeeze(1)


def _adaptive_max_pool(x: Any, lengths: list[int]) -> Any:
    """Windows of unequal lengths, one axis after the other, the last one first: then the first of several that tie wins."""
    import torch

    old = x.shape[-len(lengths) :]
    if list(lengths) == [1]:
        return x.max(-1, keepdim=True)
    if all(before % after == 0 for before, after in zip(old, lengths, strict=True)):
        return NotImplemented
    places = torch.arange(math.prod(old), device=x.device).reshape(old).expand(x.shape)
    for axis in range(-1, -len(lengths) - 1, -1):
        x, places = _pooled(x, places, axis, lengths[axis])
    return x, places


def _pooled(x: Any, places: Any, axis: int, length: int) -> tuple[Any, Any]:
    """The largest element of each of `length` windows along an axis, and where these stood before any pooling."""
    import torch

    old = x.shape[axis]
    bounds = [(i * old // length, -(-(i + 1) * old // length)) for i in range(length)]
    windows = [[tensor.narrow(axis, start, end - start) for tensor in (x, places)] for start, end in bounds]
    found = [window.argmax(axis, keepdim=True) for window, _ in windows]
    pooled = [
        [tensor.gather(axis, best) for tensor in window] for window, best in zip(windows, found, strict=True)
    ]
    values, chosen = (torch.cat(parts, axis) for parts in zip(*pooled, strict=True))
    return values, chosen


def translations() -> dict[Any, Callable[..., Any]]:
    """Operators with a translation of our own: the exporter's log(sigmoid(x)) is -inf where x is far below 0."""
    import torch
    from onnxscript import opset18 as op

    def log_sigmoid(x: Any) -> Any:
        return op.Neg(op.Softplus(op.Neg(x)))

    def product(x: Any, axes: Any, output_dtype: int = -1) -> Any:
        return op.ReduceProd(x, axes, keepdims=0)

    return {
        torch.ops.aten.log_sigmoid.default: log_sigmoid,
        torch.ops.prims.prod.default: product,
        **recurrent_translations(),
    }
