"""Gradients of elementwise arithmetic. All of these broadcast; the engine sums over the broadcast axes.

Where the derivative does not exist or is a matter of choice, PyTorch's choice is taken: the two sides of a tied Min or Max
share the gradient, Clip passes it at its bounds, Abs and Sign have 0 at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ..builder import Tensor, where
from ..model import OPEN_INTERVAL
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def add(g: Adjoint) -> Gradients:
    """y = a + b."""
    return g.dy, g.dy


def sub(g: Adjoint) -> Gradients:
    """y = a - b."""
    return g.dy, -g.dy


def mul(g: Adjoint) -> Gradients:
    """y = a b."""
    a, b = g.input(0), g.input(1)
    return g.dy * b, g.dy * a


def div(g: Adjoint) -> Gradients:
    """y = a / b."""
    b = g.input(1)
    da = g.dy / b
    return da, -da * g.y


def pow_(g: Adjoint) -> Gradients:
    """y = x^p. The gradient of p is 0 where x = 0, as in PyTorch."""
    x, p = g.x, g.input(1)
    exponent = ir.convenience.get_const_tensor(p.value)
    if exponent is not None and exponent.size == 1:
        return (_power_gradient(g, float(exponent.numpy().item())),)
    p = p.cast_like(x)
    dx = where(p.equals(0.0), g.dy.zeros_like(), g.dy * p * x ** (p - 1.0))
    dp = where(x.equals(0.0), g.y * 0.0, g.y * where(x > 0.0, x, 1.0).log())
    return dx, g.dy * dp


def _power_gradient(g: Adjoint, p: float) -> Tensor:
    if p == 0.0:
        return g.x.zeros_like()
    if p == 2.0:
        return g.dy * (2.0 * g.x)
    return g.dy * (p * g.x ** (p - 1.0))


def sum_(g: Adjoint) -> Gradients:
    """y = a + b + ...: the variadic sum."""
    return [g.dy for _ in g.inputs]


def mean(g: Adjoint) -> Gradients:
    """y = (a + b + ...) / n: the variadic mean."""
    return [g.dy / float(len(g.inputs)) for _ in g.inputs]


def max_(g: Adjoint) -> Gradients:
    """y = max(a, b, ...); those that tie share the gradient."""
    return _extremum(g)


def min_(g: Adjoint) -> Gradients:
    """y = min(a, b, ...); those that tie share the gradient."""
    return _extremum(g)


def _extremum(g: Adjoint) -> Gradients:
    inputs = [tensor for tensor in g.inputs if tensor is not None]
    attained = [tensor.equals(g.y).cast_like(g.dy) for tensor in inputs]
    if len(attained) == 1:
        return (g.dy,)
    ties = g.builder.op("Sum", *attained)
    return [g.dy * hit / ties for hit in attained]


def where_(g: Adjoint) -> Gradients:
    """y = condition ? a : b."""
    zero = g.dy.builder.constant(0.0, g.dy.dtype)
    condition = g.input(0)
    return None, where(condition, g.dy, zero), where(condition, zero, g.dy)


def clip(g: Adjoint) -> Gradients:
    """y = min(max(x, low), high); the bounds pass the gradient to x, as torch.clamp does, but not those of an open interval."""
    x, low, high = g.x, g.optional(1), g.optional(2)
    at_bound = OPEN_INTERVAL in g.node.metadata_props
    below = None if low is None else x <= low if at_bound else x < low
    above = None if high is None else x >= high if at_bound else x > high
    outside = [side.cast_like(x) for side in (below, above) if side is not None]
    if not outside:
        return (g.dy,)
    inside = 1.0 - (outside[0] if len(outside) == 1 else outside[0] + outside[1])
    return (
        g.dy * inside,
        None if below is None else g.dy * below.cast_like(x),
        None if above is None else g.dy * above.cast_like(x),
    )


def neg(g: Adjoint) -> Gradients:
    """y = -x."""
    return (-g.dy,)


def abs_(g: Adjoint) -> Gradients:
    """y = |x|."""
    return (g.dy * g.x.sign(),)


def sqrt(g: Adjoint) -> Gradients:
    """y = sqrt(x)."""
    return (g.dy * 0.5 / g.y,)


def exp(g: Adjoint) -> Gradients:
    """y = e^x."""
    return (g.dy * g.y,)


def log(g: Adjoint) -> Gradients:
    """y = ln x."""
    return (g.dy / g.x,)


def reciprocal(g: Adjoint) -> Gradients:
    """y = 1 / x."""
    return (-g.dy * g.y.square(),)


def erf(g: Adjoint) -> Gradients:
    """y = erf(x), whose derivative is 2 / sqrt(pi) e^(-x^2)."""
    return (g.dy * (2.0 / math.sqrt(math.pi) * (-g.x.square()).exp()),)


def sin(g: Adjoint) -> Gradients:
    """y = sin x."""
    return (g.dy * g.builder.op("Cos", g.x),)


def cos(g: Adjoint) -> Gradients:
    """y = cos x."""
    return (-g.dy * g.builder.op("Sin", g.x),)


def tan(g: Adjoint) -> Gradients:
    """y = tan x, whose derivative is 1 + y^2."""
    return (g.dy * (1.0 + g.y.square()),)


def asin(g: Adjoint) -> Gradients:
    """y = arcsin x."""
    return (g.dy / (1.0 - g.x.square()).sqrt(),)


def acos(g: Adjoint) -> Gradients:
    """y = arccos x."""
    return (-g.dy / (1.0 - g.x.square()).sqrt(),)


def atan(g: Adjoint) -> Gradients:
    """y = arctan x."""
    return (g.dy / (1.0 + g.x.square()),)


def sinh(g: Adjoint) -> Gradients:
    """y = sinh x."""
    return (g.dy * _cosh(g.x),)


def cosh(g: Adjoint) -> Gradients:
    """y = cosh x."""
    return (g.dy * (0.5 * (g.x.exp() - (-g.x).exp())),)


def _cosh(x: Tensor) -> Tensor:
    return 0.5 * (x.exp() + (-x).exp())


def asinh(g: Adjoint) -> Gradients:
    """y = arsinh x, whose derivative is 1 / cosh y: x^2 could overflow."""
    return (g.dy / _cosh(g.y),)


def acosh(g: Adjoint) -> Gradients:
    """y = arcosh x."""
    return (g.dy / (g.x.square() - 1.0).sqrt(),)


def atanh(g: Adjoint) -> Gradients:
    """y = artanh x."""
    return (g.dy / (1.0 - g.x.square()),)


def mod(g: Adjoint) -> Gradients:
    """y = a - q b, where the whole number q = (a - y) / b counts as constant."""
    a, b = g.input(0), g.input(1)
    return g.dy, -g.dy * g.builder.op("Round", (a - g.y) / b)


def identity(g: Adjoint) -> Gradients:
    """y = x."""
    return (g.dy,)


def cast(g: Adjoint) -> Gradients:
    """y = x in another floating-point type."""
    return (g.dy.cast_like(g.x),)


def constant(g: Adjoint) -> Gradients:
    """Ops that are piecewise constant (Sign, Floor, Ceil, Round) pass no gradient."""
    return (g.x.zeros_like(),)
