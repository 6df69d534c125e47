"""Gradients of convolutions with explicit pads (lowering turns auto_pad into explicit pads first).

With x [N, C, *S], w [O, C/G, *K], y [N, O, *P], stride s, dilation d and G groups:

    y[n, o, p] = b[o] + sum_{c, k} w[o, c, k] x[n, c, p s + k d - pad]

so that dx is the transposed convolution of dy with w, and dw[o, c, k] sums dy[n, o, p] x[n, c, p s + k d - pad] over n and
p: for each tap k a strided slice of the padded x, and for all taps together one batched matrix product. In standard ops
that is as fast as ONNX Runtime's own ConvGrad (`benchmarks kernels`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from ..builder import Tensor
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the spatial axes: one entry for each of them.

    Attributes:
        kernel: Taps.
        strides: Steps of the kernel between outputs.
        dilations: Distance between taps.
        begins: Zeros before the first element.
        ends: Zeros after the last element.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, g: Adjoint, kernel: Sequence[int]) -> Window:
        """Read the attributes that Conv, ConvTranspose and the pooling ops share."""
        ones = (1,) * len(kernel)
        pads = g.attribute("pads", (0, 0) * len(kernel))
        if g.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise g.unsupported("auto_pad needs lowering to explicit pads first")
        strides, dilations = g.attribute("strides", ones), g.attribute("dilations", ones)
        return cls(tuple(kernel), strides, dilations, pads[: len(kernel)], pads[len(kernel) :])

    @property
    def axes(self) -> range:
        """The spatial axes."""
        return range(2, 2 + len(self.kernel))

    @property
    def steps(self) -> dict[str, Any]:
        """Strides and dilations as attributes."""
        return {"strides": self.strides, "dilations": self.dilations}

    @property
    def pads(self) -> tuple[int, ...]:
        """All begins, then all ends, as ONNX writes them."""
        return self.begins + self.ends


def conv(g: Adjoint) -> Gradients:
    """y = w * x + b."""
    x, w = g.x, g.input(1)
    window, group = Window.of(g, static_dims(g, w)[2:]), g.attribute("group", 1)
    dx = input_gradient(g.dy, w, x, g.y, window, group)
    dw = _weight_gradient(_padded(x, window), g.dy, w, window, group)
    return dx, dw, g.dy.sum([0, *window.axes], keepdims=False)


def conv_transpose(g: Adjoint) -> Gradients:
    """The transposed convolution of x with w [C, O/G, *K]: dx is the convolution of dy with w."""
    x, w = g.x, g.input(1)
    window, group = Window.of(g, static_dims(g, w)[2:]), g.attribute("group", 1)
    window, dy = _without_output_padding(g, window)
    dx = g.builder.op("Conv", dy, w, pads=window.pads, group=group, **window.steps)
    dw = _weight_gradient(_padded(dy, window), x, w, window, group)
    return dx, dw, g.dy.sum([0, *window.axes], keepdims=False)


def column_to_image(g: Adjoint) -> Gradients:
    """Col2Im: y [N, C, *S] sums the columns x [N, C taps, windows] where windows overlap; dx cuts dy into windows again."""
    image, kernel = g.constant_ints(1), g.constant_ints(2)
    if image is None or kernel is None:
        raise g.unsupported("its image_shape and block_shape must be constants")
    window = Window.of(g, kernel)
    counts = [_windows(window, i, length) for i, length in enumerate(image)]
    dy = _padded(g.dy, window)
    taps = [tap.unsqueeze(2) for tap in patches(dy, counts, window)]
    columns = taps[0] if len(taps) == 1 else g.builder.op("Concat", *taps, axis=2)
    return (columns.reshape(0, g.y.length(1) * len(taps), math.prod(counts)),)


def _windows(window: Window, i: int, length: int) -> int:
    """How many windows fit along spatial axis `i` of an image."""
    extent = (window.kernel[i] - 1) * window.dilations[i] + 1
    return (length + window.begins[i] + window.ends[i] - extent) // window.strides[i] + 1


def _without_output_padding(g: Adjoint, window: Window) -> tuple[Window, Tensor]:
    """Output padding takes back what the padding cut off at the end, and beyond that adds elements that no x reaches."""
    extra = g.attribute("output_padding", (0,) * len(window.kernel))
    if not any(extra):
        return window, g.dy
    ends = tuple(max(end - more, 0) for end, more in zip(window.ends, extra, strict=True))
    shortened = replace(window, ends=ends)
    reach = [_reach(shortened, i, g.x.length(axis)) for i, axis in enumerate(window.axes)]
    return shortened, g.dy.slice([0] * len(reach), reach, list(window.axes), [1] * len(reach))


def static_dims(g: Adjoint, w: Tensor) -> tuple[int, ...]:
    """The shape of a kernel, which must be known before the graph runs."""
    dims = tuple(dim for dim in w.dims or () if isinstance(dim, int))
    if w.dims is None or len(dims) < len(w.dims):
        raise g.unsupported("the shape of its kernel is not static")
    return dims


def input_gradient(dy: Tensor, w: Tensor, x: Tensor, y: Tensor, window: Window, group: int) -> Tensor:
    """Spread dy over the inputs that it came from; those that the last stride did not reach get zeros."""
    inputs, outputs = ([tensor.length(axis) for axis in window.axes] for tensor in (x, y))
    if all(isinstance(length, int) for length in inputs + outputs):
        reach = [_reach(window, i, length) for i, length in enumerate(outputs)]
        missing = [length - reached for length, reached in zip(inputs, reach, strict=True)]
        return dy.builder.op(
            "ConvTranspose", dy, w, pads=window.pads, output_padding=missing, group=group, **window.steps
        )
    return _cropped(dy.builder.op("ConvTranspose", dy, w, group=group, **window.steps), inputs, window)


def _reach(window: Window, i: int, outputs: Tensor | int) -> Tensor | int:
    """How many inputs `outputs` windows meet along spatial axis `i`, padding left out."""
    extent = (window.kernel[i] - 1) * window.dilations[i] + 1
    return outputs * window.strides[i] + (extent - window.strides[i] - window.begins[i] - window.ends[i])


def _cropped(full: Tensor, inputs: Sequence[Tensor | int], window: Window) -> Tensor:
    """Take the part of the gradient of the padded input that belongs to the input itself, of dynamic length."""
    builder, axes = full.builder, list(window.axes)
    slack = [stride - 1 for stride in window.strides]
    extended = builder.op("Pad", full, builder.ints(*[0] * len(axes), *slack), None, builder.ints(*axes))
    ends = [length + begin for length, begin in zip(inputs, window.begins, strict=True)]
    return extended.slice(window.begins, ends, axes, [1] * len(axes))


def _padded(x: Tensor, window: Window) -> Tensor:
    if not any(window.pads):
        return x
    return x.builder.op("Pad", x, x.builder.ints(*window.pads), None, x.builder.ints(*window.axes))


def _weight_gradient(padded: Tensor, dy: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """sum over n and p of dy[n, o, p] padded[n, c, p s + k d], in the shape of `w`, as `benchmarks kernels` finds fastest."""
    outputs, channels, *_ = (dim for dim in w.dims or () if isinstance(dim, int))
    if math.prod(window.kernel) < _MANY_TAPS:
        return _by_matrix_product(padded, dy, w, window, group)
    if group == 1:
        return _by_convolution(padded, dy, window)
    if group == outputs and channels == 1:
        return _by_channel(padded, dy, w, window)
    return _by_matrix_product(padded, dy, w, window, group)


_MANY_TAPS = 25
"""From here on the columns of all taps are too large to be worth writing out."""


def _by_matrix_product(padded: Tensor, dy: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """One batched product of dy with the columns of all taps."""
    outputs, channels, *_ = (dim for dim in w.dims or () if isinstance(dim, int))
    lengths = [dy.length(axis) for axis in window.axes]
    taps = patches(padded, lengths, window)
    # An empty batch leaves nothing to work out a dimension from, so that all others are given.
    places: Tensor | int = 1
    for length in lengths:
        places = length * places
    columns = [tap.reshape(-1, group, channels, 1, places) for tap in taps]
    joined = padded.builder.op("Concat", *columns, axis=3)
    joined = joined.reshape(-1, group, channels * len(taps), places).transpose(0, 1, 3, 2)
    rows = dy.reshape(-1, group, outputs // group, places)
    return (rows @ joined).sum([0], keepdims=False).reshape_like(w)


def _by_convolution(padded: Tensor, dy: Tensor, window: Window) -> Tensor:
    """Batch and channels swapped, the sum is itself a convolution of x with dy, strides and dilations swapped too."""
    axes = list(window.axes)
    x, kernel = _filled(padded).transpose(1, 0, *axes), _filled(dy).transpose(1, 0, *axes)
    found = x.builder.op("Conv", x, kernel, strides=window.dilations, dilations=window.strides)
    # Elements that the last stride did not reach would give further taps.
    return found.slice([0] * len(axes), window.kernel, axes, [1] * len(axes)).transpose(1, 0, *axes)


def _filled(x: Tensor) -> Tensor:
    """x, or an example of zeros in the place of none: from a Conv over no channels onnxruntime (seen in 1.19) never returns."""
    count, builder = x.length(0), x.builder
    if isinstance(count, int) and count > 0:
        return x
    missing = 1 if isinstance(count, int) else count.equals(0).cast(ir.DataType.INT64)
    return builder.op("Pad", x, builder.concat(0, missing), None, builder.ints(0))


def _by_channel(padded: Tensor, dy: Tensor, w: Tensor, window: Window) -> Tensor:
    """Every channel has a kernel of its own: for each tap, an elementwise product summed over batch and space."""
    taps = patches(padded, [dy.length(axis) for axis in window.axes], window)
    sums = [(dy * tap).sum([0, *window.axes], keepdims=False) for tap in taps]
    return dy.builder.op("Concat", *(total.unsqueeze(1) for total in sums), axis=1).reshape_like(w)


def patches(padded: Tensor, lengths: Sequence[Tensor | int], window: Window) -> list[Tensor]:
    """For each tap, in row-major order, the elements of `padded` that it meets: one for each of `lengths` windows."""
    axes = list(window.axes)
    found = []
    for tap in itertools.product(*(range(taps) for taps in window.kernel)):
        starts = [index * dilation for index, dilation in zip(tap, window.dilations, strict=True)]
        ends = [
            (length - 1) * stride + (start + 1)
            for length, stride, start in zip(lengths, window.strides, starts, strict=True)
        ]
        found.append(padded.slice(starts, ends, axes, window.strides))
    return found
