"""Gradients of ops that move elements without changing them: the elements of dy move back."""

from __future__ import annotations

from collections.abc import Sequence

from ..builder import Tensor
from .broadcast import sum_to
from .engine import Adjoint
from .indexing import padded

Gradients = Sequence["Tensor | None"]


def reshape(g: Adjoint) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze: dx has the shape of x again."""
    return (g.dy.reshape_like(g.x),)


def transpose(g: Adjoint) -> Gradients:
    """y = x with its axes permuted: dx permutes them back."""
    rank = g.rank()
    perm = g.attribute("perm", tuple(reversed(range(rank))))
    return (g.dy.transpose(*sorted(range(rank), key=perm.__getitem__)),)


def reverse_sequence(g: Adjoint) -> Gradients:
    """y = x with the first elements of each example, as many as it has, in the opposite order: the same once more undoes it."""
    batch, time = g.attribute("batch_axis", 1), g.attribute("time_axis", 0)
    return (g.builder.op("ReverseSequence", g.dy, g.input(1), batch_axis=batch, time_axis=time),)


def expand(g: Adjoint) -> Gradients:
    """y = x broadcast to a shape."""
    return (sum_to(g.dy, g.x, g.y.dims, [None]),)


def tile(g: Adjoint) -> Gradients:
    """y = x repeated along its axes: the copies' gradients are added up."""
    rank = g.rank()
    repeats = g.constant_ints(1)
    counts = [g.input(1).slice([i], [i + 1], [0], [1]) for i in range(rank)] if repeats is None else repeats
    parts = [part for axis in range(rank) for part in (counts[axis], g.x.length(axis))]
    copies = g.builder.op("Reshape", g.dy, g.builder.concat(*parts), allowzero=1)
    return (copies.sum(range(0, 2 * rank, 2), keepdims=False),)


def concat(g: Adjoint) -> Gradients:
    """y = [a, b, ...]: dy is cut where the inputs meet."""
    axis = g.attribute("axis", 0)
    present = [tensor for tensor in g.inputs if tensor is not None]
    if len(present) == 1:
        return (g.dy,)
    sizes = g.builder.concat(*(tensor.length(axis) for tensor in present))
    return g.builder.ops("Split", g.dy, sizes, dtypes=[None] * len(present), axis=axis)


def split(g: Adjoint) -> Gradients:
    """[y1, y2, ...] = x: the gradients are put together again."""
    parts = [
        gradient if gradient is not None else output.zeros_like()
        for output, gradient in zip(g.outputs, g.output_gradients, strict=True)
    ]
    return (g.builder.op("Concat", *parts, axis=g.attribute("axis", 0)),)


def pad(g: Adjoint) -> Gradients:
    """y = x with elements added around it, or taken off where a pad is negative: dx undoes both."""
    if g.attribute("mode", "constant") != "constant":
        return padded(g)
    return (g.builder.op("Pad", g.dy, -g.input(1), None, g.optional(3)),)


def triangle(g: Adjoint) -> Gradients:
    """y = the upper or the lower triangle of x."""
    return (g.builder.op("Trilu", g.dy, g.optional(1), upper=g.attribute("upper", 1)),)


def depth_to_space(g: Adjoint) -> Gradients:
    """y [N, C, H b, W b] = blocks of x [N, C b b, H, W], whose channels are ordered [b, b, C] (DCR) or [C, b, b] (CRD)."""
    size = g.attribute("blocksize", 1)
    if g.attribute("mode", "DCR") == "DCR":
        return (g.builder.op("SpaceToDepth", g.dy, blocksize=size),)
    lengths = [g.y.length(1), g.x.length(2), size, g.x.length(3), size]
    return (g.dy.reshape(0, *lengths).transpose(0, 1, 3, 5, 2, 4).reshape_like(g.x),)


def space_to_depth(g: Adjoint) -> Gradients:
    """The inverse of DepthToSpace."""
    return (g.builder.op("DepthToSpace", g.dy, blocksize=g.attribute("blocksize", 1)),)
