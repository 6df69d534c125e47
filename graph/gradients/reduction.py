"""Gradients of reductions. The gradient of the reduced tensor, with its axes put back, broadcasts over the input."""

from __future__ import annotations

from collections.abc import Sequence

from ..builder import Tensor, where
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def reduce_sum(g: Adjoint) -> Gradients:
    """y = sum x."""
    return (_kept(g, g.dy).expand_like(g.x),)


def reduce_mean(g: Adjoint) -> Gradients:
    """y = sum x / n."""
    return ((_kept(g, g.dy) / g.x.count(_axes(g))).expand_like(g.x),)


def reduce_sum_square(g: Adjoint) -> Gradients:
    """y = sum x^2."""
    return (_kept(g, g.dy) * (2.0 * g.x),)


def reduce_l1(g: Adjoint) -> Gradients:
    """y = sum |x|."""
    return (_kept(g, g.dy) * g.x.sign(),)


def reduce_l2(g: Adjoint) -> Gradients:
    """y = sqrt(sum x^2); 0 where the norm is 0, as in PyTorch."""
    norm = _kept(g, g.y)
    return (_kept(g, g.dy) * g.x / (norm + norm.equals(0.0).cast_like(norm)),)


def reduce_prod(g: Adjoint) -> Gradients:
    """y = product x: the gradient is the product of the others, which one zero among them makes 0."""
    zero = g.x.equals(0.0)
    x, axes = where(zero, 1.0, g.x), _axes(g)
    product = g.builder.op("ReduceProd", x, *([] if axes is None else [g.builder.ints(*axes)]), keepdims=1)
    zeros = zero.cast_like(x).sum(axes)
    others = zeros - zero.cast_like(x)
    return (_kept(g, g.dy) * product / x * others.equals(0.0).cast_like(x),)


def cumulative_sum(g: Adjoint) -> Gradients:
    """y_i = x_1 + ... + x_i along an axis: x_i is part of y_i and all that follow, so dy is summed from the other end."""
    exclusive, reverse = g.attribute("exclusive", 0), g.attribute("reverse", 0)
    return (g.builder.op("CumSum", g.dy, g.input(1), exclusive=exclusive, reverse=1 - reverse),)


def reduce_log_sum(g: Adjoint) -> Gradients:
    """y = ln sum x."""
    return ((_kept(g, g.dy) / _kept(g, g.y).exp()).expand_like(g.x),)


def reduce_log_sum_exp(g: Adjoint) -> Gradients:
    """y = ln sum e^x: the gradient is the softmax."""
    return (_kept(g, g.dy) * (g.x - _kept(g, g.y)).exp(),)


def reduce_extremum(g: Adjoint) -> Gradients:
    """y = max x or min x; elements that tie share the gradient, as torch.amax does."""
    attained = g.x.equals(_kept(g, g.y)).cast_like(g.dy)
    return (_kept(g, g.dy) * attained / attained.sum(_axes(g)),)


def _axes(g: Adjoint) -> list[int] | None:
    """The reduced axes as numbers from 0; None where the op reduces all."""
    axes = () if g.optional(1) is None else g.constant_ints(1)
    if axes is None:
        raise g.unsupported("its axes are computed at run time")
    if not axes and g.attribute("noop_with_empty_axes", 0):
        raise g.unsupported("it reduces no axis; leave it out of the model")
    rank = g.rank() if axes else 0
    return sorted(axis % rank for axis in axes) or None


def _kept(g: Adjoint, reduced: Tensor) -> Tensor:
    """A tensor of the output's shape with the reduced axes put back as axes of length 1, where it is no scalar."""
    axes = _axes(g)
    return reduced if g.attribute("keepdims", 1) or axes is None else reduced.unsqueeze(*axes)
