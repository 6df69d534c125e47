"""Gradients of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import Tensor, where
from .convolution import Window, input_gradient
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def max_pool(g: Adjoint) -> Gradients:
    """y = the largest element of each window, the first one where several tie, as in PyTorch."""
    x = g.x
    if g.attribute("storage_order", 0):
        raise g.unsupported("column-major storage_order")
    indices = g.extra_output(1, ir.DataType.INT64)
    window = Window.of(g, g.attribute("kernel_shape", ()))
    if g.attribute("ceil_mode", 0):
        _lengths(g, window)
    if _is_partition(g, window):
        return (
            g.builder.op(
                "MaxUnpool", g.dy, indices, x.shape(), kernel_shape=window.kernel, strides=window.strides
            ),
        )
    flat = x.zeros_like().reshape(-1)
    added = g.builder.op(
        "ScatterElements", flat, indices.reshape(-1), g.dy.reshape(-1), axis=0, reduction="add"
    )
    return (added.reshape_like(x),)


def _is_partition(g: Adjoint, window: Window) -> bool:
    """Whether each element of the input lies in exactly one window."""
    if window.kernel != window.strides or any(window.pads) or max(window.dilations) > 1:
        return False
    lengths = [(g.x.length(axis), g.y.length(axis)) for axis in window.axes]
    return all(
        isinstance(x, int) and isinstance(y, int) and x == y * taps
        for (x, y), taps in zip(lengths, window.kernel, strict=True)
    )


def average_pool(g: Adjoint) -> Gradients:
    """y = the mean of each window: dy is divided by the window's size and spread over it."""
    window = Window.of(g, g.attribute("kernel_shape", ()))
    share = g.dy / _window_sizes(g, window)
    if _is_partition(g, window):
        return (_repeated(share, window),)
    return (_spread(g, share, _reaching(g, window)),)


def _repeated(x: Tensor, window: Window) -> Tensor:
    """Repeat each element over its window."""
    scales = x.builder.constant((1.0, 1.0, *window.kernel), ir.DataType.FLOAT)
    return x.builder.op(
        "Resize",
        x,
        None,
        scales,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )


def _reaching(g: Adjoint, window: Window) -> Window:
    """The window with so much padding at the end that it reaches what ceil_mode adds."""
    if not g.attribute("ceil_mode", 0):
        return window
    ends = []
    for i, (inputs, outputs) in enumerate(_lengths(g, window)):
        extent = (window.kernel[i] - 1) * window.dilations[i] + 1
        missing = (outputs - 1) * window.strides[i] + extent - inputs - window.begins[i]
        ends.append(max(missing, window.ends[i]))
    return replace(window, ends=tuple(ends))


def _lengths(g: Adjoint, window: Window) -> list[tuple[int, int]]:
    """Inputs and outputs along each spatial axis, which ceil_mode needs: a window in the padding alone is refused."""
    found = [(g.x.length(axis), g.y.length(axis)) for axis in window.axes]
    known = [(x, y) for x, y in found if isinstance(x, int) and isinstance(y, int)]
    if len(known) < len(found):
        raise g.unsupported("ceil_mode with a dynamic image size")
    for i, (inputs, _) in enumerate(known):
        extent = (window.kernel[i] - 1) * window.dilations[i] + 1
        last = -(-(window.begins[i] + inputs + window.ends[i] - extent) // window.strides[i])
        if last * window.strides[i] >= window.begins[i] + inputs:
            raise g.unsupported(
                "ceil_mode with a window that begins in the padding, which runtimes treat differently"
            )
    return known


def _window_sizes(g: Adjoint, window: Window) -> Tensor | float:
    """How many elements each window averages; fewer at the border where the padding does not count."""
    size, ceil = float(np.prod(window.kernel)), g.attribute("ceil_mode", 0)
    if not ceil and (g.attribute("count_include_pad", 0) or not any(window.pads)):
        return size
    if ceil:
        return _counted(g, window)
    attributes: dict[str, Any] = {**g.node.attributes, "count_include_pad": 1}
    covered = g.builder.op("AveragePool", g.x.zeros_like() + 1.0, **attributes)
    return covered * size


def _counted(g: Adjoint, window: Window) -> Tensor:
    """The elements, or elements and padding, under each window: taps that ceil_mode puts beyond both never count."""
    padding = g.attribute("count_include_pad", 0)
    sizes = np.ones((1, 1, *[1] * len(window.kernel)))
    for i, (inputs, outputs) in enumerate(_lengths(g, window)):
        taps = np.arange(window.kernel[i]) * window.dilations[i]
        places = np.arange(outputs)[:, None] * window.strides[i] + taps - window.begins[i]
        first, last = (-window.begins[i], inputs + window.ends[i]) if padding else (0, inputs)
        counts = ((places >= first) & (places < last)).sum(1)
        sizes = sizes * counts.reshape(-1, *[1] * (len(window.kernel) - 1 - i))
    return g.builder.constant(sizes, g.dy.dtype)


def lp_pool(g: Adjoint) -> Gradients:
    """y = (sum |x|^p)^(1/p) over each window, padding 0: dx = sign(x) |x|^(p-1) times dy y^(1-p) spread over the windows."""
    if g.attribute("ceil_mode", 0):
        raise g.unsupported("ceil_mode; pad the input explicitly instead")
    window, p = Window.of(g, g.attribute("kernel_shape", ())), float(g.attribute("p", 2))
    zero = g.y.equals(0.0)
    share = where(zero, 0.0, g.dy * where(zero, 1.0, g.y) ** (1.0 - p))
    return (_spread(g, share, window) * g.x.sign() * g.x.abs() ** (p - 1.0),)


def _spread(g: Adjoint, share: Tensor, window: Window) -> Tensor:
    """Add each output's share to every input of its window: one plane of ones spreads all channels, folded into the batch."""
    planes = share.reshape(-1, 1, *(g.y.length(axis) for axis in window.axes))
    ones = g.builder.constant(np.ones((1, 1, *window.kernel)), g.dy.dtype)
    return input_gradient(planes, ones, g.x, g.y, window, 1).reshape_like(g.x)


def global_average_pool(g: Adjoint) -> Gradients:
    """y = the mean over all spatial axes."""
    return ((g.dy / g.x.count(range(2, g.rank()))).expand_like(g.x),)


def global_max_pool(g: Adjoint) -> Gradients:
    """y = the largest element over all spatial axes; those that tie share the gradient, as torch.amax does."""
    attained = g.x.equals(g.y).cast_like(g.dy)
    return (g.dy * attained / attained.sum(range(2, g.rank())),)


def global_lp_pool(g: Adjoint) -> Gradients:
    """y = (sum |x|^p)^(1/p) over all spatial axes; 0 where y is 0."""
    p, zero = float(g.attribute("p", 2)), g.y.equals(0.0)
    share = where(zero, 0.0, g.dy * where(zero, 1.0, g.y) ** (1.0 - p))
    return (share * g.x.sign() * g.x.abs() ** (p - 1.0),)
