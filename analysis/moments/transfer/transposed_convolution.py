"""Transposed convolutions, and upsampling as one: the adjoint of a convolution forward, the convolution itself backward.

With W `[C, O / groups, *kernel]` and a stride, an input x gives y = conv'(x), the gradient is dx = conv(dy), and the weight's
the sum of x(p) dy(p + k) over positions: that of a convolution with dy in the place of its input and x in that of its gradient.

Upsampling by whole factors f is one channel by channel, of stride f: nearest with f ones, linear (half-pixel) with a triangle
of half-width f. At the border of a linear one, the part that the border pixel repeats is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Site, example_shape
from ..state import GradientMoments, Moments, ParameterGradient
from .convolution import Geometry, adjoint, gathered, weight_gradient

__all__ = ["backward", "forward", "resize_backward", "resize_forward"]


def forward(site: Site) -> Sequence[Moments]:
    """y = conv'(x) + b."""
    weight = site.array(1)
    y = _given(site, weight, Geometry.of(site, weight.shape[2:], site.attribute("group", 1)))
    if site.is_static(2):
        y = Moments(y.mean + site.array(2).reshape(-1, *[1] * (y.mean.ndim - 1)), y.variance, lags=y.lags)
    return [y]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The convolution, and the sums over positions."""
    dy = gradients[0]
    assert dy is not None
    weight = site.array(1)
    geometry = Geometry.of(site, weight.shape[2:], site.attribute("group", 1))
    positions = tuple(range(1, dy.mean.ndim))
    dbias = ParameterGradient(dy.mean.sum(positions), dy.total) if site.is_static(2) else None
    dweight = weight_gradient(_as_value(dy), site.x, _as_gradient(site.x), weight, geometry)
    return gathered(dy, weight, geometry), dweight, dbias


def resize_forward(site: Site) -> Sequence[Moments]:
    """Upsampling by whole factors."""
    site.notes.append(
        "its output's neighbouring positions are taken as equally correlated, from one pixel or from two"
    )
    return [_given(site, *_upsampling(site))]


def resize_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """Each pixel receives the sum over those that it gave to."""
    dy = gradients[0]
    assert dy is not None
    return [gathered(dy, *_upsampling(site))]


def _given(site: Site, weight: Array, geometry: Geometry) -> Moments:
    lengths = example_shape(site.node.outputs[0])[1:]
    y = adjoint((weight.shape[1] * geometry.groups, *lengths), _as_gradient(site.x), weight, geometry)
    return Moments(y.mean, y.variance, lags=y.lags)


def _as_gradient(x: Moments) -> GradientMoments:
    return GradientMoments.of(x.mean, x.variance, lags=x.known_lags)


def _as_value(dy: GradientMoments) -> Moments:
    """What batch normalisation has cancelled in the sum over positions is missing at every lag alike."""
    missing = (dy.cancelled / dy.mean[0].size ** 2).reshape(-1, *[1] * (dy.mean.ndim - 1))
    return Moments(dy.mean, dy.variance, lags=dy.known_lags - missing)


def _upsampling(site: Site) -> tuple[Array, Geometry]:
    x, y = site.x.shape, example_shape(site.node.outputs[0])
    mode, place = (
        _text(site, name, default)
        for name, default in (("mode", "nearest"), ("coordinate_transformation_mode", "half_pixel"))
    )
    whole = len(x) == len(y) > 1 and x[0] == y[0] and all(m % n == 0 for n, m in zip(x, y, strict=True))
    if not whole or mode not in ("nearest", "linear") or (mode == "linear" and place != "half_pixel"):
        raise UnknownTransferError("it is no upsampling of positions by whole factors, nearest or linear")
    factors = tuple(m // n for n, m in zip(x[1:], y[1:], strict=True))
    taps = [np.ones(f) if mode == "nearest" else _triangle(f) for f in factors]
    kernel = functools.reduce(np.multiply.outer, taps)
    pads = tuple(((len(tap) - f) // 2,) * 2 for tap, f in zip(taps, factors, strict=True))
    weight = np.broadcast_to(kernel, (x[0], 1, *kernel.shape))
    return weight, Geometry(factors, (1,) * len(factors), pads, x[0], kernel.shape)


def _triangle(factor: int) -> Array:
    """Weights of a pixel for the pixels around it, a `factor`-th of a step apart, of which half lie on either side."""
    offsets = np.arange(-factor + (factor % 2 == 0) * 0.5 + factor % 2, factor, 1.0)
    return np.asarray(1.0 - np.abs(offsets) / factor)


def _text(site: Site, name: str, default: str) -> str:
    value: str | bytes = site.attribute(name, default)
    return value.decode() if isinstance(value, bytes) else value
