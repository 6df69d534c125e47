"""Gradients of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import Tensor
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
    if g.attribute("ceil_mode", 0):
        raise g.unsupported("ceil_mode; pad the input explicitly instead")
    share = g.dy / _window_sizes(g, window)
    if _is_partition(g, window):
        return (_repeated(share, window),)
    # With the channels folded into the batch, one plane of ones spreads all of them.
    planes = share.reshape(-1, 1, *(g.y.length(axis) for axis in window.axes))
    ones = g.builder.constant(np.ones((1, 1, *window.kernel)), g.dy.dtype)
    return (input_gradient(planes, ones, g.x, g.y, window, 1).reshape_like(g.x),)


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


def _window_sizes(g: Adjoint, window: Window) -> Tensor | float:
    """How many elements each window averages; fewer at the border where the padding does not count."""
    size = float(np.prod(window.kernel))
    if g.attribute("count_include_pad", 0) or not any(window.pads):
        return size
    attributes: dict[str, Any] = {**g.node.attributes, "count_include_pad": 1}
    covered = g.builder.op("AveragePool", g.x.zeros_like() + 1.0, **attributes)
    return covered * size


def global_average_pool(g: Adjoint) -> Gradients:
    """y = the mean over all spatial axes."""
    return ((g.dy / g.x.count(range(2, g.rank()))).expand_like(g.x),)


def global_max_pool(g: Adjoint) -> Gradients:
    """y = the largest element over all spatial axes; those that tie share the gradient, as torch.amax does."""
    attained = g.x.equals(g.y).cast_like(g.dy)
    return (g.dy * attained / attained.sum(range(2, g.rank())),)
