"""Gradients of activation functions: dx = dy * phi'(x), written with y where that saves work.

At a kink the derivative from the left is taken, as PyTorch does: ReLU, LeakyReLU and PReLU have the slope of the negative
side at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..builder import Tensor, where
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


def relu(g: Adjoint) -> Gradients:
    """y = max(x, 0). A mask times dy: many times faster than Where (`benchmarks kernels`).

    An infinite dy gives NaN where x <= 0, and 0 in PyTorch: such a step is lost either way, and NaN does not hide it.
    """
    return (g.dy * (g.y > 0.0).cast_like(g.dy),)


def leaky_relu(g: Adjoint) -> Gradients:
    """y = x for x > 0, else alpha x."""
    alpha = g.attribute("alpha", 0.01)
    positive = (g.x > 0.0).cast_like(g.dy)
    return (g.dy * (positive * (1.0 - alpha) + alpha),)


def prelu(g: Adjoint) -> Gradients:
    """y = x for x > 0, else slope x (He 2015)."""
    x, slope = g.x, g.input(1)
    positive = (x > 0.0).cast_like(g.dy)
    negative = 1.0 - positive
    return g.dy * (positive + negative * slope), g.dy * negative * x


def elu(g: Adjoint) -> Gradients:
    """y = x for x > 0, else alpha (e^x - 1), whose derivative there is y + alpha (Clevert 2015)."""
    alpha = g.attribute("alpha", 1.0)
    return (g.dy * where(g.x > 0.0, 1.0, g.y + alpha),)


def selu(g: Adjoint) -> Gradients:
    """y = gamma x for x > 0, else gamma alpha (e^x - 1) (Klambauer 2017)."""
    alpha, gamma = g.attribute("alpha", _SELU_ALPHA), g.attribute("gamma", _SELU_GAMMA)
    return (g.dy * where(g.x > 0.0, gamma, g.y + gamma * alpha),)


def celu(g: Adjoint) -> Gradients:
    """y = x for x > 0, else alpha (e^(x/alpha) - 1), whose derivative there is y / alpha + 1 (Barron 2017)."""
    alpha = g.attribute("alpha", 1.0)
    return (g.dy * where(g.x > 0.0, 1.0, g.y / alpha + 1.0),)


def sigmoid(g: Adjoint) -> Gradients:
    """y = 1 / (1 + e^-x)."""
    return (g.dy * g.y * (1.0 - g.y),)


def tanh(g: Adjoint) -> Gradients:
    """y = tanh x."""
    return (g.dy * (1.0 - g.y.square()),)


def softplus(g: Adjoint) -> Gradients:
    """y = ln(1 + e^x)."""
    return (g.dy * g.x.sigmoid(),)


def softsign(g: Adjoint) -> Gradients:
    """y = x / (1 + |x|)."""
    return (g.dy / (1.0 + g.x.abs()).square(),)


def gelu(g: Adjoint) -> Gradients:
    """y = x Phi(x), exact or by the tanh approximation (Hendrycks 2016)."""
    return (
        g.dy * (_gelu_tanh_slope(g.x) if g.attribute("approximate", "none") == "tanh" else _gelu_slope(g.x)),
    )


def _gelu_slope(x: Tensor) -> Tensor:
    cdf = 0.5 * (1.0 + (x * (1.0 / math.sqrt(2.0))).erf())
    pdf = (x.square() * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
    return cdf + x * pdf


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    square = x.square()
    t = (scale * x * (1.0 + cubic * square)).tanh()
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t.square()) * (scale * (1.0 + 3.0 * cubic * square))


def hard_sigmoid(g: Adjoint) -> Gradients:
    """y = clip(alpha x + beta, 0, 1); no gradient at or beyond the bounds."""
    inside = ((g.y > 0.0) & (g.y < 1.0)).cast_like(g.dy)
    return (g.dy * inside * g.attribute("alpha", 0.2),)


def softmax(g: Adjoint) -> Gradients:
    """y = e^x / sum e^x: dx = y (dy - sum dy y)."""
    axes = [g.attribute("axis", -1)]
    weighted = g.dy * g.y
    return (weighted - g.y * weighted.sum(axes),)


def log_softmax(g: Adjoint) -> Gradients:
    """y = x - ln sum e^x: dx = dy - e^y sum dy."""
    axes = [g.attribute("axis", -1)]
    return (g.dy - g.y.exp() * g.dy.sum(axes),)
