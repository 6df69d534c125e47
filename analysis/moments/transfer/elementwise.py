"""Elementwise ops, broadcasting included: one curve where every operand is a function of one latent, else independent operands.

Of independent operands, sums and products have exact moments. The correlation that the sum's latent has with its gradient falls
to each branch by its share of the standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .. import norm_spread
from ..curves import Seed, curve_moments, through
from ..elementwise_op import evaluate_node, partial_derivatives
from ..quadrature import Array
from ..site import Contribution, Operand, Site
from ..state import Curve, GradientMoments, Moments, ParameterGradient, lag0
from ..tokens import as_rows, of_hadamard, of_sum, sum_variance

__all__ = [
    "INDEPENDENT",
    "OPS",
    "backward",
    "forward",
    "independent_backward",
    "independent_forward",
    "sum_to",
]

OPS = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Sum",
        "Mean",
        "Max",
        "Min",
        "Where",
        "Clip",
        "PRelu",
        "Neg",
        "Abs",
        "Sqrt",
        "Exp",
        "Log",
        "Reciprocal",
        "Erf",
        "Sin",
        "Cos",
        "Identity",
        "Cast",
        "Sign",
        "Floor",
        "Ceil",
        "Round",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Sigmoid",
        "HardSigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Equal",
        "Not",
        "And",
        "Or",
    ]
)
"""Ops that treat every element alike."""

INDEPENDENT = frozenset({"Add", "Sub", "Sum", "Mul"})
"""Those whose moments are exact for independent operands."""


def forward(site: Site, latent: Moments) -> list[Moments]:
    """Every operand that depends on the example is a function of `latent`."""
    values = evaluate_node(site.node, [_at_nodes(operand) for operand in site.operands])[0]
    curve = site.moments(site.varying[0]).curve
    assert curve is not None
    return [curve_moments(Curve(curve.latent, values, curve.rho), latent)]


def backward(
    site: Site, seeds: Sequence[Seed], latent: Moments
) -> list[list[Seed] | ParameterGradient | None]:
    """For each operand the seeds it receives, or the gradient of a shared one."""
    partials = partial_derivatives(site.node, [_at_nodes(operand) for operand in site.operands])
    received: list[list[Seed] | ParameterGradient | None] = []
    for operand, partial in zip(site.operands, partials, strict=True):
        if operand is None or partial is None:
            received.append(None)
            continue
        with np.errstate(all="ignore"):
            passed = [replace(seed, slope=seed.slope * partial) for seed in seeds]
        if isinstance(operand, Moments):
            received.append(passed)
        elif operand.dtype.kind == "f":
            arrived = [through(seed, latent) for seed in passed]
            received.append(_shared(sum(arrived[1:], arrived[0]), operand.shape))
        else:
            received.append(None)
    return received


def independent_forward(site: Site) -> list[Moments]:
    """Sums and products of operands of different latents."""
    operands = [_as_moments(operand) for operand in site.operands]
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    if site.node.op_type == "Mul":
        a, b = operands
        mean, second = a.mean * b.mean, a.second * b.second
        variance = np.maximum(second - mean**2, 0.0)
        tokens = of_hadamard([(o.tokens, o.mean, o.variance) for o in (a, b)], variance)
        covariance = None if tokens is not None else _product_covariance(a, b, variance)
        return [Moments(mean, variance, covariance, tokens=tokens)]
    signs = [1.0, -1.0] if site.node.op_type == "Sub" else [1.0] * len(operands)
    mean, variance = np.zeros(shape), np.zeros(shape)
    for sign, operand in zip(signs, operands, strict=True):
        mean, variance = mean + sign * operand.mean, variance + operand.variance
    same = all(operand.shape == shape for operand in operands)
    if any(operand.tokens is not None for operand in operands):
        parts = [
            (o.tokens if o.shape == shape else None, np.broadcast_to(o.variance, shape)) for o in operands
        ]
        return [_with_norm(Moments(mean, variance, tokens=of_sum(parts, variance)), operands)]
    if not same or all(operand.covariance is None for operand in operands):
        return [_with_norm(Moments(mean, variance), operands)]
    covariances = [operand.known_covariance for operand in operands]
    return [_with_norm(Moments(mean, variance, sum(covariances[1:], covariances[0])), operands)]


def _product_covariance(a: Moments | GradientMoments, b: Moments, variance: Array) -> Array | None:
    """Autocovariance of a product of independent tensors with positions: (K_a + a a)(K_b + b b) - a a b b, a a a mean square.

    What is broadcast along positions, as a gate of whole channels, is the same at all of them.
    """
    if variance.ndim < 2 or any(x.mean.ndim != variance.ndim or len(x.mean) != len(variance) for x in (a, b)):
        return None
    axes = tuple(range(1, variance.ndim))
    squares = [np.mean(x.mean**2, axes, keepdims=True) for x in (a, b)]
    raw = [x.known_covariance + square for x, square in zip((a, b), squares, strict=True)]
    covariance = np.array(np.broadcast_to(raw[0] * raw[1] - squares[0] * squares[1], variance.shape))
    covariance[lag0(variance.ndim)] = variance.mean(axes)
    return covariance


def _with_norm(total: Moments, operands: Sequence[Moments]) -> Moments:
    return replace(total, norm_spread=norm_spread.of_sum(operands, total))


def independent_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """Each operand receives the gradient times the other operands' mean or square."""
    dy = gradients[0]
    assert dy is not None
    received: list[Contribution] = []
    for index, operand in enumerate(site.operands):
        if operand is None:
            received.append(None)
            continue
        if site.node.op_type == "Mul":
            other = _as_moments(site.operands[1 - index])
            mean, second = dy.mean * other.mean, dy.second * other.second
            variance = np.maximum(second - mean**2, 0.0)
            parts = [(o.tokens, o.mean, o.variance) for o in (dy, other)]
            tokens = of_hadamard(parts, variance)
            covariance = None if tokens is not None else _product_covariance(dy, other, variance)
            back = GradientMoments.of(mean, variance, covariance, tokens=tokens)
            if covariance is not None:
                positions = tuple(range(1, other.mean.ndim))
                back = replace(back, cancelled=dy.cancelled * other.mean.mean(positions) ** 2)
        else:
            back = _branch(dy, site, index)
        if isinstance(operand, Moments):
            received.append(sum_to(back, operand.shape))
        else:
            received.append(_shared(back, operand.shape))
    return received


def _branch(dy: GradientMoments, site: Site, index: int) -> GradientMoments:
    """What a summand receives. Its own share of the sum's deviation is what the gradient's tilt sees of it."""
    sign = -1.0 if site.node.op_type == "Sub" and index == 1 else 1.0
    share = _as_moments(site.operands[index]).variance / np.maximum(site.y.variance, np.finfo(float).tiny)
    rho = np.sqrt(np.clip(np.broadcast_to(share, dy.mean.shape), 0.0, 1.0))
    tilted = dy.tilted_total
    if tilted is not None:
        squared = rho**2 if rho.ndim == 1 else np.mean(rho**2, tuple(range(1, rho.ndim)))
        count = 1 if rho.ndim == 1 else rho[0].size
        independent = dy.second if rho.ndim == 1 else count * np.mean(dy.second, tuple(range(1, rho.ndim)))
        tilted = squared * tilted + (1.0 - squared) * independent
    return GradientMoments(
        sign * dy.mean,
        dy.variance,
        dy.covariance,
        dy.cancelled,
        dy.tilt * rho,
        tilted,
        dy.hessian,
        tokens=dy.tokens,
        response=dy.response,
    )


def sum_to(gradient: GradientMoments, shape: tuple[int, ...]) -> GradientMoments:
    """Sum over the axes along which an operand of this shape was broadcast."""
    if gradient.mean.shape == shape:
        return gradient
    axes, kept = _broadcast_axes(gradient.mean.shape, shape)
    if axes == tuple(range(1, gradient.mean.ndim)):
        mean = gradient.mean.sum(axes).reshape(shape)
        return GradientMoments.of(mean, np.broadcast_to(gradient.total.reshape(shape), shape))
    return GradientMoments.of(
        gradient.mean.sum(axes, keepdims=True).reshape(kept).reshape(shape),
        gradient.variance.sum(axes, keepdims=True).reshape(kept).reshape(shape),
    )


def _shared(gradient: GradientMoments, shape: tuple[int, ...]) -> ParameterGradient:
    """The gradient of an operand that all examples share: also summed over the batch."""
    elements = gradient.mean.shape
    inner = (1,) * (len(elements) - len(shape)) + shape
    inner = inner[1:] if len(inner) > len(elements) else inner
    axes, _ = _broadcast_axes(elements, inner)
    mean = gradient.mean.sum(axes, keepdims=True)
    if gradient.tokens is not None and set(gradient.tokens.axes) <= set(axes):
        tokens = gradient.tokens
        each = sum_variance(as_rows(gradient.variance, tokens.axes), tokens.shared)
        one = tuple(1 if axis in tokens.axes else n for axis, n in enumerate(elements))
        variance = each.reshape(one).sum(axes, keepdims=True)
        return ParameterGradient(mean.reshape(shape), variance.reshape(shape))
    positions = tuple(range(1, len(elements)))
    if axes == positions:
        variance = gradient.total.reshape(mean.shape)
    elif axes == (0, *positions):
        matrix = len(elements) == 1 and gradient.covariance is not None
        total = gradient.known_covariance.sum() - gradient.cancelled.sum() if matrix else gradient.total.sum()
        variance = np.full(mean.shape, max(float(total), 0.0))
    else:
        variance = gradient.variance.sum(axes, keepdims=True)
    return ParameterGradient(mean.reshape(shape), variance.reshape(shape))


def _broadcast_axes(
    elements: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    padded = (1,) * (len(elements) - len(shape)) + tuple(shape)
    axes = tuple(i for i, (n, k) in enumerate(zip(elements, padded, strict=True)) if k == 1 and n != 1)
    return axes, padded


def _at_nodes(operand: Operand) -> Array | None:
    """An operand with the nodes in the place of the batch."""
    if isinstance(operand, Moments):
        assert operand.curve is not None
        values: Array = operand.curve.values
        return values
    return operand


def _as_moments(operand: object) -> Moments:
    if isinstance(operand, Moments):
        return operand
    value = np.asarray(operand, dtype=np.float64)
    value = value[0] if value.ndim > 1 and value.shape[0] == 1 else value
    return Moments(value, np.zeros(value.shape))
