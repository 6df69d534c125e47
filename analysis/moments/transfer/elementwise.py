"""Elementwise ops, broadcasting included: one curve where every operand is a function of one latent, else independent operands.

Of independent operands, sums and products have exact moments. The correlation that the sum's latent has with its gradient falls
to each branch by its share of the standard deviation.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .. import norm_spread, skewness
from ..autocovariance import Autocovariance
from ..blocks import each, one_of
from ..curves import Seed, curve_moments, through
from ..elementwise_op import evaluate_node, partial_derivatives
from ..errors import UnknownTransferError
from ..quadrature import Array
from ..signs import is_never_negative
from ..site import Contribution, Operand, Site
from ..state import Curve, GradientMoments, Moments, ParameterGradient
from ..tokens import TokenCorrelation, as_rows, of_hadamard, of_sum, sum_variance
from ..turned import turned_to
from .blend import Blend, blend_of, gives_nothing_more, note_operands

__all__ = [
    "INDEPENDENT",
    "OPS",
    "backward",
    "forward",
    "independent_backward",
    "independent_forward",
    "sum_to",
    "to_shared",
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

_OF_POSITIVES = ("Log", "Pow", "Sqrt")

_MASKED = -1e4
"""In the place of a mask's -inf, which has no moments: a softmax makes 0 of it, too."""

INDEPENDENT = frozenset({"Add", "Sub", "Sum", "Mul"})
"""Those whose moments are exact for independent operands."""


def forward(site: Site, latent: Moments, *, alone: bool = False) -> list[Moments]:
    """Every operand that depends on the example is a function of `latent`; moments of pairs are left out if `alone`."""
    note_operands(site)
    values = evaluate_node(site.node, _operands_at_nodes(site))[0]
    if (
        site.node.op_type in _OF_POSITIVES
        and np.isnan(values).any()
        and is_never_negative(site.node.inputs[0])
    ):
        raise UnknownTransferError("a normal law gives it negative numbers, which it never gets")
    curve = site.moments(site.varying[0]).curve
    assert curve is not None
    return [curve_moments(Curve(curve.latent, values, curve.correlated), latent, alone=alone)]


def backward(
    site: Site, seeds: Sequence[Seed], latent: Moments
) -> list[list[Seed] | ParameterGradient | None]:
    """For each operand the seeds it receives, or the gradient of a shared one."""
    if site.node.op_type == "CastLike":  # its second input gives a type only
        return [list(seeds), *[None] * (len(site.operands) - 1)]
    partials = partial_derivatives(site.node, _operands_at_nodes(site))
    received: list[list[Seed] | ParameterGradient | None] = []
    for index, (operand, partial) in enumerate(zip(site.operands, partials, strict=True)):
        if operand is None or partial is None or gives_nothing_more(site, index):
            received.append(None)
            continue
        with np.errstate(all="ignore"):
            passed = [replace(seed, slope=seed.slope * partial) for seed in seeds]
        if isinstance(operand, Moments):
            received.append(passed)
        elif operand.dtype.kind == "f":
            arrived = [through(seed, latent) for seed in passed]
            received.append(to_shared(sum(arrived[1:], arrived[0]), operand.shape))
        else:
            received.append(None)
    return received


def independent_forward(site: Site) -> list[Moments]:
    """Sums and products of operands of different latents."""
    note_operands(site)
    blend = blend_of(site)
    if blend is not None:
        site.memory[site.node] = blend
        return [blend.moments()]
    operands = [_as_moments(operand) for operand in site.operands]
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    if site.node.op_type == "Mul":
        a, b = operands
        mean, second = a.mean * b.mean, a.second * b.second
        variance = np.maximum(second - mean**2, 0.0)
        tokens = of_hadamard([(o.tokens, o.mean, o.variance) for o in (a, b)], variance)
        lags = None if tokens is not None else _product_lags(a, b, variance)
        return [Moments(mean, variance, tokens=tokens, lags=lags)]
    signs = [1.0, -1.0] if site.node.op_type == "Sub" else [1.0] * len(operands)
    parts = [[np.broadcast_to(a, shape) for a in (o.mean, o.variance)] for o in operands]
    mean = each(
        lambda *means: sum(sign * m for sign, m in zip(signs, means, strict=True)), *(p[0] for p in parts)
    )
    variance = each(lambda *variances: sum(variances), *(p[1] for p in parts))
    same = all(operand.shape == shape for operand in operands)
    if any(operand.tokens is not None for operand in operands):
        alike = _in_common([o if o.shape == shape else None for o in operands])
        known = [(tokens, part[1]) for tokens, part in zip(alike, parts, strict=True)]
        return [_with_norm(Moments(mean, variance, tokens=of_sum(known, variance)), operands)]
    covariance = lags = channels = None
    if same and any(operand.covariance is not None for operand in operands):
        covariance = functools.reduce(operator.add, (operand.known_covariance for operand in operands))
    if same and any(operand.lags is not None for operand in operands):
        lags = functools.reduce(operator.add, (operand.known_lags for operand in operands))
    if same and any(operand.channels is not None for operand in operands):
        channels = functools.reduce(operator.add, (operand.known_channels for operand in operands))
    total = Moments(mean, variance, covariance, lags=lags, channels=channels)
    return [_with_norm(replace(total, skewness=skewness.of_sum(operands, signs, total)), operands)]


def _in_common(operands: Sequence[Moments | None]) -> list[TokenCorrelation | None]:
    """Their correlation as of sequences with tokens on the same axes: all but the last, where one has its tokens there."""
    known = {o.tokens.axes for o in operands if o is not None and o.tokens is not None}
    mixed = [
        o for o in operands if o is not None and o.tokens is not None and o.mean.ndim - 1 in o.tokens.axes
    ]
    if not mixed or (len(known) == 1 and len(mixed) == len(operands)):
        return [None if o is None else o.tokens for o in operands]
    axes = tuple(range(mixed[0].mean.ndim - 1))
    return [None if o is None else turned_to(o, axes) for o in operands]


def _product_lags(a: Moments | GradientMoments, b: Moments, variance: Array) -> Autocovariance | None:
    """Autocovariance of a product of independent tensors with positions: (K_a + A)(K_b + B) - A B, A the products of a's means.

    What is broadcast along positions, as a gate of whole channels, is the same at all of them.
    """
    if variance.ndim < 2 or any(x.mean.ndim != variance.ndim or len(x.mean) != len(variance) for x in (a, b)):
        return None
    axes = tuple(range(1, variance.ndim))
    products = [Autocovariance.of_products(np.broadcast_to(x.mean, variance.shape)) for x in (a, b)]
    raw = [_lags_of(x, variance.shape) + product for x, product in zip((a, b), products, strict=True)]
    covariance: Autocovariance = raw[0] * raw[1] - products[0] * products[1]
    return covariance.with_lag0(variance.mean(axes))


def _lags_of(x: Moments | GradientMoments, shape: tuple[int, ...]) -> Autocovariance:
    if x.mean.shape == shape:
        return x.known_lags
    return Autocovariance.constant(x.variance.mean(tuple(range(1, len(shape)))), shape[1:])


def _with_norm(total: Moments, operands: Sequence[Moments]) -> Moments:
    return replace(total, norm_spread=norm_spread.of_sum(operands, total))


def independent_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """Each operand receives the gradient times the other operands' mean or square."""
    dy = gradients[0]
    assert dy is not None
    received: list[Contribution] = []
    blend = site.memory.get(site.node)
    for index, operand in enumerate(site.operands):
        if operand is None or gives_nothing_more(site, index):
            received.append(None)
            continue
        if isinstance(blend, Blend) and index == blend.index:
            received.append(blend.to_b(dy))
            continue
        if site.node.op_type == "Mul":
            other = _as_moments(site.operands[1 - index])
            mean, second = dy.mean * other.mean, dy.second * other.second
            variance = np.maximum(second - mean**2, 0.0)
            parts = [(o.tokens, o.mean, o.variance) for o in (dy, other)]
            tokens = of_hadamard(parts, variance)
            lags = None if tokens is not None else _product_lags(dy, other, variance)
            back = GradientMoments.of(mean, variance, tokens=tokens, lags=lags)
            if lags is not None:
                positions = tuple(range(1, other.mean.ndim))
                back = replace(back, cancelled=dy.cancelled * other.mean.mean(positions) ** 2)
        else:
            back = _branch(dy, site, index)
        if isinstance(operand, Moments):
            received.append(sum_to(back, operand.shape))
        else:
            received.append(to_shared(back, operand.shape))
    return received


def _branch(dy: GradientMoments, site: Site, index: int) -> GradientMoments:
    """What a summand receives. Its own share of the sum's deviation is what the gradient's tilt sees of it."""
    sign = -1.0 if site.node.op_type == "Sub" and index == 1 else 1.0
    own = np.broadcast_to(_as_moments(site.operands[index]).variance, site.y.shape)
    rho = np.broadcast_to(each(_share_of_deviation, own, site.y.variance), dy.mean.shape)
    tilted = dy.tilted_total
    if tilted is not None:
        squared, independent = (_summed(each(np.square, rho)) / math.prod(rho.shape[1:]), _summed(dy.second))
        tilted = squared * tilted + (1.0 - squared) * independent
    mean = dy.mean if sign > 0 else each(np.negative, dy.mean)
    return replace(
        dy,
        mean=mean,
        tilt=each(np.multiply, dy.tilt, rho),
        tilted_total=tilted,
        skew=None if dy.skew is None else dy.skew * sign * _skew_share(rho, dy.skew),
        drawn=None,
        steps=None,
        scale_free=None,
        normalised_total=None,
        constraint=None,
        token_tilt=None,
    )


def _skew_share(rho: Array, skew: Array) -> Array:
    """The share of the deviation, one for all positions where `skew` has one."""
    if rho.ndim < 2:
        return rho
    positions = tuple(range(1, rho.ndim))
    return np.asarray(one_of(rho, positions).mean(positions, keepdims=True))


def _share_of_deviation(own: Array, whole: Array) -> Array:
    return np.sqrt(np.clip(own / np.maximum(whole, np.finfo(float).tiny), 0.0, 1.0))


def _summed(elements: Array) -> Array:
    """Sum over positions."""
    positions = tuple(range(1, elements.ndim))
    return np.asarray(one_of(elements, positions).mean(positions) * math.prod(elements.shape[1:]))


def sum_to(gradient: GradientMoments, shape: tuple[int, ...]) -> GradientMoments:
    """Sum over the axes along which an operand of this shape was broadcast."""
    if gradient.mean.shape == shape:
        return gradient
    axes, kept = _broadcast_axes(gradient.mean.shape, shape)
    if axes == tuple(range(1, gradient.mean.ndim)):
        # Of one example, and less over a batch whose sum a normalisation has made vanish.
        mean, lags = gradient.mean.sum(axes).reshape(shape), gradient.known_lags
        each_one = np.maximum(lags.count * lags.total(), gradient.total)
        back = GradientMoments.of(mean, np.broadcast_to(each_one.reshape(shape), shape))
        return replace(back, cancelled=each_one - gradient.total)
    return GradientMoments.of(
        gradient.mean.sum(axes, keepdims=True).reshape(kept).reshape(shape),
        gradient.variance.sum(axes, keepdims=True).reshape(kept).reshape(shape),
    )


def to_shared(gradient: GradientMoments, shape: tuple[int, ...]) -> ParameterGradient:
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


def _operands_at_nodes(site: Site) -> list[Array | None]:
    arrays = [_at_nodes(operand) for operand in site.operands]
    if site.node.op_type not in ("Add", "Where"):
        return arrays
    return [x if x is None or x.dtype.kind != "f" else np.where(np.isneginf(x), _MASKED, x) for x in arrays]


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
    value = np.where(np.isneginf(value), _MASKED, value)
    value = value[0] if value.ndim > 1 and value.shape[0] == 1 else value
    return Moments(value, np.zeros(value.shape))
