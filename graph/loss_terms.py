"""What each loss computes, from the model's output and a target; unless said otherwise the mean over all numbers.

Keyword arguments are the loss's parameters. Where the derivative is a matter of choice, it is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Tensor, where
from .errors import InputError
from .model import STOP_GRADIENT

__all__ = [
    "bce",
    "bce_with_logits",
    "cosine_embedding",
    "cross_entropy",
    "hinge",
    "hinge_embedding",
    "huber",
    "kl",
    "l1",
    "mse",
    "multi_margin",
    "nll",
    "output",
    "smooth_l1",
]

_LARGEST_LOSS = 100.0
_SMALLEST_VARIANCE = 1e-12


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Sequence[float] = (),
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The weighted mean of -ln softmax(x)[label].

    Args:
        logits: x [N, C, ...].
        labels: int64 [N, ...] in 0 .. C-1.
        weight: A weight for each class; empty: 1.
        ignore_index: The label of what does not count.
        label_smoothing: Share of the label that is spread over all classes, in [0, 1].
    """
    exact = _of_labels("SoftmaxCrossEntropyLoss", logits, labels, weight, ignore_index)
    if label_smoothing == 0.0:
        return exact
    scores = -logits.builder.op("LogSoftmax", logits, axis=1)
    weights = _class_weights(logits, weight)
    kept = (~labels.equals(ignore_index)).cast_like(logits)
    if weights is None:
        total, uniform = kept.sum(keepdims=False), scores.mean([1], keepdims=False)
    else:
        counted = logits.builder.op("Gather", weights, where(labels.equals(ignore_index), 0, labels))
        total = (counted * kept).sum(keepdims=False)
        per_class = weights.reshape(-1, *[1] * ((logits.rank or 2) - 2))
        uniform = (scores * per_class).mean([1], keepdims=False)
    smoothed = (uniform * kept).sum(keepdims=False) / total
    return exact * (1.0 - label_smoothing) + smoothed * label_smoothing


def nll(output: Tensor, labels: Tensor, *, weight: Sequence[float] = (), ignore_index: int = -100) -> Tensor:
    """The weighted mean of -x[label]; x [N, C, ...] are logarithms of probabilities, the rest as for cross_entropy."""
    return _of_labels("NegativeLogLikelihoodLoss", output, labels, weight, ignore_index)


def _of_labels(op_type: str, x: Tensor, labels: Tensor, weight: Sequence[float], ignore_index: int) -> Tensor:
    weights = _class_weights(x, weight)
    return x.builder.op(op_type, x, labels, weights, reduction="mean", ignore_index=ignore_index)


def _class_weights(x: Tensor, weight: Sequence[float]) -> Tensor | None:
    classes = None if x.dims is None else x.dims[1]
    if len(weight) and isinstance(classes, int) and len(weight) != classes:
        raise InputError(f"{len(weight)} weights of classes", expected=f"one for each of {classes} classes")
    return x.builder.constant(weight, x.dtype) if len(weight) else None


def multi_margin(output: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """sum over i other than the label of max(0, margin - x[label] + x[i]) / C; x [N, C], labels int64 [N]."""
    builder = output.builder
    label = labels.unsqueeze(1)
    chosen = builder.op("GatherElements", output, label, axis=1)
    other = ~builder.arange(output.length(1)).equals(label)
    beyond = builder.op("Relu", margin - chosen + output) * other.cast_like(output)
    return beyond.mean(keepdims=False)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """(x - t)^2."""
    return (output - target).square().mean(keepdims=False)


def l1(output: Tensor, target: Tensor) -> Tensor:
    """|x - t|."""
    return (output - target).abs().mean(keepdims=False)


def smooth_l1(output: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where d = |x - t| is below beta > 0, else d - beta / 2 (Girshick 2015)."""
    return _huber(output, target, beta, 1.0 / beta)


def huber(output: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """d^2 / 2 where d = |x - t| is below delta > 0, else delta (d - delta / 2) (Huber 1964)."""
    return _huber(output, target, delta, 1.0)


def _huber(output: Tensor, target: Tensor, bound: float, curvature: float) -> Tensor:
    d = (output - target).abs()
    quadratic, linear = d.square() * (0.5 * curvature), (d - 0.5 * bound) * (bound * curvature)
    return where(d < bound, quadratic, linear).mean(keepdims=False)


def bce(output: Tensor, target: Tensor) -> Tensor:
    """-t ln p - (1 - t) ln(1 - p) for probabilities p = x, each logarithm at least -100.

    The gradient is (p - t) / max(p (1 - p), 1e-12), finite where p is 0 or 1, and not that of the bounded logarithms.
    """
    one_minus = 1.0 - output
    value = -(target * _bounded_log(output) + (1.0 - target) * _bounded_log(one_minus))
    slope = (output - target) / output.builder.op(
        "Max", output * one_minus, output.builder.constant(_SMALLEST_VARIANCE, output.dtype)
    )
    return (_stopped(value) + (output - _stopped(output)) * _stopped(slope)).mean(keepdims=False)


def _bounded_log(p: Tensor) -> Tensor:
    return p.builder.op("Max", p.log(), p.builder.constant(-_LARGEST_LOSS, p.dtype))


def _stopped(x: Tensor) -> Tensor:
    """x, through which no gradient flows."""
    stopped = x.builder.op("Identity", x)
    node = stopped.value.producer()
    assert node is not None
    node.metadata_props[STOP_GRADIENT] = "true"
    return stopped


def bce_with_logits(logits: Tensor, target: Tensor, *, pos_weight: float | Sequence[float] = 1.0) -> Tensor:
    """-w t ln sigmoid(x) - (1 - t) ln(1 - sigmoid(x)), written with softplus, which no logit overflows.

    Args:
        logits: x.
        target: t in 0 .. 1, of the same shape.
        pos_weight: w, one number or one for each element of the last axis.
    """
    softplus = logits.builder.op("Softplus", -logits)
    if pos_weight == 1.0:
        return (softplus + (1.0 - target) * logits).mean(keepdims=False)
    factor = 1.0 + target * (logits.builder.constant(pos_weight, logits.dtype) - 1.0)
    return ((1.0 - target) * logits + factor * softplus).mean(keepdims=False)


def kl(output: Tensor, target: Tensor, *, log_target: bool = False) -> Tensor:
    """t (ln t - x), summed, per example; x are logarithms of probabilities, t probabilities (or log_target: theirs)."""
    if log_target:
        terms = target.exp() * (target - output)
    else:
        positive = target > 0.0
        terms = where(positive, target * where(positive, target, 1.0).log(), 0.0) - target * output
    return terms.sum(keepdims=False) / output.count([0])


def hinge(output: Tensor, target: Tensor, *, margin: float = 1.0) -> Tensor:
    """max(0, margin - t x), t in {-1, 1}."""
    return _at_least_0(margin - target * output).mean(keepdims=False)


def hinge_embedding(output: Tensor, target: Tensor, *, margin: float = 1.0) -> Tensor:
    """For distances x: x where t is 1, max(0, margin - x) where t is -1."""
    return where(target.equals(1.0), output, _at_least_0(margin - output)).mean(keepdims=False)


def _at_least_0(x: Tensor) -> Tensor:
    return x.builder.op("Clip", x, x.builder.constant(0.0, x.dtype))


def cosine_embedding(output: Tensor, target: Tensor) -> Tensor:
    """1 - cos(x, t), the mean over the batch; x and t [N, width] shall point the same way."""
    product = (output * target).sum([1], keepdims=False)
    squares = [x.square().sum([1], keepdims=False) + _SMALLEST_VARIANCE for x in (output, target)]
    return (1.0 - product / (squares[0] * squares[1]).sqrt()).mean(keepdims=False)


def output(output: Tensor, target: Tensor) -> Tensor:
    """The output itself is the loss."""
    return output.mean(keepdims=False)
